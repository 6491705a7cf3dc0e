"""What a model must be while it is traced: without caches, dropout and empty matrix products."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_nas.bypass import restore_class, swap_class
from hf_nas.ops import input_size
from hf_nas.profiling.latency import evaluation_mode


__all__ = ["prepared"]


class _BiasAlone:
    """Mixin for a `Linear` that lost all its inputs: its bias, without the product of empty matrices.

    Engines refuse that product or compute it; the empty tensors that led to it leave the graph with it.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        shape = (*inputs.shape[:-1], self.out_features)
        return inputs.new_zeros(shape) if self.bias is None else self.bias.expand(shape)


@contextmanager
def prepared(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Make a model ready to be traced; it is as before after the block.

    Args:
        model: any model. It is in evaluation mode, gives no caches, and what is left of empty sub-layers is constant.
    """
    empty = [module for module in model.modules() if isinstance(module, nn.Linear) and input_size(module) == 0]
    caching = [config for config in _configs(model) if config.__dict__.get("use_cache")]
    for module in empty:
        swap_class(module, _BiasAlone)
    for config in caching:
        config.use_cache = False
    try:
        with evaluation_mode(model):
            yield model
    finally:
        for config in caching:
            config.use_cache = True
        for module in empty:
            restore_class(module)


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    """All configurations in a model, each once: the decoder of an encoder-decoder has one of its own."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            found[id(config)] = config
    return list(found.values())
