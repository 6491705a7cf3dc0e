"""Gates with an exact budget against attention probabilities, slices, extraction and what w says."""

import itertools

import pytest
import torch
from transformers.models.bart import modeling_bart
from transformers.models.bert import modeling_bert
from transformers.models.llama import modeling_llama

from hf_nas import SubNetwork, SuperNetwork, describe, extract, save_extracted
from hf_nas.gates import (
    CostBudget,
    GateValues,
    HeadBudget,
    SubsetGates,
    TemperatureSchedule,
    head_rows,
    kind_of_row,
)
from hf_nas.profiling import Parts, SizeTable, mac_costs, parameter_costs
from tests import zoo


SCHEDULE = TemperatureSchedule(10.0, 1e-6, 8)


def make(model, budget, seed: int = 0, **settings) -> SubsetGates:
    return SubsetGates(model, budget, **(settings or {"schedule": SCHEDULE}), seed=seed)


def set_w(gates: SubsetGates, seed: int) -> torch.Tensor:
    with torch.no_grad():
        gates.w.copy_(torch.randn(gates.w.shape, generator=torch.Generator().manual_seed(seed)))
    return gates.w.detach().clone()


def flat(values: GateValues) -> torch.Tensor:
    return torch.cat([gate.detach() for gate in values.units.values()])


def assert_close(result: torch.Tensor, wanted: torch.Tensor, limit: float = 1e-5) -> None:
    assert (result - wanted).abs().max() <= limit * max(1.0, float(wanted.abs().max()))


def gated_attention(model, gates: dict[str, torch.Tensor]):
    """Eager attention that multiplies probabilities, after dropout, by the gate of their head, as published."""
    by_module = {}
    for row in head_rows(describe(model)):
        by_module[row.module(model.base_model, row.layout.core)] = gates[row.name]

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        gate = by_module.get(module)
        if gate is None:  # BERT has its heads in a part of the attention
            gate = next(g for m, g in by_module.items() if module in set(m.modules()))
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = query @ key.transpose(2, 3) * scaling
        probabilities = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
        probabilities = probabilities * gate.repeat_interleave(repeats)[None, :, None, None]
        return (probabilities @ value).transpose(1, 2).contiguous(), probabilities

    return attention


@pytest.mark.parametrize("name, module", [("bert", modeling_bert), ("llama", modeling_llama), ("bart", modeling_bart)])
def test_a_gate_before_the_output_projection_is_one_on_the_attention_probabilities(name, module, monkeypatch) -> None:
    model = zoo.without_dropout(zoo.build(name, "eager")).train()
    inputs = zoo.inputs_for(model)
    gates = make(model, 5)
    set_w(gates, 1)
    result = zoo.logits(model, inputs)
    drawn = gates.current.units
    gates.detach()
    assert len(set(flat(GateValues(drawn)).tolist())) > 5
    monkeypatch.setattr(module, "eager_attention_forward", gated_attention(model, drawn))
    assert_close(result, zoo.logits(model, inputs), 1e-6)


@pytest.mark.parametrize("name", ["bert", "llama", "bart", "t5", "marian", "gpt2"])
def test_each_draw_sums_to_the_budget_and_evaluation_takes_the_largest(name) -> None:
    model = zoo.without_dropout(zoo.build(name))
    inputs = zoo.inputs_for(model)
    gates = make(model, 5)
    w = set_w(gates, 2)
    model.train()
    first, second = zoo.logits(model, inputs), zoo.logits(model, inputs)
    assert not torch.equal(first, second) and gates.draws == 2
    assert float(flat(gates.current).sum()) == pytest.approx(5, rel=1e-5)
    model.eval()
    assert torch.equal(zoo.logits(model, inputs), zoo.logits(model, inputs)) and gates.draws == 2
    wanted = torch.zeros_like(w)
    wanted[sorted(range(len(w)), key=lambda unit: -float(w[unit]))[:5]] = 1
    assert torch.equal(flat(gates.current), wanted) and torch.equal(flat(gates.values()), wanted)
    counts = dict(zip(gates.structure.names, gates.sub_network().counts()))
    assert sum(counts[row.name] for row in head_rows(gates.structure)) == 5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "llama", "bart", "t5", "marian"])
