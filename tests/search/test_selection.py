"""What published search settings ask for: the choice near a reference, and NSGA-II with its probabilities."""

import math

import numpy as np
import pytest

from hf_nas.search import methods
from hf_nas.search.methods import NSGA2, get_search_method, published_nsga2, register_search_method
from hf_nas.search.result import Evaluated, SearchResult
from hf_nas.search.selection import choose, published_demands
from hf_nas.space import CustomSpace
from hf_nas.space.sampling import PublishedSampler
from hf_nas.structures import describe
from tests import zoo


SPACE = CustomSpace({"sub_layers": {"*.attention": [1, 2, 3, 4]}}, describe(zoo.build("bert")))
SAMPLER = PublishedSampler(SPACE)


def macs_ratio(sub_network):
    return sum(sub_network[f"encoder.{i}.attention"] for i in range(3)) / 12


def params_ratio(sub_network):
    return sub_network["encoder.0.attention"] / 4


def evaluated(encoding, accuracy, loss=None):
    metrics = {"accuracy": accuracy, "loss": 1 - accuracy if loss is None else loss}
    sub_network = SPACE.decode(encoding)
    return Evaluated(sub_network, encoding, metrics, (1.0 if math.isnan(accuracy) else 1 - accuracy, 0.0))


def result_of(*trials):
    return SearchResult(tuple(trials), ("error", "size"), (1.0, 1.05))


# Heads 5, 12, 9, 7, 6 of 12.
RESULT = result_of(
    evaluated((0, 1, 1), 0.85),
    evaluated((3, 3, 3), 0.90),
    evaluated((2, 2, 2), 0.91),
    evaluated((0, 1, 3), 0.89),
    evaluated((1, 1, 1), math.nan),
)


def pick(result=RESULT, metric_name="accuracy", **demands):
    return choose(result, params_ratio=params_ratio, macs_ratio=macs_ratio, metric_name=metric_name, **demands)


def test_the_fewest_macs_near_the_reference():
    # The reference is the largest one's metric, not the best.
    assert pick(max_metric_drop=0.02) == 3
    assert pick(max_metric_drop=0.06) == 0
    assert pick(max_metric_drop=0.02, reference_metric=0.92) == 2
    assert pick(max_metric_drop=0.1, reference_metric=0.92) == 0
    # Where less is better, a worse metric is a larger one.
    assert pick(metric_name="loss", max_metric_drop=0.02, greater_is_better=False) == 3
    assert pick(metric_name="loss", max_metric_drop=0.02, reference_metric=0.085, greater_is_better=False) == 2


def test_the_bound_itself_is_not_enough():
    assert pick(max_metric_drop=0.01) == 2
    assert pick(max_metric_drop=0.05) == 3
    # Nor where rounding would put it within.
    result = result_of(evaluated((0, 0, 0), 0.2), evaluated((3, 3, 3), 0.3))
    assert 0.2 > 0.3 - 0.1
    assert pick(result, max_metric_drop=0.1) == 1
    assert pick(result, max_metric_drop=0.1000001) == 0


def test_the_largest_where_none_is_near_enough(caplog):
    assert pick(max_metric_drop=0.0, reference_metric=0.95) == 1
    assert caplog.messages == [
        "No evaluated sub-network has a accuracy better than 0.95 less 0; the largest is taken."
    ]
    # Within a budget, the largest in it.
    assert pick(max_metric_drop=0.01, reference_metric=0.95, max_macs_ratio=0.6) == 3
    assert "(of the 3 that meet the other demands)" in caplog.messages[1]


def test_budgets_hold_and_do_not_move_the_reference():
    assert pick(max_metric_drop=0.02, max_macs_ratio=0.99) == 3
    assert pick(max_metric_drop=0.005, max_macs_ratio=0.99) == 2
    with pytest.raises(ValueError, match="at most 0.1 of the MACs; the smallest there is has 0.4167"):
        pick(max_metric_drop=0.02, max_macs_ratio=0.1)


