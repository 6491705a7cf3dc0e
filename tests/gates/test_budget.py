"""Costs, expected sparsity, multipliers, projection and the published definitions of sparsity."""

import itertools
import math

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification, BertModel

from hf_nas import Parts, SizeTable, SubNetwork, describe, extract
from hf_nas.gates import KINDS, BudgetController, UnitGates, project, published_sparsity
from hf_nas.profiling.unit_costs import linear_costs, mac_costs, parameter_costs, published_costs
from tests import zoo


END = math.log(100)


def opened(logit: float) -> float:
    return 1 / (1 + math.exp(-logit - 2 / 3 * math.log(11)))


def bert_base(model_class=BertModel, **settings):
    with torch.device("meta"):
        return model_class(BertConfig(**settings))


def tiny() -> BertModel:
    """The tiny model of the published accounting's tests."""
    config = BertConfig(
        vocab_size=11, hidden_size=8, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2,
        max_position_embeddings=12,
    )  # fmt: skip
    torch.manual_seed(0)
    return BertModel(config).eval()


def set_logits(gates: UnitGates, **logits: float | list[float]) -> None:
    with torch.no_grad():
        for kind, value in logits.items():
            gates.get_submodule(kind).logits.copy_(torch.as_tensor(value))


def all_at(gates: UnitGates, value: float) -> None:
    set_logits(gates, **dict.fromkeys(gates.kinds, value))


def random_logits(gates: UnitGates, seed: int, spread: float = 2.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread).clamp_(-END, END)


@pytest.mark.parametrize(
    "neurons, others, expected",
    [(10, 10, 0.000570), (END, END, 0.006580), (0, 10, 0.112570), (0, END, 0.116799), (0, 0, 0.424751)],
)
def test_expected_sparsity_of_bert_base_is_the_published_one(neurons, others, expected) -> None:
    costs = published_costs(bert_base(), hidden=True)
    assert costs.total == 85_017_600
    counts = torch.tensor([12 * opened(others), 3072 * opened(neurons)] * 12)
    whole = torch.full((24,), opened(others))
    sparsity = BudgetController(costs, 0.6).sparsity(counts, whole, torch.tensor(768 * opened(others)))
    assert sparsity.item() == pytest.approx(expected, abs=1e-6)


def test_a_full_bert_base_has_the_published_offset_and_none_by_our_own_costs() -> None:
    model = bert_base()
    full = SubNetwork.full(describe(model))
    assert published_costs(model, hidden=True).cost(full) == 84_971_520
    assert published_costs(model, hidden=True).sparsity(full) == pytest.approx(0.000542, abs=1e-6)
    assert parameter_costs(model).cost(full) == parameter_costs(model).total == 84_934_656
    assert parameter_costs(model).sparsity(full) == 0


@pytest.mark.parametrize("kinds, expected", [(KINDS, 0.463861), (KINDS[:-1], 0.317550)])
def test_expected_sparsity_of_the_tiny_model_is_the_published_one(kinds, expected) -> None:
    model = tiny()
    gates = UnitGates(model, kinds)
    all_at(gates, 0.0)
    costs = published_costs(model, hidden="hidden" in kinds)
    assert costs.total == 1168
    assert BudgetController(costs, 0.5).expected_sparsity(gates).item() == pytest.approx(expected, abs=1e-6)


def test_expected_and_realised_sparsity_differ_as_published() -> None:
    model = tiny()
    gates = UnitGates(model)
    all_at(gates, 0.0)
    set_logits(gates, attention=[END, -END], feed_forward=[-END, END])
    costs = published_costs(model, hidden=True)
    assert BudgetController(costs, 0.5).expected_sparsity(gates).item() == pytest.approx(0.663194, abs=1e-6)
    sub_network = gates.sub_network()
    assert sub_network.counts() == (2, None, None, 13) and len(sub_network.hidden) == 7
    remaining = parameter_costs(model).cost(sub_network)
    assert remaining == 406
    assert 1 - remaining / costs.total == pytest.approx(0.652397, abs=1e-6)


