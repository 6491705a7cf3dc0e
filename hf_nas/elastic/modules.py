"""Mixins that make the modules of a stock model compute with slices of their own weights.

They are put before the stock class of a module ([`hf_nas.bypass.swap_class`]); parameters, their names and the class
that `isinstance` sees stay as they are. What is active is held in plain attributes, so that switching costs nothing.
"""

import torch
from torch.nn import functional

from hf_nas.bypass import (
    BYPASSES,
    ConfigView,
    OwnConfigValues,
    SelectsPositionBias,
    forward_without_heads,
    layer_index,
)


# The first k positions, these positions, or everything.
Positions = int | torch.Tensor | None


def _slice(tensor: torch.Tensor, positions: Positions, dim: int) -> torch.Tensor:
    if positions is None:
        return tensor
    if isinstance(positions, int):
        return tensor.narrow(dim, 0, positions)
    return tensor.index_select(dim, positions)


class ElasticLinear:
    """`torch.nn.Linear` with a choice of output rows and input columns."""

    active_outputs: Positions = None
    active_inputs: Positions = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = _slice(_slice(self.weight, self.active_outputs, 0), self.active_inputs, 1)
        bias = None if self.bias is None else _slice(self.bias, self.active_outputs, 0)
        return functional.linear(inputs, weight, bias)


class ElasticConv1D:
    """transformers' `Conv1D`, whose weight is (input, output), with a choice of outputs and inputs."""

    active_outputs: Positions = None
    active_inputs: Positions = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight = _slice(_slice(self.weight, self.active_outputs, 1), self.active_inputs, 0)
        bias = _slice(self.bias, self.active_outputs, 0)
        flat = torch.addmm(bias, inputs.flatten(0, -2), weight)
        return flat.view(*inputs.shape[:-1], weight.shape[1])


class Skippable:
    """Any module that can be replaced by a bypass."""

    bypass: str | None = None

    def forward(self, *args, **kwargs):
        if self.bypass is None:
            return super().forward(*args, **kwargs)
        return BYPASSES[self.bypass](args, kwargs, layer_index(self))


class ElasticAttention:
    """An attention module; with no head left it gives the bias of its output projection."""

    # While no head is active, what `forward_without_heads` must know of it.
    without_heads: tuple[str | None, str | None, int] | None = None

    def forward(self, *args, **kwargs):
        if self.without_heads is not None:
            return forward_without_heads(self, *self.without_heads, args, kwargs)
        return super().forward(*args, **kwargs)


class ElasticPositionBias:
    """A T5 attention that computes its own slice of the relative position bias.

    Stock T5 computes the bias once a stack and hands it on, which needs the same heads in every layer.
    """

    active_heads: Positions = None
    bias_owner: tuple = ()

    def compute_bias(self, *args, **kwargs) -> torch.Tensor:
        (owner,) = self.bias_owner
        bias = super().compute_bias(*args, **kwargs) if owner is self else owner.full_bias(*args, **kwargs)
        return _slice(bias, self.active_heads, 1)

    def full_bias(self, *args, **kwargs) -> torch.Tensor:
        return super().compute_bias(*args, **kwargs)

    def forward(self, *args, **kwargs):
        kwargs["position_bias"] = None
        attention_output, _, attention_weights = super().forward(*args, **kwargs)
        return attention_output, None, attention_weights


class ElasticPositionBiasHeads(SelectsPositionBias):
    """An MPNet attention that takes its active heads of the position bias it is given."""

    active_heads: Positions = None

    def select_heads(self, position_bias: torch.Tensor) -> torch.Tensor:
        return _slice(super().select_heads(position_bias), self.active_heads, 1)


class ElasticConfigValues(OwnConfigValues):
    """A Phi-3 attention that reads its active number of heads in its view of the configuration."""

    active_values: dict[str, int] = {}

    @property
    def config(self) -> ConfigView:
        return ConfigView(super().config, self.active_values)
