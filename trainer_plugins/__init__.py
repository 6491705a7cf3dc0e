"""Everything that knows `Trainer`: sub-classes and argument dataclasses."""

from trainer_plugins.arguments import SearchArguments, SuperNetworkArguments, check_arguments
from trainer_plugins.search import SearchOutcome, run_search
from trainer_plugins.super_network_trainer import SuperNetworkTrainer


__all__ = [
    "SearchArguments",
    "SearchOutcome",
    "SuperNetworkArguments",
    "SuperNetworkTrainer",
    "check_arguments",
    "run_search",
]
