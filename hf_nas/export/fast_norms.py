"""Layer norms of an ONNX graph by an operator that ONNX Runtime computes faster on CPUs.

ONNX Runtime adds up a row of `LayerNormalization`, and of what it fuses that into, one number after the other, which
shows where matrix products were pruned away. `InstanceNormalization` of (rows, tokens, features), with tokens in the
place of channels, is the same sum, and there it is vectorised.
"""

from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    import onnx_ir

__all__ = ["speed_up_norms"]

_EPSILON = 1e-5  # of the operator, where a node states none


def speed_up_norms(program: "onnx_ir.Model") -> int:
    """Rewrite the layer norms over the features of token states, in place; the graph computes the same.

    Other norms, e.g. of one vector a row, stay as they are.

    Args:
        program: an ONNX graph with the shapes of its values.

    Returns:
        How many were rewritten.
    """
    import onnx_ir

    scales: dict[str, tuple[onnx_ir.Value, onnx_ir.Value]] = {}
    nodes = [node for node in program.graph if _is_token_norm(node)]
    for node in nodes:
        states, weight, *bias = node.inputs
        tokens = str(states.shape[1])  # equal names are equal sizes
        if tokens not in scales:
            scales[tokens] = _ones_and_zeros(node, states)
        epsilon = node.attributes.get_float("epsilon", _EPSILON)
        normal = onnx_ir.node("InstanceNormalization", [states, *scales[tokens]], attributes={"epsilon": epsilon})
        scaled = onnx_ir.node("Mul", [normal.outputs[0], weight])
        new = [normal, scaled]
        if bias and bias[0] is not None:
            new.append(onnx_ir.node("Add", [scaled.outputs[0], bias[0]]))
        for each in new:
            each.outputs[0].shape, each.outputs[0].dtype = states.shape, states.dtype
        node.graph.insert_before(node, new)
        old, replacement = node.outputs[0], new[-1].outputs[0]
        name = old.name
        old.replace_all_uses_with(replacement, replace_graph_outputs=True)
        old.name, replacement.name = f"{name}_replaced", name
        node.graph.remove(node, safe=True)
    return len(nodes)


def _is_token_norm(node: "onnx_ir.Node") -> bool:
    """Whether a node normalises the last of three dimensions and gives nothing but the result."""
    if node.op_type != "LayerNormalization" or node.domain not in ("", "ai.onnx"):
        return False
    shape = node.inputs[0].shape
    if shape is None or len(shape) != 3 or node.attributes.get_int("axis", -1) not in (-1, 2):
        return False
    return not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])


def _ones_and_zeros(node: "onnx_ir.Node", states: "onnx_ir.Value") -> tuple["onnx_ir.Value", "onnx_ir.Value"]:
    """A one and a zero for each token, computed before a node."""
    import onnx_ir

    size = onnx_ir.node("Shape", [states], attributes={"start": 1, "end": 2})
    filled = [
        onnx_ir.node(
            "ConstantOfShape", [size.outputs[0]], attributes={"value": onnx_ir.tensor(np.array([value], np.float32))}
        )
        for value in (1, 0)
    ]
    node.graph.insert_before(node, [size, *filled])
    return filled[0].outputs[0], filled[1].outputs[0]
