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
    bias of its output projection, and hidden dimensions into all that writes the residual stream: embedding tables,
    output projections with their biases, and the normalisations of the stream. Unlike in the published code of CoFi
    (Xia et al., 2022), nothing that reads the stream is touched, since the residual branch would then miss the value.

    Only after extraction the result computes that: before, what a zero removes still takes part in normalisations.

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
                _scale_inputs(_reader(folded, structure, name), gate.repeat_interleave(sub_layer.features))
        for name, gate in values.sub_layers.items():
            if not (structure[name].skipped or structure[name].norm_only):
                _scale_outputs(_reader(folded, structure, name), gate.reshape(1))
        if values.hidden is not None:
            _fold_hidden(folded, structure, values.hidden)
    return folded


def _reader(model: PreTrainedModel, structure: ModelStructure, name: str) -> nn.Module:
    sub_layer = structure[name]
    return sub_layer.module(model.base_model, sub_layer.layout.reader)


def _fold_hidden(model: PreTrainedModel, structure: ModelStructure, hidden: torch.Tensor) -> None:
    stream = residual_stream(model, structure)
    for module in (*stream.tables, *stream.writers, *stream.norms):
        _scale_outputs(module, hidden)
    if not stream.is_tied:
        # Where they are tied, the table that the head's outputs are multiplied with holds the value already.
        for norm in stream.head_norms:
            _scale_outputs(norm, hidden)


def _scale_outputs(module: nn.Module, gate: torch.Tensor) -> None:
    """Multiply the output features of a projection, embedding table or normalisation."""
    rows = isinstance(module, nn.Linear)
    _scale(module.weight, gate[:, None] if rows else gate)
    if getattr(module, "bias", None) is not None:
        _scale(module.bias, gate)


def _scale_inputs(module: nn.Module, gate: torch.Tensor) -> None:
    """Multiply the input features of a projection."""
    _scale(module.weight, gate[:, None] if isinstance(module, Conv1D) else gate)


def _scale(weight: nn.Parameter, gate: torch.Tensor) -> None:
    # In full precision, so that a model in half precision is rounded once.
    weight.copy_(weight.float() * gate.to(device=weight.device, dtype=torch.float32))
