"""Folding: the values of gates multiplied into the weights, after which the model needs no gates."""

import copy

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_nas.gates.values import GateValues
from hf_nas.structures import ModelStructure, describe
from hf_nas.structures.hidden import residual_stream


__all__ = ["fold"]


def fold(model: PreTrainedModel, values: GateValues) -> PreTrainedModel:
    """A copy of a model into whose weights the values of gates are multiplied.

    Exact for soft values: `extract(fold(model, values), values.sub_network(describe(model)))` computes what the gated
    model does. Units go into the columns of the output projection that read them, a sub-layer into the rows and the
    bias of its output projection, or into the scale of the normalisation behind that (Gemma), and hidden dimensions
    into all that writes the residual stream: embedding tables, output projections with their biases, and the
    normalisations of the stream. Unlike in the published code of CoFi (Xia et al., 2022), nothing that reads the
    stream is touched, since the residual branch would then miss the value.

    Only after extraction the result computes that: before, what a zero removes still takes part in normalisations.
    Gemma keeps the scale of a norm minus 1, so that in half precision a small one is coarse.

    Args:
        model: in full width, without gates attached; it stays as it is.
        values: of its gates.

    Raises:
        ValueError: if the values do not fit the model.
    """
    structure = describe(model)
    values.check(structure)
    folded = copy.deepcopy(model)
    with torch.no_grad():
        for name, gate in values.units.items():
            sub_layer = structure[name]
            if sub_layer.units:
                reader = sub_layer.module(folded.base_model, sub_layer.layout.reader)
                _scale_inputs(reader, gate.repeat_interleave(sub_layer.features))
        for name, gate in values.sub_layers.items():
            sub_layer = structure[name]
            if not (sub_layer.skipped or sub_layer.norm_only):
                end = sub_layer.module(folded.base_model, sub_layer.layout.branch_end)
                _scale_outputs(end, gate.reshape(1), sub_layer.layout.output_norm_offset)
        if values.hidden is not None:
            _fold_hidden(folded, structure, values.hidden)
    return folded


def _fold_hidden(model: PreTrainedModel, structure: ModelStructure, hidden: torch.Tensor) -> None:
    stream = residual_stream(model, structure)
    for module in (*stream.tables, *stream.writers, *stream.norms):
        _scale_outputs(module, hidden)
    if not stream.is_tied:
        # Where they are tied, the table that the head's outputs are multiplied with holds the value already.
        for norm in stream.head_norms:
            _scale_outputs(norm, hidden)


def _scale_outputs(module: nn.Module, gate: torch.Tensor, offset: float = 0.0) -> None:
    """Multiply the output features of a projection, embedding table or normalisation.

    Args:
        module: the one.
        gate: shape `(features,)` or `(1,)`.
        offset: what the module adds to its weight before it uses it.
    """
    rows = isinstance(module, nn.Linear)
    _scale(module.weight, gate[:, None] if rows else gate, offset)
    if getattr(module, "bias", None) is not None:
        _scale(module.bias, gate)


def _scale_inputs(module: nn.Module, gate: torch.Tensor) -> None:
    """Multiply the input features of a projection."""
    _scale(module.weight, gate[:, None] if isinstance(module, Conv1D) else gate)


def _scale(weight: nn.Parameter, gate: torch.Tensor, offset: float = 0.0) -> None:
    # In full precision, so that a model in half precision is rounded once.
    weight.copy_((weight.float() + offset) * gate.to(device=weight.device, dtype=torch.float32) - offset)
