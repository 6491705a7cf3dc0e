"""The arithmetic of movement sparsity for one linear layer: scores, masks, gradients."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional


__all__ = ["Masks", "MovementLinear", "MovementState", "expand", "mask_of", "start_threshold"]


class Masks(NamedTuple):
    """What is kept of one linear layer.

    Args:
        weight: of shape (outputs, inputs); True is kept.
        bias: of shape (outputs,), None for a layer without bias.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None


def expand(scores: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Repeat each score, or its mask, for all the elements of a tensor of this shape that share it."""
    for dim, size in enumerate(shape):
        if scores.shape[dim] != size:
            scores = scores.repeat_interleave(size // scores.shape[dim], dim)
    return scores


def _sum_shared(elements: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The reverse of [`expand`] for gradients: sum over all the elements that share a score."""
    for dim, size in enumerate(shape):
        if elements.shape[dim] != size:
            elements = elements.unflatten(dim, (size, -1)).sum(dim + 1)
    return elements


def _quantile(scores: torch.Tensor, shared: int, quantile: float) -> torch.Tensor:
    """The quantile of scores that `shared` elements have each, interpolated as `torch.quantile` does."""
    ascending = scores.flatten().sort().values
    position = quantile * (ascending.numel() * shared - 1)
    below, above = ascending[math.floor(position) // shared], ascending[math.ceil(position) // shared]
    return torch.lerp(below, above, position - math.floor(position))


def mask_of(
    scores: torch.Tensor, shape: torch.Size | tuple[int, ...], threshold: float, quantile: float = 1.0
) -> torch.Tensor:
    """Which elements have a score above the threshold; equal ones are masked.

    Args:
        scores: shared by the elements, see [`expand`].
        shape: of the tensor that is masked.
        threshold: the scores are compared with.
        quantile: the threshold is at most this quantile of the scores, so that some elements stay; with 1 a tensor
            may be masked completely.
    """
    if quantile < 1:
        limit = _quantile(scores, math.prod(shape) // scores.numel(), quantile)
        above = scores > limit.clamp(max=threshold)
    else:
        above = scores > threshold
    return expand(above, shape)


def start_threshold(scores: list[tuple[torch.Tensor, int]], share: float = 0.001) -> float:
    """The threshold that masks about a thousandth of all elements.

    Args:
        scores: tensors of scores, each with the number of elements that share a score.
        share: of the elements to mask.

    Returns:
        The j-th smallest score, with j = min(n, int(n * share) + 1) of the n elements.
    """
    values = torch.cat([tensor.detach().flatten().cpu() for tensor, _ in scores])
    counts = torch.cat([torch.full((tensor.numel(),), shared) for tensor, shared in scores])
    ascending, order = values.sort()
    total = int(counts.sum())
    rank = min(total, int(total * share) + 1)
    return ascending[torch.searchsorted(counts[order].cumsum(0), rank)].item()


class _Masked(torch.autograd.Function):
    """Multiplies by the mask; the scores get the gradient as if the mask were the scores (straight-through)."""

    @staticmethod
    def forward(ctx, elements: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(elements, mask)
        ctx.scores_shape = scores.shape
        return elements * mask

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        elements, mask = ctx.saved_tensors
        for_elements = gradient * mask if ctx.needs_input_grad[0] else None
        for_scores = None
        if ctx.needs_input_grad[1]:
            for_scores = _sum_shared(gradient.float() * elements.float(), ctx.scores_shape)
        return for_elements, for_scores, None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: torch.Tensor, multiplier: float) -> torch.Tensor:
        ctx.multiplier = multiplier
        return scores.view_as(scores)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient * ctx.multiplier, None


class MovementState:
    """What all the layers of one model share."""

    def __init__(self, quantile: float, gradient_multiplier: float):
        self.quantile = quantile
        self.gradient_multiplier = gradient_multiplier
        self.threshold = float("-inf")
        self.factor = 0.0
        self.frozen = False


class MovementLinear:
    """Mixin for `torch.nn.Linear` that masks weight and bias by learnt scores.

    While training it computes the masks anew in each forward pass; in evaluation, or once frozen, it uses the stored
    ones, which are buffers and so part of every checkpoint.
    """

    movement: MovementState

    def attach_movement(self, state: MovementState, factors: tuple[int, int]) -> None:
        """Add scores, all zero, and masks, all kept; `factors` are the rows and columns that share a score."""
        weight, bias = self.weight, self.bias
        rows = weight.shape[0] // factors[0]
        zeros = {"dtype": torch.float32, "device": weight.device}
        self.movement = state
        self.weight_importance = nn.Parameter(torch.zeros(rows, weight.shape[1] // factors[1], **zeros))
        self.register_parameter("bias_importance", None if bias is None else nn.Parameter(torch.zeros(rows, **zeros)))
        kept = {"dtype": torch.bool, "device": weight.device}
        self.register_buffer("weight_mask", torch.ones(weight.shape, **kept))
        self.register_buffer("bias_mask", None if bias is None else torch.ones(bias.shape, **kept))

    def detach_movement(self) -> None:
        """Remove scores and masks."""
        for name in ("weight_importance", "bias_importance"):
            del self._parameters[name]
        for name in ("weight_mask", "bias_mask"):
            del self._buffers[name]
        del self.movement

    @property
    def scores(self) -> list[tuple[torch.Tensor, int]]:
        """The scores of weight and bias, each with the number of elements that share one."""
        pairs = [(self.weight_importance, self.weight.numel() // self.weight_importance.numel())]
        if self.bias is not None:
            pairs.append((self.bias_importance, self.bias.numel() // self.bias_importance.numel()))
        return pairs

    def regularization(self) -> torch.Tensor:
        """Half of the sum, over weight and bias, of the mean importance times the elements that share a score."""
        return 0.5 * sum(shared * self._trained(scores).sigmoid().mean() for scores, shared in self.scores)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training or self.movement.frozen:
            bias = None if self.bias is None else self.bias * self.bias_mask
            return functional.linear(inputs, self.weight * self.weight_mask, bias)
        # New tensors instead of new values in the old ones, which a backward pass may still need.
        self.weight_mask = self._mask(self.weight_importance, self.weight.shape)
        weight = _Masked.apply(self.weight, self._trained(self.weight_importance), self.weight_mask)
        bias = None
        if self.bias is not None:
            self.bias_mask = self._mask(self.bias_importance, self.bias.shape)
            bias = _Masked.apply(self.bias, self._trained(self.bias_importance), self.bias_mask)
        return functional.linear(inputs, weight, bias)

    @torch.no_grad()
    def _mask(self, scores: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        return mask_of(scores, shape, self.movement.threshold, self.movement.quantile)

    def _trained(self, scores: torch.Tensor) -> torch.Tensor:
        multiplier = self.movement.gradient_multiplier
        return scores if multiplier == 1 else _ScaledGradient.apply(scores, multiplier)
