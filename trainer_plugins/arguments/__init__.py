"""Argument dataclasses for `HfArgumentParser`. Names and defaults follow the published scripts."""

from trainer_plugins.arguments.distillation import DistillationArguments
from trainer_plugins.arguments.eftnas import EftnasArguments
from trainer_plugins.arguments.head_pruning import HeadPruningArguments
from trainer_plugins.arguments.nas import NasArguments
from trainer_plugins.arguments.pruning import PruningArguments
from trainer_plugins.arguments.search import SearchArguments
from trainer_plugins.arguments.super_network import SuperNetworkArguments


__all__ = [
    "DistillationArguments",
    "EftnasArguments",
    "HeadPruningArguments",
    "NasArguments",
    "PruningArguments",
    "SearchArguments",
    "SuperNetworkArguments",
]
