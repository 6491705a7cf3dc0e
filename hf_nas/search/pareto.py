"""Sets of cost vectors: the Pareto front, ranks, crowding, hypervolume and knee. Every objective is minimised."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


__all__ = ["crowding_distance", "hypervolume", "knee_index", "non_dominated_ranks", "pareto_indices"]


def _as_matrix(costs: ArrayLike) -> np.ndarray:
    """Costs as a matrix of shape (points, objectives); an empty list is a matrix without rows."""
    matrix = np.asarray(costs, dtype=float)
    if matrix.size == 0:
        return matrix.reshape(0, matrix.shape[1] if matrix.ndim == 2 else 0)
    if matrix.ndim != 2:
        raise ValueError(
            f"Costs have shape {matrix.shape}, but a matrix is needed; give one row of objective values a point."
        )
    return matrix


def _dominated_by(matrix: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Which rows are nowhere better than `point` and somewhere worse."""
    return (matrix >= point).all(axis=1) & (matrix > point).any(axis=1)


def pareto_indices(costs: ArrayLike) -> list[int]:
    """Indices of the points that no other point dominates, ascending.

    Of exactly equal points the first one stays. A point with a value that is not finite never enters.

    Args:
        costs: of shape (points, objectives).
    """
    matrix = _as_matrix(costs)
    finite = np.flatnonzero(np.isfinite(matrix).all(axis=1))
    inside = matrix[finite]
    front: list[int] = []
    seen: set[tuple[float, ...]] = set()
    for index, point in zip(finite.tolist(), inside):
        key = tuple(point.tolist())
        dominates = (inside <= point).all(axis=1) & (inside < point).any(axis=1)
        if key not in seen and not dominates.any():
            front.append(index)
            seen.add(key)
    return front


def non_dominated_ranks(costs: ArrayLike) -> list[int]:
    """Front number of each point: 0 for the Pareto front, 1 for the front of the rest, and so on.

    Equal points share a rank. Points with a value that is not finite share the rank after all others.
    Fast non-dominated sorting of NSGA-II (Deb et al. 2002).

    Args:
        costs: of shape (points, objectives).
    """
    matrix = _as_matrix(costs)
    finite = np.flatnonzero(np.isfinite(matrix).all(axis=1))
    inside = matrix[finite]
    ranks = np.full(len(inside), -1)
    # How many points that have no rank yet dominate each one.
    dominating = np.zeros(len(inside), dtype=int)
    for point in inside:
        dominating += _dominated_by(inside, point)
    rank = 0
    while (ranks < 0).any():
        members = np.flatnonzero((ranks < 0) & (dominating == 0))
        ranks[members] = rank
        for member in members:
            dominating -= _dominated_by(inside, inside[member])
        rank += 1
    result = np.full(len(matrix), rank)
    result[finite] = ranks
    return result.tolist()


def crowding_distance(costs: ArrayLike) -> list[float]:
    """How far the neighbours of each point of one front are, summed over the objectives, each scaled to its range.

    The extreme points of each objective get infinity (Deb et al. 2002). Points with a value that is not finite get 0.

    Args:
        costs: of shape (points, objectives), of one front.
    """
    matrix = _as_matrix(costs)
    distances = np.zeros(len(matrix))
    finite = np.flatnonzero(np.isfinite(matrix).all(axis=1))
    for column in matrix[finite].T if len(finite) else ():
        order = finite[np.argsort(column, kind="stable")]
        values = np.sort(column, kind="stable")
        distances[order[[0, -1]]] = np.inf
        if values[-1] > values[0]:
            distances[order[1:-1]] += (values[2:] - values[:-2]) / (values[-1] - values[0])
    return distances.tolist()


def hypervolume(costs: ArrayLike, reference: Sequence[float]) -> float:
    """Exact volume that the points dominate, up to a reference point.

    By a sweep in two dimensions and by slices along the last objective in more (Zitzler 1999): fine for the fronts of
    a search, slow for thousands of points in many objectives.

    Args:
        costs: of shape (points, objectives); points beyond the reference or not finite add nothing.
        reference: one upper bound an objective.

    Returns:
        The volume in the units of the objectives, 0 for no points.
    """
    matrix = _as_matrix(costs)
    bound = np.asarray(reference, dtype=float)
    if len(matrix) == 0:
        return 0.0
    if bound.shape != (matrix.shape[1],) or not np.isfinite(bound).all():
        raise ValueError(
            f"The reference point {list(reference)} does not fit costs of {matrix.shape[1]} objectives; give one "
            "finite upper bound for each."
        )
    return _volume(matrix[np.isfinite(matrix).all(axis=1) & (matrix < bound).all(axis=1)], bound)


def _volume(points: np.ndarray, bound: np.ndarray) -> float:
    points = points[pareto_indices(points)]
    if len(points) == 0:
        return 0.0
    if len(bound) == 1:
        return float(bound[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    if len(bound) == 2:
        # Along the front the first objective falls as the second rises.
        upper = np.append(points[1:, 1], bound[1])
        return float(((bound[0] - points[:, 0]) * (upper - points[:, 1])).sum())
    upper = np.append(points[1:, -1], bound[-1])
    thickness = upper - points[:, -1]
    return float(sum(d * _volume(points[: i + 1, :-1], bound[:-1]) for i, d in enumerate(thickness) if d > 0))


def knee_index(costs: ArrayLike) -> int:
    """Index of the knee of a front: where giving up a little of one objective stops to buy much of another.

    The point that lies farthest below the line (with more objectives, the plane) through the extreme points of the
    front, whose objectives are each scaled to [0, 1] (Das 1999). Of equally far points, the one with the lowest
    first objective.

    Args:
        costs: of shape (points, objectives), of one front.

    Raises:
        ValueError: if no point is finite.
    """
    matrix = _as_matrix(costs)
    finite = np.flatnonzero(np.isfinite(matrix).all(axis=1))
    if len(finite) == 0:
        raise ValueError(f"None of the {len(matrix)} points has finite costs, so there is no knee; evaluate more.")
    inside = matrix[finite]
    lowest = inside.min(axis=0)
    extent = inside.max(axis=0) - lowest
    scaled = (inside - lowest) / np.where(extent > 0, extent, 1.0)
    # After scaling the extreme points lie on the plane on which the coordinates sum to one. Rounding makes sums of
    # equal distance comparable.
    height = np.round(scaled.sum(axis=1), 12)
    return int(finite[np.lexsort((inside[:, 0], height))[0]])