def test_the_extracted_model_computes_what_the_gates_compute(name, attention) -> None:
    model = zoo.build(name, attention)
    structure, inputs = describe(model), zoo.inputs_for(model)
    for count, seed in itertools.product((1, 4, 9), range(2)):
        gates = make(model, count)
        set_w(gates, seed)
        result, sub_network = zoo.logits(model, inputs), gates.sub_network()
        gates.detach()
        # An attention without heads leaves its bias and its normalisation; it is not skipped.
        attentions = [kept for s, kept in zip(structure, sub_network.kept) if s.layout.is_attention]
        assert None not in attentions and (count > 1 or 0 in attentions)
        assert_close(result, zoo.logits(zoo.dense_oracle(model, sub_network), inputs))
        assert_close(result, zoo.logits(extract(model, sub_network), inputs))
        with SuperNetwork(model) as super_network:
            super_network.activate(sub_network)
            assert_close(result, zoo.logits(model, inputs))


def test_an_attention_without_heads_is_its_bias_and_its_norm() -> None:
    model = zoo.build("bert")
    gates = make(model, 4)
    with torch.no_grad():
        gates.w.fill_(-1.0)
        gates.w[:4] = 1.0  # all heads of the first layer
    assert gates.sub_network().counts() == (4, 24, 0, 24, 0, 24)
    seen = {}
    output = model.bert.encoder.layer[1].attention.output
    output.register_forward_hook(lambda module, args, result: seen.update(residual=args[1], result=result))
    zoo.logits(model, zoo.inputs_for(model))
    wanted = output.LayerNorm(seen["residual"] + output.dense.bias)
    assert_close(seen["result"].detach(), wanted.detach(), 1e-6)
    assert not torch.allclose(seen["result"], seen["residual"])


@pytest.mark.parametrize("name", ["bart", "marian", "t5"])
def test_rows_of_an_encoder_decoder_are_in_the_published_order(name) -> None:
    model = zoo.build(name)
    names = [row.name for row in head_rows(describe(model))]
    assert names == [
        *(f"encoder.{layer}.attention" for layer in range(3)),
        *(f"decoder.{layer}.cross_attention" for layer in range(3)),
        *(f"decoder.{layer}.attention" for layer in range(3)),
    ]
    gates = make(model, 12)
    assert list(gates.values().units) == names and gates.w.shape == (36,)
    # One budget for all: w alone says where heads stay.
    with torch.no_grad():
        gates.w.copy_(torch.arange(36.0))
    kept = dict(gates.sub_network().items())
    assert all(kept[n] == (4 if n in names[6:] else 0) for n in names)


@pytest.mark.parametrize("name", ["bart", "marian", "t5"])
def test_closing_a_self_attention_of_the_decoder_leaves_the_cross_attention_alone(name) -> None:
    model = zoo.build(name)
    gates = make(model, 32)
    with torch.no_grad():
        gates.w.copy_(torch.arange(36.0).flip(0))  # the last row, the last self-attention, goes
    seen = {}
    for row in head_rows(gates.structure):
        reader = row.module(model.base_model, row.layout.reader)
        keep = lambda module, args, row=row: seen.__setitem__((row.name, "before"), args[0])  # noqa: E731
        reader.register_forward_pre_hook(keep, prepend=True)
        after = lambda module, args, output, row=row: seen.__setitem__((row.name, "after"), args[0])  # noqa: E731
        reader.register_forward_hook(after)
    zoo.logits(model, zoo.inputs_for(model))
    for row in head_rows(gates.structure):
        before, after = seen[row.name, "before"], seen[row.name, "after"]
        assert bool(before.any())
        if row.name == "decoder.2.attention":
            assert not bool(after.any())
        else:
            assert torch.equal(before, after), row.name


