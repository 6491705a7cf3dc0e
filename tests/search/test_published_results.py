import json
import math

import pytest

from hf_nas.search import Evaluated, SearchResult
from hf_nas.search.published_results import write_published_results
from tests.search.problems import UnitsSpace, size_of


SPACE = UnitsSpace(layers=2, units=4)


def make(*points, rejected=()):
    """A result of (encoding, error) pairs, each evaluated in 2 seconds."""
    trials = []
    for index, (encoding, error) in enumerate(points):
        sub_network = SPACE.decode(encoding)
        costs = (error, size_of(sub_network))
        trials.append(Evaluated(sub_network, encoding, {}, costs, 2.0, rejected=index in rejected))
    return SearchResult(tuple(trials), ("error", "size"), (1.0, 1.05))


def write(tmp_path, result, **options):
    arguments = {"dataset": "rte", "parameters": size_of, "model_loading_time": 1.5, "data_loading_time": 0.25}
    write_published_results(tmp_path / "results_rte.json", result, **{**arguments, **options})
    return json.loads(
        (tmp_path / "results_rte.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON")
    )


def test_every_key_of_the_published_file(tmp_path):
    # Sizes 1, 1/4, 1/2, 3/4; the last one is beaten by the one before.
    result = make(((3, 3), 0.1), ((0, 0), 0.6), ((1, 1), 0.2), ((2, 2), 0.3))
    found = write(tmp_path, result, reported={0: 0.88, 1: math.nan, 2: 0.75}, space=SPACE)
    assert found == {
        "dataset": "rte",
        "config": [{"u0": 4, "u1": 4}, {"u0": 1, "u1": 1}, {"u0": 2, "u1": 2}, {"u0": 3, "u1": 3}],
        "runtime": [2.0, 4.0, 6.0, 8.0],
        "error": [0.1, 0.6, 0.2, 0.3],
        "params": [1.0, 0.25, 0.5, 0.75],
        "test_error": [pytest.approx(0.12), 1.0, 0.25, None],
        "indices": [True, True, True, False],
        "params_pareto": [1.0, 0.25, 0.5],
        "eval_pareto": [0.1, 0.6, 0.2],
        # The published code has test_error[0] and test_error[1] here, once for each of the four.
        "test_pareto": [pytest.approx(0.12), 1.0, 0.25],
        "model_loading_time": 1.5,
        "data_loading_time": 0.25,
    }
    assert all(type(flag) is bool for flag in found["indices"])


def test_the_spec_vector_of_costs(tmp_path):
    costs = [(0.10, 1.0), (0.12, 0.7), (0.12, 0.7), (0.20, 0.5), (0.25, 0.6), (0.50, 0.2), (0.10, 1.1)]
    sub_network = SPACE.largest
    trials = tuple(Evaluated(sub_network, (3, 3), {}, cost) for cost in costs)
    sizes = iter([size for _, size in costs])
    found = write(tmp_path, SearchResult(trials, ("error", "size"), (1.0, 1.2)), parameters=lambda _: next(sizes))
    assert found["indices"] == [True, True, False, True, False, True, False]
    assert found["params_pareto"] == [1.0, 0.7, 0.5, 0.2] and found["eval_pareto"] == [0.10, 0.12, 0.20, 0.50]
    assert found["test_pareto"] == [None] * 4 and "config" not in found


def test_sub_networks_given_up_early_are_left_out_but_took_time(tmp_path):
    # The estimate of the second one would be on the front.
    result = make(((3, 3), 0.1), ((0, 0), 0.0), ((1, 1), 0.2), rejected=(1,))
    found = write(tmp_path, result, reported={2: 0.7}, space=SPACE)
    assert found["error"] == found["eval_pareto"] == [0.1, 0.2] and found["runtime"] == [2.0, 6.0]
    assert found["test_pareto"] == [None, pytest.approx(0.3)] and len(found["config"]) == 2


def test_a_metric_of_which_lower_is_better_and_an_error_that_is_no_number(tmp_path):
    result = make(((3, 3), math.inf), ((1, 1), 0.2))
    found = write(tmp_path, result, reported={1: 0.3}, greater_is_better=False, parameters=lambda _: 7)
    assert found["error"] == [None, 0.2] and found["test_error"] == [None, 0.3]
    assert found["indices"] == [False, True] and found["params"] == [7, 7]
    found = write(tmp_path, result, reported={0: math.nan}, greater_is_better=False)
    assert found["test_error"] == [None, None]
    assert write(tmp_path, result, reported={0: math.nan})["test_error"] == [1.0, None]


def test_an_unknown_trial_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match="test metric of trial 3, but there are 1 trials"):
        write(tmp_path, make(((3, 3), 0.1)), reported={3: 0.5})
    assert not list(tmp_path.iterdir())
