"""Text-classification data: where they come from, what they must look like, and how they are prepared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from trainer_plugins.scripts.data import ROLES, check_not_empty, files_in, missing_split, read_table


SENTENCES = ("sentence1", "sentence2")


@dataclass(frozen=True)
class Task:
    """What is known of a task by its name.

    Args:
        columns: the one or two text columns.
        labels: names of the labels in order; none for a regression.
        search_metric: the metric that a search compares sub-networks by.
        hub: name and configuration of the data set on the Hub.
        validation: splits that it is evaluated on.
        test: splits without labels.
        metric: folder of the metric in `metrics/`.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    search_metric: str
    hub: tuple[str, str | None]
    validation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)
    metric: str = "glue"


def glue_task(name: str, columns: tuple[str, ...], labels: tuple[str, ...], metric: str = "accuracy", **other) -> Task:
    """A task of the GLUE benchmark."""
    return Task(columns, labels, metric, hub=("nyu-mll/glue", name), **other)


# In GLUE these come in pairs, with their mean.
PAIRED = {"f1": "accuracy", "spearmanr": "pearson"}
ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": glue_task("cola", ("sentence",), ("unacceptable", "acceptable"), "matthews_correlation"),
    "mnli": glue_task(
        "mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        validation=("validation_matched", "validation_mismatched"),
        test=("test_matched", "test_mismatched"),
    ),
    "mrpc": glue_task("mrpc", SENTENCES, ("not_equivalent", "equivalent"), "f1"),
    "qnli": glue_task("qnli", ("question", "sentence"), ENTAILMENT),
    "qqp": glue_task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), "f1"),
    "rte": glue_task("rte", SENTENCES, ENTAILMENT),
    "sst2": glue_task("sst2", ("sentence",), ("negative", "positive")),
    "stsb": glue_task("stsb", SENTENCES, (), "spearmanr"),
    "wnli": glue_task("wnli", SENTENCES, ("not_entailment", "entailment")),
    # The test set has labels and there is no other one.
    "imdb": Task(
        ("text",),
        ("neg", "pos"),
        "accuracy",
        ("stanfordnlp/imdb", None),
        validation=("test",),
        test=(),
        metric="accuracy",
    ),
}


