"""Where the nodes that an NNCF configuration names are in a model: the sub-layer they write, read or end.

Names are matched from the base model on, so that a configuration written for `BertForSequenceClassification` serves
every head class of the same base model.
"""

import re
from collections.abc import Mapping

from transformers import PreTrainedModel

from hf_nas.graph_names import module_path
from hf_nas.structures import ModelStructure, SubLayer


__all__ = ["ModelNodes"]

_ADDITION = re.compile(r"^_*i?add_*?_(\d+)$")


class ModelNodes:
    """The nodes of one model.

    Args:
        model: the model, on any device.
        structure: its structure.
        source: what error messages call the configuration.
    """

    def __init__(self, model: PreTrainedModel, structure: ModelStructure, source: str):
        self.source = source
        self.structure = structure
        self._model = model
        self._writers = _by_path(structure, {s.name: s.layout.writers for s in structure})
        self._readers = _by_path(structure, {s.name: (s.layout.reader,) for s in structure})
        self._norms = _by_path(structure, {s.name: s.layout.norms for s in structure})
        # By the module that adds the residual, the sub-layers whose residual it adds, in order.
        self._additions: dict[str, list[SubLayer]] = {}
        for sub_layer in structure:
            self._additions.setdefault(_adding_module(sub_layer), []).append(sub_layer)

    def path(self, name: str) -> str:
        """The path of a node's module from the base model.

        Raises:
            ValueError: if it is no name of a node, or the model has no such module.
        """
        path = module_path(name).removeprefix(f"{self._model.base_model_prefix}.")
        try:
            self._model.base_model.get_submodule(path)
        except AttributeError:
            layers = " and ".join(f"{count} layers in the {stack}" for stack, count in self.structure.depths.items())
            raise ValueError(
                f"{self.source} names the module {module_path(name)!r}, which this {type(self._model).__name__} with "
                f"{layers} does not have; take a configuration that was made for a model of this kind and size."
            ) from None
        return path

    def written_by(self, name: str) -> SubLayer:
        """The sub-layer whose units a layer writes.

        Raises:
            ValueError: if it writes no heads or neurons.
        """
        path = self.path(name)
        if path not in self._writers:
            raise ValueError(
                f"{self.source} gives the layer {path!r} elastic widths, but it writes neither heads nor neurons; "
                f"name layers such as {next(iter(self._writers))!r} and {list(self._writers)[-1]!r}."
            )
        return self._writers[path]

    def check_reader(self, name: str) -> None:
        """Refuse a layer that reads neither heads nor neurons.

        Raises:
            ValueError: if so.
        """
        path = self.path(name)
        if path not in self._readers:
            raise ValueError(
                f"{self.source} lists {path!r} in 'add_dynamic_inputs', which reads neither heads nor neurons; name "
                f"layers such as {next(iter(self._readers))!r}."
            )

    def block(self, start: str, end: str) -> tuple[SubLayer, bool]:
        """The sub-layer that a skippable block covers, and whether its normalisation stays when it is skipped.

        Args:
            start: node after which the block begins.
            end: last node of the block: the sub-layer's normalisation, which then goes, or the addition of its
                residual before that, with which the normalisation stays.

        Raises:
            ValueError: if the block is not exactly one sub-layer.
        """
        ending = self._ending(end)
        if ending is None:
            raise ValueError(
                f"{self.source} lists a block that ends in {end!r}, where no sub-layer ends; let it end in the "
                "sub-layer's normalisation (LayerNorm) or in the addition of its residual (__add___0)."
            )
        sub_layer, keeps_norm = ending
        if not self._starts_before(start, sub_layer):
            raise ValueError(
                f"{self.source} lists a block that ends with {sub_layer.name!r} but starts after {start!r}, which is "
                "not what comes right before that; list each attention and each feed-forward as a block of its own."
            )
        return sub_layer, keeps_norm

    def _ending(self, name: str) -> tuple[SubLayer, bool] | None:
        path = self.path(name)
        operation = name.rsplit("/", 1)[-1]
        if addition := _ADDITION.match(operation):
            ended = self._additions.get(path, [])[int(addition.group(1)) :]
            return (ended[0], bool(ended[0].layout.norm_only)) if ended else None
        sub_layer = self._norms.get(path)
        # A normalisation that comes first ends nothing.
        return (sub_layer, False) if sub_layer is not None and sub_layer.layout.norm_only else None

    def _starts_before(self, name: str, sub_layer: SubLayer) -> bool:
        stack = self.structure.stack(sub_layer.stack)
        position = stack.index(sub_layer)
        if position == 0:
            path = self.path(name)
            return not any(f"{path}.".startswith(f"{other.path}.") for other in self.structure)
        before = stack[position - 1]
        # Where the normalisation comes last, a block that starts before it would leave it out too.
        return self._ending(name) == (before, False)


def _by_path(structure: ModelStructure, paths: Mapping[str, tuple[str, ...]]) -> dict[str, SubLayer]:
    return {f"{sub_layer.path}.{path}": sub_layer for sub_layer in structure for path in paths[sub_layer.name]}


def _adding_module(sub_layer: SubLayer) -> str:
    # Every family adds the residual in the module that holds the normalisation.
    inside = sub_layer.layout.norms[0].rpartition(".")[0]
    return f"{sub_layer.path}.{inside}" if inside else sub_layer.path
