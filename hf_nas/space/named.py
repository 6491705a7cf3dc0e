"""The published search spaces small, medium, layer and large, for every model structure."""

from collections.abc import Mapping, Sequence

import numpy as np

from hf_nas.space.base import Dimension, SearchSpace, live_layers, name_prefix
from hf_nas.structures import ModelStructure
from hf_nas.subnetwork import Kept, SubNetwork, kept_ids


__all__ = ["LargeSpace", "LayerSpace", "MediumSpace", "SmallSpace"]

# The published names of the dimensions; those of cross-attention are ours.
_COUNT_NAMES = {"attention": "num_heads", "cross_attention": "num_cross_heads", "feed_forward": "num_units"}
_MASK_NAMES = {"attention": "layer_mha", "cross_attention": "layer_cross_mha", "feed_forward": "layer_ffn"}


class SmallSpace(SearchSpace):
    """One number of layers, heads and neurons for the whole stack (`small` of Klein et al., 2024).

    Kept are the first `num_layers` layers, and in each of them the first `num_heads` heads and `num_units` neurons
    (all it has, where it has fewer). Several stacks have dimensions of their own: `encoder_num_layers`,
    `decoder_num_cross_heads` and so on.

    Args:
        structure: of the model.
    """

    def __init__(self, structure: ModelStructure):
        dimensions: list[Dimension] = []
        # Of each sub-layer: name, units, which of the stack's layers it is in, dimension of the depth, of the width.
        self._entries: list[tuple[str, int, int, int, int]] = []
        for stack, layers in live_layers(structure).items():
            prefix = name_prefix(structure, stack)
            live = [sub_layer for sub_layer in structure.stack(stack) if not sub_layer.skipped]
            most_units: dict[str, int] = {}
            for sub_layer in live:
                most_units[sub_layer.kind] = max(most_units.get(sub_layer.kind, 1), sub_layer.units)
            depth = len(dimensions)
            dimensions.append(Dimension(f"{prefix}num_layers", tuple(range(len(layers) + 1))))
            widths = {}
            for kind, most in most_units.items():
                widths[kind] = len(dimensions)
                dimensions.append(Dimension(prefix + _COUNT_NAMES[kind], tuple(range(1, most + 1))))
            self._entries += [(s.name, s.units, layers.index(s.layer), depth, widths[s.kind]) for s in live]
        super().__init__("small", structure, dimensions, smallest_values=[1] * len(dimensions))

    def to_kept(self, values: np.ndarray) -> Mapping[str, Kept]:
        chosen = values.tolist()
        return {
            name: min(chosen[width], units) if layer < chosen[depth] else None
            for name, units, layer, depth, width in self._entries
        }

    def to_values(self, sub_network: SubNetwork) -> Sequence[int]:
        counts = dict(zip(sub_network.names, sub_network.counts()))
        values = [dimension.choices[0] for dimension in self.dimensions]
        for name, _, layer, depth, width in self._entries:
            if counts[name] is not None:
                values[depth] = max(values[depth], layer + 1)
                values[width] = max(values[width], counts[name])
        return values


class MediumSpace(SearchSpace):
    """A number of heads and neurons for every layer (`medium` of Klein et al., 2024): `num_heads_3`, `num_units_3`.

    The first units of each sub-layer are kept; with 0 units it is skipped, so that the depth is implied.

    Args:
        structure: of the model.
    """

    def __init__(self, structure: ModelStructure):
        live = [sub_layer for sub_layer in structure if sub_layer.units]
        self._names = [sub_layer.name for sub_layer in live]
        choices = {units: tuple(range(units + 1)) for units in {sub_layer.units for sub_layer in live}}
        dimensions = [
            Dimension(f"{name_prefix(structure, s.stack)}{_COUNT_NAMES[s.kind]}_{s.layer}", choices[s.units])
            for s in live
        ]
        super().__init__("medium", structure, dimensions, smallest_values=[1] * len(dimensions))

    def to_kept(self, values: np.ndarray) -> Mapping[str, Kept]:
        return {name: count or None for name, count in zip(self._names, values.tolist(), strict=True)}

    def to_values(self, sub_network: SubNetwork) -> Sequence[int]:
        counts = dict(zip(sub_network.names, sub_network.counts()))
        return [counts[name] or 0 for name in self._names]


class LayerSpace(SearchSpace):
    """Any subset of whole layers (`layer` of Klein et al., 2024): `layer_3` is 0 or 1.

    Args:
        structure: of the model.
    """

    def __init__(self, structure: ModelStructure):
        dimensions, smallest_values = [], []
        self._entries: list[tuple[str, int]] = []
        for stack, layers in live_layers(structure).items():
            prefix = name_prefix(structure, stack)
            first = len(dimensions)
            dimensions += [Dimension(f"{prefix}layer_{layer}", (0, 1)) for layer in layers]
            smallest_values += [1] + [0] * (len(layers) - 1)
            self._entries += [(s.name, first + layers.index(s.layer)) for s in structure.stack(stack) if not s.skipped]
        super().__init__("layer", structure, dimensions, smallest_values)

    def to_kept(self, values: np.ndarray) -> Mapping[str, Kept]:
        chosen = values.tolist()
        return {name: None for name, dimension in self._entries if not chosen[dimension]}

    def to_values(self, sub_network: SubNetwork) -> Sequence[int]:
        values = [0] * len(self.dimensions)
        kept = dict(sub_network.items())
        for name, dimension in self._entries:
            if kept[name] is not None:
                values[dimension] = 1
        return values


class LargeSpace(SearchSpace):
    """Any subset of heads and neurons (`large` of Klein et al., 2024): `layer_mha_3_7`, `layer_ffn_3_1000` are 0 or 1.

    A sub-layer without any unit is skipped.

    Args:
        structure: of the model.
    """

    def __init__(self, structure: ModelStructure):
        dimensions: list[Dimension] = []
        smallest_values: list[int] = []
        self._spans: list[tuple[str, int, int]] = []
        layers = live_layers(structure)
        for sub_layer in structure:
            if not sub_layer.units:
                continue
            first = len(dimensions)
            start = f"{name_prefix(structure, sub_layer.stack)}{_MASK_NAMES[sub_layer.kind]}_{sub_layer.layer}"
            dimensions += [Dimension(f"{start}_{unit}", (0, 1)) for unit in range(sub_layer.units)]
            smallest_values += [0] * sub_layer.units
            smallest_values[first] = int(sub_layer.layer == layers[sub_layer.stack][0])
            self._spans.append((sub_layer.name, first, len(dimensions)))
        super().__init__("large", structure, dimensions, smallest_values)

    def to_kept(self, values: np.ndarray) -> Mapping[str, Kept]:
        kept = {}
        for name, first, end in self._spans:
            ids = np.flatnonzero(values[first:end]).tolist()
            kept[name] = tuple(ids) if ids else None
        return kept

    def to_values(self, sub_network: SubNetwork) -> Sequence[int]:
        values = np.zeros(len(self.dimensions), dtype=np.int64)
        kept = dict(sub_network.items())
        for name, first, _ in self._spans:
            values[first + np.asarray(kept_ids(kept[name]), dtype=np.int64)] = 1
        return values
