"""The super-network: a stock model that computes as any of its sub-networks, with slices of the shared weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.bypass import restore_class, swap_class
from hf_nas.elastic.modules import (
    ElasticAttention,
    ElasticConfigValues,
    ElasticConv1D,
    ElasticLinear,
    ElasticPositionBias,
    ElasticPositionBiasHeads,
    Positions,
    Skippable,
)
from hf_nas.ops import output_size, unit_features
from hf_nas.structures import SubLayer, describe
from hf_nas.subnetwork import NORM_ONLY, Kept, SubNetwork


__all__ = ["SuperNetwork", "is_elastic", "plain_copy_of"]

_STATE = {
    "active_outputs",
    "active_inputs",
    "active_heads",
    "active_values",
    "bypass",
    "without_heads",
    "bias_owner",
}


def is_elastic(model: nn.Module) -> bool:
    """Whether a super-network is attached to this model."""
    return any(hasattr(type(module), "original_class") and _is_ours(module) for module in model.modules())


def _is_ours(module: nn.Module) -> bool:
    mixins = (
        ElasticLinear, ElasticConv1D, Skippable, ElasticAttention, ElasticConfigValues, ElasticPositionBias,
        ElasticPositionBiasHeads,
    )  # fmt: skip
    return isinstance(module, mixins)


def _make_plain(model: nn.Module) -> None:
    for module in model.modules():
        if not _is_ours(module):
            continue
        for attribute, value in module.__dict__.pop("stock_attributes", {}).items():
            setattr(module, attribute, value)
        while _is_ours(module):
            restore_class(module)
        for name in _STATE:
            module.__dict__.pop(name, None)


def plain_copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A deep copy of a model without the super-network attached to it, if any."""
    duplicate = copy.deepcopy(model)
    _make_plain(duplicate)
    return duplicate


class SuperNetwork:
    """Attaches elastic execution to a stock model.

    The model keeps its class, its parameters and their names; [`activate`] sets a few attributes, and the next forward
    pass computes as the sub-network, in slices and without the skipped sub-layers. [`detach`] removes every trace.

    Activate only between a backward pass and the next forward pass: gradient checkpointing recomputes with what is
    active then.

    Args:
        model: of a known family, on any device.

    Raises:
        ValueError: if the family is not known or a super-network is attached already.
    """

    def __init__(self, model: PreTrainedModel):
        if is_elastic(model):
            raise ValueError(f"A super-network is attached to this {type(model).__name__} already; detach it first.")
        self.model = model
        self.structure = describe(model)
        self.full = SubNetwork.full(self.structure)
        self._setters = [self._attach(sub_layer) for sub_layer in self.structure]
        self._positions = lru_cache(maxsize=4096)(_positions)
        self._active = self.full

    @property
    def active(self) -> SubNetwork:
        """The sub-network the model computes as."""
        return self._active

    def activate(self, sub_network: SubNetwork) -> None:
        """Compute as this sub-network from now on.

        Raises:
            ValueError: if it belongs to another model or leaves out hidden dimensions.
        """
        if sub_network is self._active:
            return
        sub_network.require_full_width("elastic execution")
        if sub_network.names is not self.full.names or sub_network.units is not self.full.units:
            sub_network.check(self.structure)
        for setter, new, old in zip(self._setters, sub_network.kept, self._active.kept):
            if setter is not None and new != old:
                setter.set(new, self._positions)
        self._active = sub_network

    @contextmanager
    def activated(self, sub_network: SubNetwork) -> Iterator[PreTrainedModel]:
        """Compute as this sub-network within the block, and as before after it."""
        before = self._active
        self.activate(sub_network)
        try:
            yield self.model
        finally:
            self.activate(before)

    def detach(self) -> None:
        """Give the model back as it was: same classes, same attributes, weights untouched."""
        _make_plain(self.model)

    def __enter__(self) -> "SuperNetwork":
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def _attach(self, sub_layer: SubLayer) -> "_SubLayerSetter | None":
        if sub_layer.skipped:
            return None
        base = self.model.base_model
        layout = sub_layer.layout
        for path in () if sub_layer.norm_only else (*layout.writers, layout.reader):
            module = sub_layer.module(base, path)
            swap_class(module, ElasticLinear if isinstance(module, nn.Linear) else ElasticConv1D)
        if layout.is_attention and not sub_layer.norm_only:
            core = sub_layer.module(base, layout.core)
            core.stock_attributes = {name: getattr(core, name) for name in layout.attributes}
            if layout.hands_on_bias:
                self._attach_position_bias(base, sub_layer, core)
            elif layout.position_bias == "stack":
                swap_class(core, ElasticPositionBiasHeads)
            if layout.config_attributes:
                swap_class(core, ElasticConfigValues)
            swap_class(core, ElasticAttention)
        for path in _bypass_paths(sub_layer):
            swap_class(sub_layer.module(base, path), Skippable)
        return _SubLayerSetter(base, sub_layer)

    def _attach_position_bias(self, base: nn.Module, sub_layer: SubLayer, core: nn.Module) -> None:
        if sub_layer.layout.position_bias:
            core.stock_attributes["has_relative_attention_bias"] = core.has_relative_attention_bias
            owner = core
            if not core.has_relative_attention_bias:
                first = sub_layer.path.rsplit(".", 1)[0] + ".0"
                owner = base.get_submodule(f"{first}.{sub_layer.layout.core}")
                core.has_relative_attention_bias = True
            # In a tuple, so that it does not become a sub-module and change the names of the state dict.
            core.bias_owner = (owner,)
        swap_class(core, ElasticPositionBias)


