"""Search methods: each proposes the next sub-network to evaluate from those evaluated so far."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

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
    "published_nsga2",
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
    binary tournament among the `population` best by rank and crowding; uniform crossover; then mutation, by default
    of one dimension, and of further ones with falling probability.

    Args:
        space: to search.
        sampler: draws the sub-networks as long as fewer than two have finite costs.
        population: how many of the best are parents.
        further_mutation: probability of each further mutation after the first.
        crossover_probability: that a child has two parents; otherwise it starts as a copy of one.
        mutation_probability: of every dimension to take another of its choices, instead of one mutation and further
            ones. A child may then stay as it is; one that is known already makes way for the next proposal.

    Raises:
        ValueError: for a population below 2 or a probability that is none.
    """

    def __init__(
        self,
        space: SearchSpace,
        sampler: Sampler,
        population: int = 20,
        further_mutation: float = 0.3,
        crossover_probability: float = 1.0,
        mutation_probability: float | None = None,
    ):
        super().__init__(space, sampler)
        if not isinstance(population, int) or population < 2:
            raise ValueError(f"The population of nsga2 is {population!r}; give a whole number of 2 or more.")
        # With a further mutation for certain there would be no end of them.
        if not 0 <= further_mutation < 1:
            raise ValueError(f"The further_mutation of nsga2 is {further_mutation}; give a number from 0 to below 1.")
        for name, value in (
            ("crossover_probability", crossover_probability),
            ("mutation_probability", mutation_probability),
        ):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"The {name} of nsga2 is {value}; give a number from 0 to 1.")
        self.population = population
        self.further_mutation = further_mutation
        self.crossover_probability = crossover_probability
        self.mutation_probability = mutation_probability

    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        finite = [trial for trial in history if np.isfinite(trial.costs).all()]
        if len(finite) < 2:
            return self.sampler.sample(rng)
        best = self._best(finite)
        child, other = self._tournament(best, rng), self._tournament(best, rng)
        # Where it is certain nothing is drawn: the numbers of earlier searches stay as they were.
        if self.crossover_probability == 1 or rng.random() < self.crossover_probability:
            child = self.space.crossover(child, other, rng)
        if self.mutation_probability is not None:
            return self._mutate_each(child, rng)
        child = self.space.mutate(child, rng)
        while rng.random() < self.further_mutation:
            child = self.space.mutate(child, rng)
        return child

    def _mutate_each(self, encoding: Encoding, rng: np.random.Generator) -> Encoding:
        """Give every dimension another of its choices with the mutation probability."""
        indices = np.array(encoding)
        num_choices = np.array([len(dimension.choices) for dimension in self.space.dimensions])
        mutated = (rng.random(len(indices)) < self.mutation_probability) & (num_choices > 1)
        others = rng.integers(num_choices[mutated] - 1)
        indices[mutated] = others + (others >= indices[mutated])
        return tuple(indices.tolist())

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


def get_search_method(name: str, space: SearchSpace, sampler: Sampler, **options: Any) -> SearchMethod:
    """The search method of this name.

    Args:
        name: of the method.
        space: to search.
        sampler: draws sub-networks where the method needs random ones.
        options: further arguments of the method, such as the `population` of nsga2.

    Raises:
        ValueError: for an unknown name, or an option that the method does not have.
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
    return _METHODS[name](space, sampler, **options)


def published_nsga2(
    *,
    num_evals: int = 3000,
    population: int = 40,
    seed: int = 0,
    crossover_prob: float = 0.9,
    mutation_prob: float = 0.02,
    crossover_eta: float = 10.0,
    mutation_eta: float = 3.0,
) -> dict[str, Any]:
    """What the keys of `bootstrapNAS.search` with the algorithm NSGA2 mean here.

    The published search evaluates `num_evals // population` whole generations. Here one sub-network follows the other,
    so that the same number of evaluations comes without generations; two searches with one seed are alike only here.
    `crossover_prob` is the probability that a child has two parents, `mutation_prob` that of each dimension to change
    (in the version of pymoo behind the published results: that of a child to keep its mutations, one on average).
    The distribution indices `crossover_eta` and `mutation_eta` shape real numbers, which were rounded to choices; here
    crossover and mutation take choices themselves, so only the published defaults are accepted.

    Returns:
        `method`, `num_samples`, `seed` and `method_options` for a search.

    Raises:
        ValueError: for a population above the number of evaluations, or another distribution index.
    """
    if not 2 <= population <= num_evals:
        raise ValueError(
            f"A search of 'num_evals' {num_evals} cannot have the 'population' {population}; give one of 2 to "
            "'num_evals'."
        )
    for name, value, published in (("crossover_eta", crossover_eta, 10), ("mutation_eta", mutation_eta, 3)):
        if value != published:
            raise ValueError(
                f"The search has the {name!r} {value}, but hf-nas crosses and mutates choices, not real numbers, so "
                "that a distribution index means nothing; remove it."
            )
    return {
        "method": "nsga2",
        "num_samples": num_evals // population * population,
        "seed": seed,
        "method_options": {
            "population": population,
            "crossover_probability": crossover_prob,
            "mutation_probability": mutation_prob,
        },
    }


register_search_method("random_search", RandomSearch)
register_search_method("nsga2", NSGA2)
register_search_method("local_search", LocalSearch)
