"""Candidates for the next evaluation: children of good encodings, many at a time."""

import numpy as np


__all__ = ["breed"]

_CROSSOVER = 0.5
# Of mutated dimensions: how many take any choice, the others a step of this size, relative to the range of choices.
_REDRAWN = 0.4
_STEP = 0.15
# Spaces with more dimensions than this, which are mostly single units, are also changed by whole stretches.
_FEW_DIMENSIONS = 100


def breed(parents: np.ndarray, num_choices: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Children: half of them by crossover of two parents, each with some dimensions changed.

    In spaces of many dimensions, in which neighbours are neighbours in the model, a child also takes a stretch of the
    other parent, or a share of the choices in a stretch moves in one direction.

    Args:
        parents: encodings, of shape (parents, dimensions).
        num_choices: of each dimension, of shape (dimensions,).
        count: number of children.
        rng: source of all randomness.

    Returns:
        Encodings, of shape (count, dimensions).
    """
    dimensions, shape = len(num_choices), (count, len(num_choices))
    has_stretches = dimensions > _FEW_DIMENSIONS
    children, others = (parents[rng.integers(len(parents), size=count)] for _ in range(2))

    crossed = rng.random((count, 1)) < _CROSSOVER
    taken = rng.random(shape) < 0.5
    if has_stretches:
        taken = np.where(rng.random((count, 1)) < 0.5, _stretches(shape, rng), taken)
    children = np.where(crossed & taken, others, children)

    # Mostly one or two dimensions, now and then many.
    numbers = np.where(rng.random(count) < 0.9, rng.geometric(0.5, count), rng.geometric(0.15, count))
    chosen = _some(np.minimum(numbers, dimensions), shape, rng)
    redrawn = rng.random(shape) < _REDRAWN
    directions = np.where(rng.random(shape) < 0.5, -1, 1)
    if has_stretches:
        moved = _stretches(shape, rng) & (rng.random(shape) < rng.random((count, 1)))
        is_moved = rng.random((count, 1)) < 0.5
        chosen, redrawn = np.where(is_moved, moved, chosen), redrawn & ~is_moved
        directions = np.where(is_moved, directions[:, :1], directions)
    lengths = np.maximum(np.rint(np.abs(rng.normal(size=shape)) * _STEP * (num_choices - 1)), 1).astype(np.int64)
    changed = np.where(redrawn, rng.integers(num_choices, size=shape), children + directions * lengths)
    return np.clip(np.where(chosen, changed, children), 0, num_choices - 1)


def _some(numbers: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Which dimensions are chosen, a given number of them in each row."""
    draws = rng.random(shape)
    return draws <= np.take_along_axis(np.sort(draws, axis=1), numbers[:, None] - 1, axis=1)


def _stretches(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A run of neighbouring dimensions in each row, of every order of magnitude equally often."""
    count, dimensions = shape
    lengths = (dimensions ** rng.random((count, 1))).astype(np.int64)
    starts = rng.integers(dimensions - lengths + 1)
    positions = np.arange(dimensions)
    return (starts <= positions) & (positions < starts + lengths)
