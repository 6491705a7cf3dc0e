import logging
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from hf_nas.search.gaussian_process import GaussianProcess, Hyperparameters, _loss, _prior
from hf_nas.search.improvement import Improvement
from hf_nas.search.methods import NSGA2, ModelBasedSearch, get_search_method
from hf_nas.search.methods.candidates import breed
from hf_nas.search.pareto import hypervolume
from hf_nas.search.result import Evaluated
from hf_nas.space.sampling import PublishedSampler
from tests.search.problems import UnitsSpace, accuracy_of, size_of


def naive_kernel(first, second, own):
    """Entry by entry, from the definition."""
    kernel = np.empty((len(first), len(second)))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            r = np.sqrt(5 * (((a - b) / own.lengths) ** 2).sum())
            linear = own.slope * ((2 * a - 1) * (2 * b - 1)).mean()
            kernel[i, j] = own.signal * (1 + r + r**2 / 3) * np.exp(-r) + linear
    return kernel


@pytest.fixture
def regression():
    rng = np.random.default_rng(0)
    features = rng.random((12, 3))
    own = Hyperparameters(np.array([0.3, 1.0, 4.0]), signal=0.7, slope=0.4, noise=0.01)
    return features, 5 + 2 * np.sin(4 * features[:, 0]) + features[:, 1], own


def test_predictions_equal_the_textbook_formula(regression):
    features, values, own = regression
    queries = np.random.default_rng(1).random((5, 3))
    mean, deviation = GaussianProcess(features, values, own).predict(queries)
    standard = (values - values.mean()) / values.std()
    inverse = np.linalg.inv(naive_kernel(features, features, own) + own.noise * np.eye(12))
    cross = naive_kernel(queries, features, own)
    np.testing.assert_allclose(mean, values.mean() + values.std() * cross @ inverse @ standard, rtol=1e-6)
    variance = naive_kernel(queries, queries, own) - cross @ inverse @ cross.T
    np.testing.assert_allclose(deviation, values.std() * np.sqrt(np.diag(variance)), rtol=1e-5)


def test_loss_is_the_density_of_the_values_and_its_gradient_that_of_autograd(regression):
    features, values, _ = regression
    standard = (values - values.mean()) / values.std()
    rng = np.random.default_rng(2)
    centre, width = _prior(3)
    losses = []
    for vector in centre + rng.normal(size=(3, 6)):
        own = Hyperparameters.from_vector(vector)
        loss, gradient = _loss(vector, features, standard)
        covariance = naive_kernel(features, features, own) + (own.noise + 1e-8) * np.eye(12)
        density = (
            multivariate_normal(np.zeros(12), covariance).logpdf(standard) + norm(centre, width).logpdf(vector).sum()
        )
        losses.append(loss + density)
        x = torch.tensor(features)
        t = torch.tensor(vector, requires_grad=True)
        scaled = x / t[:3].exp()
        squared = ((scaled[:, None] - scaled[None]) ** 2).sum(-1)
        r = (5 * squared + 1e-30).sqrt()
        curved = t[3].exp() * (1 + r + r**2 / 3) * (-r).exp()
        kernel = curved + t[4].exp() * (2 * x - 1) @ (2 * x - 1).T / 3 + (t[5].exp() + 1e-8) * torch.eye(12)
        prior = torch.distributions.Normal(torch.tensor(centre), torch.tensor(width)).log_prob(t).sum()
        normal = torch.distributions.MultivariateNormal(torch.zeros(12, dtype=torch.float64), kernel)
        (-normal.log_prob(torch.tensor(standard)) - prior).backward()
        np.testing.assert_allclose(gradient, t.grad.numpy(), rtol=1e-5, atol=1e-6)
    # They differ by a constant.
    np.testing.assert_allclose(losses, losses[0])


def test_noise_and_irrelevant_features_are_found():
    rng = np.random.default_rng(0)
    features, queries = rng.random((120, 4)), rng.random((200, 4))
    truth = lambda x: np.sin(5 * x[:, 0]) + 2 * (2 * x[:, 1] - 1) ** 2  # noqa: E731
    for noise in (0.0, 0.2):
        values = truth(features) + rng.normal(0, noise, 120)
        process = GaussianProcess.fit(features, values)
        own = process.hyperparameters
        assert own.lengths[:2].max() < own.lengths[2:].min()
        estimated = np.sqrt(own.noise) * values.std()
        assert 0.7 * noise < estimated < max(1.3 * noise, 0.02)
        mean, deviation = process.predict(queries)
        error = mean - truth(queries)
        assert np.sqrt((error**2).mean()) < max(0.6 * noise, 0.02)
        assert 0.85 < (np.abs(error) < 2 * deviation).mean()


