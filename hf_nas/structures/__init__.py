"""Structures: the map of all units of a model. One table entry a family; see [`register_family`] to add one."""

from transformers import PreTrainedConfig, PreTrainedModel

from hf_nas.structures import decoders, encoders, seq2seq
from hf_nas.structures.base import (
    NORM_ONLY,
    Family,
    ModelStructure,
    StackLayout,
    SubLayer,
    SubLayerLayout,
    describe_with,
)


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
    if config.model_type == "t5" and config.is_gated_act:
        return seq2seq.GATED_T5
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
        ValueError: if its family is not known, or if it has cross-attention outside an encoder-decoder.
    """
    config = model.config
    if getattr(config, "add_cross_attention", False) and not config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} has config.add_cross_attention=True, which hf-nas knows only in "
            "encoder-decoder families; set it to False or use an encoder-decoder model."
        )
    return describe_with(family_of(config), model)