def test_ties_go_to_the_better_and_then_to_fewer_parameters():
    result = result_of(
        evaluated((3, 3, 3), 0.9), evaluated((0, 1, 2), 0.9), evaluated((0, 2, 1), 0.91), evaluated((1, 1, 1), 0.91)
    )
    assert pick(result, max_metric_drop=0.05) == 2


def test_demands_that_make_no_sense_are_refused():
    for demands, message in (
        ({"reference_metric": 0.9}, "reference_metric is 0.9 without max_metric_drop; give both or neither"),
        ({"max_metric_drop": 0.01, "min_metric": 0.5}, "min_metric is 0.5 and max_metric_drop 0.01; give one of them"),
        ({"max_metric_drop": -0.01}, "max_metric_drop is -0.01; give 0 or more"),
        ({"max_metric_drop": math.nan}, "max_metric_drop is nan"),
        ({"max_metric_drop": 0.1, "reference_metric": math.nan}, "reference_metric is nan; give a number"),
        ({"max_metric_drop": 0.1, "metric_name": "f1"}, "recorded no metric 'f1' but .'accuracy', 'loss'"),
    ):
        with pytest.raises(ValueError, match=message):
            pick(**demands)
    undefined = result_of(evaluated((3, 3, 3), math.nan), evaluated((0, 0, 0), 0.5))
    with pytest.raises(
        ValueError, match="largest evaluated sub-network has the accuracy nan, .*; give reference_metric"
    ):
        pick(undefined, max_metric_drop=0.1)
    assert pick(undefined, max_metric_drop=0.1, reference_metric=0.5) == 1
    infinite = Evaluated(SPACE.largest, (3, 3, 3), {"accuracy": math.nan}, (math.inf, 0.0))
    with pytest.raises(ValueError, match="None of the 1 evaluated sub-networks has a finite error"):
        pick(result_of(infinite), min_metric=0.1)


def test_published_keys_are_percent(caplog):
    assert published_demands(84.1, 1) == {"reference_metric": 0.841, "max_metric_drop": 0.01}
    assert published_demands() == {"reference_metric": None, "max_metric_drop": 0.01}
    percent = published_demands(88.5, 2, metric_scale=100)
    assert percent == {"reference_metric": pytest.approx(88.5), "max_metric_drop": 2.0}
    assert pick(**published_demands(90, 2)) == 3
    # Without a reference the published code compares with the negated metric, which everything exceeds.
    assert pick(**published_demands(acc_delta=2)) == 3
    assert not caplog.records
    assert published_demands(80, 10)["max_metric_drop"] == 0.1
    assert caplog.messages == ["The 'acc_delta' tolerates a drop of 10 percentage points."]
    for keys, message in (
        ((-2, 1), "'ref_acc' is -2; give a metric in percent, 0 to 100, or -1"),
        ((101, 1), "'ref_acc' is 101"),
        ((math.nan, 1), "'ref_acc' is nan"),
        ((50, -1), "'acc_delta' is -1; give percentage points"),
    ):
        with pytest.raises(ValueError, match=message):
            published_demands(*keys)


HISTORY = [
    Evaluated(SPACE.decode(encoding), encoding, {}, costs)
    for encoding, costs in (((0, 0, 0), (0.5, 0.1)), ((3, 3, 3), (0.1, 0.9)))
]


def children(count=400, **options):
    method = NSGA2(SPACE, SAMPLER, **options)
    rng = np.random.default_rng(0)
    return [method.propose(HISTORY, rng) for _ in range(count)]


def test_nsga2_without_options_draws_what_it_always_drew():
    assert children(20) == children(20, crossover_probability=1.0, mutation_probability=None)
    # Recorded before there were options.
    assert children(4) == [(0, 3, 3), (3, 2, 3), (0, 0, 3), (3, 1, 0)]


def test_crossover_has_its_probability():
    parents = {(0, 0, 0), (3, 3, 3)}
    assert set(children(crossover_probability=0.0, mutation_probability=0.0)) == parents
    # Tournaments choose different parents in 3 of 8 cases, of whose children 3 of 4 resemble neither.
    for probability in (0.4, 1.0):
        found = children(2000, crossover_probability=probability, mutation_probability=0.0)
        mixed = np.mean([child not in parents for child in found])
        assert mixed == pytest.approx(probability * 9 / 32, abs=0.03)


