"""Put the units of a model in order of importance, so that its first k units are its k best.

The model computes the same function afterwards: units are interchangeable.
"""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.ops import output_size, unit_features
from hf_nas.structures import ModelStructure, SubLayer


def _permute(parameter: nn.Parameter | None, positions: torch.Tensor, dim: int) -> None:
    if parameter is not None:
        parameter.data.copy_(parameter.data.index_select(dim, positions.to(parameter.device)))


def _orders(structure: ModelStructure, scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Unit ids by falling score. Attentions that share one position bias (T5) share one order, by summed scores."""
    shared: dict[str, torch.Tensor] = {}
    for sub_layer in structure:
        if sub_layer.layout.position_bias and sub_layer.name in scores:
            total = shared.get(sub_layer.stack, torch.zeros_like(scores[sub_layer.name]))
            shared[sub_layer.stack] = total + scores[sub_layer.name]
    orders = {}
    for sub_layer in structure:
        if sub_layer.name in scores:
            score = shared[sub_layer.stack] if sub_layer.layout.position_bias else scores[sub_layer.name]
            orders[sub_layer.name] = torch.argsort(score, descending=True, stable=True)
    return orders


def _permute_sub_layer(base: nn.Module, sub_layer: SubLayer, order: torch.Tensor) -> None:
    layout = sub_layer.layout
    for path in layout.writers:
        writer = sub_layer.module(base, path)
        features = output_size(writer) // (layout.fused * sub_layer.units)
        positions = unit_features(order, features, sub_layer.units, layout.fused)
        _permute(writer.weight, positions, 0 if isinstance(writer, nn.Linear) else 1)
        _permute(getattr(writer, "bias", None), positions, 0)
    reader = sub_layer.module(base, layout.reader)
    positions = unit_features(order, sub_layer.features, sub_layer.units)
    _permute(reader.weight, positions, 1 if isinstance(reader, nn.Linear) else 0)
    if layout.position_bias:
        table = getattr(sub_layer.module(base, layout.core), "relative_attention_bias", None)
        if table is not None:
            _permute(table.weight, order, 1)


def reorder(
    model: PreTrainedModel, structure: ModelStructure, scores: Mapping[str, torch.Tensor]
) -> dict[str, list[int]]:
    """Sort the units of a model by falling importance, in place.

    Args:
        model: described by `structure`; parameters keep their identity, so an optimizer may already hold them.
        structure: its structure.
        scores: a score for each unit by sub-layer name, shape `(units,)`; sub-layers not named stay as they are.

    Returns:
        By sub-layer name, the former ids of the units in their new order.

    Raises:
        ValueError: if a score does not fit its sub-layer.
    """
    for name, score in scores.items():
        units = structure[name].units
        if score.shape != (units,):
            raise ValueError(
                f"The importance of {name!r} has shape {tuple(score.shape)}, but the sub-layer has {units} units; "
                "give one score for each."
            )
    orders = _orders(structure, scores)
    for sub_layer in structure:
        if sub_layer.name in orders:
            _permute_sub_layer(model.base_model, sub_layer, orders[sub_layer.name])
    return {name: order.tolist() for name, order in orders.items()}