@dataclass
class TextData:
    """The data of a run, checked; the column `label` holds numbers from 0, or floats in a regression.

    Args:
        columns: the one or two text columns.
        labels: names of the labels in order; none for a regression.
        metric: folder of the metric in `metrics/`.
        search_metric: the metric that a search compares sub-networks by.
        train: the training set, if there is one.
        validation: the validation sets; more than one for MNLI.
        test: the sets to predict, without labels.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    search_metric: str
    train: Dataset | None = None
    validation: dict[str, Dataset] = field(default_factory=dict)
    test: dict[str, Dataset] = field(default_factory=dict)

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def greater_is_better(self) -> bool:
        return self.search_metric != "mse"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """All that the metric of the task gives."""
        other = PAIRED.get(self.search_metric)
        return (self.search_metric, other, "combined_score") if other else (self.search_metric,)


def load_data(
    arguments: Any, needed: Sequence[str], cache_dir: str | None = None, token: str | None = None
) -> TextData:
    """Load the data that `arguments` (`DataTrainingArguments`) name, and check what the run needs of them.

    Args:
        arguments: the arguments on data.
        needed: what the run cannot do without, of `"train"`, `"validation"` and `"test"`.
        cache_dir: where data sets are cached; by default where `datasets` does.
        token: Hub token.

    Raises:
        ValueError: if a needed split or column is missing, or labels are not what they should be.
    """
    task = TASKS[arguments.task_name] if arguments.task_name else None
    names = {
        "train": ("train",),
        "validation": task.validation if task else ("validation",),
        "test": task.test if task else ("test",),
    }
    splits = read_splits(arguments, task, names, cache_dir, token)
    # Own data say in their training set which labels there are.
    for role in needed if task else ("train", *needed):
        if not any(name in splits for name in names[role]):
            raise missing_split(role, splits, " or ".join(names[role]) or "unlabelled test")
    columns = task.columns if task else find_text_columns(splits["train"])
    labels = task.labels if task else find_labels(splits["train"])
    own_metric = "accuracy" if labels else "mse"
    data = TextData(columns, labels, task.metric if task else own_metric, task.search_metric if task else own_metric)
    if "train" in needed:
        data.train = check_split("train", splits["train"], columns, labels)
    if "validation" in needed:
        present = [name for name in names["validation"] if name in splits]
        data.validation = {name: check_split(name, splits[name], columns, labels) for name in present}
    if "test" in needed:
        present = [name for name in names["test"] if name in splits]
        data.test = {name: check_split(name, splits[name], columns) for name in present}
    return data


def read_splits(
    arguments: Any,
    task: Task | None,
    names: Mapping[str, Sequence[str]],
    cache_dir: str | None = None,
    token: str | None = None,
) -> dict[str, Dataset]:
    """All splits that there are, as they are."""
    if arguments.demo:
        from demo import demo_data

        return demo_data()
    files = {}
    if arguments.data_dir is not None:
        files = files_in(arguments.data_dir, [name for role in names.values() for name in role])
    for role in ROLES:
        path = getattr(arguments, f"{role}_file")
        if path is not None:
            files[names[role][0] if names[role] else role] = Path(path)
    if files:
        return {name: read_table(path, cache_dir) for name, path in files.items()}
    hub = (arguments.dataset_name, arguments.dataset_config_name) if task is None else task.hub
    return dict(load_dataset(*hub, cache_dir=cache_dir, token=token))


def find_text_columns(dataset: Dataset) -> tuple[str, ...]:
    """The one or two text columns of own data: sentence1 and sentence2, or else the first two (or the only one)."""
    columns = [name for name, kind in dataset.features.items() if name != "label" and is_text(kind)]
    if not columns:
        raise ValueError(
            f"The train split has no text column besides 'label', only {', '.join(dataset.column_names)}; it needs "
            "one or two, for example 'sentence1' and 'sentence2'."
        )
    return SENTENCES if set(SENTENCES) <= set(columns) else tuple(columns[:2])


def find_labels(dataset: Dataset) -> tuple[str, ...]:
    """Names of the labels of own data: those of its label column, or else its sorted values; none if it is floats."""
    check_columns("train", dataset, ("label",))
    kind = dataset.features["label"]
    if isinstance(kind, ClassLabel):
        return tuple(kind.names)
    if kind.dtype in ("float16", "float32", "float64"):
        return ()
    values = set(dataset.unique("label")) - {None, "", -1}
    if len(values) < 2:
        raise ValueError(
            f"The train split has labels of {len(values)} kind, a classification needs 2; add examples of another, or "
            "write labels as floats for a regression."
        )
    return tuple(str(value) for value in sorted(values))


def is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string")


def check_columns(split: str, dataset: Dataset, columns: Sequence[str]) -> None:
    """Refuse a split without one of these columns."""
    missing = [name for name in columns if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The {split} split has no column '{missing[0]}'; it has {', '.join(dataset.column_names)} and needs "
            f"{', '.join(columns)}: rename its columns."
        )


def check_split(split: str, dataset: Dataset, columns: Sequence[str], labels: Sequence[str] | None = None) -> Dataset:
    """A split reduced to its text columns and, if `labels` are given, checked labels from 0 (no names: floats)."""
    wanted = list(columns) if labels is None else [*columns, "label"]
    check_columns(split, dataset, wanted)
    check_not_empty(split, dataset)
    for name in columns:
        if not is_text(dataset.features[name]) or dataset.data.column(name).null_count:
            found = "empty rows" if is_text(dataset.features[name]) else f"values of type {dataset.features[name]}"
            raise ValueError(f"Column '{name}' of the {split} split has {found}; it needs a text in each row.")
    dataset = dataset.select_columns(wanted)
    return dataset if labels is None else encode_labels(split, dataset, labels)


def encode_labels(split: str, dataset: Dataset, labels: Sequence[str]) -> Dataset:
    """The data set with labels as numbers from 0 in the order of `labels`, or as floats without `labels`.

    Raises:
        ValueError: for a label that is missing, -1 (the mark of a row without one) or none of `labels`.
    """
    kind = dataset.features["label"]
    values = dataset["label"][:]
    if labels:
        feature = ClassLabel(names=list(labels))
        numbers, allowed = label_numbers(kind, values, labels)
        encoded = [numbers.get(value) for value in values]
    else:
        feature, allowed = Value("float32"), "numbers"
        unlabelled = set(values) == {-1}
        encoded = [None if unlabelled or not is_number(value) else float(value) for value in values]
    if None in encoded:
        row = encoded.index(None)
        found = "no label" if values[row] in (None, "") else f"label {values[row]!r}"
        hint = ", the mark of rows without one" if values[row] == -1 else ""
        raise ValueError(
            f"Row {row} of the {split} split has {found}{hint}; labels are {allowed}: correct the row or leave it out."
        )
    features = Features({**dataset.features, "label": feature})
    return dataset.remove_columns("label").add_column("label", encoded).cast(features)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def label_numbers(kind: Any, values: Sequence[Any], labels: Sequence[str]) -> tuple[dict[Any, int], str]:
    """The number of each value that a label column may have, and those values in words."""
    names = ", ".join(labels)
    if isinstance(kind, ClassLabel) and set(kind.names) == set(labels):
        return {index: labels.index(name) for index, name in enumerate(kind.names)}, names
    by_name = {value: labels.index(str(value)) for value in set(values) if str(value) in labels}
    # Files for a task by name may have either names or numbers.
    if by_name or is_text(kind):
        return by_name, names
    return {index: index for index in range(len(labels))}, f"0 to {len(labels) - 1} ({names})"


def split_selection(train: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split the set on which sub-networks are compared off the training set, the same for the same seed.

    Returns:
        the training set without it, and the selection set in random order, so that its first examples are a sample.

    Raises:
        ValueError: if `share` is not between 0 and 1 or leaves one of the two empty.
    """
    if not 0 < share < 1 or not 0 < math.floor((1 - share) * len(train)) < len(train):
        raise ValueError(
            f"--selection_split {share} of {len(train)} training examples leaves one part empty; give a share between "
            "0 and 1, 0.3 for example, and enough examples."
        )
    parts = train.train_test_split(train_size=1 - share, seed=seed)
    return parts["train"], parts["test"]