def test_the_published_accounting_refuses_what_it_does_not_fit() -> None:
    for name in ("llama", "bart"):
        with pytest.raises(ValueError, match="use parameter_costs"):
            published_costs(zoo.build(name), hidden=False)


@pytest.mark.parametrize("hidden", [False, True])
def test_expected_sparsity_is_multilinear(hidden) -> None:
    """With the cost written as the sum of its products; and half a gate is half of its sub-layer's term."""
    model = tiny()
    a, d = 144, 8
    gates = UnitGates(model, KINDS if hidden else KINDS[:-1])
    random_logits(gates, 5)
    probabilities = gates.probabilities()
    costs = published_costs(model, hidden=hidden)
    controller = BudgetController(costs, 0.5)
    width = probabilities.hidden.sum().item() if hidden else None
    terms = {}
    for name, units in probabilities.units.items():
        attention = "attention" in name
        unit = (a / d * width if attention else 2 * width) if hidden else (a if attention else 18)
        terms[name] = probabilities.sub_layers[name].item() * sum(units.tolist()) * unit
    wanted = 1 - sum(terms.values()) / 1168
    assert controller.expected_sparsity(gates).item() == pytest.approx(wanted, abs=1e-6)
    counts, whole, dimensions = gates.expected_open()
    halved = whole.clone()
    halved[0] /= 2
    difference = controller.sparsity(counts, halved, dimensions) - controller.sparsity(counts, whole, dimensions)
    assert difference.item() == pytest.approx(terms["encoder.0.attention"] / 2 / 1168, abs=1e-6)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_macs_are_those_of_the_size_table(name: str) -> None:
    model = zoo.build(name)
    lengths = (10 if name == "vit" else 9, 7)
    table, costs = SizeTable(model), mac_costs(model, *lengths)
    full = SubNetwork.full(table.structure)
    outside = table.macs(full, *lengths) - costs.cost(full)
    for case, sub_network in zoo.corner_cases(model).items():
        assert costs.cost(sub_network) == pytest.approx(table.macs(sub_network, *lengths) - outside), case


@pytest.mark.parametrize(
    "name", [name for name in zoo.MODELS if name not in ("mpnet", "qwen3", "gemma3_text", "t5", "t5-gated")]
)
def test_parameters_are_those_of_the_size_table(name: str) -> None:
    """Beside relative position biases and the norms of single heads, which belong to no unit."""
    model = zoo.build(name)
    table, costs = SizeTable(model), parameter_costs(model, biases=True, norms=True)
    for case, sub_network in zoo.corner_cases(model).items():
        if "norm" not in case:
            assert costs.cost(sub_network) == pytest.approx(table.parameters(sub_network, Parts.encoder())), case


@pytest.mark.parametrize("dimensions", [None, [0, 3, 4, 9, 20]])
def test_parameters_of_the_extracted_model_are_the_analytic_count(dimensions) -> None:
    model = zoo.build("bert")
    structure = describe(model)
    kept = {"encoder.0.attention": [1, 3], "encoder.0.feed_forward": 5, "encoder.1.attention": None}
    kept |= {"encoder.1.feed_forward": None, "encoder.2.feed_forward": [2]}
    sub_network = SubNetwork.of(structure, kept, dimensions)
    small = extract(model, sub_network)
    k, head_size, wanted = len(dimensions or range(32)), 8, 0
    for heads, neurons in ((2, 5), (0, 0), (4, 1)):
        wanted += (4 * head_size * k + 3 * head_size) * heads + (k + 2 * k) * (heads > 0)
        wanted += (2 * k + 1) * neurons + 3 * k * (neurons > 0)
    assert parameter_costs(model, biases=True, norms=True).cost(sub_network) == wanted
    assert sum(p.numel() for p in small.bert.encoder.parameters()) == wanted


def test_linear_costs_of_a_linear_function_are_exact() -> None:
    model = zoo.build("bart")
    table = SizeTable(model)
    costs = linear_costs(model, lambda sub_network: table.macs(sub_network, 11))
    for case, sub_network in zoo.corner_cases(model).items():
        assert costs.cost(sub_network) == pytest.approx(table.macs(sub_network, 11)), case
    assert costs.sparsity(SubNetwork.full(table.structure)) == pytest.approx(0)


