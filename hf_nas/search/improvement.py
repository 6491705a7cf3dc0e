"""Expected hypervolume improvement of candidates of which all costs but the first are known."""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr
from scipy.stats import qmc


__all__ = ["Improvement"]

# Cells of the exact computation at most; beyond, the integral is the mean over as many points as the sample has.
_MOST_CELLS = 20_000
_SAMPLE = 1024


class Improvement:
    """By how much each candidate is expected to enlarge the hypervolume of a front.

    With all costs but the first one known, what a candidate of first cost e adds is the integral, over the part of the
    space of the known costs that it dominates, of max(0, f - e), where f is the lowest first cost that the front
    reaches there. f is constant on the cells of the grid that the front spans, so that the expectation over a normal
    distribution of e is a sum of one-dimensional expected improvements. This is exact for two objectives, and for
    three with up to about 140 points on the front; beyond, the integral is a mean over the first points of a Sobol
    sequence.

    Args:
        front: costs, of shape (points, objectives); points beyond the reference add nothing, as in the hypervolume.
        reference: upper bound of each objective.
    """

    def __init__(self, front: np.ndarray, reference: Sequence[float]):
        self._reference = np.asarray(reference, dtype=float)
        front = np.asarray(front, dtype=float).reshape(-1, len(self._reference))
        self._front = front[(front < self._reference).all(axis=1)]
        self._axes = [np.unique(column) for column in self._front.T[1:]]
        if np.prod([len(axis) + 1 for axis in self._axes]) > _MOST_CELLS and len(self._axes) > 1:
            self._cells = None
        else:
            corners = np.meshgrid(*(np.append(-np.inf, axis) for axis in self._axes), indexing="ij")
            corners = np.stack(corners, axis=-1).reshape(-1, len(self._axes)) if corners else np.empty((1, 0))
            self._cells = self._levels_at(corners)

    def __call__(self, means: np.ndarray, deviations: np.ndarray, known: np.ndarray) -> np.ndarray:
        """The expected improvement of each candidate, of shape (candidates,).

        Args:
            means: of the first cost, of shape (candidates,).
            deviations: standard deviations of the first cost, above 0, of shape (candidates,).
            known: the other costs, of shape (candidates, objectives - 1).
        """
        levels, volumes = self._sampled(known) if self._cells is None else self._exact(known)
        standard = (levels[None] - means[:, None]) / deviations[:, None]
        density = np.exp(-0.5 * standard**2) / np.sqrt(2 * np.pi)
        return (deviations[:, None] * (standard * ndtr(standard) + density) * volumes).sum(axis=1)

    def _levels_at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lowest first cost that the front reaches: its different values, and which of them each point has."""
        reached = (self._front[None, :, 1:] <= points[:, None]).all(axis=2)
        lowest = np.where(reached, self._front[None, :, 0], np.inf).min(axis=1, initial=self._reference[0])
        return np.unique(lowest, return_inverse=True)

    def _exact(self, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Levels, and the volume of the known costs that each candidate dominates at each: (candidates, levels)."""
        levels, level_of = self._cells
        lengths = []
        for axis, lower, upper in zip(self._axes, known.T, self._reference[1:]):
            starts, ends = np.append(-np.inf, axis), np.append(axis, upper)
            lengths.append(np.maximum(ends[None] - np.maximum(starts[None], lower[:, None]), 0))
        volumes = np.empty((len(known), len(levels)))
        for row in range(len(known)):
            cells = np.ones(1)
            for length in lengths:
                cells = np.multiply.outer(cells, length[row])
            volumes[row] = np.bincount(level_of, cells.ravel(), len(levels))
        return levels, volumes

    def _sampled(self, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same, estimated from points above the lowest known costs there are."""
        upper = self._reference[1:]
        lowest = np.minimum(np.concatenate([self._front[:, 1:], known]).min(axis=0), upper)
        points = lowest + qmc.Sobol(len(upper), scramble=False).random(_SAMPLE) * (upper - lowest)
        levels, level_of = self._levels_at(points)
        member = (level_of[:, None] == np.arange(len(levels))).astype(float)
        dominated = (known[:, None] <= points[None]).all(axis=2)
        return levels, np.prod(upper - lowest) / _SAMPLE * (dominated @ member)
