"""Which cut-down models are measured to know the costs of all of them, and how they are built."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel

from hf_nas.resize import cut_hidden, own_position_bias, removed_layers, resize, set_depth
from hf_nas.structures import ModelStructure, SubLayer, describe
from hf_nas.subnetwork import NORM_ONLY, Kept, SubNetwork


__all__ = [
    "LatencyPlan",
    "OwnBiasProbe",
    "Probe",
    "kind_of",
    "most_units",
    "own_bias_kinds",
    "shrink",
    "spread_widths",
]


def kind_of(sub_layer: SubLayer) -> str:
    """What a sub-layer has in common with those that cost the same, e.g. `"encoder.attention"`."""
    return f"{sub_layer.stack}.{sub_layer.kind}"


def most_units(structure: ModelStructure) -> dict[str, int]:
    """By kind of sub-layer, the units of the widest one; kinds that are gone from the model are left out."""
    most: dict[str, int] = {}
    for sub_layer in structure:
        if not sub_layer.skipped:
            most[kind_of(sub_layer)] = max(most.get(kind_of(sub_layer), 0), sub_layer.units)
    return most


def own_bias_kinds(structure: ModelStructure, sub_network: SubNetwork) -> set[str]:
    """The kinds of attention that compute a relative position bias in every layer instead of sharing one (T5)."""
    biased = {kind_of(s): s.stack for s in structure if s.layout.position_bias and not s.skipped}
    if not biased:
        return set()
    own = own_position_bias(structure, dict(sub_network.items()))
    return {kind for kind, stack in biased.items() if own[stack]}


def shrink(model: PreTrainedModel, sub_network: SubNetwork) -> PreTrainedModel:
    """A model that computes as a sub-network, at the cost of the extracted one, for measurements.

    Unlike [`hf_nas.extract`] it shares the weights that are not cut with the given model, and the widths in its
    configuration are those of the given one: it cannot be saved.

    Args:
        model: without a super-network attached.
        sub_network: of this model.

    Raises:
        ValueError: if the sub-network belongs to another model, or a super-network is attached.
    """
    if any(hasattr(type(module), "active_outputs") for module in model.modules()):
        raise ValueError(
            f"A super-network is attached to this {type(model).__name__}, which would be measured with it; detach it "
            "or give hf_nas.elastic.plain_copy_of(model)."
        )
    # Resizing replaces parameters and buffers and never changes one in place.
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    small = copy.deepcopy(model, shared)
    structure = describe(small)
    sub_network.check(structure)
    kept = dict(sub_network.items())
    if sub_network.hidden is not None:
        cut_hidden(small, structure, sub_network.hidden)
    resize(small, structure, kept, own_position_bias(structure, kept))
    # Some models look up there of which type each layer is.
    set_depth(small.config, structure, removed_layers(structure, kept))
    return small


def spread_widths(units: int, count: int) -> tuple[int, ...]:
    """Numbers of units from 1 to all, closer together where they are few and a unit costs relatively more.

    Args:
        units: of the sub-layer.
        count: at most this many, 2 or more; larger ones are rounded to multiples of 8, as kernels like them.
    """
    shares = np.linspace(0, 1, count) ** 2
    widths = {1, units}
    for share in shares[1:-1]:
        width = share * units
        widths.add(max(1, round(width / 8) * 8 if width >= 32 else round(width)))
    return tuple(sorted(width for width in widths if 0 < width <= units))


class Probe(NamedTuple):
    """A network in which every sub-layer is of one kind and equally wide.

    Args:
        kind: of its sub-layers.
        kept: of each.
        live: number of them.
        sub_network: the network.
    """

    kind: str
    kept: int | str
    live: int
    sub_network: SubNetwork


class OwnBiasProbe(NamedTuple):
    """Two networks that differ in one head, by which one of them cannot share its relative position bias.

    Args:
        units: heads of the first attention where they are even; it has one less where they are not.
        live: number of attentions.
        shared: the network that shares it, unless the model does so no more.
        own: the network with one for each attention.
    """

    units: int
    live: int
    shared: SubNetwork
    own: SubNetwork


@dataclass(frozen=True)
class LatencyPlan:
    """The networks that are measured for a [`hf_nas.profiling.LatencyTable`].

    Args:
        structure: of the model.
        empty: the network without any layer.
        probes: networks with one kind of sub-layer in one width each.
        own_bias_probes: by kind of attention with relative position biases, what tells the cost of one for each.
        networks: whole networks of different depths and widths, the full and the thinnest one first.
    """

    structure: ModelStructure
    empty: SubNetwork
    probes: tuple[Probe, ...]
    own_bias_probes: Mapping[str, OwnBiasProbe] = field(hash=False)
    networks: tuple[SubNetwork, ...]

    @classmethod
    def of(
        cls,
        structure: ModelStructure,
        *,
        widths: int | Mapping[str, Sequence[int]] = 8,
        num_networks: int = 12,
        seed: int = 0,
    ) -> "LatencyPlan":
        """Plan the measurements of a model.

        Args:
            structure: of the model.
            widths: how many widths of each kind of sub-layer, 2 or more, or by kind which; 0, 1 and all units are
                always measured.
            num_networks: whole networks, 2 or more.
            seed: of their choice.

        Raises:
            ValueError: for too few widths or networks, an unknown kind, or a width that it does not have.
        """
        if num_networks < 2 or (isinstance(widths, int) and widths < 2):
            raise ValueError(f"num_networks is {num_networks} and widths {widths}; give 2 or more of both.")
        most = most_units(structure)
        probes = []
        for kind, chosen in _chosen_widths(most, widths).items():
            own = [s for s in structure if kind_of(s) == kind and not s.skipped]
            choices: list[int | str] = [0, *chosen]
            if any(s.layout.norm_only for s in own):
                choices.append(NORM_ONLY)
            for choice in choices:
                fitting = [s for s in own if choice == NORM_ONLY or (not s.norm_only and s.units >= choice)]
                if fitting:
                    network = _only(structure, {s.name: choice for s in fitting})
                    probes.append(Probe(kind, choice, len(fitting), network))
        return cls(
            structure,
            _only(structure, {}),
            tuple(probes),
            _own_bias_probes(structure),
            _whole_networks(structure, num_networks, np.random.default_rng(seed)),
        )

    @property
    def sub_networks(self) -> tuple[SubNetwork, ...]:
        """Everything that is to be measured, each once."""
        probes = [probe.sub_network for probe in self.probes]
        pairs = [network for probe in self.own_bias_probes.values() for network in (probe.shared, probe.own)]
        return tuple(dict.fromkeys([self.empty, *probes, *pairs, *self.networks]))


def _chosen_widths(most: Mapping[str, int], widths: int | Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    given = {} if isinstance(widths, int) else widths
    if unknown := set(given) - set(most):
        raise ValueError(f"There is no kind of sub-layer {sorted(unknown)[0]!r}; choose from {', '.join(most)}.")
    chosen = {}
    for kind, units in most.items():
        if kind not in given:
            chosen[kind] = spread_widths(units, widths if isinstance(widths, int) else 8)
            continue
        if wrong := [width for width in given[kind] if not 0 <= width <= units]:
            raise ValueError(f"A width of {kind!r} is {wrong[0]}; give 0 to {units} units.")
        chosen[kind] = tuple(sorted({1, units, *given[kind]} - {0})) if units else ()
    return chosen


def _only(structure: ModelStructure, kept: Mapping[str, Kept]) -> SubNetwork:
    """The network that has no other sub-layers than these."""
    return SubNetwork.of(structure, {**dict.fromkeys(structure.names), **kept})


def _own_bias_probes(structure: ModelStructure) -> dict[str, OwnBiasProbe]:
    probes = {}
    for kind, stack in {kind_of(s): s.stack for s in structure if s.layout.position_bias}.items():
        own = [s for s in structure if kind_of(s) == kind and s.units > 0]
        if len(own) < 2 or own[0].units < 2:
            continue  # nothing to share, or no way to differ
        # Only with everything in place can a stack share its bias (T5 hands it on through cross-attention, too).
        kept = {s.name: s.units if kind_of(s) == kind else min(s.units, 1) for s in structure.stack(stack)}
        even = {s.name: kept[s.name] for s in structure.stack(stack) if not s.skipped}
        uneven = {**even, own[0].name: own[0].units - 1}
        probes[kind] = OwnBiasProbe(own[0].units, len(own), _only(structure, even), _only(structure, uneven))
    return probes


def _whole_networks(structure: ModelStructure, count: int, rng: np.random.Generator) -> tuple[SubNetwork, ...]:
    """The full and the thinnest network, then others: evenly and unevenly wide by turns."""
    live = [s for s in structure if not s.skipped]
    thinnest = SubNetwork.of(structure, {s.name: min(s.units, 1) for s in live})
    networks = {SubNetwork.full(structure): None, thinnest: None}
    # Every tenth of depths and of widths comes about equally often.
    strata = max(count - 2, 1)
    depths = (rng.permutation(strata) + rng.random(strata)) / strata
    widths = ((rng.permutation(strata) + rng.random(strata)) / strata) ** 2
    for number, (depth, width) in enumerate(zip(depths, widths)):
        layers = {stack: rng.permutation(total)[: round(depth * total)] for stack, total in structure.depths.items()}
        kept: dict[str, Kept] = {}
        for sub_layer in live:
            gone = sub_layer.layer not in layers[sub_layer.stack]
            share = width
            if number % 2:  # each sub-layer in its own width, some left out
                share = np.clip(width * rng.uniform(0.2, 1.8), 0, 1)
                gone = rng.random() > depth
            kept[sub_layer.name] = None if gone else max(round(share * sub_layer.units), min(sub_layer.units, 1))
        networks[_only(structure, kept)] = None
    return tuple(networks)
