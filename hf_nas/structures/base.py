"""The vocabulary in which a model family says where its units are, and how a model is described with it."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hf_nas.ops import input_size, output_size


# A sub-layer of which only the normalisation is left: it computes norm(x). Published depth elasticity skips
# feed-forwards in this way.
NORM_ONLY = "norm"


@dataclass(frozen=True)
class SubLayerLayout:
    """Where the units of one kind of sub-layer are written and read. Paths start at the layer.

    Args:
        kind: `"attention"`, `"cross_attention"` or `"feed_forward"`.
        writers: projections whose output rows write the units; for attention query, key, value, or one fused one.
        reader: projection whose input columns read the units.
        norms: normalisations that belong to the sub-layer and go when it is skipped.
        bypass: what takes the place of which module when the sub-layer is skipped (see `hf_nas.bypass.BYPASSES`).
        norm_only: the same when only its normalisation stays; empty where that comes first, so that it goes too.
        sizes: configuration fields that state its width; the first one counts the units.
        core: the attention module; it owns `head_size`, the name of the attribute with the features of one head.
        head_size_field: configuration field that fixes the size of a head apart from the number of heads, if any.
        attributes: attributes of `core` in proportion to the number of heads.
        fused: number of blocks fused in each writer.
        position_bias: where the table of relative position biases by head is: `"first_layer"`, whose attention hands
            its bias on (T5), `"stack"`, which gives the bias to every layer (MPNet), or "" if there is none.
    """

    kind: str
    writers: tuple[str, ...]
    reader: str
    norms: tuple[str, ...]
    bypass: tuple[tuple[str, str], ...]
    sizes: tuple[str, ...]
    norm_only: tuple[tuple[str, str], ...] = ()
    core: str = ""
    head_size: str = ""
    head_size_field: str = ""
    attributes: tuple[str, ...] = ()
    fused: int = 1
    position_bias: str = ""

    @property
    def is_attention(self) -> bool:
        return self.kind != "feed_forward"

    @property
    def output_in_core(self) -> str | None:
        """Path of the output projection from the attention module, if it is inside."""
        inside = self.is_attention and self.reader.startswith(self.core + ".")
        return self.reader.removeprefix(self.core + ".") if inside else None

    @property
    def hands_on_bias(self) -> bool:
        """Whether the attention returns a position bias that the next layer's attention takes (T5)."""
        return any(kind == "biased_attention_zeros" for _, kind in self.bypass)

    @property
    def returns(self) -> int:
        """Number of values the attention module returns."""
        return 3 if self.hands_on_bias else 2


@dataclass(frozen=True)
class StackLayout:
    """One list of equal layers: its name, its path from the base model, the configuration field of its depth."""

    name: str
    path: str
    depth: str
    sub_layers: tuple[SubLayerLayout, ...]

    @property
    def position_bias_table(self) -> str | None:
        """Path, from the base model, of the table of relative position biases beside the layers, if it is there."""
        beside = any(layout.position_bias == "stack" for layout in self.sub_layers)
        return f"{self.path.rpartition('.')[0]}.relative_attention_bias" if beside else None


@dataclass(frozen=True)
class HeadLayout:
    """How the task head of one model class meets the residual stream. Paths start at the whole model.

    Args:
        model_class: its name; classes derived from it count too.
        readers: projections whose input columns read the stream; none where the head reads the pooler.
        writers: of a language-modelling head, projections that write the vector which the output embeddings read. As
            these are tied to the embedding table, the columns of which are hidden dimensions, so are its features.
        norms: normalisations of that vector.
    """

    model_class: str
    readers: tuple[str, ...] = ()
    writers: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class HiddenLayout:
    """Where the residual stream is written, read and normalised outside the layers; paths start at the base model.

    In the layers the output projections write it, the other projections read it, and the normalisations of each
    sub-layer normalise the stream itself (post-norm).

    Args:
        size: configuration field that states its width.
        tables: embedding tables, whose columns write it.
        norms: normalisations beside the layers.
        readers: projections beside the layers whose input columns read it, where a model has them. Their outputs keep
            their width.
        heads: the task heads that are known.
    """

    size: str
    tables: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    heads: tuple[HeadLayout, ...]


@dataclass(frozen=True)
class Family:
    """All that hf-nas must know of the models of one `config.model_type`.

    Args:
        model_type: as in the configuration.
        stacks: the layer lists; of an encoder-decoder the encoder first.
        cache_stack: the stack whose depth transformers takes for the decoder's key-value cache, where that is not the
            decoder itself; it must not become the shallower one.
        hidden: where the hidden dimensions are; None: they cannot be pruned.
    """

    model_type: str
    stacks: tuple[StackLayout, ...]
    cache_stack: str | None = None
    hidden: HiddenLayout | None = None


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

    @property
    def kind(self) -> str:
        return self.layout.kind

    def module(self, base_model: nn.Module, path: str) -> nn.Module:
        """The module at `path` (from the layer)."""
        return base_model.get_submodule(f"{self.path}.{path}" if path else self.path)


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


def find_module(module: nn.Module | None, path: str) -> nn.Module | None:
    """The module at `path`, or None where there is none."""
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


def count_units(layer: nn.Module, layout: SubLayerLayout) -> tuple[int, int]:
    """Number of units of a sub-layer and features of one unit at its reader, read off the weights."""
    if not layout.is_attention:
        return input_size(layer.get_submodule(layout.reader)), 1
    head_size = getattr(layer.get_submodule(layout.core), layout.head_size)
    # Of query, key and value the last one counts key-value heads, the unit of grouped-query attention.
    units = output_size(layer.get_submodule(layout.writers[-1])) // (layout.fused * head_size)
    return units, input_size(layer.get_submodule(layout.reader)) // max(units, 1)


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
        for index, layer in enumerate(find_layers(base_model, stack.path) or ()):
            for layout in stack.sub_layers:
                skipped = is_bypassed(layer, layout.bypass)
                norm_only = not skipped and is_bypassed(layer, layout.norm_only)
                units, features = (0, 1) if skipped or norm_only else count_units(layer, layout)
                core = find_module(layer, layout.core) if layout.is_attention else None
                sub_layers.append(
                    SubLayer(
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
                )
    return ModelStructure(family, tuple(sub_layers), _count_hidden(family, model))
