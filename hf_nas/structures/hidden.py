"""The residual stream of one model: the modules that write, normalise and read its hidden dimensions."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hf_nas.structures.base import ModelStructure, head_layout
from hf_nas.structures.layouts import find_module


@dataclass(frozen=True, eq=False)
class ResidualStream:
    """The modules of one model that meet its residual stream.

    Args:
        tables: embedding tables, whose columns write it.
        writers: projections whose output rows and biases write it.
        norms: normalisations of it.
        readers: projections whose input columns read it.
        head_writers: projections of a language-modelling head whose outputs are hidden dimensions too.
        head_norms: normalisations of these outputs.
        output_embeddings: what reads these outputs; its weight may be that of the first table.
        markers: modules that hold nothing but an empty tensor in place of a skipped projection that read the stream.
    """

    tables: tuple[nn.Embedding, ...]
    writers: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    readers: tuple[nn.Module, ...]
    head_writers: tuple[nn.Module, ...]
    head_norms: tuple[nn.Module, ...]
    output_embeddings: nn.Linear | None
    markers: tuple[nn.Module, ...]

    @property
    def is_tied(self) -> bool:
        """Whether the output embeddings share their weight with an embedding table."""
        output = self.output_embeddings
        return output is not None and any(output.weight is table.weight for table in self.tables)


def residual_stream(model: PreTrainedModel, structure: ModelStructure) -> ResidualStream:
    """Find the modules of a model that meet its residual stream.

    Args:
        model: described by `structure`.
        structure: its structure.

    Raises:
        ValueError: if the hidden dimensions of its family or the task head of its class are not described.
    """
    layout = structure.family.hidden
    head = layout and head_layout(layout, model)
    if head is None:
        raise ValueError(
            f"Where a {type(model).__name__} reads and writes its hidden dimensions is not described, so they cannot "
            "be pruned; keep all of them, or describe it in a hf_nas.structures.base.HiddenLayout."
        )
    base = model.base_model
    present = [sub_layer for sub_layer in structure if not sub_layer.skipped]
    whole = [sub_layer for sub_layer in present if not sub_layer.norm_only]
    beside = [module for path in layout.readers if (module := find_module(base, path)) is not None]
    gone = [(base.get_submodule(s.path), s.layout.writers[0]) for s in structure if s.skipped or s.norm_only]
    markers = [module for layer, path in gone if (module := find_module(layer, path)) is not None]
    return ResidualStream(
        tables=tuple(base.get_submodule(path) for path in layout.tables),
        writers=tuple(s.module(base, s.layout.reader) for s in whole),
        norms=(
            *(base.get_submodule(path) for path in layout.norms),
            *(s.module(base, path) for s in present for path in s.layout.norms),
        ),
        readers=(
            *(s.module(base, path) for s in whole for path in s.layout.writers),
            *beside,
            *(model.get_submodule(path) for path in head.readers),
        ),
        head_writers=tuple(model.get_submodule(path) for path in head.writers),
        head_norms=tuple(model.get_submodule(path) for path in head.norms),
        output_embeddings=model.get_output_embeddings() if head.writers else None,
        markers=tuple(markers),
    )
