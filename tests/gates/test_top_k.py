"""The relaxed top-K against the published numbers, a naive one in float64, and the distribution it relaxes."""

import itertools
import math
from functools import partial

import pytest
import torch
from scipy.stats import chisquare

from hf_nas.gates.top_k import (
    TemperatureSchedule,
    gumbel,
    hard_knapsack,
    hard_top_k,
    log1mexp,
    relaxed_knapsack,
    relaxed_top_k,
    straight_through,
)


def naive_top_k(scores: torch.Tensor, count: int, temperature: float) -> torch.Tensor:
    """The published recursion, as it is written there; for float64."""
    chosen = torch.zeros_like(scores)
    for _ in range(count):
        probability = torch.softmax(scores / temperature, -1)
        chosen = chosen + probability
        scores = scores + (1 - probability).clamp(min=torch.finfo(scores.dtype).tiny).log()
    return chosen


def gradient_of(function, scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    scores = scores.clone().requires_grad_()
    return torch.autograd.grad((function(scores) * weights.to(scores)).sum(), scores)[0].double()


def random_scores(seed: int, units: int = 144) -> torch.Tensor:
    """As they are at the beginning of a training, in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(units, generator=generator) - 0.5 + gumbel(torch.rand(units, generator=generator))


@pytest.mark.parametrize(
    "temperature, wanted",
    [
        (1, [1.084313, 0.584089, 0.239938, 0.091660]),
        (0.5, [0.991645, 0.849986, 0.139078, 0.019290]),
        (0.1, [0.999955, 1.000000, 0.000045, 0]),
        (1e-8, [1, 1, 0, 0]),
        (1000, [0.500750, 0.500250, 0.499750, 0.499250]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_numbers(temperature, wanted, dtype) -> None:
    scores = torch.tensor([2, 1, 0, -1], dtype=dtype)
    assert relaxed_top_k(scores, 2, temperature).tolist() == pytest.approx(wanted, abs=1e-6)
    assert relaxed_top_k(scores * 0, 2, temperature).tolist() == pytest.approx([0.5] * 4, abs=1e-6)


def test_published_noise() -> None:
    noise = gumbel(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    assert noise.tolist() == pytest.approx([-0.834032, 0.366513, 2.250367], abs=1e-6)
    uniform = torch.tensor([0.9, 0.5, 0.1, 0.5], dtype=torch.float64)
    scores = torch.tensor([0.5, -0.5, 0, 1], dtype=torch.float64) + gumbel(uniform)
    assert scores.tolist() == pytest.approx([2.750367, -0.133487, -0.834032, 1.366513], abs=1e-6)
    assert relaxed_top_k(scores, 2, 1.0).tolist() == pytest.approx([1.217907, 0.142083, 0.071613, 0.568397], abs=1e-6)
    assert relaxed_top_k(scores, 2, 0.1).tolist() == pytest.approx([0.999999, 0, 0, 1.000001], abs=1e-6)
    assert bool(torch.isfinite(gumbel(torch.tensor([0.0, 1.0]))).all())


@pytest.mark.parametrize("count", [1, 12, 71, 143])
@pytest.mark.parametrize("temperature", [1000.0, 1.0, 0.03, 1e-3, 1e-8])
def test_the_sum_is_exact_and_shifts_do_not_matter(count, temperature) -> None:
    scores = random_scores(count)
    chosen = relaxed_top_k(scores, count, temperature)
    assert float(chosen.double().sum()) == pytest.approx(count, rel=2e-6) and float(chosen.min()) >= 0
    # In float64, since adding a constant to numbers of float32 rounds them.
    exact = scores.double()
    shifted = relaxed_top_k(exact + 3.0, count, temperature)
    assert torch.allclose(shifted, relaxed_top_k(exact, count, temperature), atol=1e-6)


@pytest.mark.parametrize("temperature", [100.0, 10.0, 1.0])
def test_raising_a_score_raises_its_multiplier(temperature) -> None:
    """Not below 1, where the published relaxation has multipliers above 1 that fall back to it."""
    scores = random_scores(0, 12).double()
    for unit in range(12):
        raised = scores.clone()
        raised[unit] += 0.01
        difference = relaxed_top_k(raised, 4, temperature) - relaxed_top_k(scores, 4, temperature)
        assert float(difference[unit]) > 0


@pytest.mark.parametrize("seed", range(5))
def test_at_low_temperatures_the_largest_are_one(seed) -> None:
    scores = random_scores(seed)
    for count in (1, 12, 143):
        wanted = torch.zeros(144)
        wanted[sorted(range(144), key=lambda unit: -float(scores[unit]))[:count]] = 1
        gaps = scores.sort().values.diff()
        assert float(gaps[-count]) > 1e-6  # else the multipliers of these two are rightly between
        assert torch.allclose(relaxed_top_k(scores, count, 1e-8), wanted, atol=1e-6)


@pytest.mark.parametrize("temperature", [1000, 10, 1, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4])
def test_gradients_in_single_precision_are_those_in_double_precision(temperature) -> None:
    norms = []
    for seed in range(12):
        scores = random_scores(seed)
        if seed % 2:  # a close race, which has gradients at the lowest temperatures too
            last, following = scores.topk(13).indices[-2:]
            scores[following] = scores[last] - 0.5 * temperature
        weights = torch.randn(144, generator=torch.Generator().manual_seed(seed))
        wanted = gradient_of(lambda x: naive_top_k(x, 12, temperature), scores.double(), weights)
        result = gradient_of(lambda x: relaxed_top_k(x, 12, temperature), scores, weights)
        assert bool(torch.isfinite(result).all())
        # Below the floor the naive one has lost its digits in 1 - p itself.
        assert float((result - wanted).norm()) <= 0.01 * float(wanted.norm()) + 1e-9, seed
        norms.append(float(wanted.norm()))
    assert sum(norm > 1e-4 for norm in norms) >= 6


def test_a_naive_single_precision_would_fail_there() -> None:
    scores = random_scores(16)
    weights = torch.randn(144, generator=torch.Generator().manual_seed(16))
    wanted = gradient_of(lambda x: naive_top_k(x, 12, 3e-3), scores.double(), weights)
    naive = gradient_of(lambda x: naive_top_k(x, 12, 3e-3), scores, weights)
    result = gradient_of(lambda x: relaxed_top_k(x, 12, 3e-3), scores, weights)
    assert float((naive - wanted).norm() / wanted.norm()) > 0.01 > float((result - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("temperature", [1e-6, 1e-8])
@pytest.mark.parametrize("count", [12, 143, 144])
def test_gradients_stay_finite_below(temperature, count) -> None:
    for scores in (random_scores(0), random_scores(1), torch.linspace(-1000, 1000, 144)):
        result = gradient_of(lambda x: relaxed_top_k(x, count, temperature), scores, torch.arange(144.0))
        assert bool(torch.isfinite(result).all())


def test_gradients_of_the_sum_vanish_and_agree_with_finite_differences() -> None:
    scores = random_scores(3, 10).double().requires_grad_()
    total = torch.autograd.grad(relaxed_top_k(scores, 4, 0.5).sum(), scores)[0]
    assert float(total.abs().max()) < 1e-12
    assert torch.autograd.gradcheck(lambda x: relaxed_top_k(x, 4, 0.5), (scores,))
    costs = torch.tensor([3.0, 1, 1, 5, 2, 2, 1, 4, 1, 7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: relaxed_knapsack(x, costs, 0.4, 0.5), (scores,))


def test_the_first_pick_is_distributed_as_the_softmax_of_the_scores() -> None:
    weights = torch.tensor([0.5, -0.5, 0.0, 1.0, -1.5])
    uniform = torch.rand(10000, 5, generator=torch.Generator().manual_seed(0))
    picks = relaxed_top_k(weights + gumbel(uniform), 1, 1e-6)
    observed = (picks > 0.5).sum(0)
    assert int(observed.sum()) == 10000
    assert chisquare(observed.tolist(), (10000 * torch.softmax(weights.double(), 0)).tolist()).pvalue > 0.01
    # And pairs as sampling without replacement (Plackett and Luce).
    pairs = relaxed_top_k(weights + gumbel(uniform), 2, 1e-6) > 0.5
    p = torch.softmax(weights.double(), 0)
    expected, counted = [], []
    for i, j in itertools.combinations(range(5), 2):
        expected.append(float(10000 * (p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]))))
        counted.append(int((pairs[:, i] & pairs[:, j]).sum()))
    assert chisquare(counted, expected).pvalue > 0.01


def test_log1mexp_keeps_its_digits_at_both_ends() -> None:
    values = torch.tensor([-1e-30, -1e-7, -0.5, -math.log(2), -3, -50, -200], requires_grad=True)
    result = log1mexp(values)
    wanted = [math.log(-math.expm1(v)) if v > -1 else math.log1p(-math.exp(v)) for v in values.tolist()]
    assert result.tolist() == pytest.approx(wanted, rel=1e-6)
    assert bool(torch.isfinite(torch.autograd.grad(result.sum(), values)[0]).all())


def test_the_straight_through_variant_keeps_exactly_so_many() -> None:
    scores = torch.tensor([0.3, 0.1, 0.4, 0.1, 0.5], requires_grad=True)
    for count, wanted in enumerate([[], [4], [2, 4], [0, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]]):
        gates = straight_through(hard_top_k(scores, count), scores)
        assert gates.tolist() == [float(unit in wanted) for unit in range(5)]
    incoming = torch.tensor([1.0, -2, 3, 0.5, 0])
    gates = straight_through(hard_top_k(scores, 2), scores)
    assert torch.equal(torch.autograd.grad(gates, scores, incoming)[0], incoming)


@pytest.mark.parametrize(
    "schedule, step, wanted",
    [
        (TemperatureSchedule(), 0, 1000),
        (TemperatureSchedule(), 6250, 1.778279),
        (TemperatureSchedule(), 12500, 3.162278e-3),
        (TemperatureSchedule(), 25000, 1e-8),
        (TemperatureSchedule(), 10**6, 1e-8),
        (TemperatureSchedule(0.1, 1e-8, 15000), 7500, 3.162278e-5),
    ],
)
def test_the_temperature_falls_as_published(schedule, step, wanted) -> None:
    assert schedule.at(step) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("values", [(1e-8, 1e-8, 10), (1.0, 2.0, 10), (1.0, 0.0, 10), (math.inf, 1.0, 10)])
def test_a_temperature_that_does_not_fall_is_refused(values) -> None:
    with pytest.raises(ValueError, match="let it fall from a finite value to a positive one"):
        TemperatureSchedule(*values)


@pytest.mark.parametrize("steps", [0, -5, 2.5])
def test_a_cooldown_of_no_steps_is_refused(steps) -> None:
    with pytest.raises(ValueError, match="cooldown_steps is"):
        TemperatureSchedule(1.0, 0.1, steps)


@pytest.mark.parametrize("temperature", [1000.0, 1.0, 0.03, 1e-4, 1e-8])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.97])
def test_the_relaxed_knapsack_spends_its_budget(temperature, fraction) -> None:
    scores = random_scores(1)
    costs = torch.where(torch.arange(144) < 20, 128.0, 1.0)
    for each in (scores, scores + 5):
        gates = relaxed_knapsack(each, costs, fraction, temperature)
        assert 0 <= float(gates.min()) and float(gates.max()) <= 1
        assert float((gates * costs).double().sum() / costs.sum()) == pytest.approx(fraction, rel=1e-5)
        result = gradient_of(lambda x: relaxed_knapsack(x, costs, fraction, temperature), each, torch.arange(144.0))
        assert bool(torch.isfinite(result).all())


def test_the_relaxed_knapsack_becomes_the_exact_one_with_one_unit_in_part() -> None:
    scores = random_scores(2)
    costs = torch.where(torch.arange(144) < 20, 128.0, 1.0)
    budget = 0.4 * float(costs.sum())
    gates = relaxed_knapsack(scores, costs, 0.4, 1e-7)
    assert int(((gates > 1e-6) & (gates < 1 - 1e-6)).sum()) <= 1
    exact = hard_knapsack(scores, costs, budget)
    assert bool(exact[gates > 1 - 1e-6].all())
    # In float32 it has the gradients of float64.
    weights = torch.randn(144, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 0.01, 1e-3):
        relaxed = partial(relaxed_knapsack, costs=costs, fraction=0.4, temperature=temperature)
        single, double = gradient_of(relaxed, scores, weights), gradient_of(relaxed, scores.double(), weights)
        assert float((single - double).norm()) <= 0.01 * float(double.norm()) + 1e-4


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_knapsack_is_the_greedy_one(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 30, (60,), generator=generator).float()  # with ties
    costs = torch.tensor([1.0, 3.0, 7.0, 11.5])[torch.randint(0, 4, (60,), generator=generator)]
    for budget in (0.5, 1.0, 20.0, 77.5, 1e4):
        wanted, left = [False] * 60, budget
        for unit in sorted(range(60), key=lambda unit: (-float(scores[unit]), unit)):
            if float(costs[unit]) <= left:
                wanted[unit], left = True, left - float(costs[unit])
        assert hard_knapsack(scores, costs, budget).tolist() == wanted


def test_counts_fractions_and_temperatures_out_of_range_are_refused() -> None:
    scores = torch.zeros(4)
    for count in (0, 5, 2.0, True):
        with pytest.raises(ValueError, match="of 4 units are to be kept; give a whole number from 1 to 4"):
            relaxed_top_k(scores, count, 1.0)
    with pytest.raises(ValueError, match="give a whole number from 0 to 4"):
        hard_top_k(scores, -1)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature of the relaxation is"):
            relaxed_top_k(scores, 2, temperature)
    for fraction in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="fraction of the cost to keep is"):
            relaxed_knapsack(scores, torch.ones(4), fraction, 1.0)
    assert relaxed_top_k(torch.tensor([3.0]), 1, 1.0).tolist() == [1.0]
