"""The budget of a pruning: expected sparsity from any costs, and the multipliers that hold it at its target."""

from typing import Any

import torch
from torch import nn

from hf_nas.gates.unit_gates import UnitGates
from hf_nas.gates.voita import VoitaGates
from hf_nas.profiling.unit_costs import UnitCosts


# By so much a target may be out of reach: probabilities keep off 0, and a budget may close every gate there is.
_ROUNDING = 1e-5


class BudgetController(nn.Module):
    """Holds the expected sparsity of gates at a target by Lagrange multipliers (CoFi; Xia et al., 2022).

    The loss term is `lambda_1 * (s - t) + lambda_2 * (s - t)^2` with the expected sparsity s, in closed form in the
    logits, and the target t, which rises linearly from 0 during the warm-up. Weights and gates minimise it, the
    multipliers maximise it: give their [`parameter_group`] to the same optimizer. Weights get no gradient from it.

    Args:
        costs: of the units of the model.
        target: sparsity to reach, in [0, 1).
        warmup_steps: optimizer steps until the target is reached, 0 for a constant one.

    Raises:
        ValueError: for a target or a warm-up out of range.
    """

    def __init__(self, costs: UnitCosts, target: float, warmup_steps: int = 0):
        super().__init__()
        if not 0 <= target < 1:
            raise ValueError(f"The target sparsity is {target}; give the fraction to remove, from 0 to below 1.")
        if warmup_steps < 0:
            raise ValueError(f"The warm-up of the target takes {warmup_steps} steps; give 0 or more.")
        self.costs = costs
        self.target = float(target)
        self.warmup_steps = int(warmup_steps)
        self.lambda_1 = nn.Parameter(torch.zeros(()))
        self.lambda_2 = nn.Parameter(torch.zeros(()))
        # As fractions of the total, which float32 holds with seven digits.
        rows = [(c.fixed, c.unit, c.fixed_per_dimension, c.unit_per_dimension) for c in costs.sub_layers]
        fractions = torch.tensor(rows, dtype=torch.float64) / costs.total
        self.register_buffer("_fractions", fractions.T.contiguous().float(), persistent=False)

    def target_at(self, step: int) -> float:
        """The target after so many optimizer steps of pruning."""
        return self.target * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.target

    def sparsity(
        self, counts: torch.Tensor, whole: torch.Tensor, dimensions: torch.Tensor | float | None = None
    ) -> torch.Tensor:
        """Sparsity where so much is (expected to be) open: multilinear in all of it.

        Args:
            counts: units of each sub-layer, shape `(sub_layers,)`.
            whole: the sub-layers themselves, shape `(sub_layers,)`.
            dimensions: of the residual stream; by default all.

        Returns:
            The fraction of the total that is not open, shape `()`.
        """
        fixed, unit, fixed_per_dimension, unit_per_dimension = self._fractions
        dimensions = self.costs.dimensions if dimensions is None else dimensions
        # The branches are summed apart from the factor, so that a full stream does not lose digits.
        cost = (whole * (fixed + counts * unit)).sum()
        cost = cost + (whole * (fixed_per_dimension + counts * unit_per_dimension)).sum() * dimensions
        return 1 - self.costs.constant / self.costs.total - cost

    def expected_sparsity(self, gates: UnitGates | VoitaGates) -> torch.Tensor:
        """The expected sparsity of the gates' model, shape `()`, differentiable in their logits."""
        return self.sparsity(*gates.expected_open())

    def loss(self, gates: UnitGates | VoitaGates, step: int) -> torch.Tensor:
        """The loss term after so many optimizer steps of pruning, shape `()`; it may be negative."""
        return self.penalty(self.expected_sparsity(gates), step)

    def penalty(self, sparsity: torch.Tensor, step: int) -> torch.Tensor:
        """The loss term for a sparsity."""
        error = sparsity - self.target_at(step)
        return self.lambda_1 * error + self.lambda_2 * error.square()

    def parameter_group(self, learning_rate: float) -> dict[str, Any]:
        """The multipliers as a parameter group of an optimizer that ascends: `maximize`, no weight decay."""
        return {"params": [self.lambda_1, self.lambda_2], "lr": learning_rate, "weight_decay": 0.0, "maximize": True}

    @torch.no_grad()
    def reachable(self, gates: UnitGates | VoitaGates) -> tuple[float, float]:
        """Lowest and highest expected sparsity that the logits of these gates, clamped or not, can say."""
        before = {name: parameter.clone() for name, parameter in gates.named_parameters()}
        ends = []
        try:
            for end in (gates.logit_limit, -gates.logit_limit):
                for parameter in gates.parameters():
                    parameter.fill_(end)
                ends.append(float(self.expected_sparsity(gates)))
        finally:
            for name, parameter in gates.named_parameters():
                parameter.copy_(before[name])
        return ends[0], ends[1]

    def check(self, gates: UnitGates | VoitaGates) -> None:
        """Raise a `ValueError` unless these are costs of the gates' model by which they can reach the target."""
        self.costs.check(gates.structure)
        if "hidden" in gates.kinds and not self.costs.per_dimension:
            raise ValueError(
                "By these costs pruned hidden dimensions save nothing; leave out the kind 'hidden' or take costs in "
                "parameters or MACs."
            )
        _, highest = self.reachable(gates)
        if self.target > highest + _ROUNDING:
            raise ValueError(
                f"The target sparsity {self.target:g} cannot be reached by pruning {', '.join(gates.kinds)}: at most "
                f"{highest:.4f} of this model can go; lower the target or prune more kinds of units."
            )

    def extra_repr(self) -> str:
        return f"target={self.target}, warmup_steps={self.warmup_steps}"
