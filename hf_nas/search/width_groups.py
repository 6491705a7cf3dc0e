"""Sub-networks by the numbers that BootstrapNAS of NNCF 2.x gives to groups of widths and to blocks.

A width group is one sub-layer, whose width counts channels; a block is a sub-layer that can be skipped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb

from hf_nas.structures import ModelStructure
from hf_nas.subnetwork import NORM_ONLY, SubNetwork


__all__ = ["WidthGroups"]


@dataclass(frozen=True)
class WidthGroups:
    """What the numbers of groups and blocks stand for in one model.

    Make one with [`WidthGroups.of`].

    Args:
        structure: of the model.
        names: the sub-layer of each group.
        widths: the widths of each group that can be chosen, in channels, widest first; needed for the caches alone.
        blocks: the sub-layer of each block; None where depth is not elastic.
        always_skipped: sub-layers that every sub-network skips, which no configuration mentions.
    """

    structure: ModelStructure
    names: tuple[str, ...]
    widths: tuple[tuple[int, ...], ...] | None = None
    blocks: tuple[str, ...] | None = None
    always_skipped: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        structure: ModelStructure,
        *,
        names: Sequence[str] | None = None,
        widths: Sequence[Sequence[int]] | None = None,
        blocks: Sequence[str] | None = None,
        always_skipped: Sequence[str] = (),
    ) -> "WidthGroups":
        """The groups of a model.

        Args:
            structure: of the model.
            names: the sub-layer of each group, by default as published: attention of every layer (then
                cross-attention, which the published models do not have), then feed-forward.
            widths: the widths of each group that can be chosen in the search, in channels.
            blocks: the sub-layers that can be skipped, in the order of `skipped_blocks`.
            always_skipped: those of `fixed_skipped_blocks`.

        Raises:
            ValueError: for a sub-layer that the model does not have, or widths that do not fit the groups.
        """
        if names is None:
            kinds = ("attention", "cross_attention", "feed_forward")
            names = [s.name for kind in kinds for s in structure if s.kind == kind and s.units]
        for name in (*names, *(blocks or ()), *always_skipped):
            if name not in structure.names:
                raise ValueError(
                    f"This {structure.model_type} model has no sub-layer {name!r}; it has {structure.names[0]!r} to "
                    f"{structure.names[-1]!r}."
                )
        groups = cls(structure, tuple(names), None, None if blocks is None else tuple(blocks), tuple(always_skipped))
        if widths is None:
            return groups
        if len(widths) != len(names):
            raise ValueError(f"There are {len(names)} width groups but {len(widths)} lists of widths; give one each.")
        for group, choices in enumerate(widths):
            if not choices:
                raise ValueError(f"Width group {group} has no widths; give one or more.")
            for width in choices:
                groups._units(group, width)
        choices = tuple(tuple(sorted(each, reverse=True)) for each in widths)
        return replace(groups, widths=choices)

    @property
    def upper_bounds(self) -> tuple[int, ...]:
        """The largest index of each variable of the published search; the set of skipped blocks is one variable."""
        bounds = tuple(len(choices) - 1 for choices in self._known_widths())
        return bounds if self.blocks is None else (*bounds, 2 ** len(self.blocks) - 1)

    def sub_network(self, widths: Mapping[int, int], skipped: Iterable[int] = ()) -> SubNetwork:
        """The sub-network of a configuration.

        Args:
            widths: channels by group; groups that are left out are full.
            skipped: blocks that are skipped. Of a skipped feed-forward the normalisation stays, where it comes last.

        Raises:
            ValueError: for a group, width or block that there is not.
        """
        kept: dict[str, int | str | None] = {}
        for group, width in widths.items():
            if not 0 <= group < len(self.names):
                raise ValueError(f"There is no width group {group}; there are {len(self.names)}, counted from 0.")
            kept[self.names[group]] = self._units(group, width)
        for block in skipped:
            if not 0 <= block < len(self.blocks or ()):
                raise ValueError(f"There is no block {block} to skip; there are {len(self.blocks or ())}.")
            kept[self.blocks[block]] = self._skipped(self.blocks[block])
        kept |= {name: self._skipped(name) for name in self.always_skipped}
        return SubNetwork.of(self.structure, kept)

    def configuration(self, sub_network: SubNetwork) -> tuple[dict[int, int], tuple[int, ...]]:
        """The inverse of [`WidthGroups.sub_network`]: channels by group, and skipped blocks.

        A skipped sub-layer has no width of its own; its group is given the full one.

        Raises:
            ValueError: if groups and blocks cannot express the sub-network.
        """
        sub_network.check(self.structure)
        skipped = tuple(
            block for block, name in enumerate(self.blocks or ()) if not isinstance(sub_network[name], int | tuple)
        )
        widths = {}
        for group, name in enumerate(self.names):
            kept, sub_layer = sub_network[name], self.structure[name]
            widths[group] = (kept if isinstance(kept, int) else sub_layer.units) * sub_layer.features
        # A group without any unit has no width, others only that of their first units.
        expressed = self.sub_network({group: width for group, width in widths.items() if width}, skipped)
        for (name, wanted), (_, kept) in zip(sub_network.items(), expressed.items()):
            if wanted != kept:
                raise ValueError(
                    f"Width groups cannot express that sub-layer {name!r} keeps {wanted!r}; they keep the first units "
                    "of a group, one or more, or skip a block."
                )
        return widths, skipped

    def decode(self, indices: Sequence[int]) -> SubNetwork:
        """The sub-network of indices into the lists of widths and, last, into the sets of skipped blocks.

        Raises:
            ValueError: for too many or too few indices, or one beyond its list.
        """
        bounds = self.upper_bounds
        if len(indices) != len(bounds):
            raise ValueError(f"There are {len(bounds)} variables but {len(indices)} indices; give one each.")
        for variable, (index, bound) in enumerate(zip(indices, bounds)):
            if not 0 <= index <= bound:
                raise ValueError(f"Variable {variable} has the index {index}; choose 0 to {bound}.")
        widths = {group: choices[index] for group, (choices, index) in enumerate(zip(self._known_widths(), indices))}
        return self.sub_network(widths, () if self.blocks is None else _subset(indices[-1], len(self.blocks)))

    def encode(self, sub_network: SubNetwork) -> tuple[int, ...]:
        """The inverse of [`WidthGroups.decode`]; a skipped sub-layer gets the index of the widest width.

        Raises:
            ValueError: if groups and blocks cannot express the sub-network, or a width is not in its list.
        """
        widths, skipped = self.configuration(sub_network)
        gone = [*self.always_skipped, *(self.blocks[block] for block in skipped)]
        indices = []
        for group, (name, choices) in enumerate(zip(self.names, self._known_widths())):
            width = choices[0] if name in gone else widths[group]
            if width not in choices:
                raise ValueError(f"Width group {group} has the width {width}; its list has {list(choices)}.")
            indices.append(choices.index(width))
        return tuple(indices) if self.blocks is None else (*indices, _subset_index(skipped, len(self.blocks)))

    def _skipped(self, name: str) -> str | None:
        return None if self.structure[name].layout.is_attention else NORM_ONLY

    def _units(self, group: int, width: int) -> int:
        sub_layer = self.structure[self.names[group]]
        if width % sub_layer.features or not 0 < width <= sub_layer.units * sub_layer.features:
            raise ValueError(
                f"Width group {group} ({sub_layer.name!r}) has the width {width}; choose a multiple of "
                f"{sub_layer.features} up to {sub_layer.units * sub_layer.features} channels."
            )
        return width // sub_layer.features

    def _known_widths(self) -> tuple[tuple[int, ...], ...]:
        if self.widths is None:
            raise ValueError(
                "The widths of the groups are not known, by which indices count; give WidthGroups widths."
            )
        return self.widths


def _subset(index: int, count: int) -> tuple[int, ...]:
    """The set of blocks at an index: by size, then in lexicographic order, the empty set last."""
    for size in range(1, count + 1):
        if index < comb(count, size):
            break
        index -= comb(count, size)
    else:
        return ()
    blocks: list[int] = []
    for block in range(count):
        # How many sets of this size go on with this block.
        going_on = comb(count - block - 1, size - len(blocks) - 1)
        if index < going_on:
            blocks.append(block)
            if len(blocks) == size:
                break
        else:
            index -= going_on
    return tuple(blocks)


def _subset_index(blocks: Sequence[int], count: int) -> int:
    """The inverse of [`_subset`]."""
    if not blocks:
        return 2**count - 1
    index = sum(comb(count, size) for size in range(1, len(blocks)))
    for block in range(max(blocks)):
        if block not in blocks:
            index += comb(count - block - 1, len(blocks) - 1 - sum(each < block for each in blocks))
    return index
