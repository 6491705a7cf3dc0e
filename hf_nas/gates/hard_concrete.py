"""Hard concrete gates (Louizos et al., 2018) with the deterministic values of CoFi (Xia et al., 2022)."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn


# Keeps uniform numbers and probabilities off 0 and 1.
_EPSILON = 1e-6
# How much flatter than the mean of the samples the deterministic values are; a constant of the published code.
_FLATNESS = 0.8
# How far from 0 `clamp` lets a logit get, with which its sigmoid is from 0.01 to 0.99.
CLAMP = math.log(100)


class HardConcrete(nn.Module):
    """Random multipliers in [0, 1] that are exactly 0 and exactly 1 with a positive probability, differentiably.

    One logit a gate. The gates come in groups, such as the neurons of each feed-forward network; a scalar gate is a
    group of one. A random value is `clamp(sigmoid((ln u - ln(1 - u) + logit) / temperature) * (high - low) + low)`
    with u uniform. Everything is computed in float32, whatever the model's type and the autocast.

    The logits should be trained without weight decay.

    Args:
        sizes: number of gates in each group.
        mean: of the initial logits.
        deviation: standard deviation of the initial logits.
        temperature: how soft samples are; CoFi has 2/3, Voita et al. (2019) 0.33.
        stretch: the interval that samples are stretched to before they are clamped to [0, 1].
        generator: for the initial logits.

    Raises:
        ValueError: if there is no gate, or for a temperature, stretch or initialisation that makes no gate.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        mean: float = 10.0,
        deviation: float = 0.01,
        temperature: float = 2 / 3,
        stretch: tuple[float, float] = (-0.1, 1.1),
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        low, high = stretch
        if not sizes or min(sizes) < 1:
            raise ValueError(f"The groups of gates have the sizes {list(sizes)}; give at least one group, none empty.")
        if not 0 < temperature < math.inf:
            raise ValueError(f"The temperature of the gates is {temperature}; give a positive number such as 2/3.")
        if not low < 0 or not 1 < high or not math.isfinite(high - low):
            raise ValueError(f"The gates are stretched to {stretch}; give limits below 0 and above 1 as (-0.1, 1.1).")
        if not math.isfinite(mean) or not 0 <= deviation < math.inf:
            raise ValueError(f"The initial logits are N({mean}, {deviation}^2); give finite numbers.")
        self.sizes = tuple(int(size) for size in sizes)
        self.temperature = float(temperature)
        self.low, self.high = float(low), float(high)
        self._shift = self.temperature * math.log(-self.low / self.high)
        logits = torch.randn(sum(self.sizes), generator=generator) * deviation + mean
        self.logits = nn.Parameter(logits)

    def sample(self, uniform: torch.Tensor | None = None, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw all gates once.

        Args:
            uniform: numbers in [0, 1) to draw with, shape `(gates,)`; by default new ones.
            generator: for new ones, on the device of the logits.

        Returns:
            Multipliers in [0, 1], shape `(gates,)`.
        """
        logits = self.logits.float()
        if uniform is None:
            uniform = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=torch.float32)
            uniform = uniform * (1 - 2 * _EPSILON) + _EPSILON
        soft = torch.sigmoid((torch.log(uniform) - torch.log1p(-uniform) + logits) / self.temperature)
        return (soft * (self.high - self.low) + self.low).clamp(0.0, 1.0)

    def open_probability(self) -> torch.Tensor:
        """Probability that each gate is not 0, shape `(gates,)`."""
        return torch.sigmoid(self.logits.float() - self._shift).clamp(_EPSILON, 1 - _EPSILON)

    def one_probability(self) -> torch.Tensor:
        """Probability that each gate is 1, shape `(gates,)`."""
        ratio = math.log((1 - self.low) / (self.high - 1))
        return torch.sigmoid(self.logits.float() - self.temperature * ratio)

    def expected_open(self) -> torch.Tensor:
        """Expected number of open gates of each group, shape `(groups,)`."""
        return torch.cat([group.sum(-1) for group in self._by_size(self.open_probability())])

    def soft(self) -> torch.Tensor:
        """What each gate multiplies with in evaluation if it is kept, in (0, 1), shape `(gates,)`."""
        # Logits far off underflow, and what is kept must not look removed.
        soft = torch.sigmoid(self.logits.float() * (_FLATNESS / self.temperature))
        return soft.clamp(min=torch.finfo(torch.float32).tiny)

    def deterministic(self, binary: bool = False) -> torch.Tensor:
        """The values for evaluation: the least likely gates of each group are 0, the others keep a soft value.

        Of a group of n gates, `round(n - expected_open)` (halves to even) are 0; among equals the first ones. A scalar
        gate is 0 if it is open with a probability below 0.5. No value leaves the device.

        Args:
            binary: whether the others are exactly 1 instead of [`HardConcrete.soft`],
                `sigmoid(logit * 0.8 / temperature)`.

        Returns:
            Multipliers in [0, 1], shape `(gates,)`.
        """
        kept = []
        for group, probability in zip(self._by_size(self.logits.float()), self._by_size(self.open_probability())):
            zeros = torch.round(group.shape[-1] - probability.sum(-1, keepdim=True))
            rank = group.argsort(dim=-1, stable=True).argsort(dim=-1)
            kept.append((rank >= zeros).flatten())
        soft = self.soft()
        return torch.where(torch.cat(kept), torch.ones_like(soft) if binary else soft, torch.zeros_like(soft))

    def _by_size(self, gates: torch.Tensor) -> Iterator[torch.Tensor]:
        """Matrices of groups by gates: one if all groups are equally large, else one a group."""
        if len(set(self.sizes)) == 1:
            yield gates.view(len(self.sizes), self.sizes[0])
        else:
            yield from (group[None] for group in gates.split(self.sizes))

    def groups(self, gates: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split a tensor of all gates into its groups."""
        return gates.split(self.sizes)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the logits where a gate can still change its mind: in [ln 0.01, ln 100]; call it after each step."""
        self.logits.clamp_(-CLAMP, CLAMP)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, temperature={self.temperature:.4g}, stretch=({self.low}, {self.high})"
