"""What an export is traced with and compared on, and the packages it asks for: nothing here needs them."""

import copy
import importlib.util

import pytest
import torch
from transformers import BertForMultipleChoice, PreTrainedTokenizerBase

from hf_nas.export import load_exported, require, runner_options, text_inputs
from hf_nas.export.check import check_shapes
from hf_nas.export.inputs import dynamic_shapes, input_names, longest_input
from hf_nas.export.preparation import prepared
from hf_nas.extraction import extract
from tests import zoo


class TokenizerWithoutSegments:
    model_input_names = ("input_ids", "attention_mask")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", ("input_ids", "attention_mask", "token_type_ids")),
        ("mpnet", ("input_ids", "attention_mask")),
        ("llama", ("input_ids", "attention_mask")),
        ("bart", ("input_ids", "attention_mask", "decoder_input_ids")),
        ("bart-classification", ("input_ids", "attention_mask")),
        ("vit", ("pixel_values",)),
    ],
)
def test_names_of_the_inputs(name: str, expected: tuple[str, ...]) -> None:
    assert input_names(zoo.build(name)) == expected


def test_no_segments_where_the_tokenizer_makes_none() -> None:
    tokenizer: PreTrainedTokenizerBase = TokenizerWithoutSegments()
    assert input_names(zoo.build("bert"), tokenizer) == ("input_ids", "attention_mask")


def test_rows_but_the_first_are_padded() -> None:
    model = zoo.build("roberta")
    inputs = text_inputs(model, 3, 6, input_names(model))
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0], [1] * 4 + [0] * 2]
    assert ((inputs["input_ids"] == 1) == (inputs["attention_mask"] == 0)).all()


def test_no_row_is_padding_alone() -> None:
    model = zoo.build("bert")
    assert text_inputs(model, 4, 2, input_names(model))["attention_mask"].sum(1).tolist() == [2, 1, 1, 1]


def test_a_text_has_two_choices() -> None:
    model = zoo.build("bert", head=BertForMultipleChoice)
    inputs = text_inputs(model, 3, 5, input_names(model))
    assert {each.shape for each in inputs.values()} == {(3, 2, 5)}
    with torch.no_grad():
        assert model(**inputs).logits.shape == (3, 2)


def test_no_batch_is_longer_than_the_model_reads() -> None:
    model = zoo.build("roberta")  # 40 positions, the first two of which are before the texts
    assert longest_input(model) == 38
    assert max(length for _, length in check_shapes(model)) == 38
    with torch.no_grad():
        model(**text_inputs(model, 1, 38, input_names(model)))
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(input_ids=torch.full((1, 39), 5))


def test_all_sizes_but_those_of_images_are_dynamic() -> None:
    shapes = dynamic_shapes({"input_ids": torch.zeros(2, 3), "pixel_values": torch.zeros(2, 3, 4, 4)})
    assert {name: set(axes) for name, axes in shapes.items()} == {"input_ids": {0, 1}, "pixel_values": {0}}


@pytest.mark.parametrize("case", ["no neuron left, bias stays", "no head left, bias stays", "everything at once"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_prepared_computes_the_same_and_leaves_no_trace(name: str, case: str) -> None:
    model = zoo.build(name)
    small = extract(model, zoo.corner_cases(model)[case])
    before = {path: type(module) for path, module in small.named_modules()}
    state, caching = copy.deepcopy(small.state_dict()), small.config.use_cache
    inputs = zoo.inputs_for(small)
    expected = zoo.logits(small, inputs)
    small.train()
    with prepared(small):
        assert not small.training
        with torch.no_grad():
            outputs = small(**inputs)
        assert outputs.get("past_key_values") is None
        assert torch.equal(zoo.logits(small, inputs), expected)
    assert small.training and small.config.use_cache is caching
    assert {path: type(module) for path, module in small.named_modules()} == before
    assert small.state_dict().keys() == state.keys()
    assert all(torch.equal(each, state[key]) for key, each in small.state_dict().items())


def without(monkeypatch, *packages: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in packages else found(name, *rest)
    )


@pytest.mark.parametrize(
    ("format_name", "package", "extra"),
    [("onnx", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")],
)
def test_a_missing_package_is_named(monkeypatch, format_name: str, package: str, extra: str) -> None:
    without(monkeypatch, "onnx", "onnxscript", "onnxruntime", "openvino")
    with pytest.raises(ValueError, match=rf'pip install "hf-nas\[{extra}\]"'):
        require(format_name)
    assert require("torch-export").extra is None


def test_quantization_needs_nncf(monkeypatch) -> None:
    without(monkeypatch, "nncf")
    monkeypatch.setattr(
        "hf_nas.export.formats.FORMATS",
        {"torch-export": require("torch-export"), "any": type(require("torch-export"))("", "", quantizer="Any")},
    )
    with pytest.raises(ValueError, match=r'Quantization needs .*pip install "hf-nas\[quantization\]"'):
        require("any", quantization=True)
    with pytest.raises(ValueError, match="'torch-export' cannot be quantized; choose from any"):
        require("torch-export", quantization=True)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="no format 'tflite'; choose from onnx, openvino, torch-export"):
        runner_options("tflite")


def test_a_folder_without_an_export_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no export.json"):
        load_exported(tmp_path)
    (tmp_path / "export.json").write_text('{"components": {}}')
    with pytest.raises(ValueError, match="is damaged .*export the model again"):
        load_exported(tmp_path)
