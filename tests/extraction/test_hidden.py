"""A pruned residual stream: gated, extracted, saved and loaded agree, and nobody loads it in silence without us."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
)

from hf_nas import Parts, SizeTable, SubNetwork, SuperNetwork, describe, extract, get_search_space, save_extracted
from hf_nas.extraction import is_stock
from hf_nas.gates import GateValues, binary_gates
from hf_nas.profiling import LatencyPlan, LatencyTable, MemoryTable, shrink
from hf_nas.subnetwork import NORM_ONLY
from tests import zoo
from tests.extraction.test_loading import HIDE, in_fresh_process, logits_of, stock_transformers
from tests.gates.masked_bert import MaskedBert, batch, build, model_logits


CLASSES = (
    BertForSequenceClassification,
    BertForTokenClassification,
    BertForQuestionAnswering,
    BertForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForQuestionAnswering,
    RobertaForTokenClassification,
)
KEPT = tuple(unit for unit in range(24) if unit not in (0, 5, 6, 23))
CASES = {
    "hidden dimensions alone": {},
    "one head, one neuron": {"encoder.0.attention": [2], "encoder.1.feed_forward": [7]},
    "only biases": {"encoder.0.attention": 0, "encoder.2.feed_forward": 0},
    "sub-layers gone": {"encoder.0.attention": None, "encoder.1.feed_forward": None},
    "a layer gone": {"encoder.1.attention": None, "encoder.1.feed_forward": None, "encoder.2.attention": [0, 3]},
    "all layers gone": {f"encoder.{i}.{kind}": None for i in range(3) for kind in ("attention", "feed_forward")},
}


def binary_values(structure, sub_network: SubNetwork) -> GateValues:
    """The masks that say the same, made here by hand."""
    units, sub_layers = {}, {}
    for sub_layer in structure:
        kept = sub_network[sub_layer.name]
        if kept is None:
            sub_layers[sub_layer.name] = torch.zeros(())
        else:
            mask = torch.zeros(sub_layer.units)
            mask[list(range(kept)) if isinstance(kept, int) else list(kept)] = 1.0
            units[sub_layer.name] = mask
    hidden = torch.zeros(structure.hidden_size)
    hidden[list(sub_network.hidden)] = 1.0
    return GateValues(units, sub_layers, hidden)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_realisation_agrees(case: str, attention: str, tmp_path) -> None:
    model, inputs = build(BertForSequenceClassification, attn_implementation=attention), batch()
    structure = describe(model)
    sub_network = SubNetwork.of(structure, CASES[case], KEPT)
    wanted = MaskedBert(model, binary_values(structure, sub_network)).logits(inputs)
    small = extract(model, sub_network)
    assert (model_logits(small, inputs) - wanted).abs().max() <= 1e-5
    assert sum(p.numel() for p in small.parameters()) == SizeTable(model).parameters(sub_network)
    save_extracted(small, sub_network, tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation=attention).eval()
    assert type(loaded) is BertForSequenceClassification
    assert torch.equal(model_logits(loaded, inputs), model_logits(small, inputs))
    assert SubNetwork.load(tmp_path, structure) == SubNetwork.load(tmp_path) == sub_network


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda each: each.__name__)
def test_every_task_head(model_class, tmp_path) -> None:
    model, inputs = build(model_class), batch()
    structure = describe(model)
    sub_network = SubNetwork.of(structure, CASES["sub-layers gone"], KEPT)
    small = extract(model, sub_network)
    if model_class is not RobertaForMaskedLM:
        wanted = MaskedBert(model, binary_values(structure, sub_network)).logits(inputs)
        assert (model_logits(small, inputs) - wanted).abs().max() <= 1e-5
    assert sum(p.numel() for p in small.parameters()) == SizeTable(model).parameters(sub_network)
    save_extracted(small, sub_network, tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(model_logits(loaded.eval(), inputs), model_logits(small, inputs))


def test_the_head_of_a_language_model_stays_tied(tmp_path) -> None:
    for model_class in (BertForMaskedLM, RobertaForMaskedLM):
        for tied in (True, False):
            model = build(model_class, tie_word_embeddings=tied)
            sub_network = SubNetwork.of(describe(model), {}, KEPT)
            small = extract(model, sub_network)
            small.save_pretrained(tmp_path / f"{model_class.__name__}-{tied}")
            loaded = model_class.from_pretrained(tmp_path / f"{model_class.__name__}-{tied}").eval()
            for each in (small, loaded, model_class(small.config)):
                shared = each.get_output_embeddings().weight is each.get_input_embeddings().weight
                assert shared == tied and each.get_output_embeddings().weight.shape == (50, 20)
            assert torch.equal(model_logits(loaded, batch()), model_logits(small, batch()))
            assert sum(p.numel() for p in small.parameters()) == SizeTable(model).parameters(sub_network)


def test_multiple_choice_reads_the_pooler() -> None:
    model = build(BertForMultipleChoice)
    small = extract(model, SubNetwork.of(describe(model), {}, KEPT))
    assert small.bert.pooler.dense.weight.shape == (24, 20) and small.classifier.weight.shape == (1, 24)


@pytest.fixture
def pruned(tmp_path):
    model = build(BertForSequenceClassification)
    sub_network = SubNetwork.of(describe(model), CASES["a layer gone"], KEPT)
    small = extract(model, sub_network)
    save_extracted(small, sub_network, tmp_path)
    return model, small, tmp_path


def test_every_loading_route(pruned, tmp_path) -> None:
    _, small, folder = pruned
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_size"] == 24 and config["hf_nas_hidden_size"] == 20 and not is_stock(small)
    wanted = model_logits(small, batch())
    built = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    built.load_state_dict(small.state_dict())
    assert torch.equal(model_logits(built.eval(), batch()), wanted)
    base = AutoModel.from_pretrained(folder).eval()
    assert type(base) is BertModel and describe(base).hidden_size == 20
    with torch.no_grad():
        hidden_states = base(**batch(), output_hidden_states=True).hidden_states
    assert {state.shape[-1] for state in hidden_states} == {20}
    again = tmp_path / "again"
    loaded = BertForSequenceClassification.from_pretrained(folder)
    assert not is_stock(loaded)
    loaded.save_pretrained(again)
    assert torch.equal(model_logits(BertForSequenceClassification.from_pretrained(again).eval(), batch()), wanted)

    class Mine(BertForSequenceClassification):
        pass

    assert torch.equal(model_logits(Mine.from_pretrained(folder).eval(), batch()), wanted)


def test_fresh_processes(pruned) -> None:
    _, small, folder = pruned
    inputs, auto = batch(), "AutoModelForSequenceClassification"
    wanted = model_logits(small, inputs)
    for first, options in (("import hf_nas", {}), (HIDE, {"trust_remote_code": True})):
        found = logits_of(in_fresh_process(first, inputs, auto, folder, **options))
        assert (found - wanted).abs().max() <= 1e-5
    with_neither = in_fresh_process(HIDE, inputs, "BertForSequenceClassification", folder)
    assert with_neither.returncode != 0 and "LOGITS" not in with_neither.stdout


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda each: each.__name__)
def test_stock_classes_stop_at_a_pruned_width_alone(model_class, tmp_path) -> None:
    model = build(model_class)
    extract(model, SubNetwork.of(describe(model), {}, 23)).save_pretrained(tmp_path)
    with stock_transformers(), pytest.raises(Exception, match="ignore_mismatched_sizes|per-layer attribute"):
        model_class.from_pretrained(tmp_path)


def test_what_the_stock_configuration_can_state_is_a_stock_checkpoint(tmp_path) -> None:
    """Half of the width with half of the heads, where no pooler keeps the dense width."""
    model = build(BertForQuestionAnswering)
    structure = describe(model)
    heads = {s.name: [1, 2] for s in structure if s.kind == "attention"}
    small = extract(model, SubNetwork.of(structure, heads, range(3, 15)))
    assert is_stock(small) and small.config.hidden_size == 12
    small.save_pretrained(tmp_path)
    with stock_transformers():
        loaded = BertForQuestionAnswering.from_pretrained(tmp_path).eval()
    assert torch.equal(model_logits(loaded, batch()), model_logits(small, batch()))
    with_pooler = build(BertForSequenceClassification)
    assert not is_stock(extract(with_pooler, SubNetwork.of(describe(with_pooler), heads, range(3, 15))))


@pytest.mark.parametrize(
    "model_class", [BertForSequenceClassification, BertForMaskedLM], ids=lambda each: each.__name__
)
def test_an_extracted_model_can_be_pruned_further(model_class, tmp_path) -> None:
    model = build(model_class)
    structure = describe(model)
    gone = {"encoder.0.attention": None, "encoder.1.feed_forward": NORM_ONLY}
    small = extract(model, SubNetwork.of(structure, gone, KEPT))
    inner = describe(small)
    assert inner.hidden_size == 20 and SubNetwork.full(inner).hidden is None
    less = {"encoder.2.attention": [1, 2]}
    ids = (1, 2, 3, 8, 13, 19)
    smaller = extract(small, SubNetwork.of(inner, less, ids))
    direct = extract(model, SubNetwork.of(structure, {**gone, **less}, [KEPT[i] for i in ids]))
    assert smaller.config.hf_nas_hidden_size == 6
    assert (model_logits(smaller, batch()) - model_logits(direct, batch())).abs().max() <= 1e-6
    smaller.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path).eval()
    assert torch.equal(model_logits(loaded, batch()), model_logits(smaller, batch()))
    table = SizeTable(small)
    for sub_network in (SubNetwork.full(inner), SubNetwork.of(inner, less, ids)):
        assert table.parameters(sub_network) == sum(p.numel() for p in extract(small, sub_network).parameters())
    with SuperNetwork(small) as super_network:
        super_network.activate(SubNetwork.of(inner, less))
        wanted = model_logits(extract(small, SubNetwork.of(inner, less)), batch())
        assert (model_logits(small, batch()) - wanted).abs().max() <= 1e-5


def test_an_extracted_model_trains(pruned) -> None:
    _, small, _ = pruned
    small.train()
    small(**batch(), labels=torch.tensor([0, 1, 1])).loss.backward()
    assert all(p.grad is not None for p in small.parameters())


def test_sizes_by_the_published_formula() -> None:
    """Section 11, item 13 of the specification: layers, pooler and classifier, embeddings."""
    model = build(BertForSequenceClassification)
    structure = describe(model)
    kept = {"encoder.0.attention": 3, "encoder.1.attention": None, "encoder.1.feed_forward": 7}
    sub_network = SubNetwork.of(structure, kept, KEPT)
    d, k, size = 24, len(KEPT), 6
    heads, neurons = (3, 0, 4), (20, 7, 20)
    layers = sum(
        (4 * size * k + 3 * size) * h + (k + 2 * k) * (h > 0) + (2 * k + 1) * n + 3 * k * (n > 0)
        for h, n in zip(heads, neurons)
    )
    table = SizeTable(model)
    assert table.parameters(sub_network, Parts.encoder()) == layers
    embeddings, head = (50 + 40 + 2 + 2) * k, d * k + d + 2 * d + 2
    assert table.parameters(sub_network) == layers + embeddings + head
    macs = sum(4 * size * k * h * 9 + 2 * 81 * size * h + 2 * k * n * 9 for h, n in zip(heads, neurons))
    assert table.macs(sub_network, 9) == macs + d * k + 2 * d
    language = build(BertForMaskedLM)
    table = SizeTable(language)
    less = table.macs(SubNetwork.full(table.structure), 1) - table.macs(SubNetwork.of(table.structure, {}, 20), 1)
    assert less == 3 * (4 * d + 2 * 20) * 4 + (d * d - 20 * 20) + 50 * 4


def test_elastic_execution_refuses_a_pruned_width() -> None:
    model = build(BertForSequenceClassification)
    sub_network = SubNetwork.of(describe(model), {}, KEPT)
    with SuperNetwork(model) as super_network:
        with pytest.raises(ValueError, match="only 20 of the hidden dimensions, with which elastic execution is not"):
            super_network.activate(sub_network)
        assert super_network.active == super_network.full


def test_what_knows_nothing_of_the_width_refuses_it() -> None:
    model = zoo.build("bert")
    structure = describe(model)
    narrow = SubNetwork.of(structure, {}, range(1, 32))
    plan = LatencyPlan.of(structure)
    settings = {"batch_size": 1, "sequence_length": 8, "decoder_length": None, "machine": {}}
    latencies = LatencyTable.fit(plan, list(range(1, 1 + len(plan.sub_networks))), settings)
    memory = MemoryTable(model, 1, 4, widths=2)
    for call in (
        latencies.predict,
        memory.activation_bytes,
        memory.total_bytes,
        get_search_space("small", structure).encode,
        lambda sub_network: binary_gates(structure, sub_network),
    ):
        call(SubNetwork.full(structure))
        with pytest.raises(ValueError, match="keeps only 31 of the hidden dimensions, with which .* is not possible"):
            call(narrow)
    parameters = sum(p.numel() for p in extract(model, narrow).parameters())
    assert memory.parameter_bytes(narrow) == 4 * parameters


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, BertForMaskedLM])
def test_a_model_shrunk_for_measurements_has_the_width_too(model_class) -> None:
    model = build(model_class)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sub_network = SubNetwork.of(describe(model), CASES["sub-layers gone"], KEPT)
    small = shrink(model, sub_network)
    assert torch.equal(model_logits(small, batch()), model_logits(extract(model, sub_network), batch()))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "name", [name for name in zoo.FAMILIES if name not in ("bert", "roberta", "xlm-roberta", "camembert")]
)
def test_other_families_refuse(name: str) -> None:
    structure = describe(zoo.build(name))
    with pytest.raises(ValueError, match=f"hidden dimensions of this {structure.model_type} model cannot be pruned"):
        SubNetwork.of(structure, {}, [0, 1])


def test_task_heads_that_are_not_described_refuse(pruned) -> None:
    _, _, folder = pruned
    model = build(BertLMHeadModel, is_decoder=True)
    with pytest.raises(ValueError, match="cannot be pruned, since its family or its task head is not described"):
        SubNetwork.of(describe(model), {}, [0, 1])
    table = SizeTable(model)
    assert table.parameters(SubNetwork.full(table.structure)) == sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError, match="Where a BertLMHeadModel reads and writes its hidden dimensions is not"):
        BertLMHeadModel.from_pretrained(folder)
