"""Fronts, ranks and volumes against oracles that go point by point and cell by cell."""

import itertools

import numpy as np
import pytest

from hf_nas.search.pareto import hypervolume, non_dominated_ranks, pareto_indices


def dominates(first, second):
    better = worse = False
    for a, b in zip(first, second):
        better |= a < b
        worse |= a > b
    return better and not worse


def front_of(points):
    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def without_repeats(points, indices):
    return [i for n, i in enumerate(indices) if tuple(points[i]) not in {tuple(points[j]) for j in indices[:n]}]


def ranks_of(points):
    ranks, left, rank = [0] * len(points), list(range(len(points))), 0
    while left:
        front = [left[i] for i in front_of([points[i] for i in left])]
        for index in front:
            ranks[index] = rank
        left = [index for index in left if index not in front]
        rank += 1
    return ranks


def volume_of(points, reference):
    """By inclusion and exclusion of the boxes between points and reference."""
    boxes = [point for point in points if all(a < b for a, b in zip(point, reference))]
    total = 0.0
    for size in range(1, len(boxes) + 1):
        for chosen in itertools.combinations(boxes, size):
            corner = [max(values) for values in zip(*chosen)]
            total += (-1) ** (size + 1) * np.prod([b - a for a, b in zip(corner, reference)])
    return total


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("kind", ["any", "ties", "duplicates"])
def test_random_fronts(objectives, kind):
    rng = np.random.default_rng([objectives, len(kind)])
    for _ in range(15):
        points = rng.normal(size=(9, objectives))
        if kind == "ties":
            points = np.round(points)
        if kind == "duplicates":
            points = points[rng.integers(5, size=9)]
        points, rows = points.tolist(), points
        assert pareto_indices(rows) == without_repeats(points, front_of(points))
        assert non_dominated_ranks(rows) == ranks_of(points)
        reference = [1.0] * objectives
        assert hypervolume(rows, reference) == pytest.approx(volume_of(points, reference), abs=1e-12)


def test_points_that_are_no_numbers_change_nothing():
    rng = np.random.default_rng(0)
    for objectives in (2, 3, 4):
        points = rng.random((8, objectives))
        broken = np.full((3, objectives), 0.01)
        broken[0, 0], broken[1, -1], broken[2, 1] = np.nan, np.inf, -np.inf
        both = np.concatenate([broken, points])
        assert pareto_indices(both) == [index + 3 for index in pareto_indices(points)]
        assert hypervolume(both, [1.0] * objectives) == hypervolume(points, [1.0] * objectives)