def _positions(kept: Kept, features: tuple[int, ...], total: int, device: torch.device) -> Positions:
    """What a projection of `total` units keeps, as a prefix where it is one and as positions elsewhere."""
    if isinstance(kept, int):
        if kept == total:
            return None
        if len(features) == 1:
            return kept * features[0]
        units = torch.arange(kept)
    else:
        units = torch.tensor(kept, dtype=torch.long)
    return unit_features(units, features, total).to(device)


def _bypass_paths(sub_layer: SubLayer) -> tuple[str, ...]:
    """Paths of the modules that are bypassed when a sub-layer is skipped or nothing but its norm stays."""
    layout = sub_layer.layout
    return tuple(dict(layout.bypass if sub_layer.norm_only else (*layout.bypass, *layout.norm_only)))


class _SubLayerSetter:
    """Switches the modules of one sub-layer."""

    def __init__(self, base: nn.Module, sub_layer: SubLayer):
        layout = sub_layer.layout
        self.units = sub_layer.units
        self.layout = layout
        self.bypassed = {path: sub_layer.module(base, path) for path in _bypass_paths(sub_layer)}
        if sub_layer.norm_only:
            return
        self.writers = [sub_layer.module(base, path) for path in layout.writers]
        self.writer_features = [sub_layer.blocks(output_size(writer)) for writer in self.writers]
        self.reader = sub_layer.module(base, layout.reader)
        self.reader_features = (sub_layer.features,)
        self.core = sub_layer.module(base, layout.core) if layout.is_attention else None
        self.position_bias = bool(layout.position_bias)
        self.config_values = {field: getattr(self.core.config, field) for field in layout.config_attributes}

    def set(self, kept: Kept, positions) -> None:
        bypass = dict(self.layout.bypass if kept is None else self.layout.norm_only if kept == NORM_ONLY else ())
        for path, module in self.bypassed.items():
            module.bypass = bypass.get(path)
        if kept is None or kept == NORM_ONLY:
            return
        device = self.reader.weight.device
        for writer, features in zip(self.writers, self.writer_features):
            writer.active_outputs = positions(kept, features, self.units, device)
        self.reader.active_inputs = positions(kept, self.reader_features, self.units, device)
        if self.core is None:
            return
        count = kept if isinstance(kept, int) else len(kept)
        self.core.without_heads = None if count else self.layout.without_heads
        for attribute, value in self.core.stock_attributes.items():
            if not isinstance(value, bool):
                setattr(self.core, attribute, value * count // max(self.units, 1))
        if self.config_values:
            values = {field: value * count // max(self.units, 1) for field, value in self.config_values.items()}
            self.core.active_values = values
        if self.position_bias:
            self.core.active_heads = positions(kept, (1,), self.units, device)
