"""Folding soft gates is exact: the extracted model computes what the masked forward computes."""

import itertools

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    RobertaForSequenceClassification,
)

from hf_nas import SubNetwork, describe, extract, save_extracted
from hf_nas.gates import Gates, GateValues
from hf_nas.gates.fold import fold
from tests import zoo
from tests.gates.masked_bert import MaskedBert, batch, build, model_logits


CLASSES = (
    BertForSequenceClassification,
    BertForTokenClassification,
    BertForQuestionAnswering,
    BertForMaskedLM,
    RobertaForSequenceClassification,
)
KINDS = ("heads", "neurons", "attention", "feed_forward", "hidden")


def soft(size: int, closed: tuple[int, ...], seed: int) -> torch.Tensor:
    """Values between 0.1 and 1, and zeros at `closed`."""
    values = torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.1
    values[list(closed)] = 0.0
    return values


def values_for(structure, kinds: tuple[str, ...]) -> GateValues:
    units, sub_layers = {}, {}
    for index, sub_layer in enumerate(structure):
        unit_kind = "heads" if sub_layer.kind == "attention" else "neurons"
        if unit_kind in kinds:
            units[sub_layer.name] = soft(sub_layer.units, (1,) if index % 3 else (0, 2), index)
        if sub_layer.kind in kinds:
            closed = sub_layer.name in ("encoder.1.attention", "encoder.2.feed_forward")
            sub_layers[sub_layer.name] = torch.zeros(()) if closed else soft(1, (), 50 + index).reshape(())
    hidden = soft(structure.hidden_size, (2, 3, 17), 99) if "hidden" in kinds else None
    return GateValues(units, sub_layers, hidden)


def folded_and_extracted(model, values):
    return extract(fold(model, values), values.sub_network(describe(model)))


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda each: each.__name__)
def test_all_kinds_in_every_task_head(model_class, tmp_path) -> None:
    model, inputs = build(model_class), batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    structure = describe(model)
    values = values_for(structure, KINDS)
    wanted = MaskedBert(model, values).logits(inputs)
    small = folded_and_extracted(model, values)
    assert (model_logits(small, inputs) - wanted).abs().max() <= 1e-5
    save_extracted(small, values.sub_network(structure), tmp_path)
    loaded = model_class.from_pretrained(tmp_path).eval()
    assert (model_logits(loaded, inputs) - wanted).abs().max() <= 1e-5
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (model_logits(model, inputs) - wanted).abs().max() > 0.05


@pytest.mark.parametrize("kinds", [k for n in (1, 2, 3, 4) for k in itertools.combinations(KINDS, n)], ids="+".join)
def test_every_subset_of_kinds(kinds: tuple[str, ...]) -> None:
    model, inputs = build(BertForSequenceClassification), batch()
    values = values_for(describe(model), kinds)
    wanted = MaskedBert(model, values).logits(inputs)
    assert (model_logits(folded_and_extracted(model, values), inputs) - wanted).abs().max() <= 1e-5


def test_the_reference_agrees_with_transformers_where_nothing_is_masked() -> None:
    for model_class in CLASSES:
        model, inputs = build(model_class), batch()
        assert (MaskedBert(model, GateValues()).logits(inputs) - model_logits(model, inputs)).abs().max() <= 1e-5


