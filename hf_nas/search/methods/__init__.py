"""Search methods: each proposes the next sub-network to evaluate from those evaluated so far."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from hf_nas.search.methods.additive import AdditiveSearch
from hf_nas.search.methods.base import KnownCosts, SearchMethod
from hf_nas.search.methods.evolution import NSGA2, RegularizedEvolution, published_nsga2
from hf_nas.search.methods.model_based import ModelBasedSearch
from hf_nas.search.methods.optuna_gp import ExpectedHypervolumeImprovement
from hf_nas.search.methods.simple import LocalSearch, RandomSearch
from hf_nas.space.base import SearchSpace
from hf_nas.space.sampling import Sampler


__all__ = [
    "AdditiveSearch",
    "ExpectedHypervolumeImprovement",
    "KnownCosts",
    "LocalSearch",
    "ModelBasedSearch",
    "NSGA2",
    "RandomSearch",
    "RegularizedEvolution",
    "SearchMethod",
    "get_search_method",
    "published_nsga2",
    "register_search_method",
]

SearchMethodFactory = Callable[..., SearchMethod]

_METHODS: dict[str, SearchMethodFactory] = {}


def register_search_method(name: str, factory: SearchMethodFactory) -> None:
    """Make a search method available by name.

    Args:
        name: as users will write it.
        factory: called with the search space and the sampler; a subclass of [`SearchMethod`] will do.

    Raises:
        ValueError: if the name is taken.
    """
    if name in _METHODS:
        raise ValueError(f"The search method {name!r} is registered already; take another name.")
    _METHODS[name] = factory


def get_search_method(
    name: str,
    space: SearchSpace,
    sampler: Sampler,
    *,
    known_costs: KnownCosts | None = None,
    reference: Sequence[float] | None = None,
    **options: Any,
) -> SearchMethod:
    """The search method of this name.

    Args:
        name: of the method.
        space: to search; None where only the name and the options are to be checked.
        sampler: draws sub-networks where the method needs random ones.
        known_costs: of a sub-network, the costs of all objectives but the first, in their order, if they are known
            without an evaluation. They must be those that the search records.
        reference: upper bound of each objective for the hypervolume.
        options: further arguments of the method, such as the `population` of nsga2.

    Raises:
        ValueError: for an unknown name, an option that the method does not have, or a method that needs known costs
            where there are none.
    """
    if name not in _METHODS:
        raise ValueError(
            f"Unknown search method {name!r}; choose one of {', '.join(sorted(_METHODS))}, or register yours with "
            "hf_nas.search.register_search_method."
        )
    parameters = list(inspect.signature(_METHODS[name]).parameters.values())[2:]
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    if len(known) == len(parameters) and (unknown := [option for option in options if option not in known]):
        raise ValueError(
            f"The search method {name!r} has no option {unknown[0]!r}; choose from {', '.join(known) or 'none'}."
        )
    method = _METHODS[name](space, sampler, **options)
    if method.needs_known_costs and known_costs is None and space is not None:
        others = ", ".join(sorted(other for other, factory in _METHODS.items() if not _needs_known_costs(factory)))
        raise ValueError(
            f"The search method {name!r} needs all costs but the first before the evaluation, and they are not known; "
            f"choose one of {others}, or give the function known_costs."
        )
    method.known_costs = known_costs
    method.reference = None if reference is None else tuple(float(bound) for bound in reference)
    return method


def _needs_known_costs(factory: SearchMethodFactory) -> bool:
    return bool(getattr(factory, "needs_known_costs", False))


register_search_method("model_based", ModelBasedSearch)
register_search_method("random_search", RandomSearch)
register_search_method("morea", RegularizedEvolution)
register_search_method("local_search", LocalSearch)
register_search_method("nsga2", NSGA2)
register_search_method("ehvi", ExpectedHypervolumeImprovement)
register_search_method("additive", AdditiveSearch)
