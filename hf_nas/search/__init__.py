"""Multi-objective search over the sub-networks of a trained super-network."""

from hf_nas.search.evaluator import SuperNetworkEvaluator
from hf_nas.search.methods import NSGA2, SearchMethod, get_search_method, published_nsga2, register_search_method
from hf_nas.search.objectives import Objective, error_objective, macs_objective, parameters_objective
from hf_nas.search.old_files import read_caches, read_search_progression, write_front, write_old_files
from hf_nas.search.pareto import hypervolume, knee_index, pareto_indices
from hf_nas.search.result import Evaluated, SearchResult
from hf_nas.search.selection import choose, published_demands
from hf_nas.search.study import search
from hf_nas.search.width_groups import WidthGroups


__all__ = [
    "NSGA2",
    "Evaluated",
    "Objective",
    "SearchMethod",
    "SearchResult",
    "SuperNetworkEvaluator",
    "WidthGroups",
    "choose",
    "error_objective",
    "get_search_method",
    "hypervolume",
    "knee_index",
    "macs_objective",
    "parameters_objective",
    "pareto_indices",
    "published_demands",
    "published_nsga2",
    "read_caches",
    "read_search_progression",
    "register_search_method",
    "search",
    "write_front",
    "write_old_files",
]
