"""Importance: a score for each unit of a model, and reordering by it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_nas.importance.gradient import gradient
from hf_nas.importance.head_gradient import HeadOrder, head_gradient, michel, michel_order, order_heads
from hf_nas.importance.magnitude import magnitude
from hf_nas.importance.movement import MovementScores, MovementSettings, MovementSparsity, unit_scores
from hf_nas.importance.order_record import OrderRecord
from hf_nas.importance.reorder import reorder
from hf_nas.structures import ModelStructure


__all__ = [
    "HeadOrder",
    "Importance",
    "MovementScores",
    "MovementSettings",
    "MovementSparsity",
    "OrderRecord",
    "get_importance",
    "gradient",
    "head_gradient",
    "magnitude",
    "michel",
    "michel_order",
    "order_heads",
    "register_importance",
    "reorder",
    "unit_scores",
]

# Scores by sub-layer name, from the model, its structure and batches of its task, which are made as they are read.
Importance = Callable[[PreTrainedModel, ModelStructure, Iterable[Mapping[str, Any]]], dict[str, torch.Tensor]]

_IMPORTANCES: dict[str, Importance] = {"magnitude": magnitude, "gradient": gradient, "michel": michel}


def register_importance(name: str, importance: Importance) -> None:
    """Make an importance known under a name: a function of model, structure and batches that returns scores."""
    _IMPORTANCES[name] = importance


def get_importance(name: str) -> Importance:
    """The importance of this name.

    Raises:
        ValueError: if it is not known.
    """
    if name not in _IMPORTANCES:
        raise ValueError(
            f"Unknown importance {name!r}; choose none, movement or one of {', '.join(_IMPORTANCES)}, or make yours "
            "known with hf_nas.importance.register_importance()."
        )
    return _IMPORTANCES[name]
