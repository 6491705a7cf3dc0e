"""Gates of five kinds of units against the dense oracle, slices, extraction and a reference of the masked forward."""

import copy
import itertools

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from hf_nas import SubNetwork, SuperNetwork, describe, extract
from hf_nas.gates import KINDS, GateValues, UnitGates, fold, parse_kinds
from hf_nas.subnetwork import NORM_ONLY, kept_ids
from tests import zoo
from tests.gates.masked_bert import MaskedBert


WITHOUT_HIDDEN = KINDS[:-1]
SUBSETS = [subset for size in range(1, 6) for subset in itertools.combinations(KINDS, size)]


def set_logits(gates: UnitGates, seed: int, spread: float = 1.5) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread - 0.5)


def binary_values(structure, sub_network: SubNetwork, hidden: torch.Tensor | None = None) -> GateValues:
    units, sub_layers = {}, {}
    for sub_layer in structure:
        kept = sub_network[sub_layer.name]
        sub_layers[sub_layer.name] = torch.tensor(float(kept is not None))
        gate = torch.ones(sub_layer.units)
        if kept is not None:
            gate = torch.zeros(sub_layer.units)
            gate[list(kept_ids(kept))] = 1.0
        units[sub_layer.name] = gate
    return GateValues(units, sub_layers, hidden)


def assert_close(result: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (result - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def without_empty(structure, sub_network: SubNetwork) -> SubNetwork:
    """For gates of CoFi a sub-layer without units is gone, together with the bias it would have left."""
    kept = {name: None if kept in (0, ()) else kept for name, kept in sub_network.items()}
    return SubNetwork.of(structure, kept)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_binary_gates_compute_as_the_dense_oracle(name: str) -> None:
    model = zoo.build(name)
    structure, inputs = describe(model), zoo.inputs_for(model)
    for case, sub_network in zoo.corner_cases(model).items():
        if NORM_ONLY in sub_network.kept:
            continue  # gates of CoFi have no such sub-layers
        resolved = without_empty(structure, sub_network)
        with UnitGates(model, WITHOUT_HIDDEN) as gates:
            gates.fix(binary_values(structure, sub_network))
            assert gates.sub_network() == resolved, case
            result = zoo.logits(model, inputs)
        assert_close(result, zoo.logits(zoo.dense_oracle(model, resolved), inputs))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "llama", "bart"])
def test_binary_gates_compute_as_slices_and_as_the_extracted_model(name: str, attention: str) -> None:
    model = zoo.build(name, attention)
    structure, inputs = describe(model), zoo.inputs_for(model)
    for case in ("one head left", "one neuron left", "first layer gone", "all layers gone", "everything at once"):
        sub_network = zoo.corner_cases(model)[case]
        resolved = without_empty(structure, sub_network)
        with UnitGates(model, WITHOUT_HIDDEN) as gates:
            gates.fix(binary_values(structure, sub_network))
            result = zoo.logits(model, inputs)
        assert_close(result, zoo.logits(extract(model, resolved), inputs))
        with SuperNetwork(model) as super_network:
            super_network.activate(resolved)
            assert_close(result, zoo.logits(model, inputs))


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_binary_hidden_gates_compute_as_the_extracted_model(name: str, attention: str) -> None:
    model = zoo.build(name, attention)
    structure, inputs = describe(model), zoo.inputs_for(model)
    hidden = torch.ones(32)
    hidden[[0, 7, 8, 31]] = 0
    with UnitGates(model) as gates:
        for case in ("full", "everything at once", "other units in every layer", "middle layer gone"):
            gates.fix(binary_values(structure, zoo.corner_cases(model)[case], hidden))
            assert_close(zoo.logits(model, inputs), zoo.logits(extract(model, gates.sub_network()), inputs))


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
def test_any_subset_of_kinds_folds_and_extracts_to_what_the_gates_compute(kinds) -> None:
    model = zoo.build("bert")
    structure, inputs = describe(model), zoo.inputs_for(model)
    gates = UnitGates(model, kinds)
    set_logits(gates, len(kinds))
    for kind in {"attention", "feed_forward"} & {*kinds}:
        with torch.no_grad():
            gates.get_submodule(kind).logits[1] = -3.0
    result = zoo.logits(model, inputs)
    values, sub_network = gates.values(), gates.sub_network()
    gates.detach()
    assert sub_network != SubNetwork.full(structure)
    assert_close(result, zoo.logits(extract(fold(model, values), sub_network), inputs))
    gates.attach(model)
    gates.fix(values)
    assert torch.equal(zoo.logits(model, inputs), result)


