"""Exports against the model itself and against a dense model whose removed weights are zero."""

import copy
import shutil

import pytest
import torch
from transformers import BertForMultipleChoice, PreTrainedModel

from hf_nas.export import FORMATS, export_model, largest_difference, load_exported, save_exported, text_inputs
from hf_nas.export.check import check_shapes
from hf_nas.export.inputs import input_names
from hf_nas.extraction import extract
from tests import zoo
from tests.export.packages import need


UNEVEN = "everything at once"


def small_model(name: str, case: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """An extracted model, and the same function without any slicing."""
    model = zoo.build(name)
    sub_network = zoo.corner_cases(model)[case]
    return extract(model, sub_network), zoo.dense_oracle(model, sub_network)


def check(name: str, case: str, format_name: str, folder) -> None:
    need(format_name)
    small, oracle = small_model(name, case)
    names = input_names(small)
    difference = save_exported(export_model(small, format_name, names), folder, small, names)
    assert difference < 1e-5
    exported = load_exported(folder, threads=1)
    for rows, length in ((2, 8), (3, 12)):
        inputs = zoo.inputs_for(small, rows, length)
        if "token_type_ids" in names:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        expected = zoo.logits(oracle, inputs)
        actual = exported(**inputs).logits
        if actual.dim() == 3 and not small.config.is_encoder_decoder:
            actual = actual[inputs["attention_mask"].bool()]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format_name", FORMATS)
def test_an_uneven_model(format_name: str, tmp_path) -> None:
    check("bert", UNEVEN, format_name, tmp_path)
    assert (tmp_path / "config.json").is_file() and (tmp_path / "export.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("bert", "no neuron left, bias stays"),
        ("bert", "all layers gone"),
        ("roberta", "no head left, bias stays"),
        ("distilbert", "nothing but norms"),
        ("mpnet", UNEVEN),
        ("vit", UNEVEN),
        ("llama", UNEVEN),
        ("gpt2", "no neuron left, bias stays"),
        ("t5", UNEVEN),
        ("bart", UNEVEN),
        ("bart-classification", "other units in every layer"),
    ],
)
def test_families_and_corner_cases(name: str, case: str, format_name: str, tmp_path) -> None:
    if (name, format_name) == ("bart-classification", "torch-export"):
        # The head finds the last end-of-sequence token, a size that depends on the data.
        with pytest.raises(ValueError, match="BartForSequenceClassification cannot be read back .*; choose another"):
            check(name, case, format_name, tmp_path)
        assert not list(tmp_path.iterdir())
        return
    check(name, case, format_name, tmp_path)


@pytest.fixture(scope="module")
def program() -> tuple[PreTrainedModel, tuple[str, ...], object]:
    """A model, the names of its inputs and its export in the format that needs no package."""
    model, _ = small_model("bert", "other units in every layer")
    names = input_names(model)
    return model, names, export_model(model, "torch-export", names)


def test_an_export_that_differs_is_refused_and_not_left(program, tmp_path) -> None:
    model, names, exported = program
    changed = zoo.build("bert", seed=1)
    assert largest_difference(model, exported, names) < 1e-6
    with pytest.raises(ValueError, match="differs from the model by .* where 0.0001 is allowed"):
        save_exported(exported, tmp_path, changed, names)
    assert not list(tmp_path.iterdir())


def with_bias(model: PreTrainedModel, value: float) -> PreTrainedModel:
    """A copy (an export shares the parameters) that adds this much to its first output."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.classifier.bias[0] += value
    return copied


def test_the_difference_is_relative_to_the_largest_output(program) -> None:
    model, names, exported = program
    changed = with_bias(model, 0.5)
    with torch.no_grad():
        largest = changed(**text_inputs(model, 1, 5, names)).logits.abs().max().item()
    assert largest_difference(changed, exported, names, [(1, 5)]) == pytest.approx(0.5 / largest, rel=1e-3)


def test_not_a_number_is_a_difference(program) -> None:
    model, names, exported = program
    assert largest_difference(with_bias(model, float("nan")), exported, names, [(2, 5)]) == float("inf")


def test_an_input_that_is_missing_is_explained(program) -> None:
    model, _, exported = program
    with pytest.raises(ValueError, match="cannot compute a batch of 1 x 1"):
        largest_difference(model, exported, ("input_ids", "attention_mask"))


def test_what_cannot_be_traced_is_refused(monkeypatch) -> None:
    model = zoo.build("bert")

    def forward(input_ids=None, attention_mask=None, token_type_ids=None):
        if input_ids.sum().item() % 2:  # a decision by data
            return model.bert(input_ids)
        raise KeyError("even")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ValueError, match="BertForSequenceClassification cannot be exported to torch-export"):
        export_model(model, "torch-export")


@pytest.mark.slow
def test_multiple_choice(tmp_path) -> None:
    model = zoo.build("bert", head=BertForMultipleChoice)
    names = input_names(model)
    assert save_exported(export_model(model, "torch-export", names), tmp_path, model, names) < 1e-5
    assert len(check_shapes(model)) == 5


@pytest.mark.slow
def test_files_may_be_moved(program, tmp_path) -> None:
    need("openvino")
    model, names, _ = program
    save_exported(export_model(model, "openvino", names), tmp_path / "one", model, names)
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert largest_difference(model, load_exported(tmp_path / "two"), names) < 1e-5