def test_the_masked_norm_of_the_published_case() -> None:
    model = build(BertForSequenceClassification, hidden_size=4, num_attention_heads=1, num_hidden_layers=1)
    reference = MaskedBert(model, GateValues(hidden=torch.tensor([1.0, 0.0, 1.0, 1.0])))
    reference.config.layer_norm_eps = 0.0
    reference.weights["norm.weight"], reference.weights["norm.bias"] = torch.ones(4), torch.zeros(4)
    normed = reference._norm("norm", torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.allclose(normed, torch.tensor([-1.336306, 2.0, 0.267261, 1.069045]), atol=1e-6)


def test_closed_units_leave_a_bias_unless_resolved() -> None:
    model, inputs = build(BertForSequenceClassification), batch()
    structure = describe(model)
    units = {"encoder.0.attention": torch.zeros(4), "encoder.1.feed_forward": torch.zeros(20)}
    values = GateValues(units)
    assert [values.sub_network(structure)[name] for name in units] == [0, 0]
    assert [values.resolved().sub_network(structure)[name] for name in units] == [None, None]
    results = []
    for each in (values, values.resolved()):
        wanted = MaskedBert(model, each).logits(inputs)
        results.append(model_logits(folded_and_extracted(model, each), inputs))
        assert (results[-1] - wanted).abs().max() <= 1e-5
    assert (results[0] - results[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    "name", ["distilbert", "mpnet", "llama", "qwen3", "gemma2", "gemma3_text", "gpt2", "bart", "t5", "t5-gated"]
)
def test_units_of_other_families(name: str) -> None:
    """Against gates at the output projections' inputs, which are hooks of their own."""
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    structure = describe(model)
    units = {s.name: soft(s.units, (1,), index) for index, s in enumerate(structure)}
    values = GateValues(units)
    with Gates(model, units):
        wanted = zoo.logits(model, inputs)
    small = folded_and_extracted(model, values)
    assert (zoo.logits(small, inputs) - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["distilbert", "llama", "gpt2", "bart", "t5"])
def test_sub_layers_of_other_families(name: str) -> None:
    """Against hooks on what the output projections give."""
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    structure = describe(model)
    values = GateValues(sub_layers={s.name: soft(1, (), index) for index, s in enumerate(structure)})
    handles = []
    for sub_layer in structure:
        gate = values.sub_layers[sub_layer.name]
        reader = sub_layer.module(model.base_model, sub_layer.layout.reader)
        handles.append(reader.register_forward_hook(lambda module, args, output, gate=gate: output * gate))
    wanted = zoo.logits(model, inputs)
    for handle in handles:
        handle.remove()
    small = folded_and_extracted(model, values)
    assert (zoo.logits(small, inputs) - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_a_model_in_half_precision_is_rounded_once() -> None:
    model = build(BertForSequenceClassification).to(torch.bfloat16)
    values = values_for(describe(model), ("heads", "attention"))
    name, path = "encoder.0.attention", "bert.encoder.layer.0.attention.output.dense.bias"
    folded = fold(model, values).get_parameter(path)
    assert folded.dtype == torch.bfloat16
    assert torch.equal(folded, (model.get_parameter(path).float() * values.sub_layers[name]).to(torch.bfloat16))


@pytest.mark.parametrize(
    "values, message",
    [
        (
            GateValues({"encoder.9.attention": torch.ones(4)}),
            "name the sub-layer 'encoder.9.attention', which this bert",
        ),
        (GateValues({"encoder.0.attention": torch.ones(3)}), r"has shape \(3,\); give one of shape \(4,\)"),
        (GateValues(sub_layers={"encoder.0.attention": torch.ones(2)}), "has 2 elements; a sub-layer has one"),
        (GateValues(hidden=torch.ones(23)), r"hidden dimensions has shape \(23,\); give one of shape \(24,\)"),
        (GateValues({"encoder.0.attention": torch.tensor([1, 1, 1, float("nan")])}), "a value that is not finite"),
        (GateValues(hidden=torch.zeros(24)), "at least one"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: GateValues, message: str) -> None:
    model = build(BertForSequenceClassification)
    with pytest.raises(ValueError, match=message):
        folded_and_extracted(model, values)


def test_hidden_dimensions_of_other_families_are_refused() -> None:
    model = zoo.build("distilbert")
    with pytest.raises(ValueError, match="hidden dimensions of this distilbert model cannot be gated"):
        fold(model, GateValues(hidden=torch.ones(32)))


def test_the_sub_network_of_values() -> None:
    structure = describe(build(BertForSequenceClassification))
    values = GateValues({"encoder.0.attention": torch.tensor([0.0, 0.5, 1.0, 0.0])}, {}, torch.ones(24))
    assert values.sub_network(structure) == SubNetwork.of(structure, {"encoder.0.attention": [1, 2]})
    assert GateValues().sub_network(structure) == SubNetwork.full(structure)
