"""Multi-objective search over the sub-networks of a trained super-network."""

from hf_nas.search.evaluation import Racing, Rejected
from hf_nas.search.evaluator import SuperNetworkEvaluator
from hf_nas.search.methods import NSGA2, SearchMethod, get_search_method, published_nsga2, register_search_method
from hf_nas.search.moasha import SuccessiveHalving, places_by_trade_off
from hf_nas.search.objectives import (
    Constraint,
    Objective,
    ObjectiveSources,
    check_constraints,
    error_objective,
    get_constraints,
    get_objectives,
    is_allowed,
    known_objectives,
    latency_objective,
    macs_objective,
    memory_objective,
    parameters_objective,
    register_objective,
)
from hf_nas.search.old_files import read_caches, read_search_progression, write_front, write_old_files
from hf_nas.search.pareto import hypervolume, knee_index, pareto_indices
from hf_nas.search.result import Evaluated, SearchResult
from hf_nas.search.selection import choose, published_demands
from hf_nas.search.study import EarlyStopping, SearchFailed, search
from hf_nas.search.width_groups import WidthGroups


__all__ = [
    "NSGA2",
    "Constraint",
    "EarlyStopping",
    "Evaluated",
    "Objective",
    "ObjectiveSources",
    "Racing",
    "Rejected",
    "SearchFailed",
    "SearchMethod",
    "SearchResult",
    "SuccessiveHalving",
    "SuperNetworkEvaluator",
    "WidthGroups",
    "check_constraints",
    "choose",
    "error_objective",
    "get_constraints",
    "get_objectives",
    "get_search_method",
    "hypervolume",
    "is_allowed",
    "knee_index",
    "known_objectives",
    "latency_objective",
    "macs_objective",
    "memory_objective",
    "parameters_objective",
    "pareto_indices",
    "places_by_trade_off",
    "published_demands",
    "published_nsga2",
    "read_caches",
    "read_search_progression",
    "register_objective",
    "register_search_method",
    "search",
    "write_front",
    "write_old_files",
]
