"""The batches of a task that `hf-nas evaluate` reads, and the metrics on them."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from tqdm.auto import tqdm
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_nas.cli.speed import accepted_inputs
from hf_nas.cli.text_data import TASKS, Task, load_splits
from hf_nas.cli.text_metrics import get_metric, positive_number
from hf_nas.cli.text_rows import TextColumns, tokenize
from hf_nas.profiling.latency import evaluation_mode


__all__ = ["Batches", "load_batches", "metrics_of", "read_labels"]

logger = logging.getLogger(__name__)

# Where GLUE reports two; of the other tasks it is the one they are compared by.
_METRICS = {"mrpc": ("accuracy", "f1"), "qqp": ("accuracy", "f1"), "stsb": ("pearson", "spearmanr")}
# Names that say nothing: what transformers calls labels by itself, or their numbers.
_NO_NAME = re.compile(r"(label_)?\d+", re.IGNORECASE)
_ON_HUB = {"imdb": ("stanfordnlp/imdb",)}


@dataclass(frozen=True)
class Batches:
    """One split of a task.

    Args:
        rows: of tokens with a label, not padded.
        batches: the same in order, padded to one length and without labels; model inputs of shape (examples, tokens).
    """

    rows: Sequence[Mapping[str, Any]]
    batches: Sequence[Mapping[str, torch.Tensor]]


def read_labels(config: PreTrainedConfig, task: Task, name: str, labels: Sequence[str] | None, source: str) -> None:
    """Check that a model has the labels of a task, and take their names where its configuration does not tell them.

    Args:
        config: of the model; given names replace those in it.
        task: with its labels.
        name: of the task.
        labels: names in the order of the model's outputs, or None.
        source: folder or name of the model, for messages.

    Raises:
        ValueError: if there are more or fewer labels, or names that are not the task's.
    """
    count, known = len(task.labels) or 1, ", ".join(task.labels) or "values without names"
    own = [str(config.id2label[number]) for number in sorted(config.id2label)]
    if config.num_labels != count:
        raise ValueError(
            f"{source!r} has {config.num_labels} labels and the task {name!r} has {count} ({known}); give a model "
            "that was trained for this task."
        )
    if labels is not None and not task.labels:
        raise ValueError(f"--labels is {' '.join(labels)} and the task {name!r} has {known}; leave it out.")
    if labels is not None:
        if sorted(label.lower() for label in labels) != sorted(task.labels):
            raise ValueError(f"--labels is {' '.join(labels)}; give each label of {name!r} once: {known}.")
        config.id2label = dict(enumerate(labels))
    elif task.labels and all(map(_NO_NAME.fullmatch, own)):
        logger.warning(
            "%s does not name its labels, so that they are taken in the order %s; if it has another one, the metrics "
            "are wrong: give it by --labels.",
            source,
            known,
        )
    elif task.labels and sorted(label.lower() for label in own) != sorted(task.labels):
        raise ValueError(
            f"{source!r} has the labels {', '.join(own)} and the task {name!r} has {known}; give a model that was "
            "trained for this task, or say by --labels which of them its outputs are."
        )


def load_batches(
    task_name: str,
    data: str | None,
    split: str | None,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    length: int,
) -> dict[str, Batches]:
    """The batches of each split that is evaluated on, by its name.

    Args:
        task_name: one of [`TASKS`].
        data: folder or file; None: the data set on the Hub.
        split: of the folder; None: the validation splits of the task.
        config: of the model, with its labels.
        tokenizer: of the model.
        batch_size: examples of a batch.
        length: tokens that each row is cut or padded to.

    Raises:
        ValueError: if data are missing or cannot be read, or do not fit task and model.
    """
    task = TASKS[task_name]
    columns = TextColumns(task.columns, names=task.labels)
    collate = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=length)
    found = {}
    for name, dataset in _splits(task_name, data, split).items():
        if missing := [column for column in (*task.columns, columns.label) if column not in dataset.column_names]:
            raise ValueError(
                f"The split {name!r} has no column {missing[0]!r} but {', '.join(dataset.column_names)}; give data of "
                f"the task {task_name!r}."
            )
        rows = tokenize(dataset, columns, config, tokenizer, length, f"the split {name!r}")
        inputs = [{key: value for key, value in row.items() if key != "label"} for row in rows]
        starts = range(0, len(rows), batch_size)
        found[name] = Batches(rows, [dict(collate(inputs[start : start + batch_size])) for start in starts])
    return found


def metrics_of(model: PreTrainedModel, task_name: str, task: Task, data: Batches, split: str) -> dict[str, float]:
    """The metrics of a model on one split, by name.

    Args:
        model: with the labels of the task.
        task_name: of the task.
        task: the task.
        data: of the split.
        split: its name.
    """
    pick = accepted_inputs(model)
    logits = []
    with evaluation_mode(model), torch.inference_mode():
        for batch in tqdm(data.batches, desc=f"Evaluating on {split}", unit="batch"):
            logits.append(model(**pick(batch)).logits.float().cpu().numpy())
    labels = np.array([row["label"] for row in data.rows])
    prediction = EvalPrediction(np.concatenate(logits), labels)
    found: dict[str, float] = {}
    for name in _METRICS.get(task_name, (task.metric,)):
        positive = positive_number(model.config, task.labels)
        found.update(get_metric(name, model.config.num_labels, positive)(prediction))
    return found


def _splits(task_name: str, data: str | None, split: str | None) -> dict[str, Dataset]:
    names = TASKS[task_name].validation
    if data is None:
        return {name: _from_hub(task_name, name) for name in names}
    path = Path(data)
    if split is not None or not path.is_dir():
        return {split or path.stem: load_splits(path, split, task_name=task_name).selection}
    present = {each.stem for each in path.iterdir()}
    first = next((name for name in names if name in present), names[0])
    splits = load_splits(path, first, task_name=task_name)
    return {first: splits.selection, **splits.reports}


def _from_hub(task_name: str, split: str) -> Dataset:
    place = _ON_HUB.get(task_name, ("nyu-mll/glue", task_name))
    try:
        return load_dataset(*place, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ValueError(
            f"The data of {task_name!r} cannot be read from the Hub ({reason}); give a folder by --data_dir."
        ) from error
