"""The file that lets a model with uneven layers load where hf-nas is not installed.

It is put beside the weights and used with `trust_remote_code=True`. It is no second implementation: its text is the
source of the modules that build such models here, one after the other, with the family's table entry as a literal.
"""

import ast
import inspect
from types import ModuleType

from transformers import AutoModel, PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_nas import bypass, ops, resize
from hf_nas.extraction import sizes, stated
from hf_nas.extraction.sizes import MODULE_NAME
from hf_nas.structures import Family, base, hidden, layouts
from hf_nas.version import __version__


_MODULES: tuple[ModuleType, ...] = (ops, bypass, layouts, base, hidden, resize, stated, sizes)

_HEADER = '''# Copyright 2026 The hf-nas Authors. Licensed under the Apache License, Version 2.0.
"""Builds this model with the uneven layers that its configuration states.

Written by hf-nas {version}. With hf-nas installed, `import hf_nas` does the same and this file is not needed.
"""

import transformers
'''

_CLASS = '''

class {name}(transformers.{name}):
    """The stock class, built to the sizes in its configuration."""

    def __init__(self, config, *args, **kwargs):
        hide_sizes(config, self)
        super().__init__(config, *args, **kwargs)
        build_sizes(self, FAMILY)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        wanted = kwargs.pop("output_loading_info", False)
        model, loading_info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        refuse_lost_weights(model, loading_info)
        return (model, loading_info) if wanted else model
'''


def _body(module: ModuleType) -> str:
    """Source of a module without its docstring and its imports from this package."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    tree = ast.parse(source)
    dropped: set[int] = set()
    for node in tree.body:
        own_import = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_nas")
        docstring = node is tree.body[0] and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if own_import or docstring:
            dropped.update(range(node.lineno, node.end_lineno + 1))
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in dropped).strip() + "\n"


def auto_map(model: PreTrainedModel) -> dict[str, str]:
    """The `auto_map` entry of a configuration: which Auto class loads which class of the file."""
    entries = {"AutoModel": f"{MODULE_NAME}.{type(model.base_model).__name__}"}
    for name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None)
        if mapping is None or auto_class is AutoModel or not name.startswith("AutoModel"):
            continue
        if mapping._model_mapping.get(model.config.model_type) == type(model).__name__:
            entries[name] = f"{MODULE_NAME}.{type(model).__name__}"
    return entries


def remote_code(model: PreTrainedModel, family: Family) -> str:
    """Text of the file for a model of this family.

    Args:
        model: the extracted model; its class and that of its base model are the ones the file offers.
        family: its family.
    """
    names = sorted({type(model).__name__, type(model.base_model).__name__})
    parts = [_HEADER.format(version=__version__)]
    parts += [_body(module) for module in _MODULES]
    parts.append(f"\nFAMILY = {family!r}\n")
    parts += [_CLASS.format(name=name) for name in names]
    return "\n\n".join(parts)
