"""Quantized exports of uneven models: that weights really are integers, and the outputs near."""

import json

import pytest
import torch
from transformers import PreTrainedModel

from hf_nas.export import (
    export_model,
    largest_difference,
    load_exported,
    quantize,
    save_exported,
    text_inputs,
)
from hf_nas.export.inputs import input_names
from hf_nas.extraction import extract
from tests import zoo
from tests.export.packages import need


def exported_model(name: str, format_name: str, case: str) -> tuple[PreTrainedModel, tuple[str, ...], object]:
    need(format_name, quantization=format_name != "torch-export")
    model = zoo.build(name)
    small = extract(model, zoo.corner_cases(model)[case])
    names = input_names(small)
    return small, names, export_model(small, format_name, names)


def samples(model: PreTrainedModel, names: tuple[str, ...], count: int = 4) -> list[dict[str, torch.Tensor]]:
    return [text_inputs(model, 1, length, names) for length in range(5, 5 + count)]


@pytest.fixture(scope="module")
def encoder() -> tuple[PreTrainedModel, tuple[str, ...], object]:
    return exported_model("bert", "openvino", "everything at once")


def constants(exported) -> list[str]:
    """Element types of the matrices in an OpenVINO graph."""
    nodes = [node for node in exported.program.get_ops() if node.get_type_name() == "Constant"]
    return [node.get_element_type().get_type_name() for node in nodes if len(node.get_output_shape(0)) >= 2]


@pytest.mark.parametrize(("how", "kind"), [("int8", "i8"), ("int8-weights", "u8"), ("int4-weights", "i4")])
def test_weights_become_integers(encoder, how: str, kind: str, tmp_path) -> None:
    model, names, exported = encoder
    before = constants(exported)
    quantized = quantize(exported, how, samples(model, names) if how == "int8" else ())
    assert constants(exported) == before and kind not in before  # which stays as it was
    found = constants(quantized)
    if how != "int4-weights":  # widths that no group divides stay in int8
        assert found.count(kind) >= 5
    assert {"i8", "u8", "i4", "u4"} & set(found)
    difference = save_exported(quantized, tmp_path, model, names, tolerance=None)
    assert 1e-6 < difference < 0.5
    assert largest_difference(model, load_exported(tmp_path, threads=1), names) == pytest.approx(difference, rel=0.1)
    assert json.loads((tmp_path / "export.json").read_text())["export_format"] == "openvino"


@pytest.mark.slow
@pytest.mark.parametrize("format_name", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("name", "how"), [("bert", "int8"), ("bert", "int8-weights"), ("llama", "int8-weights"), ("llama", "int4-weights")]
)
def test_formats_and_families(name: str, how: str, format_name: str, tmp_path) -> None:
    model, names, exported = exported_model(name, format_name, "everything at once")
    quantized = quantize(exported, how, samples(model, names) if how == "int8" else ())
    assert 1e-6 < save_exported(quantized, tmp_path, model, names, tolerance=None) < 0.7


def test_what_does_not_fit_is_refused(encoder) -> None:
    model, names, exported = encoder
    with pytest.raises(ValueError, match="no quantization 'int2'; choose from int8, int8-weights, int4-weights"):
        quantize(exported, "int2")
    with pytest.raises(ValueError, match="'int8' has no calibration data"):
        quantize(exported, "int8")
    with pytest.raises(ValueError, match="'int4-weights' reads no calibration data"):
        quantize(exported, "int4-weights", samples(model, names))
    with pytest.raises(ValueError, match="Calibration data have no 'attention_mask' but input_ids"):
        quantize(exported, "int8", [{"input_ids": torch.ones(1, 3, dtype=torch.long)}])


class Exported:
    """As much of an export as is read before it is refused."""

    export_format = "dynamo"


def test_a_format_without_quantization_is_refused() -> None:
    with pytest.raises(ValueError, match="'torch-export' cannot be quantized; choose from onnx, openvino"):
        quantize(Exported(), "int8-weights")
