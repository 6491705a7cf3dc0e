"""Hard concrete gates for any of five kinds of units of a stock model (CoFi; Xia et al., 2022)."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from hf_nas.gates.attachment import AttachedGates, resolve
from hf_nas.gates.hard_concrete import CLAMP, HardConcrete
from hf_nas.gates.hidden import stream_norms
from hf_nas.gates.kinds import KINDS, check_kinds
from hf_nas.gates.values import GateValues
from hf_nas.structures import ModelStructure
from hf_nas.subnetwork import SubNetwork


def _gated_names(structure: ModelStructure, kind: str) -> tuple[str, ...]:
    """Names of the sub-layers in which a kind of unit has gates."""
    attention = kind in ("heads", "attention")
    present = [s for s in structure if not (s.skipped or s.norm_only) and s.layout.is_attention == attention]
    return tuple(s.name for s in present if s.units > 0 or kind in ("attention", "feed_forward"))


class UnitGates(AttachedGates):
    """Gates for heads, neurons, whole attentions, whole feed-forward networks and hidden dimensions of a model.

    Each forward pass in training mode draws all gates once, for the whole batch, and what is recomputed in the
    backward pass (gradient checkpointing) sees that draw as long as no other forward pass came between. In evaluation
    mode the gates are deterministic.

    "heads" and "attention" mean the cross-attentions of an encoder-decoder too, each with gates of its own. Where a
    sub-layer is closed, or all of its units are, it is the identity, its normalisation included.

    Args:
        model: of a known family.
        kinds: some of "heads", "neurons", "attention", "feed_forward", "hidden" ("hidden" for BERT-like encoders).
        droprate_init: of the neurons; their initial logits are around ln((1 - p) / p), those of all others around 10.
        temperature: of the samples.
        stretch: of the samples.
        seed: of initial logits and draws.

    Raises:
        ValueError: for kinds that are unknown or that the model has no units of, or a wrong number.
    """

    # How far from 0 a logit gets.
    logit_limit = CLAMP

    def __init__(
        self,
        model: PreTrainedModel,
        kinds: Iterable[str] = KINDS,
        *,
        droprate_init: float = 0.5,
        temperature: float = 2 / 3,
        stretch: tuple[float, float] = (-0.1, 1.1),
        seed: int = 0,
    ):
        super().__init__(model, seed)
        if not 0 < droprate_init < 1:
            raise ValueError(f"droprate_init is {droprate_init}; give a probability between 0 and 1, such as 0.5.")
        self.kinds = check_kinds(kinds)
        self._names = {kind: _gated_names(self.structure, kind) for kind in self.kinds if kind != "hidden"}
        self._fixed: GateValues | None = None
        generator = torch.Generator().manual_seed(self.seed)
        neurons_mean = math.log((1 - droprate_init) / droprate_init)
        for kind in self.kinds:
            sizes = self._sizes(model, kind)
            mean = neurons_mean if kind == "neurons" else 10.0
            self.add_module(kind, HardConcrete(sizes, mean, 0.01, temperature, stretch, generator))
        counts = torch.tensor([float(sub_layer.units) for sub_layer in self.structure])
        self.register_buffer("_counts", counts, persistent=False)
        for kind, names in self._names.items():
            index = torch.tensor([self.structure.names.index(name) for name in names])
            self.register_buffer(f"_{kind}_index", index, persistent=False)
        self._start(model)

    def _sizes(self, model: PreTrainedModel, kind: str) -> tuple[int, ...]:
        if kind == "hidden":
            stream_norms(model, self.structure)  # refuses a model without gates for them
            return (self.structure.hidden_size,)
        names = self._names[kind]
        if not names:
            raise ValueError(
                f"This {self.structure.model_type} model has no {kind} left; leave out the kind {kind!r}."
            )
        return tuple(self.structure[name].units if kind in ("heads", "neurons") else 1 for name in names)

    def _gated(self) -> tuple[set[str], set[str], bool]:
        units = {name for kind in ("heads", "neurons") for name in self._names.get(kind, ())}
        sub_layers = units | {name for kind in ("attention", "feed_forward") for name in self._names.get(kind, ())}
        return units, sub_layers, "hidden" in self.kinds

    def clamp(self) -> None:
        """Keep all logits in [ln 0.01, ln 100]; call it after each optimizer step."""
        for kind in self.kinds:
            self._gates(kind).clamp()

    def fix(self, values: GateValues | None) -> None:
        """Multiply with these values in every pass, in training too, from now on; None returns to the own values.

        Raises:
            ValueError: if they do not fit the model or name what has no gates here.
        """
        if values is not None:
            values.check(self.structure)
            mine = self.own_values()
            extra = {*values.units} - {*mine.units} | {*values.sub_layers} - {*mine.sub_layers, *mine.units}
            if extra or (values.hidden is not None and mine.hidden is None):
                what = sorted(extra)[0] if extra else "the hidden dimensions"
                raise ValueError(f"The values name {what}, which has no gate here; gated are {', '.join(self.kinds)}.")
        self._fixed = values

    @torch.no_grad()
    def values(self, binary: bool = False) -> GateValues:
        """The deterministic values, or those that were fixed, in which closed sub-layers are 0; without gradient.

        Args:
            binary: whether open gates are exactly 1.
        """
        values = resolve(self.own_values() if self._fixed is None else self._complete(self._fixed))
        return _binary(values) if binary else values

    @torch.no_grad()
    def own_values(self) -> GateValues:
        """The deterministic values of each gate apart, whatever was fixed and whether or not others close it."""
        return self._collect({kind: self._gates(kind).deterministic() for kind in self.kinds})

    @torch.no_grad()
    def soft_values(self) -> GateValues:
        """What each gate would multiply with in evaluation if it were open; see [`HardConcrete.soft`]."""
        return self._collect({kind: self._gates(kind).soft() for kind in self.kinds})

    def sub_network(self) -> SubNetwork:
        """The sub-network of the open gates; a sub-layer that is closed or has no open unit is skipped."""
        return self.values().sub_network(self.structure)

    def probabilities(self) -> GateValues:
        """The probability of each gate to be open, in the place of its value; differentiable, not resolved."""
        return self._collect({kind: self._gates(kind).open_probability() for kind in self.kinds})

    def expected_open(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What is expected to be open, differentiable, with 1 for what has no gate.

        Returns:
            The expected number of units of each sub-layer, shape `(sub_layers,)`; the probability of each sub-layer's
            own gate, shape `(sub_layers,)`; the expected number of hidden dimensions, shape `()`, None without gates.
        """
        counts, whole = self._counts, torch.ones_like(self._counts)
        for kind in self._names:
            index, expected = self.get_buffer(f"_{kind}_index"), self._gates(kind).expected_open()
            if kind in ("heads", "neurons"):
                counts = counts.index_copy(0, index, expected)
            else:
                whole = whole.index_copy(0, index, expected)
        hidden = self._gates("hidden").expected_open()[0] if "hidden" in self.kinds else None
        return counts, whole, hidden

    def _gates(self, kind: str) -> HardConcrete:
        return self.get_submodule(kind)

    def _collect(self, by_kind: dict[str, torch.Tensor]) -> GateValues:
        units: dict[str, torch.Tensor] = {}
        sub_layers: dict[str, torch.Tensor] = {}
        for kind, names in self._names.items():
            if kind in ("heads", "neurons"):
                units.update(zip(names, self._gates(kind).groups(by_kind[kind])))
            else:
                sub_layers.update(zip(names, by_kind[kind].unbind()))
        return GateValues(units=units, sub_layers=sub_layers, hidden=by_kind.get("hidden"))

    def _prepare(self, training: bool) -> GateValues:
        gates = {kind: self._gates(kind) for kind in self.kinds}
        if not self.active:
            return resolve(self._collect({kind: 1 + 0 * gate.logits.float() for kind, gate in gates.items()}))
        if self._fixed is not None:
            return resolve(self._complete(self._fixed))
        if not training:
            return resolve(self._collect({kind: gate.deterministic() for kind, gate in gates.items()}))
        generator = self._next_generator()
        return resolve(self._collect({kind: gate.sample(generator=generator) for kind, gate in gates.items()}))

    def _complete(self, fixed: GateValues) -> GateValues:
        """Ones for the gates that fixed values leave out."""
        ones = self._collect({kind: torch.ones_like(self._gates(kind).logits.float()) for kind in self.kinds})
        hidden = ones.hidden if fixed.hidden is None else fixed.hidden
        return GateValues({**ones.units, **fixed.units}, {**ones.sub_layers, **fixed.sub_layers}, hidden)


def _binary(values: GateValues) -> GateValues:
    def ones(gate: torch.Tensor) -> torch.Tensor:
        return (gate != 0).to(gate.dtype)

    return replace(
        values,
        units={name: ones(gate) for name, gate in values.units.items()},
        sub_layers={name: ones(gate) for name, gate in values.sub_layers.items()},
        hidden=None if values.hidden is None else ones(values.hidden),
    )
