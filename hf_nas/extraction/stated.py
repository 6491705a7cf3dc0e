"""The words in which a configuration states the sizes of its layers, and what is refused among them.

A configuration is a file that anyone can have edited: each size is checked before anything is built to it, and no
weight of an uneven model is drawn at random because its file lacks it.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_nas.structures.base import ModelStructure, SubLayer
from hf_nas.structures.layouts import SubLayerLayout


NORM_ONLY_FIELD = "hf_nas_norm_only"
SKIP_NAMES = {"attention": "attention", "feed_forward": "mlp", "cross_attention": "cross_attention"}
# What a model may lack when it is loaded under another task head than it was saved with.
_NEW_WITH_A_HEAD = {"pooler", "lm_head"}


def field_names(layout: SubLayerLayout) -> list[str]:
    """The fields of an entry that state the width of such a sub-layer; the first one counts the units."""
    prefix = "cross_attention_" if layout.kind == "cross_attention" else ""
    return [prefix + field for field in layout.sizes]


def field_values(config: PreTrainedConfig, layout: SubLayerLayout, units: int) -> list[int]:
    """Values of the layout's size fields for so many units: the others keep their ratio to the first."""
    values = [config._getattr_without_heterogeneous_validation(field) for field in layout.sizes]
    return [units if value is None or i == 0 else value // values[0] * units for i, value in enumerate(values)]


def is_count(value: Any) -> bool:
    """Whether a value read from JSON is a whole number that is not negative."""
    return type(value) is int and value >= 0


def check_stacks(structure: ModelStructure, field: str, stated: Any) -> None:
    """Refuse sizes by stack that are not of the form that encoder-decoders state them in.

    Args:
        structure: of the model.
        field: that holds them.
        stated: what it holds.

    Raises:
        ValueError: naming the value.
    """
    names = [stack.name for stack in structure.family.stacks]
    if not isinstance(stated, Mapping) or not set(structure.depths) <= set(stated) <= set(names):
        found = sorted(map(str, stated)) if isinstance(stated, Mapping) else repr(stated)
        raise ValueError(f"{field} in config.json is of {found}; it must have the entries {', '.join(names)}.")
    for name, stack in stated.items():
        shared = stack.get("own_position_bias") if isinstance(stack, Mapping) else None
        if not isinstance(shared, bool) or not isinstance(stack.get("layers"), Mapping):
            raise ValueError(
                f"{field} in config.json has {str(stack)[:80]!r} for the {name}; it must have 'own_position_bias', "
                "true or false, and 'layers'."
            )


def check_layers(config: PreTrainedConfig, structure: ModelStructure, stack: str, layers: Mapping[str, Any]) -> None:
    """Refuse stated sizes that no model of this structure has.

    Args:
        config: of the model.
        structure: of the model, cut to these sizes or not yet.
        stack: name of the stack whose layers they are.
        layers: the entries, by index of the layer.

    Raises:
        ValueError: naming the layer and the value.
    """
    sub_layers = structure.stack(stack)
    layout = next(each for each in structure.family.stacks if each.name == stack)
    depth = getattr(config, layout.repeats or layout.depth)
    words = {SKIP_NAMES[sub_layer.kind] for sub_layer in sub_layers}
    for index, entry in layers.items():
        if not str(index).isdecimal() or int(index) >= depth:
            raise ValueError(
                f"config.json states sizes of {stack} layer {index!r}; there are layers 0 to {depth - 1}."
            )
        if not isinstance(entry, Mapping):
            raise ValueError(f"config.json states {entry!r} for {stack} layer {index}; it must state fields by name.")
        for field in ("skip", NORM_ONLY_FIELD):
            given = entry.get(field, [])
            if not isinstance(given, list | tuple) or not all(word in words for word in given):
                raise ValueError(
                    f"config.json states {field}={given!r} for {stack} layer {index}; it can list "
                    f"{', '.join(sorted(words))}."
                )
    for sub_layer in sub_layers:
        _check_sub_layer(config, sub_layer, layers.get(str(sub_layer.layer), {}))


def _check_sub_layer(config: PreTrainedConfig, sub_layer: SubLayer, entry: Mapping[str, Any]) -> None:
    fields, word = field_names(sub_layer.layout), SKIP_NAMES[sub_layer.kind]
    given = {field: entry[field] for field in fields if field in entry}
    for field, value in given.items():
        if not is_count(value):
            raise ValueError(
                f"config.json states {field}={value!r} for {sub_layer.stack} layer {sub_layer.layer}; it must be a "
                "whole number that is not negative."
            )
    count = entry.get(fields[0], sub_layer.units)
    if any(given.values()) and (word in entry.get("skip", ()) or word in entry.get(NORM_ONLY_FIELD, ())):
        raise ValueError(
            f"config.json states {given} for {sub_layer.stack} layer {sub_layer.layer}, whose {word} it skips; the "
            "sizes of what is skipped are 0."
        )
    if given and count > sub_layer.units:
        raise ValueError(
            f"config.json states {fields[0]}={count} for {sub_layer.stack} layer {sub_layer.layer}; the fields of the "
            f"whole model give it {sub_layer.units}, which no layer can exceed."
        )
    wanted = dict(zip(fields, field_values(config, sub_layer.layout, count), strict=True))
    if any(value != wanted[field] for field, value in given.items()):
        raise ValueError(
            f"config.json states {given} for {sub_layer.stack} layer {sub_layer.layer}, which do not go together; "
            f"beside {fields[0]}={count} there must be {wanted}."
        )


def refuse_lost_weights(model: PreTrainedModel, loading_info: Mapping[str, Any]) -> None:
    """Refuse a model that was loaded from files without some of its weights, which transformers draws at random.

    Heads and poolers, which a model gets anew when it is put to another task, may be missing.

    Args:
        model: as loaded.
        loading_info: what `from_pretrained(..., output_loading_info=True)` tells.

    Raises:
        ValueError: naming a weight.
    """
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    lost = {*loading_info["missing_keys"], *(name for name, *_ in loading_info["mismatched_keys"])}
    lost = {name for name in lost if name.startswith(prefix) and not _NEW_WITH_A_HEAD & set(name.split("."))}
    tensors = model.state_dict() if lost else {}
    # Empty tensors only mark what is skipped; other programs may leave them out.
    lost = sorted(name for name in lost if name not in tensors or tensors[name].numel())
    if lost:
        raise ValueError(
            f"The files of this {type(model).__name__} lack {len(lost)} of its weights, such as {lost[0]!r}, or have "
            "them in another size, and they are not drawn at random; restore the files."
        )