def test_budgets_by_kind_of_attention() -> None:
    model = zoo.build("marian")
    budget = {"encoder.attention": 5, "decoder.cross_attention": 3, "decoder.attention": 12}
    gates = make(model, HeadBudget(budget))
    set_w(gates, 3)
    zoo.logits(model.train(), zoo.inputs_for(model))
    for values in (gates.current, gates.values(binary=True)):
        sums = dict.fromkeys(budget, 0.0)
        for row in head_rows(gates.structure):
            sums[kind_of_row(row)] += float(values.units[row.name].detach().sum())
        assert sums == pytest.approx(budget, rel=1e-5)
    assert flat(gates.current)[-12:].tolist() == [1.0] * 12
    gates.detach()
    # Kinds that are not named keep all of their heads, and have no gates.
    partial = make(model, HeadBudget({"decoder.cross_attention": 0, "decoder.attention": 2}))
    assert partial.w.shape == (24,)
    kept = dict(partial.sub_network().items())
    assert all(kept[f"encoder.{n}.attention"] == 4 and kept[f"decoder.{n}.cross_attention"] == 0 for n in range(3))


def test_grouped_queries_are_one_unit() -> None:
    model = zoo.build("llama")  # 8 query heads on 4 key-value heads
    gates = make(model, 6)
    assert gates.w.shape == (12,) and gates.sub_network().counts()[::2] != (4, 4, 4)
    small = extract(model, gates.sub_network())
    for layer, count in zip(small.model.layers, gates.sub_network().counts()[::2], strict=True):
        assert layer.self_attn.k_proj.out_features == 8 * count and layer.self_attn.q_proj.out_features == 16 * count


@pytest.mark.parametrize("name", ["bert", "llama", "bart"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("measure", ["parameters", "macs"])
def test_a_budget_of_costs_is_met_by_heads_and_neurons_together(name, sparsity, measure) -> None:
    model = zoo.without_dropout(zoo.build(name))
    costs = parameter_costs(model) if measure == "parameters" else mac_costs(model, 9, 7)
    inputs = zoo.inputs_for(model)
    gates = make(model, CostBudget(costs, sparsity))
    set_w(gates, 5)
    by_name = dict(zip(costs.names, costs.sub_layers))
    each = torch.cat([
        torch.full((size,), by_name[name].unit + by_name[name].unit_per_dimension * costs.dimensions)
        for name, size in zip(gates.names, gates.sizes)
    ])  # fmt: skip
    fixed = costs.cost(SubNetwork.of(gates.structure, dict.fromkeys(gates.names, 0)))
    zoo.logits(model.train(), inputs)
    drawn = float((flat(gates.current) * each).double().sum()) + fixed
    assert 1 - drawn / costs.total == pytest.approx(sparsity, abs=1e-5)
    sub_network = gates.sub_network()
    realised = costs.sparsity(sub_network)
    # Met, and missed by less than the cheapest unit that is gone.
    cheapest = float(each[~gates.chosen()].min())
    assert sparsity - 1e-9 <= realised < sparsity + cheapest / costs.total
    if measure == "parameters":  # counted apart from the costs
        table = SizeTable(model)
        full = SubNetwork.full(gates.structure)
        parts = Parts(embeddings=False, norms=False, heads=False, biases=False)
        assert 1 - table.parameters(sub_network, parts) / table.parameters(full, parts) == pytest.approx(realised)
    result = zoo.logits(model.eval(), inputs)
    gates.detach()
    assert_close(result, zoo.logits(extract(model, sub_network), inputs))


def test_a_budget_of_costs_may_be_over_one_kind_or_ask_for_nothing() -> None:
    model = zoo.build("bert")
    costs = parameter_costs(model)
    heads = make(model, CostBudget(costs, 0.2, kinds=("heads",)))
    assert heads.kinds == ("heads",) and 0.2 <= costs.sparsity(heads.sub_network()) < 0.3
    heads.detach()
    with make(model, CostBudget(costs, 0.1, kinds=("neurons",))) as neurons:
        assert set(neurons.sub_network().counts()[::2]) == {4}
        assert 0.1 <= costs.sparsity(neurons.sub_network()) < 0.11
    with make(model, CostBudget(costs, 0.0)) as everything:
        assert everything.sub_network() == SubNetwork.full(everything.structure)
        zoo.logits(model.train(), zoo.inputs_for(model))
        assert bool((flat(everything.current) == 1).all())


def test_checkpoints_hold_w_and_exported_models_do_not(tmp_path) -> None:
    model = zoo.build("bert")
    keys = list(model.state_dict())
    gates = make(model, 4)
    assert list(model.state_dict()) == keys and set(gates.state_dict()) == {"w", "draws", "steps"}
    model.add_module("unit_gates", gates)  # as a trainer does
    assert "unit_gates.w" in model.state_dict()
    delattr(model, "unit_gates")
    sub_network = gates.sub_network()
    gates.detach()
    small = extract(model, sub_network)
    assert set(small.state_dict()) == set(keys)
    save_extracted(small, sub_network, tmp_path)
    again = type(model).from_pretrained(tmp_path)
    inputs = zoo.inputs_for(model)
    assert_close(zoo.logits(again, inputs), zoo.logits(small, inputs))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["bart", "marian", "t5"])
def test_beam_search_with_a_cache_is_that_of_the_extracted_model(name) -> None:
    model = zoo.build(name)
    inputs = {key: value for key, value in zoo.inputs_for(model).items() if key != "decoder_input_ids"}
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 3, "use_cache": True}
    gates = make(model, 7)
    set_w(gates, 1)
    zoo.logits(model.train(), zoo.inputs_for(model))  # leaves a random draw behind
    result = model.eval().generate(**inputs, **settings)
    sub_network = gates.sub_network()
    gates.detach()
    assert torch.equal(result, extract(model, sub_network).generate(**inputs, **settings))


