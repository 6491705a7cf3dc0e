"""Multi-objective search over the sub-networks of a trained super-network."""

from hf_nas.search.evaluator import SuperNetworkEvaluator
from hf_nas.search.methods import SearchMethod, get_search_method, register_search_method
from hf_nas.search.objectives import Objective, error_objective, macs_objective, parameters_objective
from hf_nas.search.pareto import hypervolume, knee_index, pareto_indices
from hf_nas.search.result import Evaluated, SearchResult
from hf_nas.search.selection import choose
from hf_nas.search.study import search


__all__ = [
    "Evaluated",
    "Objective",
    "SearchMethod",
    "SearchResult",
    "SuperNetworkEvaluator",
    "choose",
    "error_objective",
    "get_search_method",
    "hypervolume",
    "knee_index",
    "macs_objective",
    "parameters_objective",
    "pareto_indices",
    "register_search_method",
    "search",
]