def test_equal_values_are_predicted_as_they_are():
    process = GaussianProcess.fit(np.random.default_rng(0).random((6, 2)), np.full(6, 0.3))
    mean, deviation = process.predict(np.full((1, 2), 0.5))
    assert mean == pytest.approx(0.3) and np.isfinite(deviation).all()


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("cells", [20_000, 0])
def test_improvement_is_the_mean_growth_of_the_hypervolume(objectives, cells, monkeypatch):
    # The name hf_nas.search is also that of a function, so that no dotted path leads to the module.
    monkeypatch.setitem(Improvement.__init__.__globals__, "_MOST_CELLS", cells)
    rng = np.random.default_rng(objectives)
    front = np.round(rng.random((7, objectives)), 1)
    reference = np.full(objectives, 0.9)
    means, deviations, known = rng.random(6), 0.05 + 0.3 * rng.random(6), rng.random((6, objectives - 1))
    known[0] = 0.0
    quantiles = norm.ppf((np.arange(400) + 0.5) / 400)
    before = hypervolume(front, reference)
    expected = [
        np.mean([hypervolume([*front, [m + d * q, *k]], reference) - before for q in quantiles])
        for m, d, k in zip(means, deviations, known)
    ]
    found = Improvement(front, reference)(means, deviations, known)
    np.testing.assert_allclose(found, expected, rtol=0.01 if cells or objectives < 3 else 0.15, atol=1e-3)
    assert max(expected) > 0.01


def test_children_stay_in_the_space_and_differ_little_or_much():
    rng = np.random.default_rng(0)
    num_choices = np.array([5, 1, 3000, 2])
    parents = np.array([[0, 0, 0, 0], [4, 0, 2999, 1]])
    children = breed(parents, num_choices, 500, rng)
    assert children.shape == (500, 4) and (children >= 0).all() and (children < num_choices).all()
    assert (children.max(axis=0) == num_choices - 1).all() and (children.min(axis=0) == 0).all()
    wide = np.full(3000, 2)
    changed = (breed(np.zeros((1, 3000), dtype=np.int64), wide, 200, rng) != 0).sum(axis=1)
    assert changed.min() <= 2 and changed.max() > 300


SPACE = UnitsSpace(layers=8, units=6)


def method_of(space=SPACE, known_costs=lambda sub_network: (size_of(sub_network),), **options):
    reference = options.pop("reference", (1.0, 1.05))
    # Fewer than by default, where their quality is not what is tested.
    options = {"candidates": 150, **options}
    sampler = PublishedSampler(space)
    return get_search_method("model_based", space, sampler, known_costs=known_costs, reference=reference, **options)


def evaluate(space, encoding, known_costs=lambda sub_network: (size_of(sub_network),)):
    sub_network = space.decode(encoding)
    error = 1 - accuracy_of(sub_network)["accuracy"]
    return Evaluated(sub_network, tuple(encoding), {}, (error, *known_costs(sub_network)))


def history_of(space, count, seed=0, **options):
    rng = np.random.default_rng(seed)
    encodings = {space.largest_encoding: None, space.smallest_encoding: None}
    while len(encodings) < count:
        encodings[space.sample(rng)] = None
    return [evaluate(space, encoding, **options) for encoding in encodings]


def search(space, count, reference=(1.0, 1.05), candidates=150, **options):
    history = history_of(space, 10, **options)
    method = method_of(space, reference=reference, candidates=candidates, **options)
    while len(history) < count:
        proposal = method.propose(history, np.random.default_rng(len(history)))
        assert proposal not in {trial.encoding for trial in history}
        history.append(evaluate(space, proposal, **options))
    return history


def volume_of(history):
    return hypervolume([trial.costs for trial in history], (1.0,) + (1.05,) * (len(history[0].costs) - 1))


