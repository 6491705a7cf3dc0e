"""Models as folders and the Hub hold them: of the class that their configuration states, whole or without weights."""

import logging

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING


__all__ = ["build_without_weights", "load_model"]

logger = logging.getLogger(__name__)


def build_without_weights(name_or_path: str, class_name: str | None = None) -> PreTrainedModel:
    """A model on the meta device, built from its configuration alone.

    Args:
        name_or_path: folder or Hub name.
        class_name: of the model, e.g. with the task head an NNCF configuration was written for; None, or the class of
            another family: the class the configuration states.

    Raises:
        ValueError: if there is no configuration, or its family is not known.
    """
    config = _load_config(name_or_path)
    with torch.device("meta"):
        return _model_class(config, name_or_path, class_name)(config)


def load_model(name_or_path: str) -> PreTrainedModel:
    """A model with all of its weights.

    Args:
        name_or_path: folder or Hub name.

    Raises:
        ValueError: if there is none, or weights are missing.
    """
    config = _load_config(name_or_path)
    model_class = _model_class(config, name_or_path)
    try:
        model, loading = model_class.from_pretrained(name_or_path, config=config, output_loading_info=True)
    except OSError as error:
        raise ValueError(f"The weights of {name_or_path!r} cannot be read: {_first_sentence(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{name_or_path!r} has no weights for {missing[0]!r} of {model_class.__name__}; give the folder of a "
            "model that was trained with its task head."
        )
    return model.eval()


def _load_config(name_or_path: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The model {name_or_path!r} cannot be read; give a folder with a config.json or the name of a model on "
            f"the Hub: {_first_sentence(error)}"
        ) from error


def _model_class(config: PreTrainedConfig, source: str, wanted: str | None = None) -> type[PreTrainedModel]:
    for name in (wanted, *(config.architectures or ())):
        found = getattr(transformers, name or "", None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel) and found.config_class is type(config):
            return found
    if type(config) not in MODEL_MAPPING:
        raise ValueError(
            f"{source!r} is a {config.model_type} model, which transformers builds no encoder or decoder of."
        )
    logger.warning("The configuration of %s states no class; taken is the model without a task head.", source)
    return MODEL_MAPPING[type(config)]


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
