"""Search problems that need no model: a space of plain numbers and a closed-form trade-off on it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hf_nas.search import Objective, error_objective
from hf_nas.space.base import Dimension, SearchSpace
from hf_nas.structures import ModelStructure
from hf_nas.structures.base import Family, StackLayout, SubLayer, SubLayerLayout
from hf_nas.subnetwork import Kept, SubNetwork


def structure_of(units: Sequence[int]) -> ModelStructure:
    """One feed-forward sub-layer a number, without any model behind them."""
    layout = SubLayerLayout("feed_forward", ("up",), "down", (), (("down", "zeros"),), ("intermediate_size",))
    family = Family("toy", (StackLayout("layers", "layers", "num_layers", (layout,)),))
    return ModelStructure(
        family,
        tuple(
            SubLayer(f"layers.{i}.feed_forward", "layers", i, f"layers.{i}", count, 1, False, False, layout)
            for i, count in enumerate(units)
        ),
    )


class UnitsSpace(SearchSpace):
    """1 to `units` neurons in each of some layers; with `first_only`, the first dimension at 1 makes all others 1."""

    def __init__(self, layers: int = 4, units: int = 5, first_only: bool = False):
        self.first_only = first_only
        choices = tuple(range(1, units + 1))
        super().__init__("units", structure_of([units] * layers), [Dimension(f"u{i}", choices) for i in range(layers)])

    def to_kept(self, values: np.ndarray) -> Mapping[str, Kept]:
        chosen = values.tolist()
        if self.first_only and chosen[0] == 1:
            chosen = [1] * len(chosen)
        return dict(zip(self.structure.names, chosen))

    def to_values(self, sub_network: SubNetwork) -> Sequence[int]:
        return list(sub_network.counts())


def size_of(sub_network: SubNetwork) -> float:
    return sum(sub_network.counts()) / sum(sub_network.units)


def accuracy_of(sub_network: SubNetwork) -> dict[str, float]:
    """Later layers matter more, each with diminishing returns."""
    gain = sum((i + 1) * (1 - math.exp(-count)) for i, count in enumerate(sub_network.counts()))
    return {"accuracy": 0.9 * gain / sum(i + 1 for i in range(len(sub_network.units)))}


OBJECTIVES = (error_objective("accuracy"), Objective("size", lambda sub_network, _: size_of(sub_network)))
