"""The best additive sub-networks as a search method."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_nas.search.additive import AdditiveKnapsack, nearest_encoding
from hf_nas.search.methods.base import SearchMethod
from hf_nas.search.methods.evolution import NSGA2
from hf_nas.search.result import Evaluated
from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.space.sampling import Sampler
from hf_nas.subnetwork import SubNetwork


__all__ = ["AdditiveSearch"]


class AdditiveSearch(SearchMethod):
    """Proposes the sub-networks with the largest sums of scores within budgets, then breeds from what is known.

    Budgets come in an order in which every beginning is spread over all of them: 1/2 of the cost of all units, 1/4,
    3/4, 1/8 and so on. Of each, the nearest sub-network of the space is proposed. Where there is none left that was
    not evaluated, the search goes on as steady-state NSGA-II.

    Args:
        space: to search.
        sampler: draws sub-networks as long as fewer than two have finite costs.
        scores: of the units of every sub-layer that has any, by its name, of shape (units,), 0 or more.
        costs: of a unit by the name of its sub-layer, above 0 (see [`hf_nas.search.additive.unit_costs`]).
        budgets: number of budgets; a power of two less one spreads them evenly.

    Raises:
        ValueError: for fewer than 1 budget, and on the first proposal for missing or unfit scores or costs.
    """

    def __init__(
        self,
        space: SearchSpace,
        sampler: Sampler,
        scores: Mapping[str, Any] | None = None,
        costs: Mapping[str, Any] | None = None,
        budgets: int = 127,
    ):
        super().__init__(space, sampler)
        if not isinstance(budgets, int) or budgets < 1:
            raise ValueError(f"The number of budgets of additive is {budgets!r}; give a whole number of 1 or more.")
        self.budgets = budgets
        self._given = scores, costs
        self._beyond = NSGA2(space, sampler)
        if space is not None:
            self._knapsack = self._read()
        # In the order of the budgets, as far as they were needed.
        self._solved: list[tuple[Encoding, SubNetwork]] = []

    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        seen = {trial.sub_network for trial in history}
        for index in range(self.budgets):
            if index == len(self._solved):
                encoding = nearest_encoding(
                    self.space, self._knapsack.solve(_spread(index) * self._knapsack.total_cost)
                )
                self._solved.append((encoding, self.space.decode(encoding)))
            encoding, sub_network = self._solved[index]
            if sub_network not in seen and (self.is_candidate is None or self.is_candidate(sub_network)):
                return encoding
        return self._beyond.propose(history, rng)

    def _read(self) -> AdditiveKnapsack:
        scores, costs = self._given
        if scores is None or costs is None:
            raise ValueError(
                f"The search method additive has no {'scores' if scores is None else 'costs'} of units; give both in "
                "method_options, or choose another method."
            )
        return AdditiveKnapsack(self.space.structure, scores, costs)


def _spread(index: int) -> float:
    """Numbers between 0 and 1 of which every beginning is spread evenly (van der Corput)."""
    value, part = 0.0, 0.5
    index += 1
    while index:
        index, bit = divmod(index, 2)
        value += bit * part
        part /= 2
    return value
