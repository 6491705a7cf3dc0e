"""Pairs of texts: where they come from, what they must look like, and what is held out for a search."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Value
from transformers import PreTrainedTokenizerBase

from trainer_plugins.scripts.data import check_not_empty, missing_split, read_splits


logger = logging.getLogger(__name__)

PAIR = "translation"
TEXTS = (Value("string"), Value("large_string"))
IGNORED_LABEL = -100


@dataclass
class TranslationData:
    """The data of a run, checked; columns source and target, both text.

    Args:
        train: the training set, if there is one.
        validation: the validation set.
        test: the set to predict; without target texts it gets translations alone.
    """

    train: Dataset | None = None
    validation: Dataset | None = None
    test: Dataset | None = None


def load_data(
    arguments: Any, needed: Sequence[str], cache_dir: str | None = None, token: str | None = None
) -> TranslationData:
    """Load the data that `arguments` (`DataTrainingArguments`) name, and check what the run needs of them.

    Args:
        arguments: the arguments on data.
        needed: what the run cannot do without, of `"train"`, `"validation"` and `"test"`.
        cache_dir: where data sets are cached; by default where `datasets` does.
        token: Hub token.

    Raises:
        ValueError: if a needed split or language is missing, or a row has no text.
    """
    splits = read_splits(arguments, cache_dir, token)
    data = TranslationData()
    for role in needed:
        if role not in splits:
            raise missing_split(role, splits)
        setattr(data, role, to_pairs(role, splits[role], arguments.source_lang, arguments.target_lang))
    return data


def to_pairs(role: str, dataset: Dataset, source_lang: str, target_lang: str) -> Dataset:
    """A split with the columns source and target and no others; a test set may come without target.

    The two languages are columns, or the two keys of the column `translation`, as in the data sets on the Hub. A code
    with a region (`de_DE`) also finds the language alone.

    Raises:
        ValueError: if a language is missing, is no text, or a row lacks it.
    """
    check_not_empty(role, dataset)
    if PAIR in dataset.column_names:
        feature = dataset.features[PAIR]
        if not isinstance(feature, Mapping) and not hasattr(feature, "languages"):
            raise ValueError(
                f"The column '{PAIR}' of the {role} split does not have the same languages in every row; write "
                f'{{"{source_lang}": "...", "{target_lang}": "..."}} there in each.'
            )
        dataset = dataset.select_columns([PAIR]).flatten()
        dataset = dataset.rename_columns({name: name.removeprefix(f"{PAIR}.") for name in dataset.column_names})
    renamed = {}
    for name, language in (("source", source_lang), ("target", target_lang)):
        found = [each for each in (language, language.split("_")[0]) if each in dataset.column_names]
        if found:
            if found[0] in renamed:
                raise ValueError(
                    f"'{source_lang}' and '{target_lang}' are both the column '{found[0]}' of the {role} split; name "
                    "two languages that it has by --source_lang and --target_lang."
                )
            renamed[found[0]] = name
        elif role != "test" or name == "source":
            raise ValueError(
                f"The {role} split has no language '{language}' but {', '.join(dataset.column_names)}; name languages "
                "that it has by --source_lang and --target_lang."
            )
    for language in renamed:
        if dataset.features[language] not in TEXTS:
            raise ValueError(
                f"'{language}' in the {role} split is {dataset.features[language]} and not text; correct the data."
            )
        missing = pc.is_null(dataset.with_format("arrow")[:][language])
        if pc.any(missing).as_py():
            row = pc.index(missing, True).as_py()
            raise ValueError(f"Row {row} of the {role} split has no text in '{language}'; leave it out.")
        empty = sum(not text.strip() for text in dataset[language][:])
        if empty:
            logger.warning("%d texts of the %s split in '%s' are empty; correct the data.", empty, role, language)
    return dataset.select_columns(list(renamed)).rename_columns(renamed)


def split_selection(train: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split the set on which sub-networks are compared off the training set, the same for the same seed.

    Rows with the same source text stay together, so that no source text of the selection set was trained on; the
    share is met as nearly as that allows.

    Returns:
        the training set without it, and the selection set in random order, so that its first examples are a sample.

    Raises:
        ValueError: if `share` is not between 0 and 1 or leaves one of the two empty.
    """
    names, groups, sizes = np.unique(np.array(train["source"][:]), return_inverse=True, return_counts=True)
    if not 0 < share < 1 or len(names) < 2:
        raise ValueError(
            f"--selection_split {share} of {len(train)} training examples with {len(names)} different source texts "
            "leaves one part empty; give a share between 0 and 1, 0.3 for example, and enough examples."
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(names))
    # The number of source texts whose rows come nearest to the share, one at least on either side.
    count = 1 + int(np.abs(np.cumsum(sizes[order])[:-1] - share * len(train)).argmin())
    is_held_out = np.isin(groups, order[:count])
    logger.info("Held out %d of %d training examples.", is_held_out.sum(), len(train))
    return train.select(np.flatnonzero(~is_held_out)), train.select(generator.permutation(np.flatnonzero(is_held_out)))


def encode(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_source_length: int,
    max_target_length: int,
    source_prefix: str = "",
    pad_to_max_length: bool = False,
    ignore_padding: bool = True,
    **options: Any,
) -> Dataset:
    """Turn pairs of texts into what an encoder-decoder reads and its labels.

    Args:
        dataset: with the column source and perhaps target.
        tokenizer: of both languages.
        max_source_length: longest source text in tokens.
        max_target_length: longest target text in tokens.
        source_prefix: put before every source text.
        pad_to_max_length: pad to these lengths; else not at all (the collator does).
        ignore_padding: whether that padding does not count in the loss.
        options: of `Dataset.map`.
    """
    padding = "max_length" if pad_to_max_length else False

    def prepare(examples: Mapping[str, list]) -> Mapping[str, list]:
        texts = [source_prefix + text for text in examples["source"]]
        inputs = tokenizer(texts, max_length=max_source_length, padding=padding, truncation=True)
        if "target" in examples:
            targets = tokenizer(
                text_target=examples["target"], max_length=max_target_length, padding=padding, truncation=True
            )["input_ids"]
            if pad_to_max_length and ignore_padding:
                pad = tokenizer.pad_token_id
                targets = [[IGNORED_LABEL if token == pad else token for token in row] for row in targets]
            inputs["labels"] = targets
        return inputs

    return dataset.map(prepare, batched=True, remove_columns=dataset.column_names, **options)
