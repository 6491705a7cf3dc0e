"""The names that NNCF 2.x gives to the modules of a model, as its configurations and scopes use them.

A node is called by the classes and attributes on the way to it and the operation in it, e.g.
`BertModel/BertEncoder[encoder]/ModuleList[layer]/BertLayer[0]/BertOutput[output]/NNCFLinear[dense]/linear_0`.
"""

import re

from torch import nn


_OPERATIONS = {"Linear": "linear", "LayerNorm": "layer_norm", "Dropout": "dropout", "Embedding": "embedding"}
_ATTRIBUTE = re.compile(r"^\w+\[(\w+)\]$")


def graph_name(model: nn.Module, path: str) -> str:
    """The NNCF 2.x name of the node of a linear, normalisation, dropout or embedding module.

    Args:
        model: the whole model, e.g. with its task head.
        path: of the module from there, e.g. `"bert.encoder.layer.0.output.dense"`.
    """
    parts = [type(model).__name__]
    module = model
    for attribute in path.split("."):
        module = module.get_submodule(attribute)
        parts.append(f"{type(module).__name__}[{attribute}]")
    # NNCF wraps the layers it compresses in classes of its own.
    kind = type(module).__name__
    if kind in ("Linear", "LayerNorm", "Embedding"):
        parts[-1] = f"NNCF{parts[-1]}"
    return "/".join([*parts, f"{_OPERATIONS[kind]}_0"] if kind in _OPERATIONS else parts)


def module_path(name: str) -> str:
    """The path of the module that a node belongs to, from the whole model.

    Args:
        name: of a node or module in the manner of NNCF 2.x.

    Raises:
        ValueError: if it is no such name.
    """
    attributes = [_ATTRIBUTE.match(part) for part in name.split("/")[1:]]
    # Only the last part may be an operation.
    if not attributes or not all(attributes[:-1]) or (attributes[-1] is None and len(attributes) == 1):
        raise ValueError(
            f"{name!r} is no name of a node in the manner of NNCF 2.x; write classes and attributes, as in "
            "'BertModel/BertEncoder[encoder]/ModuleList[layer]/BertLayer[0]/BertOutput[output]/NNCFLinear[dense]/"
            "linear_0'."
        )
    return ".".join(match.group(1) for match in attributes if match)
