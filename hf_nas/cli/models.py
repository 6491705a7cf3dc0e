"""What the commands read: models with and without weights, tokenizers, and search spaces in any notation."""

import logging
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from hf_nas.nncf_config import NncfConfig, nncf_space
from hf_nas.nncf_config.reading import read_file
from hf_nas.space import SearchSpace, get_search_space
from hf_nas.structures import describe


__all__ = [
    "build_without_weights",
    "get_device",
    "load_model",
    "load_text_classifier",
    "load_tokenizer",
    "read_nncf_config",
    "read_space",
]

logger = logging.getLogger(__name__)

_KEYS_OF_NNCF = ("input_info", "bootstrapNAS", "compression")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")


def get_device(name: str | None) -> torch.device:
    """The device that `--device` names.

    Args:
        name: e.g. cpu or cuda; None: a GPU if there is one, else the CPU.

    Raises:
        ValueError: if this machine has no such device, or it computes nothing.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cause = None
    try:
        device = torch.empty(0, device=name).device
        if device.type != "meta":  # which computes nothing
            return device
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for the device
        cause = error
    raise ValueError(f"--device {name!r} cannot be used here; give one that this machine has.") from cause


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


def load_text_classifier(name_or_path: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that classifies texts, or gives each a value, and its tokenizer.

    Args:
        name_or_path: folder or Hub name.
        device: where the model is put.

    Raises:
        ValueError: if it is another model, has several labels a text, or has no tokenizer that pads.
    """
    model = load_model(name_or_path)
    name = type(model).__name__
    if not name.endswith("ForSequenceClassification"):
        raise ValueError(
            f"{name_or_path!r} is a {name}, and this command takes models ForSequenceClassification; use the script "
            "of its task instead."
        )
    if model.config.problem_type == "multi_label_classification":
        raise ValueError(f"{name_or_path!r} gives several labels to a text; this command takes models that give one.")
    tokenizer = load_tokenizer(name_or_path)
    if tokenizer is None or tokenizer.pad_token is None:
        missing = "a tokenizer" if tokenizer is None else "a padding token in its tokenizer"
        raise ValueError(f"{name_or_path!r} is without {missing}; save that of the training there.")
    return model.to(device), tokenizer


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model, if it has one.

    Args:
        name_or_path: folder or Hub name.
    """
    folder = Path(name_or_path)
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        logger.info("%s holds no tokenizer, so none is saved.", name_or_path)
        return None
    return AutoTokenizer.from_pretrained(name_or_path)


def read_nncf_config(path: str) -> NncfConfig | None:
    """The NNCF configuration in a JSON file, or None if the file, or the name of a space, is something else."""
    if not path.endswith(".json"):
        return None
    data = read_file(path)
    return NncfConfig.from_dict(data, f"Configuration {path!r}") if any(key in data for key in _KEYS_OF_NNCF) else None


def read_space(name_or_path: str, model: PreTrainedModel) -> SearchSpace:
    """A search space by name, or from a file: an NNCF configuration (its last stage) or a space of lists.

    Args:
        name_or_path: name of a space or path of a JSON file.
        model: it must fit.

    Raises:
        ValueError: if there is no such space, or it does not fit the model.
    """
    config = read_nncf_config(name_or_path)
    if config is not None:
        return nncf_space(config, model, config.training.schedule.stages[-1] if config.training else None)
    return get_search_space(name_or_path, describe(model))


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