def test_hidden_gates_of_a_language_model_whose_embeddings_are_tied() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=20,
    )  # fmt: skip
    model = BertForMaskedLM(config).eval()
    inputs = zoo.inputs_for(model)
    gates = UnitGates(model)
    set_logits(gates, 3)
    result = zoo.logits(model, inputs)
    values, sub_network = gates.values(), gates.sub_network()
    gates.detach()
    assert len(sub_network.hidden) < 32
    assert_close(result, zoo.logits(extract(fold(model, values), sub_network), inputs))


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_soft_gates_compute_the_masked_forward_of_the_specification(seed) -> None:
    model = zoo.build("bert", "eager")
    inputs = zoo.inputs_for(model)
    gates = UnitGates(model)
    set_logits(gates, seed)
    values = gates.values()
    assert any(gate == 0 for gate in values.sub_layers.values())
    states = model.bert(**inputs, output_hidden_states=True).hidden_states
    rows = inputs["attention_mask"].bool()
    reference = MaskedBert(model, values).stream(inputs["input_ids"], inputs["attention_mask"])
    for state, wanted in zip(states, reference, strict=True):
        assert_close(state[rows], wanted[rows])
        assert bool((state[..., values.hidden == 0] == 0).all())


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama", "bart", "t5"])
@pytest.mark.parametrize("training", [False, True])
def test_open_gates_change_nothing(name: str, training: bool) -> None:
    model = zoo.without_dropout(zoo.build(name)).train(training)
    inputs = zoo.inputs_for(model)
    wanted = zoo.logits(model, inputs)
    gates = UnitGates(model, KINDS if name == "bert" else WITHOUT_HIDDEN)
    gates.active = False
    result = zoo.logits(model, inputs)
    assert (result - wanted).abs().max() <= 1e-6 * max(1.0, float(wanted.abs().max()))
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.fill_(60.0)
    gates.active = True
    assert (zoo.logits(model, inputs) - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_attaching_and_detaching_leave_no_trace() -> None:
    model = zoo.build("bert")
    inputs = zoo.inputs_for(model)
    wanted, before = zoo.logits(model, inputs), {k: v.clone() for k, v in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    gates = UnitGates(model)
    set_logits(gates, 0)
    assert not torch.equal(zoo.logits(model, inputs), wanted)
    assert list(model.state_dict()) == list(before)
    gates.detach()
    assert torch.equal(zoo.logits(model, inputs), wanted)
    assert [type(module) for module in model.modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert {name.rpartition(".")[2] for name in gates.state_dict()} == {"logits", "draws"}


def test_a_copy_of_the_model_has_no_gates_and_one_of_the_gates_no_model() -> None:
    model = zoo.build("bert")
    inputs = zoo.inputs_for(model)
    wanted = zoo.logits(model, inputs)
    gates = UnitGates(model)
    set_logits(gates, 2)
    gated = zoo.logits(model, inputs)
    duplicate = copy.deepcopy(gates)
    assert duplicate.current is None and gates.current is not None
    set_logits(duplicate, 1)
    other = copy.deepcopy(model)
    assert torch.equal(zoo.logits(other, inputs), wanted) and torch.equal(zoo.logits(model, inputs), gated)
    duplicate.attach(other)
    assert not torch.equal(zoo.logits(other, inputs), wanted)
    assert not torch.equal(zoo.logits(other, inputs), gated)
    # Extraction works on a copy, so that gates need not be taken off before.
    small = extract(fold(model, gates.values()), gates.sub_network())
    assert_close(zoo.logits(small, inputs), gated)


def test_generation_of_an_encoder_decoder_is_that_of_the_extracted_model() -> None:
    model = zoo.build("bart")
    inputs = {key: value for key, value in zoo.inputs_for(model).items() if key != "decoder_input_ids"}
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 2}
    gates = UnitGates(model, WITHOUT_HIDDEN)
    set_logits(gates, 1)
    zoo.logits(model.train(), zoo.inputs_for(model))  # leaves a random draw behind
    result = model.eval().generate(**inputs, **settings)
    values, sub_network = gates.values(), gates.sub_network()
    gates.detach()
    assert torch.equal(result, extract(fold(model, values), sub_network).generate(**inputs, **settings))


@pytest.mark.parametrize(
    "text, kinds",
    [
        ("structured_heads+structured_mlp+hidden+layer", KINDS),
        ("structured_head", ("heads",)),
        ("layer + structured_mlp", ("neurons", "attention", "feed_forward")),
        ("attention+heads", ("heads", "attention")),
    ],
)
def test_published_and_own_spellings_are_read(text, kinds) -> None:
    assert parse_kinds(text) == kinds


@pytest.mark.parametrize("text", ["structured_neurons", "", "heads+", "None"])
def test_unknown_kinds_are_refused(text) -> None:
    with pytest.raises(ValueError, match="is no kind of unit"):
        parse_kinds(text)


def test_gates_that_do_not_fit_are_refused() -> None:
    model = zoo.build("bert")
    with pytest.raises(ValueError, match="no kind of unit called 'layers'"):
        UnitGates(model, ("layers",))
    with pytest.raises(ValueError, match="nothing could be pruned"):
        UnitGates(model, ())
    with pytest.raises(ValueError, match="droprate_init is 0"):
        UnitGates(model, droprate_init=0)
    for name in ("llama", "electra", "distilbert"):
        with pytest.raises(ValueError, match="leave out the kind 'hidden'"):
            UnitGates(zoo.build(name))
    bare = extract(model, SubNetwork.of(describe(model), dict.fromkeys(describe(model).names)))
    with pytest.raises(ValueError, match="no heads left"):
        UnitGates(bare, ("heads",))
    gates = UnitGates(model, ("heads",))
    with pytest.raises(ValueError, match="attached to this BertForSequenceClassification already"):
        UnitGates(model, ("neurons",))
    with pytest.raises(ValueError, match="attached to a model already"):
        gates.attach(zoo.build("bert"))
    with pytest.raises(ValueError, match="encoder.0.feed_forward, which has no gate"):
        gates.fix(GateValues(units={"encoder.0.feed_forward": torch.ones(24)}))
    with pytest.raises(ValueError, match="hidden dimensions, which has no gate"):
        gates.fix(GateValues(hidden=torch.ones(32)))
    gates.detach()
    with pytest.raises(ValueError, match="belongs to a bert model"):
        gates.attach(zoo.build("roberta"))


def test_gates_on_a_model_that_is_pruned_already() -> None:
    model = zoo.build("bert")
    small = extract(model, zoo.corner_cases(model)["everything at once"])
    inputs = zoo.inputs_for(small)
    gates = UnitGates(small, WITHOUT_HIDDEN)
    set_logits(gates, 4)
    result = zoo.logits(small, inputs)
    values, sub_network = gates.values(), gates.sub_network()
    gates.detach()
    assert_close(result, zoo.logits(extract(fold(small, values), sub_network), inputs))