@pytest.mark.parametrize("power, unit", [(0.5, (2 - 1) / 3), (1, 1), (2, (1 + 16) / 4)])
def test_linear_costs_of_a_curve_are_the_line_through_its_ends(power: float, unit: float) -> None:
    """But above nothing without any units: the line through 1 + 1 and 1 + 16 is below it there."""
    model = zoo.build("bert")

    def seconds(sub_network) -> float:
        return 2.0 + sum(0 if count is None else 1.0 + count**power for count in sub_network.counts())

    costs = linear_costs(model, seconds)
    structure = describe(model)
    assert costs.cost(SubNetwork.full(structure)) == pytest.approx(seconds(SubNetwork.full(structure)))
    none = SubNetwork.of(structure, dict.fromkeys(structure.names))
    assert costs.cost(none) == pytest.approx(2.0)
    two = SubNetwork.of(structure, {"encoder.0.attention": 2})  # of four heads
    assert costs.cost(SubNetwork.full(structure)) - costs.cost(two) == pytest.approx(2 * unit)


def test_linear_costs_of_noise_are_not_below_nothing() -> None:
    """Measured, a network may be slower with fewer units, or without a sub-layer."""

    def seconds(sub_network) -> float:
        first, second = sub_network["encoder.0.attention"], sub_network["encoder.1.attention"]
        return 5.0 + (0.5 if first == 1 else 0.0) + (0.5 if second is None else 0.0)

    costs = linear_costs(zoo.build("bert"), seconds)
    assert all(each.unit >= 0 and each.fixed >= 0 for each in costs.sub_layers) and costs.total == 5


def test_the_target_rises_linearly() -> None:
    controller = BudgetController(published_costs(bert_base(), True), 0.6, warmup_steps=10)
    assert [controller.target_at(step) for step in (0, 5, 10, 99)] == pytest.approx([0.0, 0.3, 0.6, 0.6])
    assert BudgetController(controller.costs, 0.6).target_at(0) == 0.6


def test_multipliers_ascend_as_published() -> None:
    controller = BudgetController(published_costs(bert_base(), True), 0.4)
    assert controller.lambda_1.item() == controller.lambda_2.item() == 0
    optimizer = torch.optim.AdamW([controller.parameter_group(0.01)])
    squares = []
    for _ in range(10):
        optimizer.zero_grad()
        controller.penalty(torch.tensor(0.0), 0).backward()
        optimizer.step()
        squares.append(controller.lambda_2.item())
    assert controller.lambda_1.item() == pytest.approx(-0.1, abs=1e-4)
    assert controller.lambda_2.item() == pytest.approx(0.1, abs=1e-4)
    assert controller.penalty(torch.tensor(0.0), 0).item() == pytest.approx(0.056, abs=1e-4)
    assert squares == sorted(squares)
    before = controller.lambda_1.item()
    for _ in range(30):
        optimizer.zero_grad()
        controller.penalty(torch.tensor(0.9), 0).backward()
        optimizer.step()
    assert controller.lambda_1.item() > before


