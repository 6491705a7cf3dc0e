"""How points of a search space are drawn: every size equally often, or as published."""

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np

from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.space.custom import CustomSpace
from hf_nas.subnetwork import SubNetwork


__all__ = ["PublishedSampler", "Sampler", "SizeStratifiedSampler", "get_sampler"]

logger = logging.getLogger(__name__)

_MAX_STEPS = 25
# A size that is off by this share of the range between smallest and largest is met.
_TOLERANCE = 1e-3
_ATTEMPTS = 50


class Sampler(Protocol):
    """Draws points of a search space."""

    space: SearchSpace

    def sample(self, rng: np.random.Generator) -> Encoding:
        """Draw one encoding."""
        ...


class PublishedSampler:
    """Draws every dimension of a space uniformly, as Klein et al. (2024) do.

    In `medium` and `large` the sizes of such sub-networks concentrate around their mean: of BERT-base hardly any
    has less than 0.5 or more than 0.7 of the parameters.

    In spaces of lists, whether a sub-layer is skipped is drawn before its width, with probability 1/2, as BootstrapNAS
    (Munoz et al., 2022) does.

    Args:
        space: to draw from.
    """

    def __init__(self, space: SearchSpace):
        self.space = space
        lists = space.dimensions if isinstance(space, CustomSpace) else ()
        self._skippable = {i: len(d.choices) for i, d in enumerate(lists) if d.choices[0] == 0 and len(d.choices) > 1}

    def sample(self, rng: np.random.Generator) -> Encoding:
        """Draw one encoding."""
        encoding = list(self.space.sample(rng))
        for dimension, count in self._skippable.items():
            encoding[dimension] = int(rng.integers(1, count)) if rng.integers(2) else 0
        return tuple(encoding)


class SizeStratifiedSampler:
    """Draws sub-networks of all sizes equally often.

    A size is drawn first, uniformly between those of the smallest and the largest sub-network. Then every dimension i
    draws a quantile q_i, and p between 0 and 1 moves all of them together along u_i = q_i^((1-p)/p): towards their
    first choices for small p, a uniform sample at p = 1/2, towards the last ones for large p. The size grows with p,
    so that bisection finds the p at which it comes closest to the one drawn.

    Args:
        space: to draw from.
        size: of a sub-network, in any unit; must not shrink when a sub-network gets more units.

    Raises:
        ValueError: if the largest sub-network of the space is smaller than the smallest.
    """

    def __init__(self, space: SearchSpace, size: Callable[[SubNetwork], float]):
        self.space = space
        self.size = size
        self.lowest, self.highest = size(space.smallest), size(space.largest)
        if not self.lowest <= self.highest:
            raise ValueError(
                f"The size of the smallest sub-network of space {space.name!r} is {self.lowest}, of the largest "
                f"{self.highest}; give a size that grows with the number of units."
            )
        self._num_choices = np.array([len(dimension.choices) for dimension in space.dimensions])

    def sample(self, rng: np.random.Generator, target: float | None = None) -> Encoding:
        """Draw one encoding.

        Args:
            rng: source of all randomness.
            target: draw a sub-network of about this size; by default the size is drawn, too.

        Raises:
            ValueError: if `target` is not between the sizes of the smallest and the largest sub-network.
        """
        if target is None:
            target = rng.uniform(self.lowest, self.highest)
        elif not self.lowest <= target <= self.highest:
            raise ValueError(
                f"A sub-network of size {target} is asked for, but those of space {self.space.name!r} have "
                f"{self.lowest} to {self.highest}; choose a size in between."
            )
        return self._closest(rng.random(len(self._num_choices)), target)

    def design(self, count: int, seed: int = 0) -> list[Encoding]:
        """Points to start a search with: the largest, the smallest, then others at equally spaced sizes, ascending.

        The quantiles of the others are a Latin hypercube. No two points are the same sub-network, so that in a very
        small space there may be fewer than `count`.

        Args:
            count: number of points, at least 1.
            seed: equal seeds give equal designs.

        Raises:
            ValueError: if `count` is less than 1.
        """
        if count < 1:
            raise ValueError(f"A design of {count} points is asked for; choose at least 1.")
        space, rng = self.space, np.random.default_rng(seed)
        ends = {space.largest: space.largest_encoding}
        if count > 1:
            ends.setdefault(space.smallest, space.smallest_encoding)
        levels = np.linspace(self.lowest, self.highest, count)[1:-1]
        chosen = dict(ends)
        for level, quantiles in zip(levels, _latin_hypercube(len(levels), len(self._num_choices), rng)):
            for attempt in range(_ATTEMPTS):
                encoding = self._closest(quantiles, level)
                if chosen.setdefault(space.decode(encoding), encoding) is encoding:
                    break
                quantiles = rng.random(len(quantiles))
                if attempt >= _ATTEMPTS // 2:
                    level = rng.uniform(self.lowest, self.highest)
        if len(chosen) < count:
            logger.info(
                "Found %d instead of %d different sub-networks in search space %r.", len(chosen), count, space.name
            )
        between = [(self.size(sub_network), encoding) for sub_network, encoding in chosen.items()][len(ends) :]
        return [*ends.values(), *(encoding for _, encoding in sorted(between))]

    def _closest(self, quantiles: np.ndarray, target: float) -> Encoding:
        """The point closest in size on the path that the quantiles define."""
        tolerance = _TOLERANCE * (self.highest - self.lowest)
        low, high = 0.0, 1.0
        below, above = np.zeros_like(self._num_choices), self._num_choices - 1
        # Where the path is below the smallest meaningful sub-network, that one is closer.
        closest, distance = self.space.smallest_encoding, target - self.lowest
        if self.highest - target < distance:
            closest, distance = self.space.largest_encoding, self.highest - target
        for _ in range(_MAX_STEPS):
            if distance < tolerance:
                break
            middle = (low + high) / 2
            indices = self._indices(quantiles, middle)
            if np.array_equal(indices, below):
                low = middle
                continue
            if np.array_equal(indices, above):
                high = middle
                continue
            size = self.size(self.space.decode(indices))
            if size > target:
                high, above = middle, indices
            else:
                low, below = middle, indices
            # On a tie the point of the path goes first: single layers other than the first one are as small as that.
            if abs(size - target) <= distance:
                closest, distance = tuple(indices.tolist()), abs(size - target)
        return closest

    def _indices(self, quantiles: np.ndarray, p: float) -> np.ndarray:
        moved = quantiles ** ((1 - p) / p)
        return np.minimum((moved * self._num_choices).astype(np.int64), self._num_choices - 1)


def _latin_hypercube(points: int, dimensions: int, rng: np.random.Generator) -> np.ndarray:
    """Points in the unit cube, of shape (points, dimensions); each dimension has one in every interval 1/points."""
    intervals = rng.permuted(np.tile(np.arange(points)[:, None], (1, dimensions)), axis=0)
    return (intervals + rng.random((points, dimensions))) / max(points, 1)


def get_sampler(name: str, space: SearchSpace, size: Callable[[SubNetwork], float]) -> Sampler:
    """The sampler of this name.

    Args:
        name: `"stratified"` or `"published"`.
        space: to draw from.
        size: of a sub-network, for `"stratified"`.

    Raises:
        ValueError: for another name.
    """
    if name == "stratified":
        return SizeStratifiedSampler(space, size)
    if name == "published":
        return PublishedSampler(space)
    raise ValueError(f"There is no sampler {name!r}; choose 'stratified' or 'published'.")
