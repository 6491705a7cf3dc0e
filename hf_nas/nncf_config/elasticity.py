"""The sections `elasticity.width` and `elasticity.depth`: which widths a group may have, which blocks may go."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hf_nas.nncf_config.reading import Section


__all__ = ["DepthElasticity", "WidthElasticity", "generated_widths"]

logger = logging.getLogger(__name__)

FILTER_IMPORTANCES = ("L1", "L2", "geometric_median")
_ALIGNMENT = 8
_WIDTH_KEYS = (
    "min_width", "max_num_widths", "width_step", "width_multipliers", "filter_importance",
    "overwrite_groups", "overwrite_groups_widths", "add_dynamic_inputs",
)  # fmt: skip
_BLOCK_SEARCH_KEYS = ("min_block_size", "max_block_size", "hw_fused_ops")
# Start and end node of a block.
Block = tuple[str, str]


@dataclass(frozen=True)
class WidthElasticity:
    """Widths of the groups, in channels.

    Args:
        min_width: smallest width of an automatic list.
        max_num_widths: at most so many widths in an automatic list, -1: no limit.
        width_step: difference between the widths of an automatic list.
        width_multipliers: shares of the full width that make an automatic list instead.
        filter_importance: norm by which a stage with `reorg_weights` orders units: "L1", "L2", "geometric_median".
        overwrite_groups: groups of layers that share a width, by NNCF name; None: one for every sub-layer.
        overwrite_groups_widths: widths of each group, widest first; None: automatic lists.
        add_dynamic_inputs: layers that read a group's channels though NNCF does not see it. hf-nas finds these itself.
    """

    min_width: int = 32
    max_num_widths: int = -1
    width_step: int = 32
    width_multipliers: tuple[float, ...] | None = None
    filter_importance: str = "L1"
    overwrite_groups: tuple[tuple[str, ...], ...] | None = None
    overwrite_groups_widths: tuple[tuple[int, ...], ...] | None = None
    add_dynamic_inputs: tuple[str, ...] = ()

    @property
    def has_widths(self) -> bool:
        """Whether it says which widths there are, by lists or by other than the default way to make them."""
        automatic = ("min_width", "max_num_widths", "width_step", "width_multipliers")
        defaults = WidthElasticity()
        by_rule = any(getattr(self, key) != getattr(defaults, key) for key in automatic)
        return self.overwrite_groups_widths is not None or by_rule

    @classmethod
    def read(cls, section: Section) -> "WidthElasticity":
        """Read `elasticity.width`.

        Raises:
            ValueError: for an unknown key or a bad value.
        """
        section.check_keys(_WIDTH_KEYS)
        groups, widths = _read_groups(section), _read_widths(section)
        if widths is not None and len(widths) != len(groups or ()):
            raise ValueError(
                f"{section.source}: {section.key_path('overwrite_groups_widths')!r} has {len(widths)} lists for "
                f"{len(groups or ())} groups in 'overwrite_groups'; give one list for each group."
            )
        return cls(
            min_width=section.integer("min_width", cls.min_width, low=1),
            max_num_widths=section.integer("max_num_widths", cls.max_num_widths, low=1, also=(-1,)),
            width_step=section.integer("width_step", cls.width_step, low=1),
            width_multipliers=_read_multipliers(section),
            filter_importance=section.text("filter_importance", cls.filter_importance, FILTER_IMPORTANCES),
            overwrite_groups=groups,
            overwrite_groups_widths=widths,
            add_dynamic_inputs=section.strings("add_dynamic_inputs", ()),
        )

    def to_nncf(self) -> dict[str, Any]:
        """The section, in plain JSON types, without the keys that have no value."""
        section = {
            "min_width": self.min_width,
            "max_num_widths": self.max_num_widths,
            "width_step": self.width_step,
            "filter_importance": self.filter_importance,
        }
        if self.width_multipliers is not None:
            section["width_multipliers"] = list(self.width_multipliers)
        if self.overwrite_groups is not None:
            section["overwrite_groups"] = [list(group) for group in self.overwrite_groups]
        if self.overwrite_groups_widths is not None:
            section["overwrite_groups_widths"] = [list(widths) for widths in self.overwrite_groups_widths]
        if self.add_dynamic_inputs:
            section["add_dynamic_inputs"] = list(self.add_dynamic_inputs)
        return section


@dataclass(frozen=True)
class DepthElasticity:
    """Blocks that may be left out, each as its start and end node.

    Args:
        skipped_blocks: those a sub-network may skip; None: not listed.
        fixed_skipped_blocks: those every sub-network skips.
    """

    skipped_blocks: tuple[Block, ...] | None = None
    fixed_skipped_blocks: tuple[Block, ...] = ()

    @classmethod
    def read(cls, section: Section) -> "DepthElasticity":
        """Read `elasticity.depth`.

        Raises:
            ValueError: for an unknown key or a bad value, and for the automatic search of blocks.
        """
        section.check_keys(("skipped_blocks", "fixed_skipped_blocks", *_BLOCK_SEARCH_KEYS))
        blocks = _read_blocks(section, "skipped_blocks")
        searched = [key for key in _BLOCK_SEARCH_KEYS if key in section]
        if searched and blocks is None:
            raise ValueError(
                f"{section.source}: {section.key_path(searched[0])!r} is not supported: it steers an automatic search "
                "of blocks in the graph of NNCF, which hf-nas does not have; list the blocks in 'skipped_blocks'."
            )
        for key in searched:
            logger.info(
                "%s: %r has no effect, since the blocks are listed in 'skipped_blocks'.",
                section.source, section.key_path(key),
            )  # fmt: skip
        return cls(blocks, _read_blocks(section, "fixed_skipped_blocks") or ())

    def to_nncf(self) -> dict[str, Any]:
        """The section, in plain JSON types, without the keys that have no value."""
        section: dict[str, Any] = {}
        if self.skipped_blocks is not None:
            section["skipped_blocks"] = [list(block) for block in self.skipped_blocks]
        if self.fixed_skipped_blocks:
            section["fixed_skipped_blocks"] = [list(block) for block in self.fixed_skipped_blocks]
        return section


def generated_widths(full: int, width: WidthElasticity) -> tuple[int, ...]:
    """The automatic list of widths of a group, widest first.

    Args:
        full: its full width.
        width: the settings; the full width less whole steps of `width_step` down to `min_width`, or the shares in
            `width_multipliers`, rounded down to multiples of 8.
    """
    if full <= width.min_width:
        return (full,)
    if width.width_multipliers is None:
        widths: Iterable[int] = range(full, width.min_width - 1, -width.width_step)
    else:
        shares = sorted((share for share in width.width_multipliers if share < 1), reverse=True)
        rounded = (int(full * share) // _ALIGNMENT * _ALIGNMENT for share in shares)
        widths = dict.fromkeys([full, *(max(width.min_width, each) for each in rounded)])
    return tuple(widths)[: None if width.max_num_widths == -1 else width.max_num_widths]


def _read_groups(section: Section) -> tuple[tuple[str, ...], ...] | None:
    key = "overwrite_groups"
    groups = section.data.get(key)
    if groups is None:
        return None
    if not isinstance(groups, list) or not groups:
        raise section.error(key, "give a list of groups, each a list of layer names")
    for index, group in enumerate(groups):
        if not isinstance(group, list) or not group or not all(isinstance(name, str) and name for name in group):
            raise ValueError(
                f"{section.source}: '{section.key_path(key)}[{index}]' is {group!r}; give a list of layer names."
            )
    return tuple(tuple(group) for group in groups)


def _read_widths(section: Section) -> tuple[tuple[int, ...], ...] | None:
    key = "overwrite_groups_widths"
    lists = section.data.get(key)
    if lists is None:
        return None
    if not isinstance(lists, list):
        raise section.error(key, "give a list of widths for each group")
    for index, widths in enumerate(lists):
        where = f"{section.source}: '{section.key_path(key)}[{index}]'"
        if not isinstance(widths, list) or not widths:
            raise ValueError(f"{where} is {widths!r}; give a list of at least one width.")
        for width in widths:
            if not isinstance(width, int) or isinstance(width, bool) or width < 1:
                raise ValueError(f"{where} has the width {width!r}; give numbers of channels, 1 or more.")
        if len(set(widths)) < len(widths):
            twice = next(width for width in widths if widths.count(width) > 1)
            raise ValueError(
                f"{where} has the width {twice} twice, by which NNCF would draw it more often; hf-nas draws every "
                "width equally often, so list each once."
            )
    return tuple(tuple(sorted(widths, reverse=True)) for widths in lists)


def _read_multipliers(section: Section) -> tuple[float, ...] | None:
    key = "width_multipliers"
    shares = section.data.get(key)
    if shares is None:
        return None
    numbers = isinstance(shares, list) and all(
        isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1 for share in shares
    )
    if not numbers or not shares:
        raise section.error(key, "give a list of shares of the full width above 0 and up to 1")
    return tuple(float(share) for share in shares)


def _read_blocks(section: Section, key: str) -> tuple[Block, ...] | None:
    blocks = section.data.get(key)
    if blocks is None:
        return None
    if not isinstance(blocks, list):
        raise section.error(key, "give a list of blocks, each a list of its start and its end node")
    for index, block in enumerate(blocks):
        names = isinstance(block, list) and all(isinstance(name, str) and name for name in block)
        if not names or len(block) != 2:
            raise ValueError(
                f"{section.source}: '{section.key_path(key)}[{index}]' is {block!r}; give the names of its start and "
                "its end node."
            )
        if blocks.index(block) < index:
            raise ValueError(
                f"{section.source}: '{section.key_path(key)}[{index}]' lists the block that ends in {block[1]!r} a "
                "second time; list it once."
            )
    return tuple((start, end) for start, end in blocks)
