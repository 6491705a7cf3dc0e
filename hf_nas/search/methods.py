"""Search methods: each proposes the next sub-network to evaluate from those evaluated so far."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from hf_nas.search.pareto import crowding_distance, non_dominated_ranks, pareto_indices
from hf_nas.search.result import Evaluated
from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.space.sampling import Sampler


__all__ = [
    "LocalSearch",
    "NSGA2",
    "RandomSearch",
    "SearchMethod",
    "get_search_method",
    "register_search_method",
]


class SearchMethod(ABC):
    """Proposes sub-networks. A method keeps no state of its own, so that a search resumes from its trials alone.

    Args:
        space: to search.
        sampler: draws sub-networks where the method needs random ones.
    """

    def __init__(self, space: SearchSpace, sampler: Sampler):
        self.space = space
        self.sampler = sampler

    @abstractmethod
    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        """The next encoding to evaluate.

        It is asked again, with the same generator further on, when the proposal was evaluated before.

        Args:
            history: all evaluated sub-networks, in order of evaluation.
            rng: the only source of randomness.
        """


class RandomSearch(SearchMethod):
    """Independent draws of the sampler: by default every size equally often."""

    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        return self.sampler.sample(rng)


class NSGA2(SearchMethod):
    """Steady-state NSGA-II (Deb et al. 2002): one child at a time of the best evaluated so far.

    Without generations every evaluation informs the next one, which matters at a few hundred of them. Two parents by
    binary tournament among the `population` best by rank and crowding; uniform crossover; then one mutation, and
    further ones with falling probability.

    Args:
        space: to search.
        sampler: draws the sub-networks as long as fewer than two have finite costs.
        population: how many of the best are parents.
        further_mutation: probability of each further mutation after the first.
    """

    def __init__(self, space: SearchSpace, sampler: Sampler, population: int = 20, further_mutation: float = 0.3):
        super().__init__(space, sampler)
        self.population = population
        self.further_mutation = further_mutation

    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        finite = [trial for trial in history if np.isfinite(trial.costs).all()]
        if len(finite) < 2:
            return self.sampler.sample(rng)
        best = self._best(finite)
        child = self.space.crossover(self._tournament(best, rng), self._tournament(best, rng), rng)
        child = self.space.mutate(child, rng)
        while rng.random() < self.further_mutation:
            child = self.space.mutate(child, rng)
        return child

    def _best(self, trials: Sequence[Evaluated]) -> list[Encoding]:
        """Encodings of the best by rank, then by crowding within their front, best first."""
        costs = np.array([trial.costs for trial in trials])
        ranks = np.array(non_dominated_ranks(costs))
        crowding = np.zeros(len(trials))
        for rank in np.unique(ranks):
            members = np.flatnonzero(ranks == rank)
            crowding[members] = crowding_distance(costs[members])
        order = np.lexsort((-crowding, ranks))[: self.population]
        return [trials[index].encoding for index in order]

    @staticmethod
    def _tournament(best: list[Encoding], rng: np.random.Generator) -> Encoding:
        return best[int(rng.integers(len(best), size=2).min())]


class LocalSearch(SearchMethod):
    """A random step from a random point of the Pareto front: one dimension takes another of its choices."""

    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        archive = pareto_indices([trial.costs for trial in history])
        if not archive:
            return self.sampler.sample(rng)
        return self.space.mutate(history[archive[int(rng.integers(len(archive)))]].encoding, rng)


SearchMethodFactory = Callable[[SearchSpace, Sampler], SearchMethod]

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


def get_search_method(name: str, space: SearchSpace, sampler: Sampler) -> SearchMethod:
    """The search method of this name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _METHODS:
        raise ValueError(
            f"Unknown search method {name!r}; choose one of {', '.join(sorted(_METHODS))}, or register yours with "
            "hf_nas.search.register_search_method."
        )
    return _METHODS[name](space, sampler)


register_search_method("random_search", RandomSearch)
register_search_method("nsga2", NSGA2)
register_search_method("local_search", LocalSearch)
