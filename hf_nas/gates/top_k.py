"""Choosing a fixed number, or a fixed cost, of units by their scores: relaxed for training, exact for use.

Differentiable subset pruning (Li, Cotterell and Sachan, 2021) with the relaxed sampling of Xie and Ermon (2019).
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional


_LN2 = math.log(2.0)
# Halvings of the interval in which the level of a relaxed knapsack lies, after which float32 has no number between.
_HALVINGS = 64
# Part of the total cost by which rounding may miss a budget.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class TemperatureSchedule:
    """A temperature that falls from one value to another at a constant rate of its logarithm, then stays.

    `T(t) = initial^(1 - t / cooldown) * final^(t / cooldown)`, with t counted in optimizer steps. The defaults are
    the published ones for three epochs on MNLI, of which the cooldown is 68 %.

    Args:
        initial: temperature before the first step.
        final: temperature from `cooldown_steps` on.
        cooldown_steps: optimizer steps between them.

    Raises:
        ValueError: unless the temperature falls, in at least one step, from a finite to a positive value.
    """

    initial: float = 1000.0
    final: float = 1e-8
    cooldown_steps: int = 25000

    def __post_init__(self) -> None:
        if not 0 < self.final < self.initial < math.inf:
            raise ValueError(
                f"The temperature goes from {self.initial:g} to {self.final:g}; let it fall from a finite value to a "
                "positive one, as from 1000 to 1e-8, since at a low constant one gates learn nothing."
            )
        if isinstance(self.cooldown_steps, bool) or int(self.cooldown_steps) != self.cooldown_steps:
            raise ValueError(f"cooldown_steps is {self.cooldown_steps!r}; give a whole number of optimizer steps.")
        if self.cooldown_steps < 1:
            raise ValueError(f"cooldown_steps is {self.cooldown_steps}; give at least 1 optimizer step.")

    def at(self, step: int) -> float:
        """The temperature after so many optimizer steps."""
        if step >= self.cooldown_steps:
            return self.final
        part = max(step, 0) / self.cooldown_steps
        return math.exp((1 - part) * math.log(self.initial) + part * math.log(self.final))


def log1mexp(log_probability: torch.Tensor) -> torch.Tensor:
    """`log(1 - exp(x))` for x < 0, to the full precision of its type and with finite gradients (Maechler, 2012)."""
    near_one = log_probability > -_LN2
    # Each branch gets arguments at which it is finite: torch.where would pass on a NaN from the branch not taken.
    upper = log_probability.masked_fill(~near_one, -_LN2)
    lower = log_probability.masked_fill(near_one, -_LN2)
    return torch.where(near_one, torch.log(-torch.expm1(upper)), torch.log1p(-torch.exp(lower)))


def gumbel(uniform: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise `-ln(-ln u)` from numbers u in [0, 1]; 0 and 1 are moved inwards, so that it is finite."""
    limits = torch.finfo(uniform.dtype)
    return -torch.log(-torch.log(uniform.clamp(limits.tiny, 1 - limits.eps)))


def relaxed_top_k(scores: torch.Tensor, count: int, temperature: float) -> torch.Tensor:
    """Multipliers that sum to `count` and become 1 for the largest scores and 0 for the others as T goes to 0.

    With `r^1 = scores`, `p^j = softmax(r^j / T)` and `r^(j+1) = r^j + ln(1 - p^j)`, it is the sum of `p^1` to
    `p^count`. Its entries are at least 0 but may exceed 1, and it does not change when a constant is added to all
    scores. With scores `w + gumbel(u)` it relaxes a sample without replacement, whose first pick is distributed as
    `softmax(w)`.

    What was added to a score is kept apart from it, and the leader's `ln p` and `ln(1 - p)` follow from a log-sum over
    the others, so that gradients in float32 are finite, and within 1 % of those in float64 at temperatures from 1000
    down to 1e-4. At 1e-8 there are none to speak of in either, but where scores at the top are equal they grow with
    powers of 1 / T until they overflow. From temperature 1 on, a multiplier rises with its score; below, one above 1
    may fall back.

    Args:
        scores: shape `(..., units)`.
        count: number of units to choose.
        temperature: T.

    Returns:
        Multipliers of the shape and type of the scores.

    Raises:
        ValueError: for a count or a temperature out of range.
    """
    units = scores.shape[-1]
    _check_count(count, units)
    _check_temperature(temperature)
    if units == 1:
        return 1 + 0 * scores
    offsets = torch.zeros_like(scores)
    chosen = torch.zeros_like(scores)
    for step in range(count):
        leader = (scores + offsets).detach().argmax(-1, keepdim=True)
        shifted = scores - scores.detach().gather(-1, leader)
        exponents = (shifted + (offsets - offsets.detach().gather(-1, leader))) / temperature
        # Rounding may have named a wrong leader, which by these exact differences is not in front.
        largest, leader = exponents.detach().max(-1, keepdim=True)
        exponents = exponents - largest
        is_leader = torch.zeros_like(exponents, dtype=torch.bool).scatter(-1, leader, True)
        log_others = torch.logsumexp(exponents.masked_fill(is_leader, -math.inf), -1, keepdim=True)
        # The odds against the leader: its ln p and ln(1 - p) in these keep digits and gradients where p rounds to 1.
        log_odds = log_others - exponents.gather(-1, leader)
        log_leader, log_not_leader = -functional.softplus(log_odds), -functional.softplus(-log_odds)
        log_other = exponents - exponents.gather(-1, leader) + log_leader
        log_probability = torch.where(is_leader, log_leader, log_other)
        chosen = chosen + log_probability.exp()
        if step + 1 < count:
            # Only a leader can be above a half; below it, one formula for all keeps equal scores equal.
            is_likely = is_leader & (log_odds < 0)
            log_rest = log1mexp(log_probability.masked_fill(is_likely, -1.0))
            offsets = offsets + torch.where(is_likely, log_not_leader, log_rest)
    return chosen


