"""From masks of weights to whole heads and neurons. Pure functions of masks and a structure."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hf_nas.files import write_text
from hf_nas.graph_names import graph_name
from hf_nas.importance.movement.masking import Masks
from hf_nas.ops import by_unit
from hf_nas.structures import ModelStructure, SubLayer


__all__ = ["Group", "groups_of", "kept_units", "resolve", "write_report"]

REPORT_NAME = "structured_sparsity.csv"
_COLUMNS = (
    "group_id",
    "torch_module",
    "weight_shape",
    "pruned_weight_shape",
    "bias_shape",
    "pruned_bias_shape",
    "head_or_channel_id_to_keep",
    "module_node_name",
)
_MOST_IDS = 20


@dataclass(frozen=True)
class Group:
    """The layers that write and read the units of one sub-layer, by path from the whole model.

    Args:
        sub_layer: the sub-layer.
        writers: the layers whose rows write the units.
        reader: the layer whose columns read them.
    """

    sub_layer: SubLayer
    writers: tuple[str, ...]
    reader: str

    @property
    def members(self) -> tuple[str, ...]:
        return (*self.writers, self.reader)

    def by_writer_unit(self, rows: torch.Tensor) -> torch.Tensor:
        """Values of the rows of a writer, `(rows,)`, by unit: `(units, rows of one unit)`.

        Under grouped-query attention the rows of all query heads of a group belong to its unit.
        """
        return by_unit(rows, self.sub_layer.blocks(len(rows)), self.sub_layer.units)

    def by_reader_unit(self, columns: torch.Tensor) -> torch.Tensor:
        """Values of the columns of the reader, `(columns,)`, by unit: `(units, columns of one unit)`."""
        return columns.view(self.sub_layer.units, -1)

    def writer_rows(self, units: torch.Tensor, rows: int) -> torch.Tensor:
        """Values of units, `(units,)`, repeated for the rows of a writer, `(rows,)`."""
        return torch.cat([units.repeat_interleave(size) for size in self.sub_layer.blocks(rows)])


def _prefix(paths: Iterable[str], structure: ModelStructure) -> str:
    """What stands before the paths from the base model: it depends on the task head."""
    ends = [
        f"{sub_layer.path}.{path}"
        for sub_layer in structure
        for path in (*sub_layer.layout.writers, sub_layer.layout.reader)
    ]
    prefixes = {path[: -len(end)] for path in paths for end in ends if path == end or path.endswith(f".{end}")}
    if len(prefixes) > 1:
        raise ValueError(
            f"The layers belong to more than one {structure.model_type} model, under {sorted(prefixes)}; give those "
            "of one."
        )
    return prefixes.pop() if prefixes else ""


def groups_of(paths: Iterable[str], structure: ModelStructure) -> Iterator[tuple[Group, tuple[str, ...]]]:
    """The groups of layers of a model, and which of their members are not among `paths`.

    Args:
        paths: of layers, from the whole model (whose task head may be another one).
        structure: of the model.

    Returns:
        Pairs of group and missing members: the attentions first, then the feed-forward networks, as in NNCF.

    Raises:
        ValueError: if the paths belong to several models.
    """
    paths = set(paths)
    prefix = _prefix(paths, structure)
    for sub_layer in sorted(structure, key=lambda s: not s.layout.is_attention):
        if sub_layer.units:
            start = f"{prefix}{sub_layer.path}."
            writers = tuple(start + path for path in sub_layer.layout.writers)
            group = Group(sub_layer, writers, start + sub_layer.layout.reader)
            yield group, tuple(path for path in group.members if path not in paths)


def _complete_groups(masks: Mapping[str, Masks], structure: ModelStructure) -> list[Group]:
    return [group for group, missing in groups_of(masks, structure) if not missing]


def _kept(group: Group, masks: Mapping[str, Masks]) -> torch.Tensor:
    kept = group.by_reader_unit(masks[group.reader].weight.any(dim=0)).any(dim=1)
    for path in group.writers:
        weight, bias = masks[path]
        rows = weight.any(dim=1)
        if bias is not None:
            rows = rows | bias
        # Biases count only beside a weight: they alone do not save a unit of a layer without any.
        kept = kept | (group.by_writer_unit(rows).any(dim=1) & weight.any())
    return kept


def kept_units(masks: Mapping[str, Masks], structure: ModelStructure) -> dict[str, torch.Tensor]:
    """Which units have a weight left, in any layer that writes or reads them.

    A unit stays if a mask is left in its rows (weights or biases) of a writer that has some weight left, or in its
    columns of the reader.

    Args:
        masks: by path of the layer from the whole model.
        structure: of the model.

    Returns:
        By name of the sub-layer, shape `(units,)`; only of the sub-layers all of whose layers have masks.
    """
    return {group.sub_layer.name: _kept(group, masks) for group in _complete_groups(masks, structure)}


def resolve(masks: Mapping[str, Masks], structure: ModelStructure) -> dict[str, Masks]:
    """Masks of whole units: what is in a unit that stays is kept completely, the rest is masked.

    Args:
        masks: as for [`kept_units`].
        structure: of the model.

    Returns:
        New masks of all layers. Those of layers outside a complete sub-layer are the old ones.
    """
    resolved = dict(masks)
    for group in _complete_groups(masks, structure):
        kept = _kept(group, masks)
        for path in group.writers:
            weight, bias = masks[path]
            rows = group.writer_rows(kept, weight.shape[0]).to(weight.device)
            resolved[path] = Masks(rows[:, None].expand_as(weight).clone(), None if bias is None else rows)
        weight, bias = masks[group.reader]
        columns = kept.repeat_interleave(weight.shape[1] // len(kept)).to(weight.device)
        # The bias is added whatever is read, so it goes only with the last unit.
        bias = None if bias is None else kept.any().to(bias.device).expand_as(bias).clone()
        resolved[group.reader] = Masks(columns.expand_as(weight).clone(), bias)
    return resolved


def write_report(
    path: str | Path, model: nn.Module, structure: ModelStructure, kept: Mapping[str, torch.Tensor]
) -> None:
    """Write which units of which layers stay, as the CSV file `structured_sparsity.csv` of NNCF.

    Args:
        path: of the file.
        model: the whole model.
        structure: of the model.
        kept: as [`kept_units`] returns it.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["", *_COLUMNS])
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    groups = [group for group, _ in groups_of(linear, structure) if group.sub_layer.name in kept]
    row = 0
    for group_id, group in enumerate(groups):
        ids = torch.nonzero(kept[group.sub_layer.name]).flatten().tolist()
        for member in group.members:
            weight, bias = (getattr(model.get_submodule(member), name) for name in ("weight", "bias"))
            rows, columns = weight.shape
            if member == group.reader:
                pruned, pruned_rows = (rows, columns // group.sub_layer.units * len(ids)), rows
            else:
                pruned_rows = rows // group.sub_layer.units * len(ids)
                pruned = (pruned_rows, columns)
            writer.writerow(
                [
                    row,
                    group_id,
                    member,
                    (rows, columns),
                    pruned,
                    "" if bias is None else (rows,),
                    "" if bias is None else (pruned_rows,),
                    ids if len(ids) <= _MOST_IDS else f"[{len(ids)} items]",
                    graph_name(model, member),
                ]
            )
            row += 1
    write_text(path, stream.getvalue())
