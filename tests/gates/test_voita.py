"""Hard concrete gates with a penalty against the published numbers, and the two ways to a number of heads."""

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertModel

from hf_nas import describe, extract
from hf_nas.gates import (
    BudgetController,
    Gates,
    HeadBudget,
    SubsetGates,
    UnitGates,
    VoitaGates,
    binary_gates,
    head_costs,
    head_rows,
)
from tests import zoo


# Logit, probability to be open, value in evaluation, value in training at u = 0.5.
TABLE = [
    (-5, 0.014648, 0, 0),
    (-2.3979, 0.167062, 0, 0),
    (-1, 0.448015, 0.222730, 0),
    (0, 0.688112, 0.5, 0.5),
    (1, 0.857087, 0.777270, 1),
    (2.3979, 0.960426, 1, 1),
    (5, 0.996955, 1, 1),
]


def set_logits(gates: VoitaGates, values: torch.Tensor) -> None:
    with torch.no_grad():
        gates.heads.logits.copy_(values)


def spread(gates: VoitaGates, seed: int = 0) -> torch.Tensor:
    """Random logits."""
    values = torch.randn(sum(gates.sizes), generator=torch.Generator().manual_seed(seed)) * 3
    set_logits(gates, values)
    return values


def flat(values) -> torch.Tensor:
    return torch.cat([gate.detach() for gate in values.units.values()])


def kept_heads(gates: VoitaGates, sub_network=None) -> int:
    counts = dict(zip(gates.structure.names, (sub_network or gates.sub_network()).counts()))
    return sum(counts[row.name] for row in head_rows(gates.structure))


@pytest.mark.parametrize("logit, probability, evaluation, training", TABLE)
def test_published_numbers(logit, probability, evaluation, training) -> None:
    gates = VoitaGates(zoo.build("bert"), l0_penalty=0.5)
    set_logits(gates, torch.full((12,), float(logit)))
    assert gates.heads.open_probability().tolist() == pytest.approx([probability] * 12, abs=1e-6)
    assert gates.deterministic().tolist() == pytest.approx([evaluation] * 12, abs=1e-5)
    assert gates.heads.sample(uniform=torch.full((12,), 0.5)).tolist() == pytest.approx([training] * 12, abs=1e-4)
    assert gates.penalty().item() == pytest.approx(0.5 * 12 * probability, rel=1e-5)


def test_a_gate_at_zero_is_closed_as_often_as_it_is_open() -> None:
    gates = VoitaGates(zoo.build("bert"))
    set_logits(gates, torch.zeros(12))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([gates.sample(generator).detach() for _ in range(2000)])
    for value in (0.0, 1.0):
        share = float((drawn == value).double().mean())
        assert share == pytest.approx(0.311888, abs=4 * (0.311888 * 0.688112 / drawn.numel()) ** 0.5)


def test_the_initial_logits_are_uniform_around_zero() -> None:
    gates = VoitaGates(zoo.build("bert"))
    bound = (6 / 5) ** 0.5  # 4 heads; published: 0.679 for 12, 1.095 for 4
    logits = gates.heads.logits.detach()
    assert bound == pytest.approx(1.095, abs=1e-3)
    assert float(logits.abs().max()) <= bound and float(logits.min()) < -0.3 and float(logits.max()) > 0.3


def test_the_penalty_falls_with_every_logit_and_is_no_part_of_the_model() -> None:
    model = zoo.build("bert")
    gates = VoitaGates(model, l0_penalty=0.0015)
    logits = spread(gates)
    gates.penalty().backward()
    assert bool((gates.heads.logits.grad > 0).all())
    raised = logits.clone()
    raised[3] += 0.5
    before = gates.penalty().item()
    set_logits(gates, raised)
    assert gates.penalty().item() > before
    # The loss of an evaluation is the task's alone, and it needs no labels.
    inputs = zoo.inputs_for(model, labels=True)
    with torch.no_grad():
        outputs = model(**inputs)
    assert float(outputs.loss) == pytest.approx(float(functional.cross_entropy(outputs.logits, inputs["labels"])))
    assert model(**zoo.inputs_for(model)).loss is None


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_training_draws_and_evaluation_does_not(name) -> None:
    model = zoo.without_dropout(zoo.build(name))
    inputs = zoo.inputs_for(model, labels=True)
    gates = VoitaGates(model)
    spread(gates)
    soft = zoo.logits(model, inputs)
    assert torch.equal(soft, zoo.logits(model, inputs)) and gates.draws == 0
    assert flat(gates.current).tolist() == pytest.approx(gates.deterministic().tolist())
    model.train()
    model(**inputs).loss.backward()
    assert gates.draws == 1 and bool(gates.heads.logits.grad.any())
    first = flat(gates.current)
    model(**inputs)
    assert not torch.equal(first, flat(gates.current))
    gates.active = False
    gates.zero_grad()
    model(**inputs).loss.backward()
    assert bool((flat(gates.current) == 1).all()) and not bool(gates.heads.logits.grad.any())


@pytest.mark.parametrize("name", ["bert", "llama", "bart", "marian"])
@pytest.mark.parametrize("budget", [None, 1, 5])
def test_what_stays_is_binary_and_can_be_extracted(name, budget) -> None:
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    gates = VoitaGates(model, budget=budget)
    logits = spread(gates, 1)
    wanted = int((logits > 0).sum()) if budget is None else budget
    sub_network = gates.sub_network()
    assert kept_heads(gates) == wanted
    kept = flat(gates.values(binary=True)).bool()
    assert float(logits[kept].min()) > float(logits[~kept].max())
    gates.detach()
    with Gates(model, binary_gates(describe(model), sub_network)):
        result = zoo.logits(model, inputs)
    extracted = zoo.logits(extract(model, sub_network), inputs)
    assert (result - extracted).abs().max() <= 1e-5 * max(1.0, float(result.abs().max()))


