"""Racing: the bound against exact enumeration, whole searches by simulation, and the evaluator around them."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_nas.elastic import SuperNetwork
from hf_nas.search import SuperNetworkEvaluator, pareto_indices
from hf_nas.search.evaluation import Racing, Rejected, accuracy_scores, log_evidence
from hf_nas.search.result import Evaluated
from hf_nas.subnetwork import SubNetwork
from tests import zoo
from tests.search.test_evaluator import collate, make_dataset, plain_logits


def evaluated(sub_network, accuracy: float, size: float) -> Evaluated:
    return Evaluated(sub_network, (), {"accuracy": accuracy}, (1 - accuracy, size))


@pytest.mark.parametrize(("total", "right"), [(10, 6), (12, 3), (12, 11), (13, 8)])
@pytest.mark.parametrize("probability", [0.3, 0.1, 0.02])
def test_a_better_candidate_is_rejected_with_no_more_than_the_documented_probability(total, right, probability):
    # Every order of a candidate that is better by a single example, looked at after every example.
    lost = orders = 0
    for places in combinations(range(total), right):
        scores = np.zeros(total)
        scores[list(places)] = 1
        evidence = max(log_evidence(scores[:count], (right - 1) / total, total) for count in range(1, total + 1))
        lost += evidence >= -math.log(probability)
        orders += 1
    assert orders == math.comb(total, right) and lost / orders <= probability


def test_the_bound_holds_for_scores_between_0_and_1():
    rng = np.random.default_rng(0)
    lost, trials = 0, 2000
    for _ in range(trials):
        scores = rng.beta(*rng.uniform(0.2, 3, 2), 60)
        lost += log_evidence(scores[:45], scores.mean() - 1e-6, 60) >= -math.log(0.1)
    assert 0 < lost / trials <= 0.1


def test_evidence_grows_where_the_candidate_is_worse_and_is_certain_where_the_rest_cannot_help():
    rng = np.random.default_rng(1)
    worse = (rng.random(400) < 0.6).astype(float)
    assert log_evidence(worse[:100], 0.85, 400) > -math.log(0.05)
    assert log_evidence(worse[:200], 0.85, 400) > log_evidence(worse[:100], 0.85, 400)
    assert log_evidence(np.ones(100), 0.85, 400) == 0
    # 6 of 10 at best: as good as a rival of 6, better than one of 5.
    assert log_evidence(np.zeros(4), 0.6, 10) == math.inf
    assert log_evidence(np.zeros(4), 0.5, 10) < math.inf
    assert log_evidence(np.array([0.0, 1.0]), 1.0, 10) == math.inf
    assert log_evidence(np.array([1.0, 1.0]), 1.0, 2) == math.inf


def test_parts_double_and_hold_every_example_once_in_an_order_of_the_seed():
    parts = Racing().parts_of(408)
    assert [len(part) for part in parts] == [51, 51, 102, 204]
    assert sorted(np.concatenate(parts).tolist()) == list(range(408))
    same, other = Racing().parts_of(408), Racing(seed=1).parts_of(408)
    assert all((a == b).all() for a, b in zip(parts, same)) and not (parts[3] == other[3]).all()
    assert [len(part) for part in Racing(parts=6).parts_of(3)] == [1, 1, 1]
    assert [len(part) for part in Racing().parts_of(1)] == [1]


def race_through(rng: np.random.Generator, racing: Racing, candidates: int, total: int) -> tuple[int, int, int, float]:
    """A search over random candidates: on the true front, of these rejected, rejected, and share of work done."""
    sizes = rng.permutation(candidates) / candidates
    difficulty = rng.random(total)
    skill = 0.55 + 0.4 * sizes + rng.normal(0, 0.12, candidates)
    right = (difficulty[None] * rng.uniform(0.7, 1.3, (candidates, total)) < skill[:, None]).astype(float)
    accuracies = right.mean(1)
    order = np.concatenate(racing.parts_of(total))
    ends = np.cumsum([len(part) for part in racing.parts_of(total)])[:-1]
    full: list[Evaluated] = []
    rejected, work = [], 0
    for candidate in range(candidates):
        place = racing.rival_of((sizes[candidate],), full)
        stops = (
            end
            for end in ends
            if place is not None and racing.is_lost(right[candidate, order[:end]], total, full[place])
        )
        stop = next(stops, total)
        work += stop
        if stop < total:
            rejected.append(candidate)
        else:
            full.append(evaluated(None, accuracies[candidate], sizes[candidate]))
    front = set(pareto_indices(np.stack([1 - accuracies, sizes], axis=1)))
    return len(front), len(front & set(rejected)), len(rejected), work / (candidates * total)


@pytest.mark.parametrize("probability", [0.05, 0.3])
def test_members_of_the_true_front_survive_and_many_others_do_not(probability):
    trials = [
        race_through(np.random.default_rng(seed), Racing(error_probability=probability, seed=seed), 25, 200)
        for seed in range(100)
    ]
    front, lost, rejected, _ = (sum(column) for column in zip(*trials))
    assert lost <= probability * front
    assert lost <= 0.2 * probability * rejected  # rejections are rarely wrong
    assert rejected > 0.25 * 25 * 100
    assert np.mean([work for *_, work in trials]) < 0.9


def test_only_the_best_smaller_rival_counts():
    racing = Racing()
    front = [evaluated(None, 0.9, 1.0), evaluated(None, 0.7, 0.3), evaluated(None, 0.8, 0.5)]
    assert racing.rival_of((0.6,), front) == 2
    assert racing.rival_of((1.0,), front) == 0
    assert racing.rival_of((0.2,), front) is None
    assert racing.rival_of((0.6,), []) is None
    with pytest.raises(ValueError, match="give all costs but the error"):
        racing.rival_of((0.6, 0.1), front)
    with pytest.raises(ValueError, match="race by the metric that is searched by"):
        Racing(metric="other_accuracy").rival_of(
            (0.6,), [Evaluated(None, (), {"accuracy": 0.5, "other_accuracy": 0.7}, (0.5, 0.3))]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "f1"}, "'f1' is not known to be one"),
        ({"metric": "matthews_correlation"}, "race by accuracy"),
        ({"error_probability": 0.0}, "error_probability 0.0 is none"),
        ({"error_probability": 1}, "error_probability 1 is none"),
        ({"parts": 1}, "cannot end early"),
    ],
)
def test_unfit_races_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Racing(**options)


def test_scores_must_fit_the_metric():
    logits, labels = np.eye(3), np.array([0, 1, 0])
    assert accuracy_scores(EvalPrediction(logits, labels)).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="one label each, not"):
        accuracy_scores(EvalPrediction(logits[None], labels[None]))
    with pytest.raises(ValueError, match="one from 0 to 1 for each of the 3 examples"):
        Racing("mean", scores=lambda _: np.array([0, 1, 2])).example_scores(EvalPrediction(logits, labels))
    with pytest.raises(ValueError, match="'accuracy' is 0.5 but the mean of the scores is 0.75"):
        Racing().check(np.array([1, 1, 1, 0]), {"accuracy": 0.5})
    with pytest.raises(ValueError, match="no metric 'accuracy'"):
        Racing().check(np.ones(2), {"f1": 1.0})
    Racing(scale=100).check(np.array([1, 1, 1, 0]), {"accuracy": 75.0})


@pytest.fixture(scope="module")
def setting():
    """A super-network whose full network is always right, its rows, and a function that makes evaluators."""
    super_network = SuperNetwork(zoo.build("bert"))
    dataset, full = make_dataset(120), super_network.full
    logits = plain_logits(super_network, full, dataset)
    with torch.no_grad():  # so that classes are told apart
        super_network.model.classifier.bias.sub_(torch.from_numpy(logits.mean(0)))
    labels = (logits - logits.mean(0)).argmax(-1).tolist()
    assert min(np.bincount(labels)) > 15
    dataset = dataset.remove_columns("label").add_column("label", labels)
    passes = []

    def evaluator(racing, **options):
        def take(outputs):
            passes.append(len(outputs.logits))
            return outputs.logits

        def compute_metrics(prediction):
            return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

        return SuperNetworkEvaluator(
            super_network, dataset, collate, compute_metrics, batch_size=8, racing=racing, predictions=take, **options
        )

    return super_network, dataset, full, evaluator, passes


def test_a_rival_without_errors_ends_the_race_at_once(setting):
    _, _, full, make, passes = setting
    passes.clear()
    outcome = make(True).race(full, (0.5,), [evaluated(full, 1.0, 0.1)])
    assert outcome == Rejected("accuracy", 1.0, 15, 120, 0) and sum(passes) == 15


def test_a_race_ends_early_with_the_estimate_of_what_was_evaluated(setting):
    super_network, dataset, full, make, passes = setting
    racing = Racing(seed=3)
    evaluator, plain = make(racing), make(False)
    labels, order = np.array(dataset["label"][:]), np.concatenate(racing.parts_of(120))
    rival = evaluated(full, 0.8, 0.1)
    outcomes = {}
    for name, sub_network in zoo.corner_cases(super_network.model).items():
        expected = plain(sub_network)
        assert evaluator(sub_network) == expected  # without a front nothing is given up
        passes.clear()
        outcome = outcomes[name] = evaluator.race(sub_network, (0.5,), [rival])
        count = sum(passes)
        if isinstance(outcome, Rejected):
            assert count in (15, 30, 60) and expected["accuracy"] <= 0.8
            with super_network.activated(sub_network) as model, torch.no_grad():
                logits = model(**collate([{"input_ids": dataset[int(i)]["input_ids"]} for i in order[:count]])).logits
            right = logits.argmax(-1).numpy() == labels[order[:count]]
            assert outcome == Rejected("accuracy", pytest.approx(right.mean()), count, 120, 0)
        else:
            assert outcome == expected and count == 120
        assert super_network.active == full
        # Nobody is smaller, so that nothing can be given up.
        assert evaluator.race(sub_network, (0.05,), [rival]) == expected
    rejected = [outcome for outcome in outcomes.values() if isinstance(outcome, Rejected)]
    assert len(rejected) >= 5 and {outcome.examples for outcome in rejected} > {15}
    assert outcomes["full"] == {"accuracy": 1.0}


def test_racing_must_be_asked_for_and_must_fit_the_metric(setting):
    super_network, _, full, make, _ = setting
    with pytest.raises(ValueError, match="make it with racing=True"):
        make(False).race(full, (0.5,), [])
    assert make(True).racing == Racing() and make(False).racing is None
    wrong = Racing(scores=lambda prediction: np.zeros(len(prediction.predictions)))
    with pytest.raises(ValueError, match="mean of the scores is 0"):
        make(wrong)(full)


def test_after_a_rejection_the_cache_serves_the_parts_it_has_seen(setting):
    super_network, _, full, make, _ = setting
    evaluator = make(True)
    worse = zoo.corner_cases(super_network.model)["all layers gone"]
    outcome = evaluator.race(worse, (0.5,), [evaluated(full, 1.0, 0.1)])
    assert isinstance(outcome, Rejected)
    last = len(super_network.structure.sub_layers) - 1
    kept = dict(worse.items()) | {super_network.structure.names[last]: 3}
    neighbour = SubNetwork.of(super_network.structure, kept)
    assert evaluator(neighbour) == make(False)(neighbour)
    reused, computed = evaluator.reused_layers
    assert 0 < reused < computed
