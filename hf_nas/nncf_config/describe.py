"""How large a search space is, and how large the sub-networks at its ends are, in the counting of NNCF 2.x."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel

from hf_nas.nncf_config.config import NncfConfig
from hf_nas.nncf_config.space import named_sub_network, nncf_space, unit_width
from hf_nas.profiling import Parts, SizeTable
from hf_nas.space import CustomSpace, LargeSpace, SearchSpace
from hf_nas.subnetwork import NORM_ONLY, Kept, SubNetwork, kept_ids


__all__ = ["Cost", "SpaceDescription", "SubLayerChoices", "choices_of", "describe_config", "describe_space"]

# What NNCF counts: the weights of linear layers, with the pooler and the task head.
_WEIGHTS = Parts(embeddings=False, norms=False, biases=False)
# Below this number of choices, going through them takes no time worth a progress bar.
_MANY_CHOICES = 10_000


@dataclass(frozen=True)
class SubLayerChoices:
    """What a space offers for one sub-layer.

    Args:
        name: of the sub-layer.
        units: numbers of units, falling, without 0.
        unit_width: channels of a unit.
        skip: what it is where it can be skipped: "identity" or "norm" (its normalisation stays); None: it cannot be.
    """

    name: str
    units: tuple[int, ...]
    unit_width: int
    skip: str | None

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of channels."""
        return tuple(units * self.unit_width for units in self.units)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"units": list(self.units), "widths": list(self.widths), "skip": self.skip}


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulate operations and weights of one sub-network."""

    macs: int
    weights: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the operations in millions."""
        return {"mmacs": self.macs / 1e6, "weights": self.weights}


@dataclass(frozen=True)
class SpaceDescription:
    """The numbers of a search space.

    Args:
        name: of the space.
        model: class of the model.
        sequence_length: tokens at which operations are counted.
        sub_layers: the choices of each sub-layer.
        log10_size: decimal logarithm of the number of choices.
        log10_size_as_published: the same as the papers count it, in which a skipped sub-layer still has a width; None
            for a space that is not made of lists.
        largest: cost of the largest sub-network.
        smallest: cost of the smallest one that can be reached: all that can be skipped is.
        smallest_without_skipping: cost of the smallest one that skips nothing.
    """

    name: str
    model: str
    sequence_length: int
    sub_layers: tuple[SubLayerChoices, ...]
    log10_size: float
    log10_size_as_published: float | None
    largest: Cost
    smallest: Cost
    smallest_without_skipping: Cost

    @property
    def skippable(self) -> tuple[str, ...]:
        """Names of the sub-layers that can be skipped."""
        return tuple(choices.name for choices in self.sub_layers if choices.skip is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            "model": self.model,
            "sequence_length": self.sequence_length,
            "sub_layers": {choices.name: choices.to_dict() for choices in self.sub_layers},
            "log10_size": self.log10_size,
            "log10_size_as_published": self.log10_size_as_published,
            "largest": self.largest.to_dict(),
            "smallest": self.smallest.to_dict(),
            "smallest_without_skipping": self.smallest_without_skipping.to_dict(),
        }


def describe_config(
    config: NncfConfig,
    model: PreTrainedModel,
    sequence_length: int | None = None,
    ignore_width_indicator: bool = False,
) -> SpaceDescription:
    """The numbers of the space that a configuration leaves to be searched: that of its last stage.

    Args:
        config: with a section `bootstrapNAS.training`.
        model: on any device, the meta device included.
        sequence_length: tokens; None: those of the configuration.
        ignore_width_indicator: count all widths that are listed, also those that `width_indicator` hides.

    Raises:
        ValueError: if the configuration does not fit the model.
    """
    stage = config.training.schedule.stages[-1] if config.training else None
    if stage is not None and ignore_width_indicator:
        stage = replace(stage, width_indicator=-1)
    lengths = config.lengths if sequence_length is None else (sequence_length,)
    return describe_space(nncf_space(config, model, stage), model, *lengths)


def describe_space(
    space: SearchSpace, model: PreTrainedModel, sequence_length: int, decoder_length: int | None = None
) -> SpaceDescription:
    """The numbers of any search space.

    Args:
        space: of this model.
        model: on any device, the meta device included.
        sequence_length: tokens at which operations are counted.
        decoder_length: tokens of the decoder of an encoder-decoder, by default the same.
    """
    sizes, choices = SizeTable(model), choices_of(space)

    def cost(sub_network: SubNetwork) -> Cost:
        macs = sizes.macs(sub_network, sequence_length, decoder_length)
        return Cost(macs, sizes.parameters(sub_network, _WEIGHTS))

    return SpaceDescription(
        name=space.name,
        model=type(model).__name__,
        sequence_length=sequence_length,
        sub_layers=choices,
        log10_size=sum(math.log10(len(dimension.choices)) for dimension in space.dimensions),
        log10_size_as_published=_log10_as_published(space) if isinstance(space, CustomSpace) else None,
        largest=cost(space.largest),
        smallest=cost(named_sub_network(space, "minimal")),
        smallest_without_skipping=cost(_smallest_without_skipping(space, choices)),
    )


def choices_of(space: SearchSpace) -> tuple[SubLayerChoices, ...]:
    """What a space offers for each sub-layer that is left in the model, in the order of the structure."""
    found: dict[str, dict[Kept, None]] = {name: {} for name in space.structure.names}
    for sub_network in _one_by_one(space):
        for name, kept in sub_network.items():
            found[name][kept] = None
    described = []
    for sub_layer in space.structure:
        kept = found[sub_layer.name]
        counts = {len(kept_ids(each)) for each in kept} - {0}
        if isinstance(space, LargeSpace):
            counts = set(range(1, sub_layer.units + 1))
        empty = None if not sub_layer.units else "identity" if None in kept else "norm" if NORM_ONLY in kept else None
        if counts or empty:
            units = tuple(sorted(counts, reverse=True))
            described.append(SubLayerChoices(sub_layer.name, units, unit_width(sub_layer), empty))
    return tuple(described)


def _one_by_one(space: SearchSpace) -> Iterator[SubNetwork]:
    """Sub-networks in which every choice of every dimension occurs, the other dimensions at their largest."""
    largest = space.largest_encoding
    yield space.largest
    yield named_sub_network(space, "minimal")
    # Its dimensions are single units, of which any number may be kept.
    if isinstance(space, LargeSpace):
        return
    choices = [(index, choice) for index, each in enumerate(space.dimensions) for choice in range(len(each.choices))]
    for index, choice in tqdm(choices, desc="Search space", disable=len(choices) < _MANY_CHOICES):
        yield space.decode((*largest[:index], choice, *largest[index + 1 :]))


def _smallest_without_skipping(space: SearchSpace, choices: tuple[SubLayerChoices, ...]) -> SubNetwork:
    # What is always skipped has no units, and stays so.
    fewest = {each.name: each.units[-1] for each in choices if each.units}
    return SubNetwork.of(space.structure, {**dict(named_sub_network(space, "minimal").items()), **fewest})


def _log10_as_published(space: SearchSpace) -> float:
    total = 0.0
    for dimension in space.dimensions:
        widths = sum(choice > 0 for choice in dimension.choices)
        total += math.log10(max(widths, 1) * (2 if widths and 0 in dimension.choices else 1))
    return total
