"""Gates that keep an exact number of heads, or an exact budget of heads and neurons."""

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.gates.sampled_gates import SampledGates
from hf_nas.gates.top_k import (
    TemperatureSchedule,
    gumbel,
    hard_knapsack,
    hard_top_k,
    relaxed_knapsack,
    relaxed_top_k,
    straight_through,
)
from hf_nas.gates.unit_budgets import CostBudget, HeadBudget, xavier_bound
from hf_nas.structures import describe


# Temperature below which samples are as good as exact: gradients are 0 but for ties, by which they would overflow, and
# for rounding, which the division by the temperature makes large.
_FROZEN = 1e-5


class SubsetGates(SampledGates):
    """Gates that leave exactly what a budget allows: differentiable subset pruning (Li, Cotterell and Sachan, 2021).

    All units of the budget compete, over all layers. Each pass of a training draws one sample for the whole batch: a
    relaxed top-K of `w + Gumbel noise` where heads are counted ([`relaxed_top_k`]), and where heads and neurons of
    different costs share a budget a [`relaxed_knapsack`], in which w ranks units by their value per cost and the costs
    times the multipliers add up to the budget. The temperature falls with the optimizer steps during which the gates
    act, which [`clamp`] counts; how many micro-batches a step has does not matter. The straight-through variant
    multiplies by the exact choice by w, without noise, and gives each entry of w the gradient by its multiplier.

    Below a temperature of 1e-5 w gets gradients of 0. Samples are exact there: where heads are counted 0 or 1, where
    costs share a budget all but the one unit that fits in part.

    Evaluation multiplies by the exact choice by w, which is also what [`sub_network`] keeps. A budget of everything
    means that the gates are off.

    `w` should have a learning rate of its own (published: 0.5 where that of the weights is 2e-5), no weight decay and
    its own clipping, since its gradient has a peak at temperatures around 0.01.

    Args:
        model: of a known family.
        budget: how much stays; a whole number is a [`HeadBudget`].
        schedule: of the temperature; None for the straight-through variant, which has none.
        use_straight_through: whether to train by the straight-through variant.
        seed: of initial values and draws.

    Raises:
        ValueError: for a budget that does not fit the model, or without exactly one of schedule and straight-through.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        budget: int | HeadBudget | CostBudget,
        *,
        schedule: TemperatureSchedule | None = None,
        use_straight_through: bool = False,
        seed: int = 0,
    ):
        if schedule is None and not use_straight_through:
            raise ValueError(
                "There is neither a falling temperature nor the straight-through variant, so w would get no gradient "
                "and a random subset would stay; give a TemperatureSchedule or use_straight_through=True."
            )
        if schedule is not None and use_straight_through:
            raise ValueError(
                "The straight-through variant has no temperature, but a TemperatureSchedule is given; leave out one "
                "of them."
            )
        structure = describe(model)
        budget = budget if isinstance(budget, HeadBudget | CostBudget) else HeadBudget(budget)
        if isinstance(budget, CostBudget):
            rows, kinds = budget.rows(structure), budget.kinds
        else:
            groups = budget.groups(structure)
            rows, kinds = tuple(row for own, _ in groups for row in own), ("heads",)
        super().__init__(model, rows, kinds, seed)
        self.budget, self.schedule = budget, schedule
        # Either parts of all units, each with the number that stays, or costs and how much of them stays.
        self._parts: tuple[tuple[int, int], ...] = ()
        self._costs: torch.Tensor | None = None
        if isinstance(budget, CostBudget):
            self._costs, self._allowance = budget.split(self.structure)
        else:
            self._parts = tuple((sum(row.units for row in own), count) for own, count in groups)
        self._steps = 0
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        uniform = torch.rand(sum(self.sizes), generator=torch.Generator().manual_seed(self.seed))
        self.w = nn.Parameter((2 * uniform - 1) * xavier_bound(rows))
        self._start(model)

    @property
    def temperature(self) -> float | None:
        """T of the next draw; None for the straight-through variant."""
        return None if self.schedule is None else self.schedule.at(self._steps)

    def clamp(self) -> None:
        """An optimizer step is over: if the gates acted in it, the temperature goes on."""
        if self.active:
            self._steps += 1
            self.steps.fill_(self._steps)

    def scores(self) -> torch.Tensor:
        """`w` in float32, shape `(units,)`."""
        return self.w.float()

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Multipliers for one pass of a training, shape `(units,)`; those of the relaxed top-K may exceed 1."""
        scores = self.scores()
        uniform = torch.rand(scores.shape, generator=generator, device=scores.device, dtype=torch.float32)
        if self._costs is not None:
            return self._sample_by_cost(scores, uniform)
        parts = []
        for (size, count), own, noise in zip(self._parts, self._split(scores), self._split(gumbel(uniform))):
            if count in (0, size):
                parts.append(float(count > 0) + 0 * own)
            elif self.schedule is None:
                parts.append(straight_through(hard_top_k(own, count), own))
            elif self.temperature < _FROZEN:
                parts.append(hard_top_k(own + noise, count).float() + 0 * own)
            else:
                parts.append(relaxed_top_k(own + noise, count, self.temperature))
        return torch.cat(parts)

    def _sample_by_cost(self, scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        fraction = self._allowance / float(self._costs.sum())
        if fraction >= 1:
            return 1 + 0 * scores
        if self.schedule is None:
            return straight_through(self.chosen(), scores)
        costs = self._costs.to(dtype=torch.float32).to(scores.device)
        drawn = relaxed_knapsack(scores + gumbel(uniform), costs, fraction, self.temperature)
        return drawn.detach() + 0 * scores if self.temperature < _FROZEN else drawn

    def deterministic(self) -> torch.Tensor:
        """1 for the units that stay in the end and 0 for the others, shape `(units,)`."""
        return self.chosen().float()

    def chosen(self) -> torch.Tensor:
        """Which units stay in the end: those with the largest w that the budget allows; of equal ones the first."""
        if self._costs is not None:
            return hard_knapsack(self.scores(), self._costs, self._allowance)
        kept = [hard_top_k(own, count) for (_, count), own in zip(self._parts, self._split(self.scores()))]
        return torch.cat(kept)

    def _split(self, units: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return units.split([size for size, _ in self._parts])

    def _take_over_counts(self) -> None:
        super()._take_over_counts()
        self._steps = int(self.steps)

    def extra_repr(self) -> str:
        return f"units={sum(self.sizes)}, budget={self.budget}, schedule={self.schedule}"
