"""The sizes from which a search space is generated: shares of the full model or numbers, in steps between two ends."""

import logging
import math
from typing import Any

from transformers import PreTrainedModel

from hf_nas.profiling import SizeTable
from hf_nas.subnetwork import SubNetwork


__all__ = [
    "absolute_size",
    "check_sizes",
    "is_number",
    "published_targets",
    "size_in_millions",
    "targets",
    "targets_of",
]

logger = logging.getLogger(__name__)


def published_targets(largest: int, smallest: int, count: int) -> list[int]:
    """The targets of EFTNAS: steps from the smallest, of which the last one becomes the largest.

    Where `count` - 1 divides the distance there is one target less than asked for; [`targets`] mends that.

    Raises:
        ValueError: if they do not rise, or fewer than two are asked for.
    """
    step = _step(largest, smallest, count)
    regular = list(range(smallest, largest, step))
    return [*regular[:-1], largest]


def targets(largest: int, smallest: int, count: int) -> list[int]:
    """`count` targets in equal steps from the smallest to the largest.

    Raises:
        ValueError: if they do not rise, or fewer than two are asked for.
    """
    step = _step(largest, smallest, count)
    return [*(smallest + index * step for index in range(count - 1)), largest]


def targets_of(full: int, largest: float, smallest: float, count: int) -> list[int]:
    """The [`targets`] between two sizes of which one or both may be a share of the full model.

    Args:
        full: size of the full model.
        largest: size of the largest sub-network; no more than the full model is taken.
        smallest: size of the smallest.
        count: number of sizes.

    Raises:
        ValueError: as [`targets`] and [`absolute_size`].
    """
    ends = absolute_size(largest, full, "largest"), absolute_size(smallest, full, "smallest")
    if ends[0] > full:
        logger.info("The largest size %d is cut down to the %d of the full model.", ends[0], full)
    return targets(min(ends[0], full), ends[1], count)


def check_sizes(
    model: PreTrainedModel,
    sequence_length: int,
    largest: float,
    smallest: float,
    count: int,
    decoder_length: int | None = None,
) -> None:
    """Refuse sizes in MACs that no scores can give, before any are learnt.

    Args:
        model: whose sizes they are.
        sequence_length: number of tokens for which MACs are counted.
        largest: as in [`targets_of`].
        smallest: as in [`targets_of`].
        count: as in [`targets_of`].
        decoder_length: number of tokens of the decoder of an encoder-decoder, by default the same.

    Raises:
        ValueError: if they do not rise, or the smallest is less than the model has outside of its layers.
    """
    table = SizeTable(model)
    full, nothing = (
        table.macs(sub_network, sequence_length, decoder_length)
        for sub_network in (
            SubNetwork.full(table.structure),
            SubNetwork.of(table.structure, dict.fromkeys(table.structure.names)),
        )
    )
    wanted = targets_of(full, largest, smallest, count)
    if wanted[0] <= nothing:
        raise ValueError(
            f"The 'smallest' size {smallest:g} stands for {wanted[0]} MACs, but without any layer this model still "
            f"has {nothing}, of {full}; choose a larger one."
        )


def absolute_size(value: float, full: int, name: str, may_be_zero: bool = False) -> int:
    """A size as a number: up to 1 it is a share of the full model."""
    if not is_number(value) or value < 0 or (not value and not may_be_zero):
        raise ValueError(
            f"The {name!r} is {value!r}; give a share of the full model up to 1, or a number above 1, of {full}."
        )
    return round(value * full) if value <= 1 else round(value)


def size_in_millions(value: float) -> float:
    """A size as flags state it, above 1 in millions of MACs, as [`absolute_size`] takes it."""
    return value if value <= 1 else value * 1e6


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _step(largest: int, smallest: int, count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ValueError(f"{count!r} sizes of sub-networks are asked for; give a whole number of at least 2.")
    if not 0 < smallest < largest or largest - smallest < count - 1:
        raise ValueError(
            f"There are no {count} sizes of sub-networks from {smallest} to {largest}; choose a 'smallest' above 0 "
            "and further below the 'largest' (and the full model)."
        )
    return (largest - smallest) // (count - 1)
