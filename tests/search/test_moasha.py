"""Places by trade-off against a literal reading of the definition, and who is stopped at which rung."""

import itertools

import numpy as np
import pytest

from hf_nas.search import get_search_method, search
from hf_nas.search.moasha import SuccessiveHalving, places_by_trade_off
from tests.search.problems import OBJECTIVES, UnitsSpace, accuracy_of, size_of


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b)) and any(x < y for x, y in zip(a, b))


def places_of_definition(points):
    """By plain loops: peel off fronts, and in each take the point farthest from those taken."""
    left, order = list(range(len(points))), []
    while left:
        front = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        left = [i for i in left if i not in front]
        ranges = [(min(points[i][k] for i in front), max(points[i][k] for i in front)) for k in range(len(points[0]))]

        def distance(i, j, ranges=ranges):
            parts = [(points[i][k] - points[j][k]) / (high - low or 1) for k, (low, high) in enumerate(ranges)]
            return sum(part * part for part in parts) ** 0.5

        taken = [min(front, key=lambda i: points[i][0])]
        while len(taken) < len(front):
            rest = [i for i in front if i not in taken]
            taken.append(max(rest, key=lambda i: min(distance(i, j) for j in taken)))
        order += taken
    return [order.index(i) for i in range(len(points))]


def test_places_are_ranks_and_not_the_published_order():
    assert places_by_trade_off([[3, 3], [1, 1], [2, 2]]) == [2, 0, 1]
    # The published code computes this instead.
    assert np.argsort([3, 1, 2]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_places_agree_with_the_definition(objectives):
    rng = np.random.default_rng(objectives)
    for count in (1, 2, 3, 7, 20):
        for points in (rng.random((count, objectives)), rng.integers(4, size=(count, objectives)) / 3):
            assert places_by_trade_off(points) == places_of_definition(points.tolist())


def test_a_front_is_ordered_from_its_lowest_error_outwards():
    # By the crowding distance (2, 3), between close neighbours, and its neighbours would be told apart the same way;
    # what matters is that the far end and then the middle come before those close to what is there already.
    front = [(0.1, 1.0), (0.11, 0.9), (0.12, 0.8), (0.3, 0.45), (0.5, 0.1)]
    assert places_by_trade_off(front) == [0, 4, 3, 2, 1]


def test_places_of_infinite_and_equal_costs():
    assert places_by_trade_off([[float("inf"), 0.1], [0.5, 0.5], [float("nan"), 0.0], [0.6, 0.6]]) == [2, 0, 3, 1]
    assert places_by_trade_off([[0.5, 0.5]] * 3) == [0, 1, 2]
    assert places_by_trade_off([]) == []


def test_rungs():
    published = SuccessiveHalving()
    assert [level for level in range(1, 30) if published.is_rung(level)] == [1, 3, 9, 27]
    assert [level for level in range(1, 30) if SuccessiveHalving(grace=2, reduction=4).is_rung(level)] == [2, 8]


def test_who_goes_on_and_who_is_stopped():
    halving = SuccessiveHalving()
    bad, good = (0.9, 0.9), (0.1, 0.1)
    # The first two have nobody to be compared with, however bad they are.
    assert not halving.stops(1, bad, [])
    assert not halving.stops(1, bad, [good])
    # From the third one on a third goes on.
    assert halving.stops(1, bad, [good, good])
    assert halving.stops(1, (0.2, 0.2), [good, bad])
    assert not halving.stops(1, (0.05, 0.05), [good, bad])
    five = [(0.1 * i, 0.1 * i) for i in range(1, 6)]
    assert halving.stops(1, (0.2, 0.2), [five[0], *five[2:]])  # second of five
    assert not halving.stops(1, (0.2, 0.2), [five[0], *five[2:], bad, bad])  # second of seven
    # Between rungs nobody is stopped.
    assert not halving.stops(2, bad, [good] * 10)
    assert halving.stops(3, bad, [good] * 10)
    # The smallest of a front is no worse than the one with the lowest error, but one between is.
    front = [(0.1, 1.0), (0.5, 0.1), (0.11, 0.9), (0.12, 0.8), (0.45, 0.2)]
    assert not halving.stops(1, (0.6, 0.05), front)
    assert halving.stops(1, (0.105, 0.95), front)
    # One objective: the ordinary successive halving.
    assert halving.stops(1, (0.3,), [(0.1,), (0.2,)]) and not halving.stops(1, (0.1,), [(0.3,), (0.2,)])


def test_about_a_third_goes_on():
    rng = np.random.default_rng(0)
    seen, went_on = [], 0
    for costs in rng.random((120, 3)):
        went_on += not SuccessiveHalving().stops(1, tuple(costs), seen)
        seen.append(tuple(costs))
    assert 25 <= went_on <= 42  # rounded down, so rather less


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grace": 0}, "grace of moasha is 0; give a whole number of 1 or more"),
        ({"reduction": 1}, "reduction of moasha is 1; give a whole number of 2 or more"),
        ({"reduction": 2.5}, "reduction of moasha is 2.5"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SuccessiveHalving(**options)


def learning_curve(sub_network, epoch):
    """Metrics after so many of 9 epochs."""
    return {name: value * (1 - 0.5 ** (epoch + 1)) for name, value in accuracy_of(sub_network).items()}


def test_a_search_with_early_stopping_trains_less_and_proposes_like_random_search():
    epochs = {}

    def evaluate(sub_network, report):
        for epoch in itertools.count(1):
            metrics = learning_curve(sub_network, epoch)
            epochs[sub_network] = epoch
            if not report(epoch, metrics) or epoch == 9:
                return metrics

    options = {"size": size_of, "num_samples": 60, "seed": 3}
    halved = search(UnitsSpace(), evaluate, OBJECTIVES, method="moasha", early_stopping=SuccessiveHalving(), **options)
    assert set(epochs.values()) == {1, 3, 9}
    assert 1.2 * 60 < sum(epochs.values()) < 0.5 * 9 * 60
    whole = search(UnitsSpace(), accuracy_of, OBJECTIVES, method="random_search", **options)
    assert [trial.encoding for trial in halved.trials] == [trial.encoding for trial in whole.trials]
    # Each that was trained to the end ranks among the best at the first rung of what it could be compared with.
    order = [trial.sub_network for trial in halved.trials]
    costs = [tuple(o.cost(s, learning_curve(s, 1)) for o in OBJECTIVES) for s in order]
    for index, sub_network in enumerate(order):
        if epochs[sub_network] > 1 and index >= 2:
            place = places_of_definition(costs[: index + 1])[index]
            assert place < (index + 1) // 3


def test_the_name_is_registered():
    assert get_search_method("moasha", None, None) is not None