def test_saturated_gates_are_ranked_by_their_logits() -> None:
    gates = VoitaGates(zoo.build("bert"), budget=3)
    set_logits(gates, torch.arange(12.0) + 3)
    assert gates.deterministic().unique().tolist() == [1.0]
    assert gates.chosen().nonzero().flatten().tolist() == [9, 10, 11]


def test_a_budget_by_kind_gates_those_kinds_alone() -> None:
    model = zoo.build("marian")
    gates = VoitaGates(model, budget=HeadBudget({"decoder.cross_attention": 2}))
    assert gates.names == tuple(f"decoder.{layer}.cross_attention" for layer in range(3))
    assert kept_heads(gates) == 24 + 2


@pytest.mark.parametrize("name, count", [("bert", 3), ("llama", 5), ("bart", 9)])
def test_a_lagrangian_drives_the_expected_number_of_heads_to_a_number(name, count) -> None:
    model = zoo.build(name)
    gates = VoitaGates(model, l0_penalty=0.0, budget=count)
    total = sum(gates.sizes)
    controller = BudgetController(head_costs(gates.structure), 1 - count / total)
    controller.check(gates)
    counts, whole, hidden = gates.expected_open()
    assert hidden is None and bool((whole == 1).all())
    expected = float(gates.heads.open_probability().sum())
    assert float(controller.expected_sparsity(gates)) == pytest.approx(1 - expected / total, abs=1e-6)
    assert head_costs(gates.structure).sparsity(gates.sub_network()) == pytest.approx(1 - count / total)
    optimizer = torch.optim.AdamW([gates.parameter_group(0.1), controller.parameter_group(0.1)])
    for step in range(400):
        optimizer.zero_grad()
        controller.loss(gates, step).backward()
        optimizer.step()
    assert float(gates.heads.open_probability().sum()) == pytest.approx(count, abs=0.3)


def test_how_far_the_gates_are_from_each_part_of_the_budget() -> None:
    gates = VoitaGates(zoo.build("bart"), budget=HeadBudget({"decoder.attention": 2, "encoder.attention": 5}))
    set_logits(gates, torch.tensor([10.0] * 12 + [-10.0] * 12))
    (encoder, kept), (decoder, kept_there) = gates.expected_by_part()
    assert (kept, kept_there) == (5, 2) and encoder == pytest.approx(12, abs=0.01) and decoder < 0.01
    assert VoitaGates(zoo.build("bart")).expected_by_part() == []


def test_a_lagrangian_may_ask_for_one_head_of_many_or_for_none_of_a_kind() -> None:
    settings = {"vocab_size": 8, "hidden_size": 24, "intermediate_size": 4, "max_position_embeddings": 8}
    model = BertModel(BertConfig(num_hidden_layers=12, num_attention_heads=12, **settings))
    costs = head_costs(describe(model))
    for count in (1, 2, 3):
        with VoitaGates(model, budget=count) as gates:
            before = gates.heads.logits.detach().clone()
            controller = BudgetController(costs, 1 - count / 144)
            controller.check(gates)
            assert controller.reachable(gates) == pytest.approx((0, 1), abs=1e-5)
            assert torch.equal(gates.heads.logits, before)
    # CoFi's logits are clamped, so that 3 heads are expected to be open at least.
    with UnitGates(model, ("heads",)) as gates, pytest.raises(ValueError, match="cannot be reached by pruning heads"):
        BudgetController(costs, 1 - 1 / 144).check(gates)
    decoder = zoo.build("marian")
    with VoitaGates(decoder, budget=HeadBudget({"decoder.attention": 0, "encoder.attention": 2})) as gates:
        BudgetController(head_costs(describe(decoder)), 1 - 14 / 36).check(gates)
        with pytest.raises(ValueError, match="0.7 cannot be reached by pruning heads: at most 0.6667"):
            BudgetController(head_costs(describe(decoder)), 0.7).check(gates)


def test_only_gates_that_cost_something_have_a_penalty() -> None:
    with UnitGates(zoo.build("bert"), ("heads",)) as units, VoitaGates(zoo.build("bert")) as voita:
        assert units.penalty() is None and float(voita.penalty().detach()) > 0
    assert SubsetGates(zoo.build("bert"), 4, use_straight_through=True).penalty() is None


def test_draws_go_on_after_a_resume() -> None:
    first, second = (VoitaGates(zoo.build("bert"), seed=2) for _ in range(2))
    assert torch.equal(first.heads.logits, second.heads.logits)
    wanted = [first._prepare(True) for _ in range(4)]
    for _ in range(2):
        second._prepare(True)
    third = VoitaGates(zoo.build("bert"), seed=2)
    third.load_state_dict(second.state_dict())
    assert torch.equal(flat(third._prepare(True)), flat(wanted[2]))
    assert not torch.equal(flat(wanted[0]), flat(wanted[1]))


def test_what_does_not_fit_is_refused() -> None:
    model = zoo.build("bert")
    for penalty in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="l0_penalty is .*give a number of at least 0"):
            VoitaGates(model, penalty)
    with pytest.raises(ValueError, match="give a whole number from 1 to 12"):
        VoitaGates(model, budget=13)
    gates = VoitaGates(model)
    set_logits(gates, torch.full((12,), float("nan")))
    with pytest.raises(ValueError, match="the training diverged"):
        gates.sub_network()