def test_mutation_has_its_probability_in_every_dimension():
    found = np.array(children(2000, crossover_probability=0.0, mutation_probability=0.3))
    # Alike in all dimensions: none has changed, or all to the other parent's choice.
    alike = [set(child) in ({0}, {3}) for child in found.tolist()]
    assert np.mean(alike) == pytest.approx(0.7**3 + 0.1**3, abs=0.03)
    always = np.array(children(crossover_probability=0.0, mutation_probability=1.0))
    # Every dimension takes another choice, each of them as often.
    assert all(not {0, 3} <= set(child) for child in always.tolist())
    counts = np.bincount(always.ravel(), minlength=4) / always.size
    assert counts[1:3] == pytest.approx([1 / 3, 1 / 3], abs=0.05)


def test_dimensions_without_a_choice_never_mutate():
    space = CustomSpace({"sub_layers": {"encoder.0.attention": [4], "encoder.1.attention": [1, 2]}}, SPACE.structure)
    history = [Evaluated(space.decode((0, i)), (0, i), {}, (0.1, 0.1)) for i in range(2)]
    method = NSGA2(space, PublishedSampler(space), mutation_probability=1.0)
    rng = np.random.default_rng(0)
    assert {method.propose(history, rng) for _ in range(30)} == {(0, 0), (0, 1)}


def test_options_reach_the_method(monkeypatch):
    method = get_search_method("nsga2", SPACE, SAMPLER, population=7, mutation_probability=0.1)
    assert (method.population, method.mutation_probability, method.crossover_probability) == (7, 0.1, 1.0)
    with pytest.raises(ValueError, match="'nsga2' has no option 'eta'; choose from population, further_mutation"):
        get_search_method("nsga2", SPACE, SAMPLER, eta=3)
    with pytest.raises(ValueError, match="'random_search' has no option 'population'; choose from none"):
        get_search_method("random_search", SPACE, SAMPLER, population=3)
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    register_search_method("own", lambda space, sampler, **options: NSGA2(space, sampler, **options))
    assert get_search_method("own", SPACE, SAMPLER, population=9).population == 9
    for options, message in (
        ({"population": 1}, "population of nsga2 is 1; give a whole number of 2 or more"),
        ({"population": 2.5}, "population of nsga2 is 2.5"),
        ({"crossover_probability": 1.1}, "crossover_probability of nsga2 is 1.1; give a number from 0 to 1"),
        ({"mutation_probability": -0.1}, "mutation_probability of nsga2 is -0.1"),
        ({"further_mutation": 1.0}, "further_mutation of nsga2 is 1.0; give a number from 0 to below 1"),
    ):
        with pytest.raises(ValueError, match=message):
            get_search_method("nsga2", SPACE, SAMPLER, **options)


def test_published_settings_become_a_search():
    options = {"population": 40, "crossover_probability": 0.9, "mutation_probability": 0.02}
    wanted = {"method": "nsga2", "num_samples": 3000, "seed": 0, "method_options": options}
    assert published_nsga2() == wanted
    # Whole generations.
    assert published_nsga2(num_evals=1019, seed=3) == {**wanted, "num_samples": 1000, "seed": 3}
    get_search_method("nsga2", SPACE, SAMPLER, **published_nsga2()["method_options"])
    for keys, message in (
        ({"num_evals": 30}, "'num_evals' 30 cannot have the 'population' 40; give one of 2 to 'num_evals'"),
        ({"population": 1}, "the 'population' 1"),
        ({"crossover_eta": 15}, "has the 'crossover_eta' 15, but .* means nothing; remove it"),
        ({"mutation_eta": 20.0}, "has the 'mutation_eta' 20.0"),
    ):
        with pytest.raises(ValueError, match=message):
            published_nsga2(**keys)
