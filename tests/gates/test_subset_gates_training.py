"""Training with an exact budget: temperature, draws, what w learns, several processes."""

import pytest
import torch
from torch import nn

from hf_nas.gates import CostBudget, GateValues, SubsetGates, TemperatureSchedule, UnitGates
from hf_nas.profiling import parameter_costs
from tests import zoo
from tests.gates.test_subset_gates import SCHEDULE, flat, make, set_w
from tests.gates.two_processes import assert_same


def test_the_temperature_counts_optimizer_steps_in_which_gates_act() -> None:
    model = zoo.build("bert").train()
    gates = make(model, 4)
    seen = [gates.temperature]
    gates.active = False
    gates.clamp()
    gates.active = True
    for _ in range(10):
        for _ in range(3):  # micro-batches
            zoo.logits(model, zoo.inputs_for(model))
        seen.append(gates.temperature)
        gates.clamp()
    assert seen == pytest.approx([SCHEDULE.at(0), *(SCHEDULE.at(step) for step in range(10))], rel=1e-9)
    assert gates.temperature == 1e-6 and gates.draws == 30 and gates.steps == 10


def test_at_the_end_of_the_schedule_draws_are_exact_samples() -> None:
    model = zoo.build("bert").train()
    gates = make(model, 4)
    for _ in range(8):
        gates.clamp()
    drawn = set()
    for _ in range(20):
        model(**zoo.inputs_for(model, labels=True)).loss.backward()
        drawn.add(tuple(flat(gates.current).tolist()))
        assert sorted(flat(gates.current).tolist()) == [0.0] * 8 + [1.0] * 4
    assert len(drawn) > 5 and not bool(gates.w.grad.any())


def test_at_the_end_of_the_schedule_rounding_is_no_gradient_by_costs() -> None:
    model = zoo.build("bert").train()
    costs = parameter_costs(model)
    gates = make(model, CostBudget(costs, 0.4))
    loss = lambda: model(**zoo.inputs_for(model, labels=True)).loss  # noqa: E731
    loss().backward()
    assert bool((gates.w.grad != 0).all())
    gates.w.grad = None
    for _ in range(8):
        gates.clamp()
    drawn = set()
    for _ in range(20):
        loss().backward()
        values = flat(gates.current)
        drawn.add(tuple(values.tolist()))
        # The budget holds as before: with one unit in part.
        assert int(((values > 0) & (values < 1)).sum()) <= 1
    assert len(drawn) > 5 and gates.w.grad is not None and not bool(gates.w.grad.any())


def test_draws_depend_on_seed_and_number_alone_and_go_on_after_a_resume() -> None:
    def draws(gates: SubsetGates, model, count: int) -> list[torch.Tensor]:
        found = []
        for _ in range(count):
            torch.rand(3)  # what else is drawn does not matter
            zoo.logits(model.train(), inputs)
            found.append(flat(gates.current))
            gates.clamp()
        return found

    model = zoo.build("bert")
    inputs = zoo.inputs_for(model)
    gates = make(model, 4, seed=3)
    straight = draws(gates, model, 4)
    other = zoo.build("bert", seed=5)
    again = make(other, 4, seed=3)
    assert torch.equal(again.w, gates.w)
    first = draws(again, other, 2)
    resumed_model = zoo.build("bert", seed=7)
    resumed = make(resumed_model, 4, seed=3)
    # As part of a bigger module, as Trainer saves it.
    nn.ModuleDict({"gates": resumed}).load_state_dict(nn.ModuleDict({"gates": again}).state_dict())
    assert resumed.temperature == again.temperature
    rest = draws(resumed, resumed_model, 2)
    assert all(torch.equal(a, b) for a, b in zip(straight, first + rest, strict=True))
    different_model = zoo.build("bert")
    assert not torch.equal(straight[0], draws(make(different_model, 4, seed=4), different_model, 1)[0])


@pytest.mark.parametrize(
    "budget, settings",
    [
        (4, {"schedule": SCHEDULE}),
        (4, {"use_straight_through": True}),
        (12, {"schedule": SCHEDULE}),
        (12, {"use_straight_through": True}),
        ("cost", {"schedule": SCHEDULE}),
        ("cost", {"use_straight_through": True}),
    ],
)
def test_w_takes_part_in_every_pass(budget, settings) -> None:
    """Distributed training waits for its gradient, also where all units stay or gates do not act."""
    model = zoo.without_dropout(zoo.build("bert")).train()
    everything = budget == 12
    budget = CostBudget(parameter_costs(model), 0.4) if budget == "cost" else budget
    gates = SubsetGates(model, budget, **settings)
    inputs = zoo.inputs_for(model, labels=True)
    for active in (True, False):
        gates.active = active
        model(**inputs).loss.backward()
        assert bool(gates.w.grad.any()) == (active and not everything)
        if everything or not active:
            assert bool((flat(gates.current) == 1).all())
        gates.w.grad = None


def test_the_straight_through_variant_gives_each_w_the_gradient_by_its_multiplier() -> None:
    model = zoo.without_dropout(zoo.build("bert")).train()
    gates = make(model, 4, use_straight_through=True)
    set_w(gates, 0)
    inputs = zoo.inputs_for(model, labels=True)
    model(**inputs).loss.backward()
    assert torch.equal(flat(gates.current), gates.chosen().float()) and gates.temperature is None
    # The gradient by multipliers that are leaves of the graph, from gates of another kind.
    leaves = {name: gate.clone().requires_grad_() for name, gate in gates.values().units.items()}
    gates.detach()
    others = UnitGates(model, ("heads",))
    others._attachment._prepare = lambda training: GateValues(leaves, {name: torch.ones(()) for name in leaves})
    wanted = torch.autograd.grad(model(**inputs).loss, list(leaves.values()))
    assert torch.allclose(gates.w.grad, torch.cat(wanted), rtol=1e-4, atol=1e-7)
    assert int((gates.w.grad != 0).sum()) == 12


def test_w_learns_which_heads_matter() -> None:
    """Where the loss is linear in the multipliers, the heads with the largest coefficients stay."""
    model = zoo.build("bert").train()
    gates = make(model, 3, schedule=TemperatureSchedule(10.0, 1e-4, 120))
    gain = torch.zeros(12)
    gain[[1, 6, 11]] = 1.0
    optimizer = torch.optim.AdamW([gates.parameter_group(0.1)])
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        loss = -(gates.sample(generator) * gain).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gates.parameters(), 1.0)
        optimizer.step()
        gates.clamp()
    assert gates.chosen().nonzero().flatten().tolist() == [1, 6, 11]


def test_gradient_checkpointing_recomputes_with_the_same_draw() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = zoo.without_dropout(zoo.build("bert")).train()
        gates = make(model, 4)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**zoo.inputs_for(model, labels=True)).loss.backward()
        assert gates.draws == 1
        gradients.append(gates.w.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-8)


def attach(model: nn.Module) -> SubsetGates:
    return make(model, 4)


@pytest.mark.slow
def test_two_processes_draw_and_learn_the_same_gates(tmp_path) -> None:
    assert_same(tmp_path, attach)
