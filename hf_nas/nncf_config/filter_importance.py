"""Importance of units by the norms of the filters that write them, as stages with `reorg_weights` order them."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from hf_nas.nncf_config.elasticity import FILTER_IMPORTANCES
from hf_nas.ops import output_size
from hf_nas.structures import ModelStructure, SubLayer


__all__ = ["filter_importance"]

# From the filters as rows, shape (channels, inputs), to one number for each.
_NORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "L1": lambda filters: filters.abs().sum(dim=1),
    "L2": lambda filters: filters.norm(dim=1),
    "geometric_median": lambda filters: torch.cdist(filters, filters).sum(dim=1),
}


def filter_importance(model: PreTrainedModel, structure: ModelStructure, norm: str = "L1") -> dict[str, torch.Tensor]:
    """Sum over the layers that write a unit of the norms of its filters.

    Args:
        model: described by `structure`.
        structure: its structure.
        norm: `filter_importance` of the configuration: "L1", "L2", or "geometric_median" (the sum of the distances to
            all other filters).

    Returns:
        A score for each unit by sub-layer name, each of shape `(units,)` on the CPU, for `hf_nas.importance.reorder`.

    Raises:
        ValueError: for another norm.
    """
    if norm not in _NORMS:
        raise ValueError(f"There is no filter importance {norm!r}; choose from {', '.join(FILTER_IMPORTANCES)}.")
    base = model.base_model
    return {s.name: _scores(base, s, _NORMS[norm]) for s in structure if s.units}


def _scores(base: torch.nn.Module, sub_layer: SubLayer, norm: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    layout, units = sub_layer.layout, sub_layer.units
    total = torch.zeros(units, dtype=torch.double)
    for path in layout.writers:
        writer = sub_layer.module(base, path)
        weight = writer.weight.detach().double().cpu()
        filters = weight if isinstance(writer, torch.nn.Linear) else weight.T
        # Fused projections hold the filters of query, key and value one after the other.
        for block in filters.split([units * size for size in sub_layer.blocks(output_size(writer))]):
            total += norm(block).view(units, -1).sum(dim=1)
    return total
