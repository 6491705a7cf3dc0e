"""Importance of units by the magnitude of their weights."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_nas.ops import by_unit, output_size
from hf_nas.structures import ModelStructure, SubLayer


def _sums_of_squares(weight: torch.Tensor, dim: int) -> torch.Tensor:
    return weight.detach().double().transpose(0, dim).flatten(1).pow(2).sum(dim=1).cpu()


def _score(base: torch.nn.Module, sub_layer: SubLayer) -> torch.Tensor:
    layout, units = sub_layer.layout, sub_layer.units
    reader = sub_layer.module(base, layout.reader)
    total = _sums_of_squares(reader.weight, 1 if isinstance(reader, torch.nn.Linear) else 0).view(units, -1).sum(dim=1)
    for path in layout.writers:
        writer = sub_layer.module(base, path)
        outputs = _sums_of_squares(writer.weight, 0 if isinstance(writer, torch.nn.Linear) else 1)
        total += by_unit(outputs, sub_layer.blocks(output_size(writer)), units).sum(dim=1)
    return total.sqrt()


def magnitude(
    model: PreTrainedModel, structure: ModelStructure, batches: Iterable[Mapping[str, Any]] = ()
) -> dict[str, torch.Tensor]:
    """Euclidean norm of all weights that write or read a unit; looks at no batch.

    Returns:
        A score for each unit, by sub-layer name; each of shape `(units,)` on the CPU.
    """
    base = model.base_model
    return {sub_layer.name: _score(base, sub_layer) for sub_layer in structure if sub_layer.units}
