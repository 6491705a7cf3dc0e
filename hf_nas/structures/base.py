"""How a model is described with the layouts of its family: its sub-layers, their units, and what is left of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from hf_nas.ops import input_size, output_size
from hf_nas.structures.layouts import Family, HeadLayout, HiddenLayout, StackLayout, SubLayerLayout, find_module


# A sub-layer of which only the normalisation is left: it computes norm(x). Published depth elasticity skips
# feed-forwards in this way.
NORM_ONLY = "norm"


@dataclass(frozen=True)
class SubLayer:
    """One sub-layer of one model.

    Args:
        name: e.g. `"encoder.3.attention"`; unique in the model and used as key by sub-networks.
        stack: name of its stack.
        layer: index of its layer in the stack.
        path: path of its layer from the base model.
        units: number of units, 0 if none is left.
        features: features of one unit at the reader (1 for a neuron; under grouped-query attention, the query heads
            of one key-value head together).
        skipped: whether the sub-layer is already gone from this model.
        norm_only: whether only its normalisation is left in this model.
        layout: its layout.
        own_position_bias: whether its attention was given heads of a relative position bias apart from the others'.
        pinned: whether its layer cannot leave the list, even when nothing of it is left.
        repeats: number of times that it runs in a pass: all layers of the model, where they share their weights.
    """

    name: str
    stack: str
    layer: int
    path: str
    units: int
    features: int
    skipped: bool
    norm_only: bool
    layout: SubLayerLayout
    own_position_bias: bool = False
    pinned: bool = False
    repeats: int = 1

    @property
    def kind(self) -> str:
        return self.layout.kind

    def module(self, base_model: nn.Module, path: str) -> nn.Module:
        """The module at `path` (from the layer)."""
        return base_model.get_submodule(f"{self.path}.{path}" if path else self.path)

    def blocks(self, outputs: int) -> tuple[int, ...]:
        """Features of one unit in each of the blocks fused in a writer, which has so many outputs in all."""
        unit, fused = outputs // max(self.units, 1), self.layout.fused
        if fused == 1 or not self.layout.is_attention:
            return (unit // fused,) * fused
        # The query comes first; under grouped-query attention it has several heads for one key and value.
        query = self.features if self.units else 0
        return (query, *[(unit - query) // (fused - 1)] * (fused - 1))


@dataclass(frozen=True)
class ModelStructure:
    """The map of all units of one model; a value without reference to the model.

    Args:
        family: of the model.
        sub_layers: in order.
        hidden_size: number of hidden dimensions; 0 where family or task head do not let them be pruned.
    """

    family: Family
    sub_layers: tuple[SubLayer, ...]
    hidden_size: int = 0

    @property
    def model_type(self) -> str:
        return self.family.model_type

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sub_layer.name for sub_layer in self.sub_layers)

    def __iter__(self) -> Iterator[SubLayer]:
        return iter(self.sub_layers)

    def __getitem__(self, name: str) -> SubLayer:
        for sub_layer in self.sub_layers:
            if sub_layer.name == name:
                return sub_layer
        raise KeyError(name)

    def stack(self, name: str) -> tuple[SubLayer, ...]:
        """The sub-layers of one stack, in order."""
        return tuple(sub_layer for sub_layer in self.sub_layers if sub_layer.stack == name)

    @property
    def depths(self) -> dict[str, int]:
        """Number of layers of each stack."""
        depths: dict[str, int] = {}
        for sub_layer in self.sub_layers:
            depths[sub_layer.stack] = max(depths.get(sub_layer.stack, 0), sub_layer.layer + 1)
        return depths


def is_bypassed(layer: nn.Module, bypass: tuple[tuple[str, str], ...]) -> bool:
    """Whether these modules of a layer were already replaced by bypasses."""
    # By attribute, since a checkpoint's own loader file defines the class a second time.
    return bool(bypass) and all(getattr(find_module(layer, path), "is_bypass", False) for path, _ in bypass)


def count_units(layer: nn.Module, layout: SubLayerLayout) -> tuple[int, int]:
    """Number of units of a sub-layer and features of one unit at its reader, read off the weights."""
    read = input_size(layer.get_submodule(layout.reader))
    if not layout.is_attention:
        return read, 1
    head_size = getattr(layer.get_submodule(layout.core), layout.head_size)
    # Of query, key and value the last one counts key-value heads, the unit of grouped-query attention.
    written = output_size(layer.get_submodule(layout.writers[-1]))
    units = written // head_size if layout.fused == 1 else (written - read) // ((layout.fused - 1) * head_size)
    return units, read // max(units, 1)


def find_layers(base_model: nn.Module, path: str) -> nn.ModuleList | None:
    """The layer list at `path`, or None in a model without that stack (an encoder taken alone)."""
    module = find_module(base_model, path)
    return module if isinstance(module, nn.ModuleList) else None


def head_layout(layout: HiddenLayout, model: PreTrainedModel) -> HeadLayout | None:
    """How the task head of a model meets the residual stream; None if that is not described."""
    if model.base_model is model:
        return HeadLayout(type(model).__name__)
    names = {each.__name__ for each in type(model).__mro__}
    return next((head for head in layout.heads if head.model_class in names), None)


def _count_hidden(family: Family, model: PreTrainedModel) -> int:
    if family.hidden is None or head_layout(family.hidden, model) is None:
        return 0
    return output_size(model.base_model.get_submodule(family.hidden.tables[0]))


def describe_with(family: Family, model: PreTrainedModel) -> ModelStructure:
    """Describe a model with the layouts of its family."""
    base_model = model.base_model
    sub_layers = []
    for stack in family.stacks:
        repeats = getattr(model.config, stack.repeats) if stack.repeats else 1
        pinned = bool(stack.pinned_by) and find_module(base_model, stack.pinned_by) is not None
        for index, layer in enumerate(find_layers(base_model, stack.path) or ()):
            for layout in stack.sub_layers:
                sub_layer = _describe_sub_layer(layer, layout.of(layer), stack, index)
                sub_layers.append(replace(sub_layer, pinned=pinned and index == 0, repeats=repeats))
    return ModelStructure(family, tuple(sub_layers), _count_hidden(family, model))


def _describe_sub_layer(layer: nn.Module, layout: SubLayerLayout, stack: StackLayout, index: int) -> SubLayer:
    skipped = is_bypassed(layer, layout.bypass)
    norm_only = not skipped and is_bypassed(layer, layout.norm_only)
    units, features = (0, 1) if skipped or norm_only else count_units(layer, layout)
    core = find_module(layer, layout.core) if layout.is_attention else None
    return SubLayer(
        name=f"{stack.name}.{index}.{layout.kind}",
        stack=stack.name,
        layer=index,
        path=f"{stack.path}.{index}",
        units=units,
        features=features,
        skipped=skipped,
        norm_only=norm_only,
        layout=layout,
        own_position_bias=getattr(core, "has_own_position_bias", False),
    )
