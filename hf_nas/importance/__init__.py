"""Importance: a score for each unit of a model, and reordering by it."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from hf_nas.importance.magnitude import magnitude
from hf_nas.importance.reorder import reorder
from hf_nas.structures import ModelStructure


__all__ = ["Importance", "get_importance", "magnitude", "register_importance", "reorder"]

Importance = Callable[[PreTrainedModel, ModelStructure], dict[str, torch.Tensor]]

_IMPORTANCES: dict[str, Importance] = {"magnitude": magnitude}


def register_importance(name: str, importance: Importance) -> None:
    """Make an importance known under a name: a function of model and structure that returns scores by sub-layer."""
    _IMPORTANCES[name] = importance


def get_importance(name: str) -> Importance:
    """The importance of this name.

    Raises:
        ValueError: if it is not known.
    """
    if name not in _IMPORTANCES:
        raise ValueError(
            f"Unknown importance {name!r}; choose none or one of {', '.join(_IMPORTANCES)}, or make yours known with "
            "hf_nas.importance.register_importance()."
        )
    return _IMPORTANCES[name]
