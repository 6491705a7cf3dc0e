"""Hard concrete gates against the numbers of the published module and against independent formulas."""

import math

import pytest
import torch

from hf_nas.gates import HardConcrete


END = math.log(100)


def gates(logits, sizes=None, **settings) -> HardConcrete:
    module = HardConcrete(sizes or (len(logits),), **settings)
    with torch.no_grad():
        module.logits.copy_(torch.tensor(logits))
    return module


@pytest.mark.parametrize(
    "logit, opened, one, soft",
    [
        (-4.605170, 0.047130, 0.002018, 0.003965),
        (-1.0, 0.645335, None, 0.231475),
        (0.0, 0.831822, 0.168178, 0.5),
        (1.0, 0.930771, None, 0.768525),
        (2.3979, 0.981952, None, 0.946722),
        (4.605170, 0.997982, 0.952870, 0.996035),
        (10.0, 0.999991, None, 0.999994),
    ],
)
def test_probabilities_and_soft_values_are_the_published_ones(logit, opened, one, soft) -> None:
    module = gates([logit])
    assert module.open_probability().item() == pytest.approx(opened, abs=1e-6)
    assert module.soft().item() == pytest.approx(soft, abs=1e-6)
    if one is not None:
        assert module.one_probability().item() == pytest.approx(one, abs=1e-6)


@pytest.mark.parametrize(
    "logit, uniform, value",
    [
        (0.0, 0.1, 0.0), (0.0, 0.25, 0.093669), (0.0, 0.5, 0.5), (0.0, 0.75, 0.906332), (0.0, 0.9, 1.0),
        (1.0, 0.1, 0.070830), (1.0, 0.5, 0.881089), (1.0, 0.9, 1.0),
    ],
)  # fmt: skip
def test_samples_are_the_published_ones(logit, uniform, value) -> None:
    assert gates([logit]).sample(torch.tensor([uniform])).item() == pytest.approx(value, abs=1e-6)


def test_a_sample_just_above_the_threshold_is_small_but_open() -> None:
    assert 0 < gates([0.0]).sample(torch.tensor([0.168204])).item() < 1e-4


@pytest.mark.parametrize("temperature, stretch", [(2 / 3, (-0.1, 1.1)), (0.33, (-0.1, 1.1)), (0.5, (-0.2, 1.05))])
@pytest.mark.parametrize("logit", [-1.0, 0.0, 1.5])
def test_frequencies_of_samples_are_the_probabilities(temperature, stretch, logit) -> None:
    count = 200_000
    module = gates([logit] * count, temperature=temperature, stretch=stretch)
    drawn = module.sample(generator=torch.Generator().manual_seed(3))
    assert 0 <= drawn.min().item() and drawn.max().item() <= 1
    assert (drawn > 0).float().mean().item() == pytest.approx(module.open_probability()[0].item(), abs=4e-3)
    assert (drawn == 1).float().mean().item() == pytest.approx(module.one_probability()[0].item(), abs=4e-3)


def test_the_probability_rises_strictly_within_its_published_bounds() -> None:
    opened = gates(torch.linspace(-END, END, 50).tolist()).open_probability()
    assert bool((opened.diff() > 0).all())
    assert opened[0].item() == pytest.approx(0.04713, abs=1e-5)
    assert opened[-1].item() == pytest.approx(0.99798, abs=1e-5)


@pytest.mark.parametrize(
    "logits, expected",
    [
        ([4.0, 2.0, 0.0, -1.0, -2.0, -3.0], [0.9918, 0.9168, 0.5, 0.2315, 0.0, 0.0]),
        ([-3.0, 0.0, 4.0, -2.0, -1.0, 2.0], [0.0, 0.5, 0.9918, 0.0, 0.2315, 0.9168]),
        ([4.605] * 4, [0.9960] * 4),
        ([-4.605] * 4, [0.0] * 4),
    ],
)
def test_deterministic_values_are_the_published_ones(logits, expected) -> None:
    module = gates(logits)
    assert module.deterministic().tolist() == pytest.approx(expected, abs=5e-5)
    assert module.deterministic(binary=True).tolist() == [float(value > 0) for value in expected]


