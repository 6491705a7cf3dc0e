"""Rows of a data set as padded batches on the device, and their predictions back in the order of the data set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.ops import output_size
from hf_nas.structures import ModelStructure, SubLayer
from hf_nas.subnetwork import SubNetwork, kept_ids


__all__ = ["Batch", "DataCollator", "Row", "batch_factor", "in_order", "join", "make_batches", "to_array"]

Row = Mapping[str, Any]
DataCollator = Callable[[list[dict[str, Any]]], Mapping[str, Any]]

# Fills up predictions and labels of different lengths, as metrics for token tasks expect it.
_PADDING = -100


@dataclass(frozen=True)
class Batch:
    """Some rows of a data set.

    Args:
        name: apart from those of all other batches of the evaluator.
        rows: their places in the data set.
        inputs: what the model is called with, on the device; empty where another process evaluates them.
        labels: what it is not called with, one tensor a label column.
    """

    name: tuple[int, int, int]
    rows: np.ndarray
    inputs: dict[str, torch.Tensor]
    labels: tuple[torch.Tensor, ...]


def make_batches(
    rows: Sequence[dict[str, Any]],
    lengths: Sequence[int],
    part: np.ndarray,
    data_collator: DataCollator,
    batch_size: int,
    label_names: Sequence[str],
    device: torch.device,
    name: tuple[int, int],
    is_mine: Callable[[int], bool],
) -> list[Batch]:
    """Put rows of about the same length into the same batch, the longest first; rows of one length keep their order.

    Args:
        rows: of the data set.
        lengths: of the rows, in tokens.
        part: places of the rows to batch.
        data_collator: makes a padded batch of tensors of a list of rows.
        batch_size: rows a batch.
        label_names: what the collator may return for the metric and not for the model.
        device: where to.
        name: beginning of the batches' names.
        is_mine: whether this process evaluates the batch with this number.
    """
    order = sorted(part.tolist(), key=lengths.__getitem__, reverse=True)
    batches = []
    for number, start in enumerate(range(0, len(order), batch_size)):
        places = order[start : start + batch_size]
        inputs = dict(data_collator([rows[place] for place in places]))
        labels = tuple(inputs.pop(label) for label in label_names if label in inputs)
        on_device = {key: value.to(device) for key, value in inputs.items()} if is_mine(number) else {}
        batches.append(Batch((*name, number), np.array(places), on_device, labels))
    return batches


def join(batches: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """One tensor for each tensor of the batches, padded to the longest."""
    return tuple(_join(parts) for parts in zip(*batches, strict=True))


def _join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts))]
    return torch.cat([_pad(part, longest) for part in parts])


def _pad(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    missing = [size - own for size, own in zip(sizes, tensor.shape[1:])]
    if not any(missing):
        return tensor
    return nn.functional.pad(tensor, [n for size in reversed(missing) for n in (0, size)], value=_PADDING)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array on the host; half precision becomes single precision, which every metric knows."""
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).cpu().numpy()


def in_order(parts: Sequence[tuple[np.ndarray, tuple[np.ndarray, ...]]], places: np.ndarray | None = None) -> Any:
    """Arrays in the order of the data set, padded to the longest; one alone comes without a tuple around it.

    Args:
        parts: pairs of the places of some rows and their arrays, each place once.
        places: all places that the parts have, ascending; by default 0 to their number.

    Returns:
        None, where the parts have no arrays.
    """
    parts = [(rows, arrays) for rows, arrays in parts if len(rows)]
    targets = [rows if places is None else np.searchsorted(places, rows) for rows, _ in parts]
    count = sum(map(len, targets))
    joined = []
    for each in zip(*(arrays for _, arrays in parts), strict=True):
        longest = [max(sizes) for sizes in zip(*(array.shape[1:] for array in each))]
        whole = np.full((count, *longest), _PADDING, dtype=each[0].dtype)
        for target, array in zip(targets, each):
            whole[(target, *(slice(size) for size in array.shape[1:]))] = array
        joined.append(whole)
    return joined[0] if len(joined) == 1 else tuple(joined) or None


def batch_factor(model: PreTrainedModel, structure: ModelStructure, sub_network: SubNetwork, length: int) -> int:
    """How many times the full network's rows a sub-network can take at once within the same activation memory.

    Without gradients the peak is in the widest sub-layer: what its projections write and read, and the attention
    scores before and after the softmax, as attention implementations without tiles hold them. To this come six times
    the hidden states (as many as the embeddings hold at once; layers need fewer) and the attention mask.

    Args:
        model: whose structure it is.
        structure: of the model.
        sub_network: of the model.
        length: of the longest sequence.
    """
    readers = [s.module(model.base_model, s.layout.reader) for s in structure if not (s.skipped or s.norm_only)]
    always = 6 * max(map(output_size, readers), default=0) + 2 * length
    costs = [_features_of_unit(model.base_model, sub_layer, length) for sub_layer in structure]
    full = max((cost * sub_layer.units for cost, sub_layer in zip(costs, structure)), default=0)
    widest = max((cost * len(kept_ids(kept)) for cost, kept in zip(costs, sub_network.kept)), default=0)
    return int((always + full) // (always + widest))


def _features_of_unit(base_model: nn.Module, sub_layer: SubLayer, length: int) -> float:
    """Numbers a token that one unit of a sub-layer adds to the activation memory."""
    layout = sub_layer.layout
    if not sub_layer.units:
        return 0.0
    if not layout.is_attention:
        return len(layout.writers) * layout.fused + 1
    core = sub_layer.module(base_model, layout.core)
    # Keys and values under grouped-query attention are counted as wide as the queries: some room to spare.
    return 4 * sub_layer.features + 2 * length * sub_layer.features / getattr(core, layout.head_size)
