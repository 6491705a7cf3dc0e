"""Importance of units by the magnitude of their weights."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_nas.ops import output_size
from hf_nas.structures import ModelStructure, SubLayer


def _sum_of_squares(weight: torch.Tensor, dim: int, units: int, fused: int = 1) -> torch.Tensor:
    rows = weight.detach().double().transpose(0, dim).flatten(1).pow(2).sum(dim=1)
    return rows.view(fused, units, -1).sum(dim=(0, 2))


def _score(base: torch.nn.Module, sub_layer: SubLayer) -> torch.Tensor:
    layout, units = sub_layer.layout, sub_layer.units
    total = torch.zeros(units, dtype=torch.double)
    for path in layout.writers:
        writer = sub_layer.module(base, path)
        dim = 0 if writer.weight.shape[0] == output_size(writer) and isinstance(writer, torch.nn.Linear) else 1
        total += _sum_of_squares(writer.weight, dim, units, layout.fused).cpu()
    reader = sub_layer.module(base, layout.reader)
    dim = 1 if isinstance(reader, torch.nn.Linear) else 0
    return (total + _sum_of_squares(reader.weight, dim, units).cpu()).sqrt()


def magnitude(
    model: PreTrainedModel, structure: ModelStructure, batches: Iterable[Mapping[str, Any]] = ()
) -> dict[str, torch.Tensor]:
    """Euclidean norm of all weights that write or read a unit; looks at no batch.

    Returns:
        A score for each unit, by sub-layer name; each of shape `(units,)` on the CPU.
    """
    base = model.base_model
    return {sub_layer.name: _score(base, sub_layer) for sub_layer in structure if sub_layer.units}
