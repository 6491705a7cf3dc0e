"""From a model to the Pareto set of its sub-networks, with a super-network or without."""

from trainer_plugins.search.run import ScoredRows, SearchOutcome, run_search
from trainer_plugins.search.standard_nas import run_standard_nas


__all__ = [
    "ScoredRows",
    "SearchOutcome",
    "run_search",
    "run_standard_nas",
]
