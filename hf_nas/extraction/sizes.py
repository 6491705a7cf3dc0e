"""The sizes of an extracted model in its configuration, and building a model to them.

Models with one layer list state uneven sizes in transformers' own field, `config.per_layer_config`. Encoder-decoders
have two lists, for which that field has no room: theirs are in `config.hf_nas_per_layer_config`, by stack, with the
same entries. Transformers 5 records the field but its models ignore or refuse it; `hide_sizes` and `build_sizes` are
the missing half.

A pruned residual stream is stated beside them, in `config.hf_nas_hidden_size`. The stock field stays as it was: the
sizes of heads and of the pooler's output come from it, and a stock class that builds to it stops at the weights.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

from hf_nas.extraction.stated import (
    NORM_ONLY_FIELD,
    SKIP_NAMES,
    check_layers,
    check_stacks,
    field_names,
    field_values,
    is_count,
)
from hf_nas.resize import cut_hidden, cut_position_bias, removed_layers, resize, set_depth
from hf_nas.structures.base import NORM_ONLY, ModelStructure, SubLayer, describe_with
from hf_nas.structures.layouts import Family, StackLayout


MODULE_NAME = "modeling_hf_nas"
STACKS_FIELD = "hf_nas_per_layer_config"
# Number of heads of a position bias table beside the layers (MPNet), where that is not the number of the stock model.
TABLE_FIELD = "hf_nas_position_bias_heads"
# Number of hidden dimensions, where that is not the one in the stock field.
HIDDEN_FIELD = "hf_nas_hidden_size"
# Types of the layers of the dense model, where layers of several types became fewer. No model reads it: it is what the
# dense one is built from again.
TYPES_FIELD = "hf_nas_dense_layer_types"
_PENDING = "_hf_nas_pending_sizes"


def _count(kept: Any) -> int:
    if kept is None or kept == NORM_ONLY:
        return 0
    return kept if isinstance(kept, int) else len(kept)


def _layer_entry(config: PreTrainedConfig, sub_layers: list[SubLayer], kept: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for sub_layer in sub_layers:
        choice = kept[sub_layer.name]
        # A size of 0 stands beside each skip, so that a reader who ignores `skip` meets a contradiction.
        entry.update(
            zip(field_names(sub_layer.layout), field_values(config, sub_layer.layout, _count(choice)), strict=True)
        )
        if choice is None:
            entry.setdefault("skip", []).append(SKIP_NAMES[sub_layer.kind])
        elif choice == NORM_ONLY:
            entry.setdefault(NORM_ONLY_FIELD, []).append(SKIP_NAMES[sub_layer.kind])
    return entry


def _fix_head_size(config: PreTrainedConfig, structure: ModelStructure) -> None:
    """Write down a head size that the configuration leaves to be derived from the number of heads."""
    for sub_layer in structure:
        field = sub_layer.layout.head_size_field
        if field and getattr(config, field, None) is None:
            heads = config._getattr_without_heterogeneous_validation("num_attention_heads")
            setattr(config, field, config.hidden_size // heads)


def set_uneven_width(config: PreTrainedConfig, structure: ModelStructure, width: int) -> None:
    """State the number of hidden dimensions (0 where they cannot be pruned) beside the stock field."""
    if hasattr(config, HIDDEN_FIELD):
        delattr(config, HIDDEN_FIELD)
    if width and width != getattr(config, structure.family.hidden.size):
        setattr(config, HIDDEN_FIELD, width)


def record_layer_types(config: PreTrainedConfig, types: Sequence[str] | None) -> None:
    """Keep the types of the dense model's layers, if it names them, where those that are left do not tell them."""
    if hasattr(config, TYPES_FIELD):
        delattr(config, TYPES_FIELD)
    if types is not None and len(set(types)) > 1 and len(types) != len(config.layer_types):
        setattr(config, TYPES_FIELD, list(types))


def set_uniform_sizes(config: PreTrainedConfig, structure: ModelStructure, kept: Mapping[str, Any]) -> bool:
    """State the sizes in the stock fields, if each field has one value in all layers; else change nothing."""
    _fix_head_size(config, structure)
    removed = removed_layers(structure, kept)
    values: dict[str, set[int]] = {}
    for sub_layer in structure:
        if sub_layer.layer in removed[sub_layer.stack]:
            continue
        choice = kept[sub_layer.name]
        if not _count(choice):
            return False
        fields = zip(sub_layer.layout.sizes, field_values(config, sub_layer.layout, _count(choice)), strict=True)
        for field, value in fields:
            values.setdefault(field, set()).add(value)
    if any(len(found) > 1 for found in values.values()):
        return False
    for field, found in values.items():
        setattr(config, field, found.pop())
    set_depth(config, structure, removed)
    return True


