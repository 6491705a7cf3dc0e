"""What takes the place of a sub-layer, or of its heads, that a sub-network leaves out.

A skipped sub-layer is the identity, normalisation included: its branch gives zeros and its norm passes through. A
sub-layer whose units are all gone without being skipped still adds the bias of its output projection.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn


@cache
def _swapped(mixin: type, original: type) -> type:
    return type(original.__name__, (mixin, original), {"__module__": original.__module__, "original_class": original})


def swap_class(module: nn.Module, mixin: type) -> None:
    """Put the methods of `mixin` before those of the module's class, in place: no parameter changes its name."""
    module.__class__ = _swapped(mixin, type(module))


def restore_class(module: nn.Module) -> None:
    """Undo [`swap_class`]."""
    module.__class__ = type(module).original_class


def first_argument(args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states a module was called with, whether by position or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def fill_cache(hidden_states: torch.Tensor, kwargs: dict[str, Any], layer_idx: int | None) -> None:
    """Keep the key-value cache of this layer as long as the others'.

    Caches take the number of tokens seen from their first layer, so a layer without attention stores one number a
    token there; without it, positions would start at zero again at every generated token.
    """
    past = kwargs.get("past_key_values")
    if past is None or layer_idx is None or kwargs.get("key_value_states") is not None:
        return
    past = getattr(past, "self_attention_cache", past)
    placeholder = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
    past.update(placeholder, placeholder, layer_idx)


def _identity(args, kwargs, layer_idx):
    return first_argument(args, kwargs)


def _residual(args, kwargs, layer_idx):
    return args[1]


def _zeros(args, kwargs, layer_idx):
    return torch.zeros_like(first_argument(args, kwargs))


def _attention_identity(args, kwargs, layer_idx):
    hidden_states = first_argument(args, kwargs)
    fill_cache(hidden_states, kwargs, layer_idx)
    return hidden_states, None


def _attention_zeros(args, kwargs, layer_idx):
    hidden_states = first_argument(args, kwargs)
    fill_cache(hidden_states, kwargs, layer_idx)
    return torch.zeros_like(hidden_states), None


def _biased_attention_zeros(args, kwargs, layer_idx):
    return (*_attention_zeros(args, kwargs, layer_idx), None)


BYPASSES: dict[str, Callable] = {
    "identity": _identity,  # f(x) -> x
    "residual": _residual,  # f(branch, residual) -> residual
    "zeros": _zeros,  # f(x) -> 0
    "attention_identity": _attention_identity,  # f(x) -> (x, no attention weights)
    "attention_zeros": _attention_zeros,  # f(x) -> (0, no attention weights)
    "biased_attention_zeros": _biased_attention_zeros,  # f(x) -> (0, no position bias, no attention weights)
}


def layer_index(module: nn.Module) -> int | None:
    """The position in the key-value cache that an attention module, or one inside it, writes to."""
    return next((m.layer_idx for m in module.modules() if getattr(m, "layer_idx", None) is not None), None)


class Bypass(nn.Module):
    """Stands in a stock model where a sub-layer was removed.

    It holds an empty tensor under the name of a removed weight: a stock class that would build the sub-layer anew
    then stops at a size mismatch, where a merely missing weight would be drawn at random with a warning.
    """

    is_bypass = True

    def __init__(self, kind: str, layer_idx: int | None = None):
        super().__init__()
        self.kind = kind
        self.layer_idx = layer_idx

    def mark(self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        """Register an empty tensor called `name`, in which dots nest."""
        *parents, leaf = name.split(".")
        module = self
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_buffer(leaf, torch.empty(shape, dtype=dtype, device=device))

    def named_modules(self, memo: set | None = None, prefix: str = "", remove_duplicate: bool = True):
        """Only this module: what seeks layers by name, as PEFT does, must not find those that are gone."""
        memo = set() if memo is None else memo
        if self not in memo:
            if remove_duplicate:
                memo.add(self)
            yield prefix, self

    def named_children(self):
        """None, for the same reason; the empty tensors are reached by their names, as in a state dict."""
        return iter(())

    def forward(self, *args, **kwargs):
        return BYPASSES[self.kind](args, kwargs, self.layer_idx)

    def extra_repr(self) -> str:
        return self.kind


def forward_without_heads(
    module: nn.Module, output: str | None, norm: str | None, returns: int, args: tuple, kwargs: dict[str, Any]
) -> tuple:
    """What an attention module without heads gives.

    Args:
        module: the attention module.
        output: path of the output projection, if that is inside it: its bias stays.
        norm: path of the normalisation, if that is inside it: it reads the sum with what the module was given.
        returns: number of values the module returns.
        args: that it was called with.
        kwargs: that it was called with.
    """
    hidden_states = first_argument(args, kwargs)
    fill_cache(hidden_states, kwargs, getattr(module, "layer_idx", None))
    result = hidden_states[..., :0]
    if output is not None:
        result = module.get_submodule(output)(result)
    if norm is not None:
        result = module.get_submodule(norm)(hidden_states + result)
    return (result,) + (None,) * (returns - 1)


class WithoutHeads:
    """Mixin for an attention module of an extracted model that kept its output bias but no head.

    `left` is what [`forward_without_heads`] must know of it.
    """

    left: tuple[str | None, str | None, int]

    def forward(self, *args, **kwargs):
        return forward_without_heads(self, *self.left, args, kwargs)


class ConfigView:
    """A configuration, some fields of which have other values."""

    def __init__(self, config: Any, fields: dict[str, int]):
        self._config = config
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_fields" not in self.__dict__:  # asked for while it is copied
            raise AttributeError(name)
        return self._fields[name] if name in self._fields else getattr(self._config, name)


class OwnConfigValues:
    """Mixin for a Phi-3 attention, which reads its number of heads in the configuration at every pass.

    There is one configuration for all layers, so the attention reads it through a view with its own values.
    """

    own_values: dict[str, int] = {}

    @property
    def config(self) -> ConfigView:
        return ConfigView(self.__dict__["config"], self.own_values)


class WithoutInputs:
    """Mixin for a `Conv1D` that lost all its inputs, which the stock class cannot reshape: only its bias is left."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(*inputs.shape[:-1], self.nf)


class OwnPositionBias:
    """Mixin for a T5 attention whose heads differ from the other layers': it computes its own position bias.

    Stock T5 computes the bias in the first block and hands it on, which needs the same heads in every block.
    """

    has_own_position_bias = True

    def forward(self, *args, **kwargs):
        kwargs["position_bias"] = None
        attention_output, _, attention_weights = super().forward(*args, **kwargs)
        return attention_output, None, attention_weights


class SelectsPositionBias:
    """Mixin for an MPNet attention that takes its own heads of the position bias, computed once for all layers.

    Which ones the buffer `position_bias_heads` says; an attention without it takes them all.
    """

    @property
    def has_own_position_bias(self) -> bool:
        return "position_bias_heads" in self._buffers

    def select_heads(self, position_bias: torch.Tensor) -> torch.Tensor:
        """The heads of this attention, from a bias of shape `(batch, heads, queries, keys)`."""
        return position_bias.index_select(1, self.position_bias_heads) if self.has_own_position_bias else position_bias

    def forward(self, hidden_states, attention_mask=None, position_bias=None, *args, **kwargs):
        if position_bias is not None:
            position_bias = self.select_heads(position_bias)
        return super().forward(hidden_states, attention_mask, position_bias, *args, **kwargs)
