"""Search spaces made from movement scores: the widths that thresholds of rising sparsity leave (EFTNAS)."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_nas.importance.movement import MovementScores, keep_thresholds
from hf_nas.profiling import Parts, SizeTable
from hf_nas.space.custom import CustomSpace
from hf_nas.space.target_sizes import absolute_size, is_number, targets_of
from hf_nas.structures import ModelStructure
from hf_nas.subnetwork import NORM_ONLY, Kept, SubNetwork


__all__ = [
    "GeneratedSpace",
    "ThresholdNetwork",
    "find_threshold",
    "generate_space",
    "network_at",
]

logger = logging.getLogger(__name__)

_MEASURES = {"macs": "MACs", "parameters": "parameters in the layers"}
# Halving an interval of single-precision numbers this often leaves nothing between its ends.
_MOST_STEPS = 200


@dataclass(frozen=True)
class ThresholdNetwork:
    """The sub-network that movement scores give at one threshold.

    Args:
        threshold: units with a score above it stay.
        sub_network: with the ids of the kept units, in the order the model has while the scores are learnt.
        widths: number of kept units of each sub-layer that the model has, 0 where it is skipped.
        skipped: names of the sub-layers of which too little is left.
        macs: multiply-accumulate operations of one sequence.
        parameters: in its layers (`Parts.encoder()`).
        target: what was asked for, in the measure asked for.
    """

    threshold: float
    sub_network: SubNetwork
    widths: Mapping[str, int]
    skipped: tuple[str, ...]
    macs: int
    parameters: int
    target: int | None = None


@dataclass(frozen=True)
class GeneratedSpace:
    """A search space and the sub-networks it was made from.

    Args:
        space: all combinations of their widths; `space.to_dict()` is its JSON specification.
        networks: from small to large.
    """

    space: CustomSpace
    networks: tuple[ThresholdNetwork, ...]


class _Networks:
    """The sub-networks of one model that one threshold each gives."""

    def __init__(
        self,
        scores: MovementScores,
        model: PreTrainedModel,
        sequence_length: int,
        decoder_length: int | None = None,
        discard_share: float = 0.02,
        width_multiple: int = 1,
        measure: str = "macs",
    ):
        if not is_number(discard_share) or not 0 < discard_share < 1:
            raise ValueError(
                f"Sub-layers are to be skipped below the share {discard_share!r} of their units; give a number "
                "between 0 and 1."
            )
        lengths = {"sequence_length": sequence_length, "width_multiple": width_multiple}
        if decoder_length is not None:
            lengths["decoder_length"] = decoder_length
        for name, value in lengths.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"The {name!r} is {value!r}; give a whole number above 0.")
        if measure not in _MEASURES:
            raise ValueError(f"The measure {measure!r} is not known; choose from {', '.join(map(repr, _MEASURES))}.")
        self._table = SizeTable(model)
        self.structure: ModelStructure = self._table.structure
        self._thresholds = keep_thresholds(scores, self.structure)
        if not self._thresholds:
            raise ValueError(
                f"This {self.structure.model_type} model has no unit left to choose; take a model that has units."
            )
        self._orders = {name: t.argsort(descending=True, stable=True) for name, t in self._thresholds.items()}
        self._lengths = (sequence_length, decoder_length)
        self._discard_share = discard_share
        self._width_multiple = width_multiple
        self._measure = measure
        self.full_size = self._size(SubNetwork.full(self.structure))

    def at(self, threshold: float, target: int | None = None) -> ThresholdNetwork:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or math.isnan(threshold):
            raise ValueError(f"The threshold of movement scores is {threshold!r}; give a number.")
        widths = self._widths(threshold)
        counted = self._sub_network(widths)
        kept = {name: self._orders[name][:width].tolist() for name, width in widths.items() if width}
        return ThresholdNetwork(
            threshold=float(threshold),
            sub_network=SubNetwork.of(self.structure, {**dict(counted.items()), **kept}),
            widths=widths,
            skipped=tuple(name for name, width in widths.items() if not width),
            macs=self._table.macs(counted, *self._lengths),
            parameters=self._table.parameters(counted, Parts.encoder()),
            target=target,
        )

    def find(
        self, target: int, tolerance: float, bounds: tuple[float, float] | None, may_miss: bool = False
    ) -> ThresholdNetwork:
        allowed = absolute_size(tolerance, self.full_size, "tolerance", may_be_zero=True)
        low, high = self._bounds() if bounds is None else _checked_bounds(bounds)
        largest, smallest = self._size_at(low), self._size_at(high)
        if 0 <= target - largest <= allowed:
            return self.at(low, target)
        for _ in range(_MOST_STEPS):
            middle = (low + high) / 2
            size = self._size_at(middle)
            if abs(size - target) <= allowed:
                return self.at(middle, target)
            if size < target:
                high, smallest = middle, size
            else:
                low, largest = middle, size
        if may_miss:
            # Where many units go at one threshold there is nothing between.
            nearest_threshold = low if largest - target < target - smallest else high
            logger.info(
                "No threshold leaves %d of %d; the nearest leaves %d.",
                target, self.full_size, self._size_at(nearest_threshold),
            )  # fmt: skip
            return self.at(nearest_threshold, target)
        # Shares mean the same wherever sizes are given; so many digits lead back to the number.
        nearest = [f"{size} ({size / self.full_size:.9f} of the full model)" for size in sorted({smallest, largest})]
        raise ValueError(
            f"No threshold leaves {target} {_MEASURES[self._measure]} (within {allowed}): nearest that these scores "
            f"allow: {' and '.join(nearest)}; choose one of these shares, or raise the tolerance."
        )

    def _widths(self, threshold: float) -> dict[str, int]:
        """The number of kept units of each sub-layer, 0 where too little is left."""
        widths = {}
        for sub_layer in self.structure:
            if sub_layer.name not in self._thresholds:
                continue
            width = int((self._thresholds[sub_layer.name] > threshold).sum())
            if width < self._discard_share * sub_layer.units:
                width = 0
            elif not sub_layer.layout.is_attention:
                width = min(sub_layer.units, math.ceil(width / self._width_multiple) * self._width_multiple)
            widths[sub_layer.name] = width
        return widths

    def _sub_network(self, widths: Mapping[str, int]) -> SubNetwork:
        """The sub-network of the first units, as a reordered model has it."""
        kept: dict[str, Kept] = dict(widths)
        for name, width in widths.items():
            if not width:
                # As published: attention is skipped with its normalisation, feed-forward networks without.
                kept[name] = None if self.structure[name].layout.is_attention else NORM_ONLY
        return SubNetwork.of(self.structure, kept)

    def _size_at(self, threshold: float) -> int:
        return self._size(self._sub_network(self._widths(threshold)))

    def _size(self, sub_network: SubNetwork) -> int:
        if self._measure == "macs":
            return self._table.macs(sub_network, *self._lengths)
        return self._table.parameters(sub_network, Parts.encoder())

    def _bounds(self) -> tuple[float, float]:
        """Two thresholds: nothing is gone at the first, everything at the second."""
        lowest = min(thresholds.min() for thresholds in self._thresholds.values())
        highest = max(thresholds.max() for thresholds in self._thresholds.values())
        return torch.nextafter(lowest, torch.tensor(-math.inf)).item(), highest.item()


def network_at(
    scores: MovementScores, model: PreTrainedModel, threshold: float, sequence_length: int, **options: Any
) -> ThresholdNetwork:
    """The sub-network of the units with scores above a threshold.

    Args:
        scores: learnt by movement sparsity.
        model: that they are for (the meta device will do).
        threshold: as `MovementSparsity` would use it.
        sequence_length: number of tokens for which MACs are counted.
        options: `discard_share`, `decoder_length` and `width_multiple` of [`generate_space`].

    Raises:
        ValueError: for scores of another model, or an option out of range.
    """
    return _Networks(scores, model, sequence_length, **options).at(threshold)


def find_threshold(
    scores: MovementScores,
    model: PreTrainedModel,
    target: float,
    sequence_length: int,
    tolerance: float = 0.01,
    bounds: tuple[float, float] | None = None,
    **options: Any,
) -> ThresholdNetwork:
    """The sub-network of a wanted size, by halving an interval of thresholds until the size is near enough.

    Args:
        scores: learnt by movement sparsity.
        model: that they are for (the meta device will do).
        target: up to 1 a share of the full model, above 1 a number of MACs (or of parameters).
        sequence_length: number of tokens for which MACs are counted.
        tolerance: how far the size may be off; up to 1 a share of the full model, above 1 a number as for `target`.
        bounds: the interval of thresholds, by default that of the scores; EFTNAS has (-1, 1).
        options: `measure`, `discard_share`, `decoder_length` and `width_multiple` of [`generate_space`].

    Raises:
        ValueError: if no threshold gives that size, with the nearest sizes that there are.
    """
    networks = _Networks(scores, model, sequence_length, **options)
    return networks.find(absolute_size(target, networks.full_size, "target"), tolerance, bounds)


def generate_space(
    scores: MovementScores,
    model: PreTrainedModel,
    sequence_length: int,
    largest: float = 1.0,
    smallest: float = 0.4,
    count: int = 5,
    sizes: Sequence[float] | None = None,
    measure: str = "macs",
    tolerance: float = 0.01,
    bounds: tuple[float, float] | None = None,
    discard_share: float = 0.02,
    width_multiple: int = 1,
    decoder_length: int | None = None,
) -> GeneratedSpace:
    """Make a search space from movement scores, as EFTNAS does.

    For each of some sizes of sub-networks the threshold is looked up that gives it. What a sub-layer keeps at these
    thresholds are its choices; a sub-layer of which next to nothing is left at one of them may be skipped. The space
    is the product of the choices of all sub-layers. Reorder the model by [`hf_nas.importance.movement.unit_scores`]
    before it is searched, so that the choices are of its best units.

    Args:
        scores: learnt by movement sparsity.
        model: that they are for (the meta device will do).
        sequence_length: number of tokens for which MACs are counted.
        largest: size of the largest sub-network; up to 1 a share of the full model, above 1 a number of MACs (or of
            parameters). No more than the full model is taken.
        smallest: size of the smallest.
        count: number of sizes.
        sizes: all sizes, instead of the three arguments before.
        measure: `"macs"`, or `"parameters"` for those in the layers (`Parts.encoder()`).
        tolerance: how far a size may be off, as a share of the full model or, above 1, a number. Between the largest
            and the smallest, where no threshold gives a size, the nearest that there is stands for it.
        bounds: the interval of thresholds, by default that of the scores; EFTNAS has (-1, 1).
        discard_share: a sub-layer that keeps a smaller share of its units is skipped.
        width_multiple: numbers of neurons are rounded up to a multiple of it.
        decoder_length: number of tokens of the decoder of an encoder-decoder, by default the same.

    Returns:
        The space, called `"generated"`, and the sub-networks.

    Raises:
        ValueError: for scores of another model, a size that no threshold gives, a sub-layer that is skipped at all
            sizes, or an argument out of range.
    """
    networks = _Networks(scores, model, sequence_length, decoder_length, discard_share, width_multiple, measure)
    full = networks.full_size
    if sizes is None:
        wanted = targets_of(full, largest, smallest, count)
    else:
        wanted = sorted(absolute_size(size, full, "sizes") for size in sizes)
    if not wanted:
        raise ValueError("No sizes of sub-networks are given; give at least one, e.g. [0.5, 1.0].")
    # The sizes between the two that were asked for are ours, so what is nearest will do.
    between = range(1, len(wanted) - 1) if sizes is None else ()
    found = tuple(networks.find(target, tolerance, bounds, index in between) for index, target in enumerate(wanted))
    return GeneratedSpace(CustomSpace(_specification(found, networks.structure), networks.structure), found)


def _specification(networks: Sequence[ThresholdNetwork], structure: ModelStructure) -> dict[str, Any]:
    always = [name for name in networks[0].skipped if all(name in network.skipped for network in networks)]
    if always:
        raise ValueError(
            f"At all {len(networks)} sizes next to nothing is left of {', '.join(map(repr, always))}; give a larger "
            "'largest' size or a smaller 'discard_share', or extract a model without them first."
        )
    choices = {name: sorted({network.widths[name] for network in networks}) for name in networks[0].widths}
    stacks = {
        structure[name].stack: None
        for name, widths in choices.items()
        if 0 in widths and not structure[name].layout.is_attention
    }
    specification: dict[str, Any] = {"name": "generated", "sub_layers": choices}
    if stacks:
        specification["skip_keeps_norm"] = [f"{stack}.*.feed_forward" for stack in stacks]
    return specification


def _checked_bounds(bounds: Any) -> tuple[float, float]:
    is_pair = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(map(is_number, bounds))
    if not is_pair or bounds[0] >= bounds[1]:
        raise ValueError(f"The 'bounds' of the threshold are {bounds!r}; give two numbers, the lower one first.")
    return float(bounds[0]), float(bounds[1])
