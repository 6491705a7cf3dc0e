"""Put the units of a model in order of importance, so that its first k units are its k best.

The model computes the same function afterwards: units are interchangeable.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.ops import output_size, unit_features
from hf_nas.structures import ModelStructure, StackLayout, SubLayer


OptimizerState = Mapping[torch.Tensor, Mapping[str, Any]]


def _permute(parameter: torch.Tensor | None, positions: torch.Tensor, dim: int, state: OptimizerState) -> None:
    if parameter is None:
        return
    moments = [each for each in state.get(parameter, {}).values() if isinstance(each, torch.Tensor)]
    # Not through `.data`, by which what was computed with these weights could not tell that they changed.
    for tensor in (parameter.detach(), *(moment for moment in moments if moment.shape == parameter.shape)):
        tensor.copy_(tensor.index_select(dim, positions.to(tensor.device)))


def _orders(structure: ModelStructure, scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Unit ids by falling score; the same, by summed scores, for the attentions that share one position bias."""
    shared: dict[str, torch.Tensor] = {}
    for sub_layer in structure:
        if _shares_position_bias(sub_layer) and sub_layer.name in scores:
            total = shared.get(sub_layer.stack, 0)
            shared[sub_layer.stack] = total + scores[sub_layer.name].cpu()
    orders = {}
    for sub_layer in structure:
        score = shared.get(sub_layer.stack) if _shares_position_bias(sub_layer) else scores.get(sub_layer.name)
        if score is not None:
            orders[sub_layer.name] = torch.argsort(score.cpu(), descending=True, stable=True)
    return orders


def _shares_position_bias(sub_layer: SubLayer) -> bool:
    return bool(sub_layer.layout.position_bias and sub_layer.units) and not sub_layer.own_position_bias


def _permute_shared_table(
    base: nn.Module,
    stack: StackLayout,
    structure: ModelStructure,
    orders: Mapping[str, torch.Tensor],
    state: OptimizerState,
) -> None:
    """Follow the attentions with the table of position biases beside their layers (MPNet)."""
    attentions = [sub_layer for sub_layer in structure.stack(stack.name) if sub_layer.layout.position_bias]
    order = next((orders[s.name] for s in attentions if _shares_position_bias(s) and s.name in orders), None)
    if order is None:
        return
    _permute(base.get_submodule(stack.position_bias_table).weight, order, 1, state)
    for sub_layer in attentions:
        if sub_layer.own_position_bias:
            heads = sub_layer.module(base, sub_layer.layout.core).position_bias_heads
            heads.copy_(torch.argsort(order).to(heads.device)[heads])


def _permute_sub_layer(base: nn.Module, sub_layer: SubLayer, order: torch.Tensor, state: OptimizerState) -> None:
    layout = sub_layer.layout
    for path in layout.writers:
        writer = sub_layer.module(base, path)
        positions = unit_features(order, sub_layer.blocks(output_size(writer)), sub_layer.units)
        _permute(writer.weight, positions, 0 if isinstance(writer, nn.Linear) else 1, state)
        _permute(getattr(writer, "bias", None), positions, 0, state)
    reader = sub_layer.module(base, layout.reader)
    positions = unit_features(order, sub_layer.features, sub_layer.units)
    _permute(reader.weight, positions, 1 if isinstance(reader, nn.Linear) else 0, state)
    if layout.position_bias:
        core = sub_layer.module(base, layout.core)
        if getattr(core, "relative_attention_bias", None) is not None:
            _permute(core.relative_attention_bias.weight, order, 1, state)
        _permute(getattr(core, "position_bias_heads", None), order, 0, state)


def reorder(
    model: PreTrainedModel,
    structure: ModelStructure,
    scores: Mapping[str, torch.Tensor],
    optimizer_state: OptimizerState | None = None,
) -> dict[str, list[int]]:
    """Sort the units of a model by falling importance, in place.

    Args:
        model: described by `structure`; parameters keep their identity, so an optimizer may already hold them.
        structure: its structure.
        scores: a score for each unit by sub-layer name, shape `(units,)`; sub-layers not named stay as they are,
            except attentions that share a relative position bias with one that is named (T5, MPNet).
        optimizer_state: `state` of an optimizer that has begun to train the model, whose moments are sorted as well.

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
            _permute_sub_layer(model.base_model, sub_layer, orders[sub_layer.name], optimizer_state or {})
    for stack in structure.family.stacks:
        if stack.position_bias_table:
            _permute_shared_table(model.base_model, stack, structure, orders, optimizer_state or {})
    return {name: order.tolist() for name, order in orders.items()}
