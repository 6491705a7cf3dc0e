"""The vocabulary in which a model family says where its units are: one value a family, no code."""

from dataclasses import dataclass, replace

from torch import nn


def find_module(module: nn.Module | None, path: str) -> nn.Module | None:
    """The module at `path`, or None where there is none."""
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


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
        optional_writers: further writers, each of which only some configurations of the family have.
        core: the attention module; it owns `head_size`, the name of the attribute with the features of one head.
        head_size_field: configuration field that fixes the size of a head apart from the number of heads, if any.
        attributes: attributes of `core` in proportion to the number of heads.
        config_attributes: the same of the configuration, where the forward pass of `core` reads them there (Phi-3).
        fused: number of blocks fused in each writer: of an attention query, key and value, of a gated feed-forward
            network both halves.
        position_bias: where the table of relative position biases by head is: `"first_layer"`, whose attention hands
            its bias on (T5), `"stack"`, which gives the bias to every layer (MPNet), or "" if there is none.
        disentangled: whether scores are also taken between tokens and embeddings of relative positions, which the
            projections of every layer read (DeBERTa).
        output_norm: that of `norms` which normalises the output before it is added to the stream, if one does (Gemma).
        output_norm_offset: what it adds to its weight before it multiplies with it.
    """

    kind: str
    writers: tuple[str, ...]
    reader: str
    norms: tuple[str, ...]
    bypass: tuple[tuple[str, str], ...]
    sizes: tuple[str, ...]
    norm_only: tuple[tuple[str, str], ...] = ()
    optional_writers: tuple[str, ...] = ()
    core: str = ""
    head_size: str = ""
    head_size_field: str = ""
    attributes: tuple[str, ...] = ()
    config_attributes: tuple[str, ...] = ()
    fused: int = 1
    position_bias: str = ""
    disentangled: bool = False
    output_norm: str = ""
    output_norm_offset: float = 0.0

    def of(self, layer: nn.Module) -> "SubLayerLayout":
        """This layout with those of the optional writers that a layer has."""
        present = tuple(path for path in self.optional_writers if find_module(layer, path) is not None)
        return replace(self, writers=self.writers + present, optional_writers=()) if present else self

    @property
    def is_attention(self) -> bool:
        return self.kind != "feed_forward"

    def _in_core(self, path: str) -> str | None:
        inside = self.is_attention and path.startswith(self.core + ".")
        return path.removeprefix(self.core + ".") if inside else None

    @property
    def without_heads(self) -> tuple[str | None, str | None, int]:
        """What an attention module without heads must know (see `hf_nas.bypass.forward_without_heads`).

        Paths from that module of the output projection and of the normalisation behind the residual connection, where
        they are inside it, and the number of values it returns.
        """
        norms = [path for path in map(self._in_core, self.norms) if path is not None]
        return self._in_core(self.reader), norms[0] if norms else None, 3 if self.hands_on_bias else 2

    @property
    def branch_end(self) -> str:
        """Path of the last module before the stream that has weights: the output projection, or the norm behind it."""
        return self.output_norm or self.reader

    @property
    def hands_on_bias(self) -> bool:
        """Whether the attention returns a position bias that the next layer's attention takes (T5)."""
        return any(kind == "biased_attention_zeros" for _, kind in self.bypass)


@dataclass(frozen=True)
class StackLayout:
    """One list of equal layers.

    Args:
        name: of the stack.
        path: of the list, from the base model.
        depth: configuration field of its length.
        sub_layers: of each layer, in order.
        pinned_by: path, from the base model, of a module that ties the first layer to its place, if the model has it:
            the layer then stays in the list, bypassed, even when nothing of it is left.
        repeats: configuration field of the number of times that the list runs in a pass, where all layers of the
            model share their weights; "" if that is once.
    """

    name: str
    path: str
    depth: str
    sub_layers: tuple[SubLayerLayout, ...]
    pinned_by: str = ""
    repeats: str = ""

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
        requires: pairs of a configuration field and the only value of it that the layouts fit.
    """

    model_type: str
    stacks: tuple[StackLayout, ...]
    cache_stack: str | None = None
    hidden: HiddenLayout | None = None
    requires: tuple[tuple[str, object], ...] = ()
