"""Early stopping by the trade-offs of several objectives: multi-objective asynchronous successive halving."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_nas.search.methods import RandomSearch, register_search_method
from hf_nas.search.pareto import non_dominated_ranks


__all__ = ["SuccessiveHalving", "places_by_trade_off"]


def places_by_trade_off(costs: ArrayLike) -> list[int]:
    """The place of each point in an order from the best trade-offs to the worst: 0 for the first one.

    Fronts of the non-dominated sorting come one after the other. Within a front the point with the lowest first
    objective comes first, then always the one farthest from all before it (an epsilon-net), each objective scaled to
    its range in the front; so every beginning of the order is spread over the front. Of points that are equally far,
    the one that comes first in `costs` does so here. Points with a value that is not finite come last.

    The published implementation returns the order itself (which point has the first place, the second, ...) where the
    places are asked for; for the points (3, 3), (1, 1), (2, 2) that is 1, 2, 0 instead of 2, 0, 1.

    Args:
        costs: of shape (points, objectives), all of which are minimised.

    Returns:
        One place a point, in the order of the points.
    """
    ranks = np.asarray(non_dominated_ranks(costs), dtype=int)
    matrix = np.asarray(costs, dtype=float)
    order: list[int] = []
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        # All that is not finite shares the last rank, alone.
        is_finite = np.isfinite(matrix[members]).all()
        order += members[_spread_first(matrix[members])].tolist() if is_finite else members.tolist()
    places = np.empty(len(order), dtype=int)
    places[order] = np.arange(len(order))
    return places.tolist()


def _spread_first(front: np.ndarray) -> list[int]:
    """The points of one front, each as far as possible from those before it."""
    extent = np.ptp(front, axis=0)
    scaled = (front - front.min(axis=0)) / np.where(extent > 0, extent, 1.0)
    order = [int(np.argmin(front[:, 0]))]
    distances = np.full(len(front), np.inf)
    for _ in range(len(front) - 1):
        distances = np.minimum(distances, np.linalg.norm(scaled - scaled[order[-1]], axis=1))
        distances[order] = -1.0
        order.append(int(np.argmax(distances)))
    return order


@dataclass(frozen=True)
class SuccessiveHalving:
    """Ends the training of candidates whose trade-off is not among the best (MO-ASHA; Schmucker et al., 2021).

    At the epochs `grace`, `grace * reduction`, `grace * reduction ** 2` and so on, the rungs, a candidate is compared
    with all others that reached the rung before it, by [`places_by_trade_off`]. It goes on if it is among the best
    `1 / reduction` of them all, itself included, rounded down. The first ones, which are fewer than `reduction` and
    of which there is no such part yet, always go on. Nobody waits for others, and nobody who was stopped comes back.

    An early-stopping rule for [`hf_nas.search.search`].

    Args:
        grace: epochs that every candidate is trained at least.
        reduction: what part of the candidates goes on beyond each rung, and how much longer they are trained.

    Raises:
        ValueError: for a grace below 1 or a reduction below 2.
    """

    grace: int = 1
    reduction: int = 3

    def __post_init__(self):
        for name, least in (("grace", 1), ("reduction", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"The {name} of moasha is {value!r}; give a whole number of {least} or more.")

    def is_rung(self, level: int) -> bool:
        """Whether candidates are compared after so many epochs."""
        rung = self.grace
        while rung < level:
            rung *= self.reduction
        return rung == level

    def stops(self, level: int, costs: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> bool:
        """Whether a candidate ends at this level.

        Args:
            level: how far it is trained, in epochs.
            costs: of it, one an objective.
            others: those of the other candidates that reached the level up to now.
        """
        reached = len(others) + 1
        if not self.is_rung(level) or reached < self.reduction:
            return False
        # Last, so that of equally good ones the earlier goes on.
        return places_by_trade_off([*others, costs])[-1] >= reached // self.reduction


register_search_method("moasha", RandomSearch)
