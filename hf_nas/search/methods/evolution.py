"""Evolutionary search methods."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_nas.search.methods.base import SearchMethod
from hf_nas.search.pareto import crowding_distance, non_dominated_ranks
from hf_nas.search.result import Evaluated
from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.space.sampling import Sampler


__all__ = ["NSGA2", "RegularizedEvolution", "best_first", "published_nsga2"]


def best_first(costs: ArrayLike) -> list[int]:
    """Indices by rank, then by crowding within the front, the best first; costs of shape (points, objectives)."""
    costs = np.asarray(costs)
    ranks = np.array(non_dominated_ranks(costs))
    crowding = np.zeros(len(costs))
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        crowding[members] = crowding_distance(costs[members])
    return np.lexsort((-crowding, ranks)).tolist()


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
        finite = [trial for trial in history if np.isfinite(trial.costs).all() and not trial.rejected]
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
        """Encodings of the best, best first."""
        return [trials[index].encoding for index in best_first([trial.costs for trial in trials])[: self.population]]

    @staticmethod
    def _tournament(best: list[Encoding], rng: np.random.Generator) -> Encoding:
        return best[int(rng.integers(len(best), size=2).min())]


class RegularizedEvolution(SearchMethod):
    """Multi-objective regularised evolution (Real et al. 2019; the `morea` of Klein et al. 2024).

    The population are the youngest evaluated sub-networks: each new one takes the place of the oldest. The best of a
    few members, drawn with replacement, has a child that differs from it in one dimension. The best is the one with
    the lowest rank of non-dominated sorting, among equal ranks the one drawn first. (The published implementation
    takes an argsort for a rank, so that its choice is close to random.)

    Args:
        space: to search.
        sampler: draws sub-networks as long as fewer than `population` have finite costs.
        population: how many of the youngest are alive.
        tournament: how many of them compete to be a parent.

    Raises:
        ValueError: for a population or a tournament below 1.
    """

    def __init__(self, space: SearchSpace, sampler: Sampler, population: int = 10, tournament: int = 5):
        super().__init__(space, sampler)
        for name, value in (("population", population), ("tournament", tournament)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"The {name} of morea is {value!r}; give a whole number of 1 or more.")
        self.population = population
        self.tournament = tournament

    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        alive = [trial for trial in history if np.isfinite(trial.costs).all()][-self.population :]
        if len(alive) < self.population:
            return self.sampler.sample(rng)
        ranks = non_dominated_ranks([trial.costs for trial in alive])
        parent = min(rng.integers(len(alive), size=self.tournament).tolist(), key=ranks.__getitem__)
        return self.space.mutate(alive[parent].encoding, rng)


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