@pytest.mark.parametrize("reference", [(1.0, 1.05), None])
def test_forty_evaluations_are_worth_more_than_three_hundred_of_random_search(reference):
    assert volume_of(search(SPACE, 40, reference)) > volume_of(history_of(SPACE, 300)) + 0.003


def test_a_reference_that_nothing_reaches_is_none():
    history = history_of(SPACE, 12)
    first, second = (
        method_of(reference=reference).propose(history, np.random.default_rng(0)) for reference in (None, (0.01, 0.01))
    )
    assert first == second


def test_three_and_four_objectives_and_one():
    def known_costs(sub_network):
        return size_of(sub_network), sub_network.counts()[-1] / 6

    history = search(SPACE, 35, None, known_costs=known_costs)
    assert volume_of(history) > volume_of(history_of(SPACE, 300, known_costs=known_costs))
    assert len(search(SPACE, 13, None, known_costs=lambda each: (size_of(each), *each.counts()[:2]))) == 13
    # The error alone: the largest network has the lowest, and what comes next is close to it.
    history = search(SPACE, 16, None, known_costs=lambda _: ())
    assert np.mean([trial.costs[0] for trial in history[10:]]) < np.mean([trial.costs[0] for trial in history[:10]])


def test_a_method_made_anew_proposes_the_same_at_any_length_of_the_history():
    method, history = method_of(), search(SPACE, 20)
    for length in (11, 16, 20):
        again = method_of().propose(history[:length], np.random.default_rng(7))
        assert method.propose(history[:length], np.random.default_rng(7)) == again
    # What was fitted to another history does not stay.
    other = history_of(SPACE, 12, seed=5)
    assert method.propose(other, np.random.default_rng(7)) == method_of().propose(other, np.random.default_rng(7))


def test_undefined_costs_are_left_out():
    history = history_of(SPACE, 12)
    broken = Evaluated(SPACE.decode((3,) * 8), (3,) * 8, {}, (float("inf"), 0.5))
    rng = lambda: np.random.default_rng(0)  # noqa: E731
    proposal = method_of().propose([*history, broken], rng())
    assert proposal == method_of().propose(history, rng()) and proposal != broken.encoding
    # A candidate whose latency is unknown is no candidate.
    known = lambda each: (size_of(each) if each.counts()[0] < 4 else float("nan"),)  # noqa: E731
    for seed in range(5):
        assert method_of(known_costs=known).propose(history, np.random.default_rng(seed))[0] < 3


def test_what_the_search_would_not_take_is_not_proposed():
    history = history_of(SPACE, 14)
    method = method_of()
    first = method.propose(history, np.random.default_rng(0))
    # Evaluated by another process at this moment.
    method.is_candidate = lambda sub_network: sub_network != SPACE.decode(first)
    second = method.propose(history, np.random.default_rng(0))
    assert second != first
    # Beyond a limit.
    method.is_candidate = lambda sub_network: size_of(sub_network) <= 0.4
    for seed in range(4):
        assert size_of(SPACE.decode(method.propose(history, np.random.default_rng(seed)))) <= 0.4
    # Nothing is left: it draws, and the search finds out.
    method.is_candidate = lambda _: False
    assert SPACE.decode(method.propose(history, np.random.default_rng(0)))


def test_the_estimates_of_rejected_ones_are_no_front(monkeypatch):
    history = history_of(SPACE, 14)
    lucky = replace(evaluate(SPACE, (2,) * 8), costs=(0.0, 0.1), rejected=True)
    fronts = []
    improvement = ModelBasedSearch.propose.__globals__["Improvement"]

    def recorded(front, reference):
        fronts.append(front)
        return improvement(front, reference)

    monkeypatch.setitem(ModelBasedSearch.propose.__globals__, "Improvement", recorded)
    assert method_of().propose([*history, lucky], np.random.default_rng(0)) != lucky.encoding
    method_of().propose([*history, replace(lucky, rejected=False)], np.random.default_rng(0))
    assert 0.1 not in fronts[0][:, 1] and 0.1 in fronts[1][:, 1]
    # Of nothing but rejected ones no front can be made.
    rejected = [replace(trial, rejected=True) for trial in history]
    assert method_of().propose(rejected, np.random.default_rng(3)) == SPACE.sample(np.random.default_rng(3))


