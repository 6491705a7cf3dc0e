"""From gates to a choice of units that meets a budget exactly."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hf_nas.gates.attachment import resolve
from hf_nas.gates.unit_gates import UnitGates
from hf_nas.gates.values import GateValues
from hf_nas.profiling.unit_costs import UnitCosts


# An entry of the choice: the score by which it is ranked, "unit", "sub_layer" or "hidden", the name of its sub-layer
# and its position.
_Item = tuple[float, str, str, int]


@dataclass
class _Choice:
    """Which units are open, and what that costs, kept up to date with every change."""

    costs: UnitCosts
    units: dict[str, torch.Tensor]
    sub_layers: dict[str, bool]
    hidden: torch.Tensor | None

    def __post_init__(self) -> None:
        self._cost = dict(zip(self.costs.names, self.costs.sub_layers))
        self._units = dict(zip(self.costs.names, self.costs.units))
        self._counts = {name: int(mask.sum()) for name, mask in self.units.items()}
        self._dimensions = self.costs.dimensions if self.hidden is None else int(self.hidden.sum())
        self._plain = self.costs.constant
        self._per_dimension = 0.0
        for name in self.costs.names:
            self._account(name, 1)

    def _account(self, name: str, sign: int) -> None:
        count = self._counts.get(name, self._units[name])
        if self.sub_layers.get(name, True) and (count or name not in self.units):
            cost = self._cost[name]
            self._plain += sign * (cost.fixed + count * cost.unit)
            self._per_dimension += sign * (cost.fixed_per_dimension + count * cost.unit_per_dimension)

    @property
    def sparsity(self) -> float:
        return 1 - (self._plain + self._per_dimension * self._dimensions) / self.costs.total

    @property
    def has_stream(self) -> bool:
        """Whether a hidden dimension is left, without which there is no model."""
        return self._dimensions > 0

    def set(self, item: _Item, value: bool) -> None:
        _, what, name, position = item
        if what == "hidden":
            self._dimensions += int(value) - int(self.hidden[position])
            self.hidden[position] = value
            return
        self._account(name, -1)
        if what == "sub_layer":
            self.sub_layers[name] = value
        else:
            self._counts[name] += int(value) - int(self.units[name][position])
            self.units[name][position] = value
        self._account(name, 1)

    def is_open(self, item: _Item) -> bool:
        _, what, name, position = item
        if what == "hidden":
            return bool(self.hidden[position])
        return self.sub_layers[name] if what == "sub_layer" else bool(self.units[name][position])

    def matters(self, item: _Item) -> bool:
        """Whether opening or closing it changes the cost now: units of a closed sub-layer do not."""
        return item[1] != "unit" or self.sub_layers.get(item[2], True)


def project(gates: UnitGates, costs: UnitCosts, target: float, binary: bool = False) -> GateValues:
    """Choose units by their gates so that the realised sparsity is at least a target, and as little above as possible.

    From the deterministic values of the gates on, the least likely open units are closed until the target is met, then
    the most likely closed ones opened as far as the target allows. Afterwards no closed unit (of an open sub-layer),
    sub-layer or hidden dimension could be opened without missing the target. A unit is ranked by the probability that
    it and its sub-layer are open.

    Args:
        gates: trained.
        costs: of the units of their model.
        target: realised sparsity to meet, by [`UnitCosts.sparsity`].
        binary: whether open gates are exactly 1.

    Returns:
        Values for [`UnitGates.fix`], folding, or `sub_network(structure)`; closed sub-layers are 0 in them.

    Raises:
        ValueError: if even closing everything that has gates misses the target, or for the costs of another model.
    """
    costs.check(gates.structure)
    start = gates.own_values()
    # Of equals, those go first whose names' digest comes first, lest it be all of the first layers.
    ranked = sorted(_items(gates), key=lambda item: (item[0], _spread(item), item[1:]))
    choice = _Choice(
        costs,
        units={name: (gate != 0).cpu() for name, gate in start.units.items()},
        sub_layers={name: bool(gate != 0) for name, gate in start.sub_layers.items()},
        hidden=None if start.hidden is None else (start.hidden != 0).cpu(),
    )
    for item in ranked:
        if choice.sparsity >= target:
            break
        if choice.is_open(item) and choice.matters(item):
            choice.set(item, False)
            if not choice.has_stream:
                choice.set(item, True)
    if choice.sparsity < target:
        raise ValueError(
            f"The target sparsity {target:g} cannot be met by pruning {', '.join(gates.kinds)}: without them all it "
            f"is {choice.sparsity:.4f}; lower the target or prune more kinds of units."
        )
    for item in reversed(ranked):
        if not choice.is_open(item) and choice.matters(item):
            choice.set(item, True)
            if choice.sparsity < target:
                choice.set(item, False)
    return _values(gates, choice, binary)


@torch.no_grad()
def _items(gates: UnitGates) -> Iterator[_Item]:
    probabilities = gates.probabilities()
    whole = {name: float(gate) for name, gate in probabilities.sub_layers.items()}
    for name, probability in whole.items():
        yield probability, "sub_layer", name, 0
    for name, units in probabilities.units.items():
        for position, probability in enumerate(units.tolist()):
            yield probability * whole.get(name, 1.0), "unit", name, position
    if probabilities.hidden is not None:
        for position, probability in enumerate(probabilities.hidden.tolist()):
            yield probability, "hidden", "", position


def _spread(item: _Item) -> bytes:
    """The same in every run and on every machine, and without an order of layers in it."""
    return hashlib.blake2b(repr(item[1:]).encode(), digest_size=8).digest()


def _values(gates: UnitGates, choice: _Choice, binary: bool) -> GateValues:
    soft = gates.soft_values()

    def keep(gate: torch.Tensor, mask: torch.Tensor | bool) -> torch.Tensor:
        mask = torch.as_tensor(mask, device=gate.device)
        return torch.where(mask, torch.ones_like(gate) if binary else gate, torch.zeros_like(gate))

    return resolve(
        GateValues(
            units={name: keep(gate, choice.units[name]) for name, gate in soft.units.items()},
            sub_layers={name: keep(gate, choice.sub_layers[name]) for name, gate in soft.sub_layers.items()},
            hidden=None if soft.hidden is None else keep(soft.hidden, choice.hidden),
        )
    )
