import math

import numpy as np
import pytest

from hf_nas.search.pareto import crowding_distance, hypervolume, knee_index, non_dominated_ranks, pareto_indices


COSTS = [(0.10, 1.0), (0.12, 0.7), (0.12, 0.7), (0.20, 0.5), (0.25, 0.6), (0.50, 0.2), (0.10, 1.1)]


def test_front_of_the_published_vector():
    front = pareto_indices(COSTS)
    assert front == [0, 1, 3, 5]
    assert all(type(index) is int for index in front)


def test_hypervolume_of_the_published_vector():
    assert hypervolume(COSTS, (1, 1.2)) == pytest.approx(0.754)
    assert hypervolume(COSTS, (2, 2)) == pytest.approx(3.274)


def test_nothing_has_an_empty_front_and_no_volume():
    assert pareto_indices([]) == []
    assert non_dominated_ranks([]) == []
    assert crowding_distance([]) == []
    assert hypervolume([], (1, 1)) == 0.0


def test_undefined_costs_never_enter():
    costs = [(math.nan, 0.0), (0.0, math.inf), (-math.inf, 0.0), (0.5, 0.5)]
    assert pareto_indices(costs) == [3]
    assert non_dominated_ranks(costs) == [1, 1, 1, 0]
    assert hypervolume(costs, (1, 1)) == pytest.approx(0.25)
    assert crowding_distance(costs)[:3] == [0, 0, 0]


def test_points_beyond_the_reference_add_nothing():
    assert hypervolume([(0.5, 0.5), (0.1, 1.0), (1.5, 0.1)], (1, 1)) == pytest.approx(0.25)


def test_ranks():
    assert non_dominated_ranks([[3, 3], [1, 1], [2, 2]]) == [2, 0, 1]
    assert non_dominated_ranks([[1, 2], [2, 1], [1, 2], [2, 2], [3, 3]]) == [0, 0, 0, 1, 2]


def test_crowding_distance():
    distances = crowding_distance([(0.0, 1.0), (0.25, 0.5), (1.0, 0.0), (0.5, 0.25)])
    assert distances == [math.inf, pytest.approx(0.5 + 0.75), math.inf, pytest.approx(0.75 + 0.5)]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_volume_equals_a_count_of_cells(objectives):
    rng = np.random.default_rng(objectives)
    points = rng.integers(0, 6, (9, objectives))
    cells = np.stack(np.meshgrid(*[np.arange(6)] * objectives, indexing="ij"), -1).reshape(-1, objectives)
    covered = (cells[:, None] >= points[None]).all(-1).any(-1).sum()
    assert hypervolume(points, [6] * objectives) == pytest.approx(covered)


def test_a_reference_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit costs of 2 objectives"):
        hypervolume(COSTS, (1, 1, 1))


def test_knee():
    assert knee_index([(0.0, 1.0), (0.1, 0.2), (0.5, 0.15), (1.0, 0.0)]) == 1
    # In other units the knee is the same.
    assert knee_index([(0.0, 1e6), (10.0, 2e5), (50.0, 1.5e5), (100.0, 0.0)]) == 1
    assert knee_index([(0.3, 0.4)]) == 0
    assert knee_index([(0.9, 0.1), (0.1, 0.9)]) == 1
    # A front that bulges outwards has no better point than its ends.
    assert knee_index([(0.0, 1.0), (0.9, 0.9), (1.0, 0.0)]) == 0
    with pytest.raises(ValueError, match="no knee"):
        knee_index([(math.nan, 1.0)])
