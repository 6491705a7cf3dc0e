"""What the commands read: classifiers, tokenizers, and search spaces in any notation."""

import argparse
import logging
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_nas.extraction.stored_models import build_without_weights, load_model
from hf_nas.nncf_config import NncfConfig, nncf_space
from hf_nas.nncf_config.reading import read_file
from hf_nas.space import SearchSpace, get_search_space
from hf_nas.structures import describe


__all__ = [
    "add_model_class",
    "build_counted",
    "load_text_classifier",
    "load_tokenizer",
    "read_nncf_config",
    "read_space",
]

logger = logging.getLogger(__name__)

_KEYS_OF_NNCF = ("input_info", "bootstrapNAS", "compression")
# Heads that write over the whole vocabulary, for which no encoder is used in a task.
_PRETRAINING = ("ForPreTraining", "ForMaskedLM")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")


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


def add_model_class(parser: argparse.ArgumentParser) -> None:
    """Add the flag that [`build_counted`] reads."""
    parser.add_argument(
        "--model_class",
        help="Class whose operations are counted, with its head, such as BertForSequenceClassification; by default "
        "the one that an NNCF configuration names, or else the one that config.json states.",
    )


def build_counted(name_or_path: str, given: str | None, of_config: str | None = None) -> PreTrainedModel:
    """The model whose operations are counted, on the meta device.

    Args:
        name_or_path: folder or Hub name.
        given: its class, as asked for.
        of_config: its class, as a configuration names it.

    Raises:
        ValueError: if there is no model, or the class asked for is of another family.
    """
    model = build_without_weights(name_or_path, given or of_config)
    found = type(model).__name__
    if given is not None and found != given:
        raise ValueError(
            f"--model_class is {given!r}, which transformers has not for the {model.config.model_type} model "
            f"{name_or_path!r}; give one such as {found}."
        )
    if given is None and found.endswith(_PRETRAINING):
        logger.warning(
            "Counted is a %s, as %s states, with the head of the pretraining; give --model_class to count the model "
            "of a task.", found, name_or_path,
        )  # fmt: skip
    return model


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