def tokenize(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[str],
    max_length: int,
    pad_to_max_length: bool,
    label_order: Sequence[int] | None = None,
    overwrite_cache: bool = False,
) -> Dataset:
    """Turn the text columns into model inputs.

    Args:
        dataset: with text columns and perhaps `label`.
        tokenizer: the tokenizer.
        columns: the one or two text columns.
        max_length: longer inputs are cut.
        pad_to_max_length: pad all inputs to `max_length`; else not at all (the collator does).
        label_order: the number that the model has for each label, where it differs from ours.
        overwrite_cache: tokenize again instead of using cached results.
    """

    def prepare(examples: Mapping[str, list]) -> Mapping[str, list]:
        texts = [examples[name] for name in columns]
        inputs = tokenizer(
            *texts, padding="max_length" if pad_to_max_length else False, max_length=max_length, truncation=True
        )
        if label_order is not None and "label" in examples:
            inputs["label"] = [label_order[label] for label in examples["label"]]
        return inputs

    return dataset.map(
        prepare,
        batched=True,
        load_from_cache_file=not overwrite_cache,
        desc="Tokenizing",
        remove_columns=list(columns),
    )


def label_order(config: PreTrainedConfig, labels: Sequence[str]) -> list[int] | None:
    """The numbers that an already fine-tuned model has for `labels`; None if it does not know them by name."""
    known = {str(name).lower(): number for name, number in config.label2id.items()}
    if not labels or set(known) != {label.lower() for label in labels}:
        return None
    return [known[label.lower()] for label in labels]
