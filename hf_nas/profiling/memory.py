"""How much memory a sub-network needs: its parameters, and the tensors that live at once in a forward pass."""

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from hf_nas.profiling.latency import evaluation_mode, example_inputs
from hf_nas.profiling.probes import kind_of, most_units, shrink, spread_widths
from hf_nas.profiling.size import SizeTable
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork, kept_ids


__all__ = ["MemoryTable", "peak_activation_bytes"]


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operations allocate until they are freed."""

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}
        self._live = 0
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, torch.Tensor):
                self._see(output.untyped_storage())
        return outputs

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._live -= size


def peak_activation_bytes(model: PreTrainedModel, inputs: dict[str, Any]) -> int:
    """The most bytes that tensors of a forward pass in evaluation mode occupy at one moment.

    Counted are the tensors that operations return, until the last reference to them goes, outputs of the model
    included; not the parameters, buffers and inputs, what a kernel needs inside, or the rounding of an allocator.

    Args:
        model: on any device.
        inputs: of its forward.
    """
    given = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    # In inference mode attention and others would appear as one operation, whatever they allocate on the way.
    with evaluation_mode(model), torch.no_grad():
        live = _LiveBytes([*model.parameters(), *model.buffers(), *given])
        with live:
            model(**inputs)
    return live.peak


class MemoryTable:
    """The memory of every sub-network of one model for a batch: bytes of parameters plus peak bytes of activations.

    The bytes of the parameters are exact; buffers do not count. Those of the activations are, as
    [`peak_activation_bytes`] counts them, the most that any sub-layer of the network, or embeddings and head, need.
    They are measured for each kind of sub-layer at a few widths, in a network that is one unit wide elsewhere, and
    interpolated in between: from above, since the peak is a maximum of functions that are linear in the width. So no
    network needs more than this, and one that keeps all sub-layers, in widths that were measured, needs exactly this.

    Args:
        model: without a super-network attached, in one data type, with an attention that returns no weights (`sdpa`).
        batch_size: sequences of a pass.
        sequence_length: tokens of a sequence, of the encoder if there is one.
        decoder_length: tokens of the decoder of an encoder-decoder, by default the same.
        widths: how many widths of each kind are measured.

    Raises:
        ValueError: for a model to which this does not apply, which the message says.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch_size: int = 1,
        sequence_length: int = 128,
        *,
        decoder_length: int | None = None,
        widths: int = 6,
    ):
        structure = describe(model)
        name = type(model).__name__
        dtypes = {parameter.dtype for parameter in model.parameters()}
        if len(dtypes) > 1:
            raise ValueError(
                f"{name} has parameters of the types {', '.join(sorted(map(str, dtypes)))}, so that their number does "
                "not tell their bytes; load it with one dtype."
            )
        if any(sub_layer.layout.position_bias for sub_layer in structure):
            raise ValueError(
                f"{name} keeps relative position biases in memory beside what its sub-layers need, so the memory of "
                "its sub-networks is not known; search by 'params'."
            )
        if model.config._attn_implementation == "eager":
            raise ValueError(
                f"{name} has the attention implementation 'eager', which keeps attention weights in memory beside "
                "what its sub-layers need; load it with attn_implementation='sdpa'."
            )
        if widths < 2:
            raise ValueError(f"widths is {widths}; give 2 or more.")
        self.structure = structure
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self._sizes = SizeTable(model)
        (self._bytes_per_parameter,) = {dtype.itemsize for dtype in dtypes}
        inputs = example_inputs(model, batch_size, sequence_length, decoder_length)

        def peak(kind: str | None, width: int) -> int:
            kept = {
                s.name: min(s.units, width if kind_of(s) == kind else 1) for s in structure if not s.skipped
            }  # fmt: skip
            return peak_activation_bytes(shrink(model, SubNetwork.of(structure, kept)), inputs)

        self._smallest = peak(None, 1)
        self._curves: dict[str, tuple[tuple[int, ...], list[int]]] = {}
        for kind, units in most_units(structure).items():
            if units > 1:
                counts = spread_widths(units, widths)
                self._curves[kind] = (counts, [self._smallest, *(peak(kind, width) for width in counts[1:])])

    def parameter_bytes(self, sub_network: SubNetwork) -> int:
        """Bytes of the parameters."""
        return self._sizes.parameters(sub_network) * self._bytes_per_parameter

    def activation_bytes(self, sub_network: SubNetwork) -> float:
        """Peak bytes of the activations in a forward pass.

        Raises:
            ValueError: if the sub-network leaves out hidden dimensions.
        """
        sub_network.require_full_width("a prediction of its activations")
        widest: dict[str, int] = {}
        for sub_layer, kept in zip(self.structure, sub_network.kept):
            kind = kind_of(sub_layer)
            widest[kind] = max(widest.get(kind, 0), len(kept_ids(kept)))
        peaks = (np.interp(widest[kind], *curve) for kind, curve in self._curves.items())
        return float(max(self._smallest, *peaks)) if self._curves else float(self._smallest)

    def total_bytes(self, sub_network: SubNetwork) -> float:
        """Bytes of parameters and activations together.

        Raises:
            ValueError: if the sub-network belongs to another model or leaves out hidden dimensions.
        """
        sub_network.check(self.structure)
        return self.parameter_bytes(sub_network) + self.activation_bytes(sub_network)
