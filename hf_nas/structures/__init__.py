"""Structures: the map of all units of a model. One table entry a family; see [`register_family`] to add one."""

from transformers import PreTrainedConfig, PreTrainedModel

from hf_nas.structures import decoders, encoders, seq2seq
from hf_nas.structures.base import NORM_ONLY, ModelStructure, SubLayer, describe_with
from hf_nas.structures.layouts import Family, StackLayout, SubLayerLayout


__all__ = [
    "NORM_ONLY",
    "Family",
    "ModelStructure",
    "StackLayout",
    "SubLayer",
    "SubLayerLayout",
    "describe",
    "family_of",
    "known_families",
    "register_family",
]

_FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (*encoders.FAMILIES, *decoders.FAMILIES, *seq2seq.FAMILIES)
}


def register_family(family: Family) -> None:
    """Make a model family known, so that its models can be searched, extracted and loaded.

    Args:
        family: the layouts of its stacks; `family.model_type` is the `model_type` of its configurations. A family
            that is already known is replaced.
    """
    _FAMILIES[family.model_type] = family


def known_families() -> tuple[str, ...]:
    """The `model_type` of every known family, sorted."""
    return tuple(sorted(_FAMILIES))


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a configuration.

    Raises:
        ValueError: if its `model_type` is not known.
    """
    try:
        return _FAMILIES[config.model_type]
    except KeyError:
        raise ValueError(
            f"The model type {config.model_type!r} is not known to hf-nas; known are {', '.join(known_families())}. "
            "Describe its layers with hf_nas.structures.Family and pass that to hf_nas.register_family()."
        ) from None


def describe(model: PreTrainedModel) -> ModelStructure:
    """Describe all units of a model (on any device, the meta device included).

    Raises:
        ValueError: if its family or this form of it is not known, its layers are not where the family has them, or it
            has cross-attention outside an encoder-decoder.
    """
    config = model.config
    family = family_of(config)
    for field, value in family.requires:
        if (found := getattr(config, field, None)) != value:
            raise ValueError(
                f"This {config.model_type} model has {field}={found}, but hf-nas knows this family "
                f"only with {field}={value}; use such a model."
            )
    if getattr(config, "add_cross_attention", False) and not config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} has config.add_cross_attention=True, which hf-nas knows only in "
            "encoder-decoder families; set it to False or use an encoder-decoder model."
        )
    structure = describe_with(family, model)
    if not structure.sub_layers:
        raise ValueError(
            f"{type(model).__name__} has no layers at {' or '.join(repr(stack.path) for stack in family.stacks)}, "
            f"where hf-nas looks for those of {config.model_type} models; give a whole model, built by a version of "
            "transformers that hf-nas supports."
        )
    return structure
