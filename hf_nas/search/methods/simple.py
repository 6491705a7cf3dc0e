"""Search methods without a model or a population."""

from collections.abc import Sequence

import numpy as np

from hf_nas.search.methods.base import SearchMethod
from hf_nas.search.pareto import crowding_distance, pareto_indices
from hf_nas.search.result import Evaluated
from hf_nas.space.base import Encoding


__all__ = ["LocalSearch", "RandomSearch"]


class RandomSearch(SearchMethod):
    """Independent draws of the sampler: by default every size equally often."""

    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        return self.sampler.sample(rng)


class LocalSearch(SearchMethod):
    """A random step from a point of the Pareto front: one dimension takes another of its choices.

    Of two random points of the front, the one with the larger crowding distance is left, so that gaps are filled.
    """

    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        whole = [trial for trial in history if not trial.rejected]
        archive = [whole[index] for index in pareto_indices([trial.costs for trial in whole])]
        if not archive:
            return self.sampler.sample(rng)
        distances = crowding_distance([trial.costs for trial in archive])
        parent = max(rng.integers(len(archive), size=2).tolist(), key=distances.__getitem__)
        return self.space.mutate(archive[parent].encoding, rng)