def hard_top_k(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Which units have the `count` largest scores, exactly so many; of equal ones the first.

    Args:
        scores: shape `(..., units)`.
        count: number of units, from 0.

    Returns:
        A boolean tensor of the shape of the scores, without gradient.

    Raises:
        ValueError: for a count out of range.
    """
    _check_count(count, scores.shape[-1], least=0)
    order = scores.detach().argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order[..., :count], True)


def straight_through(chosen: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """1 for what is chosen and 0 else; the gradient by it is copied to every score, those not chosen included."""
    return chosen.to(scores.dtype) + (scores - scores.detach())


def relaxed_knapsack(scores: torch.Tensor, costs: torch.Tensor, fraction: float, temperature: float) -> torch.Tensor:
    """Multipliers whose cost is a fixed fraction of all, for units of different costs and for any number of units.

    A score is the value of a unit per cost. `m = sigmoid((scores - level) / T)`, with the level at which
    `sum(costs * m) = fraction * sum(costs)`. That maximises `sum(costs * (scores * m + T * H(m)))` under this budget,
    where H is the entropy of a coin, so as T goes to 0 it becomes the greedy solution of the knapsack problem, of
    which [`hard_knapsack`] leaves out the unit that does not fit wholly. The level is found by halving an interval,
    its gradient by implicit differentiation. Unlike [`relaxed_top_k`] it takes one pass whatever the number of units
    that is kept, and no multiplier exceeds 1.

    Args:
        scores: shape `(units,)`.
        costs: positive, shape `(units,)`; only their ratios matter.
        fraction: of the total cost, in (0, 1).
        temperature: T.

    Returns:
        Multipliers in [0, 1], shape `(units,)`.

    Raises:
        ValueError: for a fraction or a temperature out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"The fraction of the cost to keep is {fraction}; give one above 0 and below 1.")
    _check_temperature(temperature)
    with torch.no_grad():
        shares = costs.to(scores) / costs.to(scores).sum()
        ordered, order = scores.sort(descending=True)
        last = (shares[order].cumsum(0) <= fraction).sum().clamp(max=scores.shape[0] - 1)
        # From the unit that fits in part, so that the level keeps its digits at low temperatures.
        pivot = ordered.gather(0, last.reshape(1))
    exponents = (scores - pivot) / temperature
    with torch.no_grad():
        margin = abs(math.log(fraction / (1 - fraction))) + 1
        low, high = exponents.min() - margin, exponents.max() + margin
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            too_much = (shares * torch.sigmoid(exponents - middle)).sum() > fraction
            low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
        level = (low + high) / 2
        kept = torch.sigmoid(exponents - level)
        slope = (shares * kept * torch.sigmoid(level - exponents)).sum()
    # Adds nothing but the gradient of the level.
    cost = (shares * torch.sigmoid(exponents - level)).sum()
    level = level + (cost - cost.detach()) / slope.clamp(min=torch.finfo(scores.dtype).tiny)
    return torch.sigmoid(exponents - level)


def hard_knapsack(scores: torch.Tensor, costs: torch.Tensor, budget: float) -> torch.Tensor:
    """Which units a budget buys: by falling score, each that still fits; of equal scores the first.

    No unit that is left out would fit in addition.

    Args:
        scores: shape `(units,)`.
        costs: positive, shape `(units,)`.
        budget: that the sum of the costs must not exceed.

    Returns:
        A boolean tensor of shape `(units,)`, without gradient, on the device of the scores.
    """
    order = scores.detach().cpu().argsort(descending=True, stable=True)
    ordered = costs.detach().cpu().double()[order]
    left = budget + _ROUNDING * float(ordered.sum())
    kept = torch.zeros_like(order, dtype=torch.bool)
    while True:
        # What does not fit now never will, so each round rules out at least one of the different costs for good.
        candidates = ~kept & (ordered <= left)
        if not bool(candidates.any()):
            break
        bought = candidates & ((ordered * candidates).cumsum(0) <= left)
        kept |= bought
        left -= float(ordered[bought].sum())
    return torch.zeros_like(kept).scatter(0, order, kept).to(scores.device)


def _check_count(count: int, units: int, least: int = 1) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not least <= count <= units:
        raise ValueError(f"{count!r} of {units} units are to be kept; give a whole number from {least} to {units}.")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"The temperature of the relaxation is {temperature}; give a positive number.")
