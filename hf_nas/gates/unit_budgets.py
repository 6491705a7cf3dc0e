"""How many heads, or how much of the cost of heads and neurons, may stay; and in which order heads are listed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_nas.profiling.unit_costs import SubLayerCosts, UnitCosts
from hf_nas.structures import ModelStructure, SubLayer
from hf_nas.subnetwork import SubNetwork


_KINDS = ("heads", "neurons")


def kind_of_row(sub_layer: SubLayer) -> str:
    """What kind of attention a sub-layer is: `"encoder.attention"`, `"decoder.cross_attention"` and so on."""
    return f"{sub_layer.stack}.{sub_layer.kind}"


def head_rows(structure: ModelStructure) -> tuple[SubLayer, ...]:
    """The attentions that have heads, in the published order: encoder, then the decoder's cross- and self-attentions.

    Raises:
        ValueError: if no head is left in the model.
    """
    stacks = [stack.name for stack in structure.family.stacks]
    rows = [s for s in structure if s.layout.is_attention and s.units and not (s.skipped or s.norm_only)]
    if not rows:
        raise ValueError(f"This {structure.model_type} model has no heads left; take one that has some.")
    return tuple(sorted(rows, key=lambda row: (stacks.index(row.stack), row.kind != "cross_attention")))


@dataclass(frozen=True)
class HeadBudget:
    """How many heads to keep; under grouped-query attention a head is a key-value head with its query heads.

    Args:
        heads: a number over all kinds of attention, or one for each kind by its name in [`kind_of_row`], such as
            `{"encoder.attention": 6, "decoder.cross_attention": 4}`; kinds not named keep all of their heads.
    """

    heads: int | Mapping[str, int]

    def groups(self, structure: ModelStructure) -> tuple[tuple[tuple[SubLayer, ...], int], ...]:
        """The attentions among which heads compete, and how many of their heads stay.

        Raises:
            ValueError: for an unknown kind or a number out of range.
        """
        rows = head_rows(structure)
        if not isinstance(self.heads, Mapping):
            _check_heads("all kinds of attention", self.heads, rows, 1)
            return ((rows, self.heads),)
        kinds = tuple(dict.fromkeys(kind_of_row(row) for row in rows))
        if unknown := [kind for kind in self.heads if kind not in kinds]:
            raise ValueError(
                f"This {structure.model_type} model has no heads of the kind {unknown[0]!r}; choose from "
                f"{', '.join(kinds)}."
            )
        if not self.heads:
            raise ValueError(f"No kind of attention is given a number of heads; give some of {', '.join(kinds)}.")
        groups = []
        for kind in kinds:
            if kind in self.heads:
                own = tuple(row for row in rows if kind_of_row(row) == kind)
                _check_heads(kind, self.heads[kind], own, 0)
                groups.append((own, self.heads[kind]))
        if not any(count for _, count in groups):
            raise ValueError("The budget keeps no head of any kind; let at least one stay.")
        return tuple(groups)


def _check_heads(what: str, count: Any, rows: Sequence[SubLayer], least: int) -> None:
    total = sum(row.units for row in rows)
    if isinstance(count, bool) or not isinstance(count, int) or not least <= count <= total:
        raise ValueError(
            f"{count!r} heads of {what} are to be kept, but the model has {total}; give a whole number from {least} "
            f"to {total}."
        )


@dataclass(frozen=True)
class CostBudget:
    """How much of a model may stay, in the measure of any costs, over heads and neurons together.

    Args:
        costs: of the units of the model: parameters, operations or others.
        sparsity: to reach, by [`UnitCosts.sparsity`]. A sub-layer without units leaves a bias, so fixed costs stay.
        kinds: of units that compete: "heads", "neurons" or both. All others stay.
    """

    costs: UnitCosts
    sparsity: float
    kinds: tuple[str, ...] = _KINDS

    def rows(self, structure: ModelStructure) -> tuple[SubLayer, ...]:
        """The sub-layers whose units compete: attentions as in [`head_rows`], then feed-forward networks.

        Raises:
            ValueError: for unknown kinds, or a model without such units.
        """
        if not self.kinds or any(kind not in _KINDS for kind in self.kinds):
            raise ValueError(f"The kinds of units of the budget are {self.kinds!r}; choose from {', '.join(_KINDS)}.")
        rows = head_rows(structure) if "heads" in self.kinds else ()
        if "neurons" in self.kinds:
            neurons = tuple(s for s in structure if not s.layout.is_attention and s.units)
            if not neurons:
                raise ValueError(
                    f"This {structure.model_type} model has no neurons left; leave out the kind 'neurons'."
                )
            rows += neurons
        return rows

    def split(self, structure: ModelStructure) -> tuple[torch.Tensor, float]:
        """The cost of each unit that competes, shape `(units,)` in float64, and how much of it may stay in all.

        Raises:
            ValueError: if the sparsity cannot be reached, or for costs of another model or of nothing.
        """
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"The sparsity is {self.sparsity}; give the fraction to remove, from 0 to below 1.")
        self.costs.check(structure)
        by_name = dict(zip(self.costs.names, self.costs.sub_layers))
        each: list[float] = []
        for row in self.rows(structure):
            cost = by_name[row.name].unit + by_name[row.name].unit_per_dimension * self.costs.dimensions
            if not cost > 0:
                raise ValueError(
                    f"A unit of {row.name} costs {cost:g}, so none is worth removing; give costs above 0."
                )
            each += [cost] * row.units
        units = torch.tensor(each, dtype=torch.float64)
        others = self.costs.cost(SubNetwork.full(structure)) - float(units.sum())
        budget = (1 - self.sparsity) * self.costs.total - others
        if budget < float(units.min()):
            raise ValueError(
                f"The sparsity {self.sparsity:g} would leave none of the {' and '.join(self.kinds)}: with one left it "
                f"is {1 - (others + float(units.min())) / self.costs.total:.4f}; ask for less."
            )
        return units, budget


def xavier_bound(rows: Sequence[SubLayer]) -> float:
    """The bound of the published uniform initial scores: Xavier's, of a matrix of attentions by heads.

    In a budget of heads and neurons both get that of the heads, since they compete; without heads it is 0.5.
    """
    heads = [row.units for row in rows if row.layout.is_attention]
    return math.sqrt(6 / (len(heads) + sum(heads) / len(heads))) if heads else 0.5


def head_costs(structure: ModelStructure) -> UnitCosts:
    """Costs by which each head costs 1 and nothing else does, so that a sparsity is a fraction of the heads.

    With them a [`BudgetController`] of the target `1 - K / N` drives hard concrete gates to K of N heads.
    """
    rows = {row.name for row in head_rows(structure)}
    return UnitCosts(
        names=structure.names,
        units=tuple(sub_layer.units for sub_layer in structure),
        sub_layers=tuple(SubLayerCosts(unit=float(sub_layer.name in rows)) for sub_layer in structure),
        dimensions=max(structure.hidden_size, 1),
        total=float(sum(sub_layer.units for sub_layer in structure if sub_layer.name in rows)),
    )