@pytest.mark.parametrize("kinds", [("heads",), ("neurons", "feed_forward"), KINDS])
def test_gradients_of_the_loss_term_reach_all_gates_and_no_weight(kinds) -> None:
    model = tiny()
    gates = UnitGates(model, kinds)
    random_logits(gates, 1)
    controller = BudgetController(parameter_costs(model), 0.3)
    with torch.no_grad():
        controller.lambda_1.fill_(0.7)
    controller.loss(gates, 0).backward()
    assert all(bool((parameter.grad != 0).all()) for parameter in gates.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_optimizer_brings_the_expected_sparsity_to_the_target() -> None:
    model = tiny()
    gates = UnitGates(model)
    controller = BudgetController(parameter_costs(model), 0.6, warmup_steps=100)
    optimizer = torch.optim.AdamW([gates.parameter_group(0.1), controller.parameter_group(0.1)])
    for step in range(500):
        optimizer.zero_grad()
        controller.loss(gates, step).backward()
        optimizer.step()
        gates.clamp()
    assert controller.expected_sparsity(gates).item() == pytest.approx(0.6, abs=0.03)


def test_reachable_sparsity_and_the_check() -> None:
    model = zoo.build("bert")
    gates = UnitGates(model, ("heads",))
    before = gates.heads.logits.clone()
    costs = parameter_costs(model)
    controller = BudgetController(costs, 0.5)
    lowest, highest = controller.reachable(gates)
    share = 4 * 32 * 32 / (4 * 32 * 32 + 2 * 32 * 24)
    assert (lowest, highest) == pytest.approx((share * (1 - opened(END)), share * (1 - opened(-END))), abs=1e-6)
    assert torch.equal(gates.heads.logits, before)
    controller.check(gates)
    with pytest.raises(ValueError, match="0.9 cannot be reached by pruning heads"):
        BudgetController(costs, 0.9).check(gates)
    with pytest.raises(ValueError, match="not of this bert model"):
        BudgetController(parameter_costs(tiny()), 0.1).check(gates)
    with pytest.raises(ValueError, match="not of this bert model"):
        project(gates, parameter_costs(tiny()), 0.1)
    constant = linear_costs(model, lambda sub_network: 1.0 + sum(count or 0 for count in sub_network.counts()))
    gates.detach()
    with pytest.raises(ValueError, match="leave out the kind 'hidden'"):
        BudgetController(constant, 0.1).check(UnitGates(model))


@pytest.mark.parametrize("target", [-0.1, 1.0, 1.5])
def test_targets_out_of_range_are_refused(target) -> None:
    with pytest.raises(ValueError, match="target sparsity"):
        BudgetController(parameter_costs(tiny()), target)


def test_a_negative_warmup_is_refused() -> None:
    with pytest.raises(ValueError, match="warm-up"):
        BudgetController(parameter_costs(tiny()), 0.5, warmup_steps=-1)


SUBSETS = [subset for size in range(1, 6) for subset in itertools.combinations(KINDS, size)]


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
def test_projection_meets_the_target_and_no_unit_could_be_added(kinds) -> None:
    model = zoo.build("bert")
    structure = describe(model)
    gates = UnitGates(model, kinds)
    costs = parameter_costs(model)
    lowest, highest = BudgetController(costs, 0.1).reachable(gates)
    for seed, share in ((0, 0.2), (len(kinds), 0.8)):
        random_logits(gates, seed)
        target = share * (highest - lowest) + lowest
        sub_network = project(gates, costs, target).sub_network(structure)
        realised = costs.sparsity(sub_network)
        assert realised >= target - 1e-12
        for more in one_unit_more(structure, sub_network, kinds):
            assert costs.sparsity(more) < target, more


def one_unit_more(structure, sub_network: SubNetwork, kinds):
    kept = dict(sub_network.items())
    ids = {name: list(range(k)) if isinstance(k, int) else list(k or ()) for name, k in kept.items()}
    for sub_layer in structure:
        attention = sub_layer.layout.is_attention
        missing = set(range(sub_layer.units)) - set(ids[sub_layer.name])
        if ("heads" if attention else "neurons") in kinds and kept[sub_layer.name] is not None:
            for unit in missing:
                grown = {**kept, sub_layer.name: [*ids[sub_layer.name], unit]}
                yield SubNetwork.of(structure, grown, sub_network.hidden)
        elif missing and ("heads" if attention else "neurons") not in kinds:
            yield SubNetwork.of(structure, {**kept, sub_layer.name: sub_layer.units}, sub_network.hidden)
    if sub_network.hidden is not None:
        for dimension in set(range(32)) - set(sub_network.hidden):
            yield SubNetwork.of(structure, kept, (*sub_network.hidden, dimension))


def test_projection_keeps_the_best_units_and_their_soft_values() -> None:
    model = zoo.build("bert")
    gates = UnitGates(model, ("neurons",))
    random_logits(gates, 4)
    costs = parameter_costs(model)
    logits = gates.neurons.logits.tolist()
    closed = {i for i, value in enumerate(torch.cat(list(gates.values().units.values())).tolist()) if value == 0}
    for count in (len(closed) - 6, len(closed) + 6):
        removed = set(closed)
        ranked = sorted(range(72), key=logits.__getitem__)
        while len(removed) < count:
            removed.add(next(unit for unit in ranked if unit not in removed))
        while len(removed) > count:
            removed.remove(next(unit for unit in reversed(ranked) if unit in removed))
        values = project(gates, costs, (count - 0.5) * 64 / costs.total)
        assert {i for i, x in enumerate(torch.cat(list(values.units.values())).tolist()) if x == 0} == removed
    soft = torch.cat(list(values.units.values()))
    kept = soft != 0
    assert torch.allclose(soft[kept], torch.sigmoid(1.2 * torch.tensor(logits))[kept])
    binary = project(gates, costs, 0.2, binary=True)
    assert set(torch.cat(list(binary.units.values())).tolist()) == {0.0, 1.0}


def test_equals_are_closed_in_all_layers_alike() -> None:
    model = zoo.build("bert", num_hidden_layers=8)
    gates = UnitGates(model, ("neurons",))
    with torch.no_grad():
        gates.neurons.logits.fill_(0.5)
    values = project(gates, parameter_costs(model), 0.1)
    kept = [int((units != 0).sum()) for units in values.units.values()]
    # Were they closed in the order of the layers, the first three would be empty and the last four whole.
    assert len(kept) == 8 and all(0 < count < model.config.intermediate_size for count in kept)


def test_projection_on_macs_of_an_encoder_decoder() -> None:
    model = zoo.build("bart")
    gates = UnitGates(model, KINDS[:-1])
    random_logits(gates, 6)
    costs = mac_costs(model, 9, 7)
    for target in (0.2, 0.6, 0.95):
        realised = costs.sparsity(project(gates, costs, target).sub_network(describe(model)))
        assert (
            target
            <= realised
            <= target + 2 * max(c.unit_per_dimension * 32 + c.unit for c in costs.sub_layers) / (costs.total)
        )


def test_a_projection_that_cannot_be_met_is_refused() -> None:
    model = zoo.build("bert")
    gates = UnitGates(model, ("heads",))
    with pytest.raises(ValueError, match="0.9 cannot be met by pruning heads"):
        project(gates, parameter_costs(model), 0.9)


def test_the_three_published_definitions_of_bert_base() -> None:
    """With the denominators of the published table, and a model of which every count is done by hand."""
    model = bert_base(BertForSequenceClassification, num_labels=3)
    structure = describe(model)
    kept = dict.fromkeys(structure.names)
    kept |= {"encoder.0.attention": 2, "encoder.0.feed_forward": 10}
    hidden = list(range(764))
    found = published_sparsity(model, SubNetwork.of(structure, kept, hidden))
    weights = 2 * 4 * 64 * 764 + 10 * 2 * 764
    assert found.training == pytest.approx(1 - weights / 85_017_600, abs=1e-12)
    layers = weights + 2 * 3 * 64 + 764 + 10 + 764 + 2 * 2 * 764 + 22 * 2 * 768
    assert found.evaluation == pytest.approx(1 - layers / 85_054_464, abs=1e-12)
    assert found.readme == pytest.approx(1 - (layers + 587_520 + 2_307) / 85_647_363, abs=1e-12)
    full = published_sparsity(model, SubNetwork.full(structure))
    assert full.training == pytest.approx(0.000976, abs=1e-6)
    assert full.evaluation == full.readme == 0


def test_the_head_of_question_answering_counts_in_the_evaluation() -> None:
    model = bert_base(BertForQuestionAnswering)
    structure = describe(model)
    found = published_sparsity(model, SubNetwork.of(structure, dict.fromkeys(structure.names), list(range(700))))
    size = 24 * 2 * 768 + 2 * 700 + 2
    assert found.evaluation == pytest.approx(1 - size / (85_054_464 + 2 * 768 + 2), abs=1e-12)
