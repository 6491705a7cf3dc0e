"""Measures sub-networks of a super-network on one data set, with as little around the forward passes as possible."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction
from transformers.utils import find_labels

from hf_nas.elastic import SuperNetwork
from hf_nas.subnetwork import SubNetwork


__all__ = ["SuperNetworkEvaluator"]

Tensors = torch.Tensor | tuple[torch.Tensor, ...]

# Fills up predictions and labels of different lengths, as metrics for token tasks expect it.
_PADDING = -100


def _logits(outputs: Any) -> torch.Tensor:
    logits = getattr(outputs, "logits", None)
    if logits is None:
        raise ValueError(
            f"The model returns a {type(outputs).__name__} without logits; give the evaluator a function "
            "predictions(outputs) that takes from it what the metric needs."
        )
    return logits


class SuperNetworkEvaluator:
    """Computes the metrics of sub-networks on a tokenised data set.

    The rows are sorted by length, padded batch by batch and put on the device once; a call is then one forward pass a
    batch, and the metric.

    Args:
        super_network: whose sub-networks are measured; it must be able to `activate` and tell its `active` one.
        dataset: rows with `input_ids`, with further inputs of the model and with the labels; columns that the model
            does not take are left out.
        data_collator: makes a padded batch of tensors of a list of rows.
        compute_metrics: takes an `EvalPrediction` in the order of the data set, as with `Trainer`.
        batch_size: rows a forward pass.
        device: by default where the model is.
        predictions: takes from the model's outputs what the metric needs, one or several tensors with one row an
            example; by default the logits.

    Raises:
        ValueError: for a data set without rows or without `input_ids`.
    """

    def __init__(
        self,
        super_network: SuperNetwork,
        dataset: Sequence[Mapping[str, Any]],
        data_collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
        compute_metrics: Callable[[EvalPrediction], Mapping[str, float]],
        *,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        predictions: Callable[[Any], Tensors] = _logits,
    ):
        if len(dataset) == 0:
            raise ValueError("The data set to compare sub-networks on has 0 rows; give it some.")
        if batch_size < 1:
            raise ValueError(f"A batch of {batch_size} rows is none; batch_size must be 1 or more.")
        self.super_network = super_network
        self.compute_metrics = compute_metrics
        self.predictions = predictions
        model = super_network.model
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        # In the order of the model's arguments: metrics of spans rely on the start before the end.
        label_names = [*find_labels(type(model)), "label", "label_ids"]
        columns = {*inspect.signature(type(model).forward).parameters, *label_names}
        rows = [{name: value for name, value in dataset[i].items() if name in columns} for i in range(len(dataset))]
        if "input_ids" not in rows[0]:
            raise ValueError(
                f"The data set has the columns {sorted(dataset[0])} but no 'input_ids'; tokenise it first."
            )
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]), reverse=True)
        # Row i of the data set is row position[i] of the sorted ones.
        self._position = np.argsort(order)
        self._batches: list[dict[str, torch.Tensor]] = []
        labels: list[tuple[torch.Tensor, ...]] = []
        for start in range(0, len(order), batch_size):
            batch = dict(data_collator([rows[index] for index in order[start : start + batch_size]]))
            labels.append(tuple(batch.pop(name) for name in label_names if name in batch))
            self._batches.append({name: value.to(self.device) for name, value in batch.items()})
        self._labels = self._join(labels)

    def __call__(self, sub_network: SubNetwork) -> dict[str, float]:
        """The metrics of a sub-network. The model's mode and its active sub-network are as before afterwards."""
        model = self.super_network.model
        before = self.super_network.active
        # Outside inference mode: what a super-network caches on activation must stay good for training.
        self.super_network.activate(sub_network)
        try:
            with _evaluation_mode(model), torch.inference_mode():
                outputs = [self._as_tuple(self.predictions(model(**batch))) for batch in self._batches]
                predictions = self._join(outputs)
        finally:
            self.super_network.activate(before)
        metrics = self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=self._labels))
        return {name: float(value) for name, value in metrics.items()}

    @staticmethod
    def _as_tuple(tensors: Tensors) -> tuple[torch.Tensor, ...]:
        return (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)

    def _join(self, batches: list[tuple[torch.Tensor, ...]]) -> Any:
        """One array for each tensor of the batches, in the order of the data set; without a tuple around one alone."""
        arrays = tuple(self._restore(parts) for parts in zip(*batches, strict=True))
        return arrays[0] if len(arrays) == 1 else arrays or None

    def _restore(self, parts: Sequence[torch.Tensor]) -> np.ndarray:
        longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts))]
        # One transfer from the device for all batches.
        joined = torch.cat([_pad(part, longest) for part in parts]).cpu()
        if joined.dtype in (torch.bfloat16, torch.float16):
            joined = joined.float()
        return joined.numpy()[self._position]


def _pad(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    missing = [size - own for size, own in zip(sizes, tensor.shape[1:])]
    if not any(missing):
        return tensor
    return nn.functional.pad(tensor, [n for size in reversed(missing) for n in (0, size)], value=_PADDING)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; each module has its own mode again after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