def _set_table(
    config: PreTrainedConfig, structure: ModelStructure, stack: str, kept: Mapping[str, Any], own_bias: bool
) -> None:
    """State the heads of a position bias table beside the layers that was cut to what all attentions keep."""
    attentions = [s for s in structure.stack(stack) if s.layout.position_bias == "stack"]
    heads = max((_count(kept[s.name]) for s in attentions), default=0)
    if not own_bias and heads < max((s.units for s in attentions), default=0):
        setattr(config, TABLE_FIELD, heads)


def set_uneven_sizes(
    config: PreTrainedConfig, structure: ModelStructure, kept: Mapping[str, Any], own_bias: Mapping[str, bool]
) -> None:
    """State the sizes layer by layer, in `per_layer_config` or, for an encoder-decoder, by stack."""
    _fix_head_size(config, structure)
    removed = removed_layers(structure, kept)
    stacks: dict[str, dict[str, Any]] = {}
    for stack, depth in structure.depths.items():
        remaining = [index for index in range(depth) if index not in removed[stack]]
        stacks[stack] = {}
        for new, old in enumerate(remaining):
            sub_layers = [s for s in structure.stack(stack) if s.layer == old]
            stacks[stack][str(new)] = _layer_entry(config, sub_layers, kept)
        repeats = max(s.repeats for s in structure.stack(stack))
        if repeats > 1:
            # The layers of the configuration are those of the pass, which share their weights and thus their sizes.
            stacks[stack] = {str(index): copy.deepcopy(stacks[stack]["0"]) for index in range(repeats)}
        if any(NORM_ONLY_FIELD in entry for entry in stacks[stack].values()):
            # transformers wants a field that it does not know in every layer or in none.
            for entry in stacks[stack].values():
                entry.setdefault(NORM_ONLY_FIELD, [])
        _set_table(config, structure, stack, kept, own_bias[stack])
    set_depth(config, structure, removed)
    if len(structure.family.stacks) == 1:
        config.per_layer_config = next(iter(stacks.values()))
        try:
            config.validate()
        except AmbiguousGlobalPerLayerAttributeError:
            # Some validators (Llama's) read the global head count; without this they could neither save nor load.
            config.allow_global_per_layer_attribute_access = True
    else:
        sizes = {name: {"own_position_bias": own_bias[name], "layers": layers} for name, layers in stacks.items()}
        setattr(config, STACKS_FIELD, sizes)


def _read_entries(config: PreTrainedConfig, family: Family) -> dict[str, dict[str, Any]] | None:
    if len(family.stacks) > 1:
        return getattr(config, STACKS_FIELD, None)
    pending = config.__dict__.get(_PENDING)
    spec = pending[0] if pending else config.__dict__.get("_heterogeneity_spec")
    if spec is None and not hasattr(config, HIDDEN_FIELD):
        return None
    layers = {} if spec is None else {str(index): entry for index, entry in spec.per_layer_overrides.items()}
    _check_shared(config, family.stacks[0], layers)
    return {family.stacks[0].name: {"own_position_bias": False, "layers": layers}}


def _check_shared(config: PreTrainedConfig, stack: StackLayout, layers: Mapping[str, dict[str, Any]]) -> None:
    if not stack.repeats:
        return
    first = layers.get("0", {})
    for index in range(1, getattr(config, stack.repeats)):
        if layers.get(str(index), {}) != first:
            raise ValueError(
                f"The layers of a {config.model_type} model share their weights, but per_layer_config states "
                f"{layers.get(str(index), {})} for layer {index} and {first} for layer 0; state the same for all."
            )