def test_expected_costs_see_through_luck():
    rng = np.random.default_rng(0)
    exact = history_of(SPACE, 120)
    noisy = [replace(t, costs=(t.costs[0] + rng.normal(0, 0.05), *t.costs[1:])) for t in exact]
    true = np.array([trial.costs for trial in exact])
    recorded = np.array([trial.costs for trial in noisy])
    method = method_of()
    expected = method.expected_costs(noisy)
    assert (expected[:, 1] == recorded[:, 1]).all()
    assert np.sqrt(((expected - true)[:, 0] ** 2).mean()) < 0.6 * np.sqrt(((recorded - true)[:, 0] ** 2).mean())
    np.testing.assert_allclose(method_of().expected_costs(exact), true, atol=0.02)
    # Where there is no model, they are as recorded, and undefined ones stay so.
    assert (method_of(most_evaluations=119).expected_costs(noisy) == recorded).all()
    assert (get_search_method("nsga2", None, None).expected_costs(noisy) == recorded).all()
    broken = replace(noisy[0], costs=(float("inf"), 0.5))
    found = method.expected_costs([*noisy, broken])
    assert found[-1].tolist() == [float("inf"), 0.5] and (found[:-1] == expected).all()
    assert method.expected_costs([]).shape[0] == 0


def test_a_space_of_few_points_is_gone_through_to_its_end():
    space = UnitsSpace(layers=3, units=3)
    history = history_of(space, 4)
    method = method_of(space)
    for _ in range(23):
        proposal = method.propose(history, np.random.default_rng(len(history)))
        assert proposal not in {trial.encoding for trial in history}
        history.append(evaluate(space, proposal))
    # Nothing new is left: it draws, and the search finds out.
    assert space.decode(method.propose(history, np.random.default_rng(0)))


def test_nsga2_takes_over_with_a_word(caplog):
    history = history_of(SPACE, 31)
    method = method_of(most_evaluations=30)
    with caplog.at_level(logging.INFO):
        proposal = method.propose(history, np.random.default_rng(0))
        method.propose(history, np.random.default_rng(0))
    assert proposal == NSGA2(SPACE, PublishedSampler(SPACE)).propose(history, np.random.default_rng(0))
    assert caplog.text.count("After 30 evaluations the search goes on with nsga2") == 1


def test_spaces_of_thousands_of_dimensions():
    space = UnitsSpace(layers=3000, units=2)
    method = method_of(space)
    history = history_of(space, 12)
    assert method._features(
        [t.encoding for t in history], [t.sub_network for t in history], np.zeros((12, 1))
    ).shape == (
        12,
        65,
    )
    proposal = method.propose(history, np.random.default_rng(0))
    assert space.decode(proposal) not in {trial.sub_network for trial in history}


def test_units_of_a_space_of_single_units_count_by_sub_layer():
    structure_space = UnitsSpace(layers=101, units=2)
    method = method_of(structure_space)
    small, large = structure_space.smallest, structure_space.largest
    encodings = [structure_space.smallest_encoding, structure_space.largest_encoding]
    features = method._choice_features(encodings, [small, large])
    assert features.shape == (2, 64) and (features >= 0).all() and (features <= 1).all()
    assert np.abs(features[0] - features[1]).max() > 0


def test_a_proposal_is_cheap():
    space = UnitsSpace(layers=30, units=8)
    history = history_of(space, 200)
    method = method_of(space, candidates=700)
    method.propose(history, np.random.default_rng(0))
    seconds = []
    for seed in range(3):
        start = time.process_time()
        method.propose(history, np.random.default_rng(seed))
        seconds.append(time.process_time() - start)
    print(f"{min(seconds):.3f} s a proposal")
    # 0.2 s is the aim; the rest is for slow machines.
    assert min(seconds) < 0.5


def test_unfit_options_are_refused():
    for options, message in (
        ({"most_evaluations": 1}, "most_evaluations of model_based is 1; give a whole number of 2 or more"),
        ({"candidates": 2.5}, "candidates of model_based is 2.5; give a whole number of 20 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            method_of(**options)
    method = get_search_method("model_based", None, None)
    with pytest.raises(ValueError, match="needs all costs but the first before the evaluation"):
        method.propose([], np.random.default_rng(0))
