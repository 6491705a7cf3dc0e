"""Labelled texts as rows of tokens, with the labels as a model numbers them."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


__all__ = ["TextColumns", "check_tokens", "token_limit", "tokenize"]

logger = logging.getLogger(__name__)

_PAIR = ("sentence1", "sentence2")
_BATCH = 1000


@dataclass(frozen=True)
class TextColumns:
    """Which columns hold texts and labels.

    Args:
        texts: the one or two text columns; None: `sentence1` and `sentence2`, or the first two with texts.
        label: the label column.
        names: of the labels, where files may have their numbers alone.
    """

    texts: tuple[str, ...] | None = None
    label: str = "label"
    names: tuple[str, ...] = ()

    def of(self, dataset: Dataset, where: str) -> tuple[str, ...]:
        """The text columns of a data set.

        Raises:
            ValueError: if one of them or the label column is missing, or holds something else than texts.
        """
        texts = self.texts
        if texts is None:
            found = [name for name, kind in dataset.features.items() if _is_text(kind) and name != self.label]
            texts = _PAIR if set(_PAIR) <= set(found) else tuple(found[:2])
        has = f"it has {', '.join(dataset.column_names)}"
        if not texts:
            raise ValueError(f"{where} has no text column besides {self.label!r}; {has}: name one by --text_columns.")
        for name, flag in [*((name, "--text_columns") for name in texts), (self.label, "--label_column")]:
            if name not in dataset.column_names:
                raise ValueError(f"{where} has no column {name!r}; {has}: name another one by {flag}.")
        for name in texts:
            if not _is_text(dataset.features[name]) or dataset.data.column(name).null_count:
                raise ValueError(f"Column {name!r} of {where} does not hold a text in each row; correct the file.")
        return texts


def token_limit(wanted: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The wanted number of tokens, or the most that tokenizer and model can take, if that is less."""
    limit = tokenizer.model_max_length
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # Where padding has a position, the others come after it.
            used = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(limit, module.num_embeddings - used)
    if limit < wanted:
        logger.warning("max_length %d is cut to the model's %d.", wanted, limit)
    return min(wanted, limit)


def check_tokens(rows: Sequence[Mapping[str, Any]], model: PreTrainedModel, source: str) -> None:
    """Refuse rows with tokens that a model has no embedding of.

    Args:
        rows: of tokens.
        model: that is to read them.
        source: folder or name of the model, for the message.

    Raises:
        ValueError: if there is such a token.
    """
    largest = max(max(row["input_ids"]) for row in rows)
    known = model.get_input_embeddings().num_embeddings
    if largest >= known:
        raise ValueError(
            f"The tokenizer makes the token {largest}, and the model has {known}, counted from 0, in {source!r}; use "
            "the tokenizer of its training."
        )


def tokenize(
    dataset: Dataset,
    columns: TextColumns,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    where: str,
) -> list[dict[str, Any]]:
    """Rows of tokens with the label as the model numbers it, not padded.

    Args:
        dataset: with texts and labels.
        columns: where these are.
        config: of the model.
        tokenizer: of the model.
        max_length: longer inputs are cut.
        where: name of the data set for messages.

    Raises:
        ValueError: if a column is missing or a label is not one of the model's.
    """
    texts = columns.of(dataset, where)
    labels = _labels(dataset, columns, config, where)
    logger.info("The texts of %s are in %s.", where, " and ".join(texts))
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(dataset), desc="Tokenizing", unit="row") as bar:
        for start in range(0, len(dataset), _BATCH):
            batch = dataset[start : start + _BATCH]
            inputs = tokenizer(*(batch[name] for name in texts), max_length=max_length, truncation=True)
            count = len(inputs["input_ids"])
            rows += [{**{name: inputs[name][i] for name in inputs}, "label": labels[start + i]} for i in range(count)]
            bar.update(count)
    return rows


def _labels(dataset: Dataset, columns: TextColumns, config: PreTrainedConfig, where: str) -> list[int] | list[float]:
    kind = dataset.features[columns.label]
    values = [value if isinstance(value, str | int | float) else None for value in dataset[columns.label][:]]
    if config.num_labels == 1:
        labels, allowed = _values(values), "numbers"
    else:
        names = tuple(kind.names) if isinstance(kind, ClassLabel) else columns.names
        labels, allowed = _numbers(values, names, config)
    if None in labels:
        row = labels.index(None)
        raise ValueError(
            f"Row {row} of {where} has the label {values[row]!r}; the model knows {allowed}: correct or drop the row."
        )
    return labels


def _values(values: Sequence[Any]) -> list[float | None]:
    numbers = [isinstance(value, int | float) and not math.isnan(value) for value in values]
    return [float(value) if is_number else None for value, is_number in zip(values, numbers)]


def _numbers(values: Sequence[Any], names: Sequence[str], config: PreTrainedConfig) -> tuple[list[int | None], str]:
    """The model's number of each label, by its name where the model knows that, and what labels there are."""
    known = {str(name).lower(): int(number) for number, name in config.id2label.items()}

    def name_of(value: Any) -> str:
        is_number = isinstance(value, int) and 0 <= value < len(names)
        return (names[value] if is_number else str(value)).lower()

    by_name = {value: None if value is None else known.get(name_of(value)) for value in set(values)}
    if any(number is not None for number in by_name.values()):
        return [by_name[value] for value in values], ", ".join(config.id2label.values())
    numbers = [int(value) if isinstance(value, int) and 0 <= value < config.num_labels else None for value in values]
    return numbers, f"0 to {config.num_labels - 1} and the names {', '.join(config.id2label.values())}"


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string")
