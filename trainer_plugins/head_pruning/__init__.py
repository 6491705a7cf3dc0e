"""Pruning of attention heads: differentiable subset pruning, and the methods of Voita and Michel."""

from trainer_plugins.head_pruning.run import run_head_pruning


__all__ = [
    "run_head_pruning",
]
