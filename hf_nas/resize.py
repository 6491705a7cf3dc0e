"""Give a freshly built or a trained stock model the sizes of a sub-network, in place.

The same function makes an extracted model out of a trained one and builds the empty shell that its weights are loaded
into: only the weights differ.
"""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_nas.bypass import (
    Bypass,
    OwnConfigValues,
    OwnPositionBias,
    SelectsPositionBias,
    WithoutHeads,
    WithoutInputs,
    layer_index,
    swap_class,
)
from hf_nas.ops import input_size, keep_inputs, keep_outputs, output_size, unit_features
from hf_nas.structures.base import NORM_ONLY, ModelStructure, StackLayout, SubLayer, find_layers
from hf_nas.structures.hidden import residual_stream


_NO_UNITS = {None, 0, NORM_ONLY}


def removed_layers(structure: ModelStructure, kept: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Layers of each stack in which every sub-layer is skipped.

    A stack that would lose all its layers keeps the first one, bypassed: caches and layer lists cannot be empty. For
    the same reason a stack that lends its depth to the decoder's cache keeps as many layers as the decoder. A layer
    that is pinned to its place stays, bypassed, too.
    """
    removed: dict[str, tuple[int, ...]] = {}
    for stack, depth in structure.depths.items():
        sub_layers = structure.stack(stack)
        present = {s.layer for s in sub_layers if s.pinned or kept[s.name] is not None}
        gone = [index for index in range(depth) if index not in present]
        removed[stack] = tuple(gone[1:] if len(gone) == depth else gone)
    lender, depths = structure.family.cache_stack, structure.depths
    if lender in depths:
        others = (depth - len(removed[stack]) for stack, depth in depths.items() if stack != lender)
        needed = max(others, default=0)  # an encoder alone lends to nobody
        spare = max(depths[lender] - needed, 0)
        removed[lender] = removed[lender][:spare]
    return removed


def set_depth(config: PreTrainedConfig, structure: ModelStructure, removed: Mapping[str, tuple[int, ...]]) -> None:
    """Take removed layers out of the configuration: its depths, and `layer_types` where it has one a layer."""
    for stack in structure.family.stacks:
        depth = structure.depths.get(stack.name, 0)
        gone = removed.get(stack.name, ())
        if not gone:
            continue
        setattr(config, stack.depth, depth - len(gone))
        layer_types = getattr(config, "layer_types", None)
        if layer_types is not None and len(structure.family.stacks) == 1:
            config.layer_types = [kind for index, kind in enumerate(layer_types) if index not in gone]


def own_position_bias(structure: ModelStructure, kept: Mapping[str, object]) -> dict[str, bool]:
    """For each stack, whether its attentions need position biases of their own (T5, MPNet).

    One bias serves all only while all of them keep the same heads, and, where the first layer computes it (T5), have
    some. Cross-attentions, whose bias is zero, hand it on in the same way. What was taken apart stays apart.
    """
    removed = removed_layers(structure, kept)
    own = {}
    for stack in structure.depths:
        heads: dict[str, set] = {}
        apart = False
        for sub_layer in structure.stack(stack):
            given = sub_layer.layout.position_bias == "stack" and kept[sub_layer.name] not in _NO_UNITS
            if given or (sub_layer.layout.hands_on_bias and sub_layer.layer not in removed[stack]):
                heads.setdefault(sub_layer.kind, set()).add(kept[sub_layer.name])
                apart |= sub_layer.own_position_bias
        own[stack] = apart or any(len(choices) > 1 or choices & {None, 0} for choices in heads.values())
    return own


def resize(
    model: PreTrainedModel,
    structure: ModelStructure,
    kept: Mapping[str, object],
    own_bias: Mapping[str, bool],
    drop_layers: bool = True,
) -> None:
    """Cut a model down to a sub-network, in place.

    Args:
        model: described by `structure`.
        structure: its structure.
        kept: by name of every sub-layer, the number of units, their ids, `NORM_ONLY` or None (skipped).
        own_bias: by stack, whether its self-attentions get relative position biases of their own
            ([`own_position_bias`]).
        drop_layers: whether layers whose sub-layers are all skipped leave the layer list, which renumbers the rest.
    """
    base = model.base_model
    removed = removed_layers(structure, kept) if drop_layers else {}
    for stack in structure.family.stacks:
        if 0 in removed.get(stack.name, ()) and not own_bias[stack.name]:
            _move_position_bias(base, structure.stack(stack.name), removed[stack.name])
        if stack.position_bias_table and stack.name in own_bias:
            _share_position_bias(base, stack, structure, kept, own_bias[stack.name])
    for sub_layer in structure:
        if sub_layer.layout.hands_on_bias and not sub_layer.skipped and own_bias[sub_layer.stack]:
            _give_own_position_bias(base, sub_layer)
    for sub_layer in structure:
        if not sub_layer.skipped:
            _resize_sub_layer(base, sub_layer, kept[sub_layer.name])
    for stack in structure.family.stacks:
        if removed.get(stack.name):
            _drop(base, stack.path, removed[stack.name])


def cut_hidden(model: PreTrainedModel, structure: ModelStructure, kept: int | tuple[int, ...]) -> None:
    """Cut the residual stream of a model down to some of its hidden dimensions, in place; before [`resize`].

    Heads keep their size: of query, key and value only input columns go. What has the width already is left alone, so
    that a task head can follow the base model that it was built around.

    Args:
        model: described by `structure`, of a family with a layout of its hidden dimensions.
        structure: its structure.
        kept: number (the first ones) or ids of the kept hidden dimensions.
    """
    stream = residual_stream(model, structure)
    units = _unit_ids(kept)
    tied, output = stream.is_tied, stream.output_embeddings
    for module in (*stream.tables, *stream.writers, *stream.head_writers):
        if output_size(module) > len(units):
            keep_outputs(module, units)
    for module in (*stream.readers, *(() if tied or output is None else (output,))):
        if input_size(module) > len(units):
            keep_inputs(module, units)
    if tied:
        output.weight, output.in_features = stream.tables[0].weight, len(units)
    for norm in (*stream.norms, *stream.head_norms):
        if len(norm.weight) > len(units):
            _keep_normalised(norm, units)
    for marker in stream.markers:
        marker.weight = marker.weight[:, : len(units)]


def _keep_normalised(norm: nn.LayerNorm, units: torch.Tensor) -> None:
    for name in ("weight", "bias"):
        old = getattr(norm, name)
        kept = old.detach().index_select(0, units.to(old.device)).clone()
        setattr(norm, name, nn.Parameter(kept, requires_grad=old.requires_grad))
    norm.normalized_shape = (len(units),)


def _move_position_bias(base: nn.Module, sub_layers: tuple[SubLayer, ...], removed: tuple[int, ...]) -> None:
    """Hand a shared relative position bias from the first layer to the one that becomes the first."""
    biased = [sub_layer for sub_layer in sub_layers if sub_layer.layout.position_bias == "first_layer"]
    if not biased:
        return
    old = biased[0].module(base, biased[0].layout.core)
    first = next(sub_layer for sub_layer in biased if sub_layer.layer not in removed)
    new = first.module(base, first.layout.core)
    new.relative_attention_bias = old.relative_attention_bias
    new.has_relative_attention_bias = True


def _give_own_position_bias(base: nn.Module, sub_layer: SubLayer) -> None:
    core = sub_layer.module(base, sub_layer.layout.core)
    if isinstance(core, OwnPositionBias):
        return
    if sub_layer.layout.position_bias and not core.has_relative_attention_bias:
        first_layer = sub_layer.path.rsplit(".", 1)[0] + ".0"
        table = base.get_submodule(f"{first_layer}.{sub_layer.layout.core}").relative_attention_bias
        own = nn.Embedding(*table.weight.shape, device=table.weight.device, dtype=table.weight.dtype)
        own.weight = nn.Parameter(table.weight.detach().clone(), requires_grad=table.weight.requires_grad)
        core.relative_attention_bias = own
        core.has_relative_attention_bias = True
    swap_class(core, OwnPositionBias)


def cut_position_bias(base: nn.Module, stack: StackLayout, kept: int | tuple[int, ...]) -> None:
    """Keep only these heads of the table of relative position biases that lies beside the layers (MPNet)."""
    table = base.get_submodule(stack.position_bias_table)
    units = _unit_ids(kept)
    if len(units) < output_size(table):
        keep_outputs(table, units)


def _share_position_bias(
    base: nn.Module, stack: StackLayout, structure: ModelStructure, kept: Mapping[str, object], own: bool
) -> None:
    """Cut the table beside the layers to the heads that all attentions keep, or let those with fewer select theirs."""
    attentions = [sub_layer for sub_layer in structure.stack(stack.name) if sub_layer.layout.position_bias]
    if not own:
        cut_position_bias(base, stack, next(iter({kept[s.name] for s in attentions} - _NO_UNITS), 0))
    table = base.get_submodule(stack.position_bias_table)
    for sub_layer in attentions:
        if kept[sub_layer.name] in (None, NORM_ONLY):
            continue
        core = sub_layer.module(base, sub_layer.layout.core)
        units = _unit_ids(kept[sub_layer.name]).to(table.weight.device)
        if len(units) == 0:
            core._buffers.pop("position_bias_heads", None)
        elif sub_layer.own_position_bias:
            core.position_bias_heads = core.position_bias_heads[units]
        elif len(units) < output_size(table):
            core.register_buffer("position_bias_heads", units)
            swap_class(core, SelectsPositionBias)


def _unit_ids(kept: int | tuple[int, ...]) -> torch.Tensor:
    return torch.arange(kept) if isinstance(kept, int) else torch.tensor(kept, dtype=torch.long)


def _resize_sub_layer(base: nn.Module, sub_layer: SubLayer, kept: object) -> None:
    if kept is None or kept == NORM_ONLY:
        if kept is None or not sub_layer.norm_only:
            _bypass(base, sub_layer, sub_layer.layout.bypass if kept is None else sub_layer.layout.norm_only)
        return
    layout = sub_layer.layout
    units = _unit_ids(kept)
    if len(units) < sub_layer.units:
        for path in layout.writers:
            writer = sub_layer.module(base, path)
            keep_outputs(writer, unit_features(units, sub_layer.blocks(output_size(writer)), sub_layer.units))
        reader = sub_layer.module(base, layout.reader)
        keep_inputs(reader, unit_features(units, sub_layer.features, sub_layer.units))
        if len(units) == 0 and isinstance(reader, Conv1D):
            swap_class(reader, WithoutInputs)
    if not layout.is_attention:
        return
    core = sub_layer.module(base, layout.core)
    for attribute in layout.attributes:
        setattr(core, attribute, getattr(core, attribute) * len(units) // max(sub_layer.units, 1))
    if layout.config_attributes:
        _give_own_config_values(core, layout.config_attributes, len(units), sub_layer.units)
    handing_on = layout.position_bias == "first_layer" and core.has_relative_attention_bias
    if handing_on and len(units) < sub_layer.units:
        keep_outputs(core.relative_attention_bias, units)
    if len(units) == 0 and not isinstance(core, WithoutHeads):
        core.left = layout.without_heads
        swap_class(core, WithoutHeads)


def _give_own_config_values(core: nn.Module, fields: tuple[str, ...], count: int, units: int) -> None:
    # A full attention needs them too, since the field means nothing once layers differ in it.
    values = {field: getattr(core.config, field) * count // max(units, 1) for field in fields}
    if not isinstance(core, OwnConfigValues):
        swap_class(core, OwnConfigValues)
    core.own_values = values


def _bypass(base: nn.Module, sub_layer: SubLayer, replacements: tuple[tuple[str, str], ...]) -> None:
    layer = base.get_submodule(sub_layer.path)
    writer = sub_layer.layout.writers[0]
    weight = layer.get_submodule(writer).weight
    rows = 1 if isinstance(layer.get_submodule(writer), Conv1D) else 0
    shape = list(weight.shape)
    shape[rows] = 0
    for path, kind in replacements:
        bypass = Bypass(kind, layer_index(layer.get_submodule(path)))
        if writer == path or writer.startswith(path + "."):
            name = f"{writer}.weight".removeprefix(path + ".")
            bypass.mark(name, torch.Size(shape), weight.dtype, weight.device)
        layer.set_submodule(path, bypass)


def _drop(base: nn.Module, path: str, removed: tuple[int, ...]) -> None:
    layers = find_layers(base, path)
    remaining = [layer for index, layer in enumerate(layers) if index not in removed]
    parent_path, _, name = path.rpartition(".")
    setattr(base.get_submodule(parent_path), name, nn.ModuleList(remaining))
    for index, layer in enumerate(remaining):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = index
