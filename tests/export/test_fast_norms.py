"""Layer norms rewritten in an ONNX graph, against the graph before and PyTorch."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_nas.export import export_model, save_exported
from hf_nas.export.fast_norms import speed_up_norms
from hf_nas.export.inputs import input_names
from hf_nas.extraction import extract
from tests import zoo
from tests.export.packages import need


onnx_ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")


def graph(shape: list, bias: bool = True, epsilon: float | None = 1e-3, axis: int = -1) -> "onnx_ir.Model":
    """A sum and a layer norm of its rows."""
    generator = np.random.default_rng(0)

    def value(name: str, dimensions: list) -> "onnx_ir.Value":
        kind = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        return onnx_ir.Value(name=name, type=kind, shape=onnx_ir.Shape(dimensions))

    def constant(name: str) -> "onnx_ir.Value":
        array = generator.normal(size=8).astype(np.float32)
        found = value(name, [8])
        found.const_value = onnx_ir.tensor(array, name=name)
        return found

    inputs, constants = value("x", shape), [constant("weight"), *([constant("bias")] if bias else [])]
    attributes = {"axis": axis} | ({} if epsilon is None else {"epsilon": epsilon})
    add = onnx_ir.node("Add", [inputs, inputs])
    add.outputs[0].shape, add.outputs[0].type = inputs.shape, inputs.type
    norm = onnx_ir.node("LayerNormalization", [add.outputs[0], *constants], attributes=attributes)
    norm.outputs[0].name, norm.outputs[0].shape, norm.outputs[0].type = "y", inputs.shape, inputs.type
    built = onnx_ir.Graph(
        [inputs], [norm.outputs[0]], nodes=[add, norm], initializers=constants, opset_imports={"": 18}, name="test"
    )
    return onnx_ir.Model(built, ir_version=10)


def computed(model: "onnx_ir.Model", inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    return session.run(["y"], {"x": inputs})[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epsilon", [0.1, None])
def test_it_computes_the_same(bias: bool, epsilon: float | None) -> None:
    model = graph(["rows", "tokens", 8], bias, epsilon)
    constants = {name: torch.from_numpy(each.const_value.numpy()) for name, each in model.graph.initializers.items()}
    assert speed_up_norms(model) == 1
    kinds = {node.op_type for node in model.graph}
    assert "InstanceNormalization" in kinds and "LayerNormalization" not in kinds
    for rows, tokens in ((1, 1), (3, 5)):
        inputs = np.random.default_rng(1).normal(size=(rows, tokens, 8)).astype(np.float32)
        expected = nn.functional.layer_norm(
            torch.from_numpy(2 * inputs), (8,), constants["weight"], constants.get("bias"), epsilon or 1e-5
        )
        np.testing.assert_allclose(computed(model, inputs), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [(["rows", 8], -1), (["rows", "tokens", 2, 8], -1)])
def test_other_norms_stay(shape: list, axis: int) -> None:
    model = graph(shape, axis=axis)
    assert speed_up_norms(model) == 0 and [node.op_type for node in model.graph] == ["Add", "LayerNormalization"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "bart", "gpt2", "modernbert"])
def test_a_model(name: str, tmp_path) -> None:
    need("onnx")
    model = zoo.build(name)
    small = extract(model, zoo.corner_cases(model)["everything at once"])
    names = input_names(small)
    exported = export_model(small, "onnx", names, fast_norms=True)
    assert "InstanceNormalization" in {node.op_type for node in exported.program.graph}
    assert save_exported(exported, tmp_path, small, names) < 1e-5


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="Fast norms are for onnx, and the format is 'torch-export'"):
        export_model(zoo.build("bert"), "torch-export", fast_norms=True)
