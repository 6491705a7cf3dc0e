"""One-shot pruning: the units with the largest sum of scores at each of many budgets."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.structures import ModelStructure
from hf_nas.subnetwork import SubNetwork


__all__ = ["AdditiveKnapsack", "additive_sub_networks", "nearest_encoding", "unit_costs"]

# Combinations of counts that are gone through for an exact solution at most.
_MOST_COMBINATIONS = 100_000


def unit_costs(structure: ModelStructure, size: Callable[[SubNetwork], float]) -> dict[str, float]:
    """What one unit of each sub-layer costs, on average over its units, by a size that grows with them linearly.

    Args:
        structure: of the model.
        size: of a sub-network: parameters, MACs, predicted latency.

    Returns:
        By name, for the sub-layers that have units.
    """
    full = size(SubNetwork.full(structure))
    costs = {}
    for sub_layer in structure:
        if sub_layer.units:
            # Down to one unit only: a sub-layer without any may lose what does not depend on the number of units.
            least = min(1, sub_layer.units - 1)
            small = size(SubNetwork.of(structure, {sub_layer.name: least}))
            costs[sub_layer.name] = (full - small) / (sub_layer.units - least)
    return costs


class AdditiveKnapsack:
    """The sub-networks that keep the largest sum of scores within a budget, as if units did not depend on each other.

    With units of a few different costs (heads and neurons of one model) the solution is exact: within a cost the units
    with the largest scores are kept, and how many of each cost is gone through. With more different costs it is the
    greedy one by score per cost, in which smaller units fill what is left; its sum is less than the best one by at
    most the score of one unit. (Kwon et al. 2022 distribute a budget in this way without retraining.)

    Args:
        structure: of the model.
        scores: of the units of every sub-layer that has any, by its name, of shape (units,), 0 or more.
        costs: of a unit by the name of its sub-layer, above 0: one number, or one for each unit.

    Raises:
        ValueError: for missing or unknown sub-layers, another number of units, or scores or costs out of range.
    """

    def __init__(self, structure: ModelStructure, scores: Mapping[str, Any], costs: Mapping[str, Any]):
        self.structure = structure
        self._spans: list[tuple[str, int, int]] = []
        all_scores, all_costs, start = [], [], 0
        sub_layers = [sub_layer for sub_layer in structure if sub_layer.units]
        for kind, given in (("scores", scores), ("costs", costs)):
            if unknown := set(given) - {sub_layer.name for sub_layer in sub_layers}:
                raise ValueError(
                    f"The {kind} name {sorted(unknown)[0]!r}, which is no sub-layer with units of this "
                    f"{structure.model_type} model; leave it out."
                )
        for sub_layer in sub_layers:
            own_scores = _numbers(scores, "scores", sub_layer.name, sub_layer.units)
            own_costs = _numbers(costs, "costs", sub_layer.name, sub_layer.units)
            if own_scores.min() < 0:
                raise ValueError(
                    f"Sub-layer {sub_layer.name!r} has a unit with the score {own_scores.min():g}; a sum of scores "
                    "needs scores of 0 or more, so shift or scale them."
                )
            if own_costs.min() <= 0:
                raise ValueError(
                    f"Sub-layer {sub_layer.name!r} has a unit with the cost {own_costs.min():g}; give costs above 0."
                )
            all_scores.append(own_scores)
            all_costs.append(own_costs)
            self._spans.append((sub_layer.name, start, start + sub_layer.units))
            start += sub_layer.units
        if not sub_layers:
            raise ValueError(f"This {structure.model_type} model has no units to choose from; take one that has.")
        self._scores, self._costs = np.concatenate(all_scores), np.concatenate(all_costs)
        self.total_cost = float(self._costs.sum())
        # Relative costs of rounded numbers, so that equal ones are found equal.
        groups = np.unique(np.round(self._costs / self._costs.max(), 12), return_inverse=True)[1]
        sizes = np.bincount(groups)
        combinations = math.prod(int(size) + 1 for size in np.sort(sizes)[:-1])
        self.is_exact = combinations <= _MOST_COMBINATIONS
        # Units by falling score per cost; of equal ones the first of the model goes first.
        self._order = np.argsort(-self._scores / self._costs, kind="stable")
        if self.is_exact:
            # The group with most units last: how many of it fit is computed, not gone through.
            members = [np.flatnonzero(groups == group) for group in np.argsort(sizes, kind="stable")]
            self._groups = [ids[np.argsort(-self._scores[ids], kind="stable")] for ids in members]
            self._group_costs = [float(self._costs[ids[0]]) for ids in self._groups]
            self._sums = [np.append(0, np.cumsum(self._scores[ids])) for ids in self._groups]
            counts = np.meshgrid(*(np.arange(len(ids) + 1) for ids in self._groups[:-1]), indexing="ij")
            self._counts = [count.ravel() for count in counts]
            self._spent, self._gained = np.zeros(combinations), np.zeros(combinations)
            for count, cost, total in zip(self._counts, self._group_costs, self._sums):
                self._spent += count * cost
                self._gained += total[count]

    def solve(self, budget: float) -> SubNetwork:
        """The best sub-network whose units cost at most `budget`. A sub-layer without any unit has 0, not None.

        Raises:
            ValueError: if the budget is negative or no number.
        """
        if not budget >= 0:
            raise ValueError(f"The budget for the kept units is {budget}; give a number of 0 or more.")
        kept = np.zeros(len(self._scores), dtype=bool)
        kept[self._exact(budget) if self.is_exact else self._greedy(budget)] = True
        return SubNetwork.of(
            self.structure, {name: np.flatnonzero(kept[start:end]).tolist() for name, start, end in self._spans}
        )

    def _exact(self, budget: float) -> np.ndarray:
        # A budget is met that sums of costs miss by rounding.
        left = budget * (1 + 1e-12) - self._spent
        last = np.clip(np.floor(left / self._group_costs[-1] * (1 + 1e-12)), -1, len(self._groups[-1])).astype(int)
        gained = np.where(last >= 0, self._gained + self._sums[-1][np.maximum(last, 0)], -np.inf)
        # Units without any score come along as long as they fit.
        spent = self._spent + np.maximum(last, 0) * self._group_costs[-1]
        best = int(np.argmax(np.where(gained >= gained.max() * (1 - 1e-12), spent, -1.0)))
        counts = [int(count[best]) for count in self._counts] + [int(last[best])]
        return np.concatenate([ids[:count] for ids, count in zip(self._groups, counts)])

    def _greedy(self, budget: float) -> np.ndarray:
        left, order, chosen = budget * (1 + 1e-12), self._order, []
        while len(order):
            fitting = int(np.searchsorted(np.cumsum(self._costs[order]), left, side="right"))
            chosen.append(order[:fitting])
            left -= self._costs[order[:fitting]].sum()
            # The next one is too large; go on with those behind it that are not.
            order = order[fitting + 1 :]
            order = order[self._costs[order] <= left]
        return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)


def additive_sub_networks(
    structure: ModelStructure, scores: Mapping[str, Any], costs: Mapping[str, Any], budgets: Sequence[float]
) -> list[SubNetwork]:
    """The best additive sub-network at each budget; see [`AdditiveKnapsack`].

    Args:
        structure: of the model.
        scores: of the units by sub-layer.
        costs: of a unit by sub-layer.
        budgets: for the units that are kept, in the unit of the costs.
    """
    knapsack = AdditiveKnapsack(structure, scores, costs)
    return [knapsack.solve(budget) for budget in budgets]


def nearest_encoding(space: SearchSpace, sub_network: SubNetwork) -> Encoding:
    """The encoding with the choices closest to a sub-network's own values, in every dimension.

    A space of numbers of units keeps the first ones: reorder the model by the importance that the sub-network is of,
    so that these are the best ones.
    """
    sub_network.check(space.structure)
    values = np.asarray(space.to_values(sub_network))
    return tuple(
        int(np.abs(np.asarray(dimension.choices) - value).argmin())
        for dimension, value in zip(space.dimensions, values, strict=True)
    )


def _numbers(given: Mapping[str, Any], kind: str, name: str, units: int) -> np.ndarray:
    if name not in given:
        raise ValueError(
            f"The {kind} have nothing for sub-layer {name!r}; give a number for each of its {units} units."
        )
    values = given[name]
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    numbers = np.asarray(values, dtype=float)
    if kind == "costs" and numbers.ndim == 0:
        numbers = np.full(units, float(numbers))
    if numbers.shape != (units,):
        raise ValueError(
            f"The {kind} of sub-layer {name!r} have shape {numbers.shape}, but it has {units} units; give one number "
            "for each."
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f"The {kind} of sub-layer {name!r} have a value that is not finite; give numbers.")
    return numbers