def test_of_equal_gates_exactly_the_expected_number_is_closed() -> None:
    values = gates([0.0] * 12).deterministic()
    assert gates([0.0] * 12).expected_open().item() == pytest.approx(9.9819, abs=1e-4)
    assert (values == 0).sum().item() == 2 and (values == 0.5).sum().item() == 10


def test_a_scalar_gate_is_closed_below_a_probability_of_one_half() -> None:
    values = gates([-1.5986, -1.5985, -5.0, 0.0], sizes=(1, 1, 1, 1)).deterministic()
    assert values.tolist() == pytest.approx([0.0, 0.1281, 0.0, 0.5], abs=5e-5)
    assert values.dtype == torch.float32


@pytest.mark.parametrize("sizes", [(5, 5, 5), (1, 9, 3), (4,)])
def test_each_group_closes_by_bankers_rounding_of_its_own_sum(sizes) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    logits = (torch.randn(sum(sizes), generator=generator) * 3).tolist()
    module = gates(logits, sizes=sizes)
    for group, value in zip(torch.tensor(logits).split(sizes), module.groups(module.deterministic())):
        opened = [1 / (1 + math.exp(-x - 2 / 3 * math.log(11))) for x in group.tolist()]
        zeros = round(len(opened) - sum(opened))
        assert int((value == 0).sum()) == zeros
        assert set((value == 0).nonzero().flatten().tolist()) == set(group.argsort()[:zeros].tolist())


def test_halves_are_rounded_to_even() -> None:
    module = gates([0.0] * 4)
    for probability, zeros in ((0.375, 2), (0.625, 2), (0.875, 0)):  # 2.5, 1.5 and 0.5 closed gates
        module.open_probability = lambda p=probability: torch.full((4,), p)
        assert int((module.deterministic() == 0).sum()) == zeros


def test_initial_logits_and_the_clamp() -> None:
    module = HardConcrete((500, 500), mean=-2.0, generator=torch.Generator().manual_seed(0))
    assert module.logits.mean().item() == pytest.approx(-2.0, abs=2e-3)
    assert module.logits.std().item() == pytest.approx(0.01, abs=1e-3)
    wide = gates([10.0, -10.0, 1.0])
    wide.clamp()
    assert wide.logits.tolist() == pytest.approx([END, -END, 1.0])


def test_a_kept_gate_never_underflows_to_a_removed_one() -> None:
    values = gates([-2000.0, 50.0, 50.0, 50.0], temperature=1e-3).soft()
    assert bool((values > 0).all())


def test_everything_is_float32_under_autocast_and_in_a_half_precision_model() -> None:
    module = gates([0.3, -0.2]).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        for values in (module.sample(), module.deterministic(), module.open_probability(), module.expected_open()):
            assert values.dtype == torch.float32


def test_samples_have_a_gradient_where_they_are_neither_0_nor_1() -> None:
    module = gates([0.0, 0.0, 0.0])
    module.sample(torch.tensor([0.05, 0.5, 0.95])).sum().backward()
    assert module.logits.grad[0] == 0 and module.logits.grad[2] == 0
    # d/dx of 1.2 * sigmoid(x * 1.5) at 0
    assert module.logits.grad[1].item() == pytest.approx(1.2 * 1.5 / 4, rel=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sizes": ()}, "at least one group"),
        ({"sizes": (3, 0)}, "none empty"),
        ({"sizes": (3,), "temperature": 0.0}, "temperature"),
        ({"sizes": (3,), "stretch": (0.1, 1.1)}, "stretched"),
        ({"sizes": (3,), "stretch": (-0.1, 1.0)}, "stretched"),
        ({"sizes": (3,), "mean": math.inf}, "finite"),
    ],
)
def test_settings_that_make_no_gate_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        HardConcrete(**settings)