def read_sizes(
    config: PreTrainedConfig, structure: ModelStructure
) -> tuple[dict[str, int | str | None], dict[str, bool]] | None:
    """The sizes a configuration states: what is kept of each sub-layer, and own position biases by stack.

    Returns None for a stock configuration.

    Raises:
        ValueError: if it states what no such model has.
    """
    stacks = _read_entries(config, structure.family)
    if stacks is None:
        return None
    if len(structure.family.stacks) > 1:
        check_stacks(structure, STACKS_FIELD, stacks)
    for stack in structure.depths:
        check_layers(config, structure, stack, stacks[stack]["layers"])
    kept: dict[str, int | str | None] = {}
    for sub_layer in structure:
        entry = stacks[sub_layer.stack]["layers"].get(str(sub_layer.layer), {})
        if SKIP_NAMES[sub_layer.kind] in entry.get("skip", ()):
            kept[sub_layer.name] = None
        elif SKIP_NAMES[sub_layer.kind] in entry.get(NORM_ONLY_FIELD, ()):
            kept[sub_layer.name] = NORM_ONLY
        else:
            kept[sub_layer.name] = entry.get(field_names(sub_layer.layout)[0], sub_layer.units)
    own_bias = {name: entry["own_position_bias"] for name, entry in stacks.items()}
    for stack in structure.family.stacks:
        if stack.position_bias_table:
            attentions = [s for s in structure.stack(stack.name) if s.layout.position_bias]
            heads = getattr(config, TABLE_FIELD, max((s.units for s in attentions), default=0))
            if not is_count(heads):
                raise ValueError(f"config.json states {TABLE_FIELD}={heads!r}; it must be a number of heads.")
            own_bias[stack.name] = any(0 < _count(kept[s.name]) < heads for s in attentions)
    return kept, own_bias


def _hidden_width(config: PreTrainedConfig, structure: ModelStructure) -> int:
    width = getattr(config, HIDDEN_FIELD)
    if structure.family.hidden is None:
        raise ValueError(
            f"config.json states {HIDDEN_FIELD}={width!r}, but the hidden dimensions of {structure.model_type} models "
            "cannot be pruned; restore the file."
        )
    full = getattr(config, structure.family.hidden.size)
    if not is_count(width) or not 1 <= width <= full:
        raise ValueError(
            f"config.json states {HIDDEN_FIELD}={width!r}; it must be a whole number from 1 to {full}, of which the "
            "model was made."
        )
    return width


def _differs(sub_layer: SubLayer, kept: int | str | None) -> bool:
    empty = (sub_layer.skipped, sub_layer.norm_only)
    return empty != (kept is None, kept == NORM_ONLY) or sub_layer.units != _count(kept)


def hide_sizes(config: PreTrainedConfig, model: PreTrainedModel) -> None:
    """Hide per-layer sizes while a stock constructor, which refuses them, builds all layers alike."""
    pending = config.__dict__.get(_PENDING)
    if pending is None and (spec := config.__dict__.pop("_heterogeneity_spec", None)) is not None:
        pending = (spec, id(config), id(model))
    elif pending is not None and pending[1] != id(config):
        # The configuration was copied for an inner model, which then has to restore its copy by itself.
        pending = (pending[0], id(config), id(model))
    if pending is not None:
        config.__dict__[_PENDING] = pending


def _no_common_shape() -> None:
    """What a model answers to `generate`, which would set up a static cache before a prompt in chunks is read.

    It would take the shape from the configuration, which has neither the head size of uneven layers nor the
    placeholders of layers without heads. Without an answer the cache takes it from the first tokens, as it does for
    whole prompts.
    """


def build_sizes(model: PreTrainedModel, family: Family) -> None:
    """Cut a model that was just built with equal layers to the sizes its configuration states; then show them again.

    Does nothing to a model that has these sizes already.
    """
    config = model.config
    structure = describe_with(family, model)
    sizes = read_sizes(config, structure)
    if sizes is not None and structure.sub_layers:
        kept, own_bias = sizes
        if hasattr(config, HIDDEN_FIELD):
            cut_hidden(model, structure, _hidden_width(config, structure))
        if any(_differs(sub_layer, kept[sub_layer.name]) for sub_layer in structure):
            for stack in family.stacks:
                if stack.position_bias_table and hasattr(config, TABLE_FIELD):
                    cut_position_bias(model.base_model, stack, getattr(config, TABLE_FIELD))
            resize(model, structure, kept, own_bias, drop_layers=False)
        model._get_static_cache_init_shape = _no_common_shape
    pending = config.__dict__.get(_PENDING)
    if pending is not None and pending[2] == id(model):
        del config.__dict__[_PENDING]
        config.__dict__["_heterogeneity_spec"] = pending[0]