def test_what_cannot_learn_or_does_not_fit_is_refused() -> None:
    model = zoo.build("bart")
    with pytest.raises(ValueError, match="neither a falling temperature nor the straight-through variant"):
        SubsetGates(model, 4)
    with pytest.raises(ValueError, match="has no temperature, but a TemperatureSchedule is given"):
        SubsetGates(model, 4, schedule=SCHEDULE, use_straight_through=True)
    for count in (0, 37, 4.0, True, "4"):
        with pytest.raises(ValueError, match="the model has 36; give a whole number from 1 to 36"):
            make(model, count)
    with pytest.raises(ValueError, match="of decoder.attention are to be kept, but the model has 12"):
        make(model, HeadBudget({"decoder.attention": 13}))
    with pytest.raises(ValueError, match="no heads of the kind 'cross'; choose from encoder.attention, "):
        make(model, HeadBudget({"cross": 3}))
    with pytest.raises(ValueError, match="No kind of attention is given a number of heads"):
        make(model, HeadBudget({}))
    with pytest.raises(ValueError, match="The budget keeps no head of any kind"):
        make(model, HeadBudget({"encoder.attention": 0}))
    bert = zoo.build("bert")
    costs = parameter_costs(bert)
    for sparsity in (-0.1, 1.0):
        with pytest.raises(ValueError, match="give the fraction to remove"):
            make(bert, CostBudget(costs, sparsity))
    with pytest.raises(ValueError, match="would leave none of the heads: with one left it is 0.66"):
        make(bert, CostBudget(costs, 0.8, kinds=("heads",)))
    with pytest.raises(ValueError, match="choose from heads, neurons"):
        make(bert, CostBudget(costs, 0.5, kinds=("layers",)))
    with pytest.raises(ValueError, match="make them from it"):
        make(model, CostBudget(costs, 0.5))
    with pytest.raises(ValueError, match="no heads left"):
        make(extract(bert, SubNetwork.of(describe(bert), dict.fromkeys(describe(bert).names))), 1)
    gates = make(bert, 4)
    with pytest.raises(ValueError, match="attached to a model already"):
        gates.attach(zoo.build("bert"))
    with pytest.raises(ValueError, match="attached to this BertForSequenceClassification already"):
        make(bert, 5)
    with torch.no_grad():
        gates.w[0] = float("nan")
    with pytest.raises(ValueError, match="the training diverged"):
        gates.sub_network()


def test_gates_on_a_model_that_is_pruned_already() -> None:
    model = zoo.build("bert")
    small = extract(model, zoo.corner_cases(model)["other units in every layer"])
    inputs = zoo.inputs_for(small)
    gates = make(small, 3)
    result, sub_network = zoo.logits(small, inputs), gates.sub_network()
    gates.detach()
    assert_close(result, zoo.logits(extract(small, sub_network), inputs))
