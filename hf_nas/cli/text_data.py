"""Which labelled texts `hf-nas search` compares sub-networks on, and which it reports on."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

from hf_nas.run_files import RUN_FILE, record_folder


__all__ = ["TASKS", "Splits", "Task", "load_splits", "read_record"]

logger = logging.getLogger(__name__)

SELECTION = "selection"
_FILE_TYPES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_TRAINING_RESULTS = "train_results.json"
# As many of the split-off set as run_glue.py uses unless told otherwise.
_MOST_OF_SELECTION = 2048


@dataclass(frozen=True)
class Task:
    """What is known of a task by its name.

    Args:
        columns: the one or two text columns.
        labels: names of the labels in the order of their numbers; none in a regression.
        metric: by which sub-networks are compared.
        validation: names of the splits that no training uses.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str = "accuracy"
    validation: tuple[str, ...] = ("validation",)


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), "matthews_correlation"),
    "imdb": Task(("text",), ("neg", "pos"), validation=("test",)),
    "mnli": Task(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        validation=("validation_matched", "validation_mismatched"),
    ),
    "mrpc": Task(_PAIR, ("not_equivalent", "equivalent"), "f1"),
    "qnli": Task(("question", "sentence"), _ENTAILMENT),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), "f1"),
    "rte": Task(_PAIR, _ENTAILMENT),
    "sst2": Task(("sentence",), ("negative", "positive")),
    "stsb": Task(_PAIR, (), "spearmanr"),
    "wnli": Task(_PAIR, ("not_entailment", "entailment")),
}


@dataclass(frozen=True)
class Splits:
    """The data of a search.

    Args:
        selection: on which sub-networks are compared.
        reports: by name, data that play no part in the search, on which the front is measured.
    """

    selection: Dataset
    reports: Mapping[str, Dataset] = field(default_factory=dict)


def read_record(checkpoint: str | Path) -> dict[str, Any] | None:
    """What `run_glue.py` and `run_qa.py` recorded about the training of a model, in its folder or the one above.

    Args:
        checkpoint: folder of the model.

    Returns:
        The arguments that the weights depend on and, where it is recorded, `train_samples`; None without a record.

    Raises:
        ValueError: if the file is damaged.
    """
    folder = record_folder(checkpoint)
    if folder is None:
        return None
    path, results = folder / RUN_FILE, folder / _TRAINING_RESULTS
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8"))["arguments"])
        trained_on = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The record {str(path)!r} is damaged ({error}); restore it or delete it.") from error
    return {**record, "train_samples": trained_on.get("train_samples")}


def load_splits(
    data: str | Path,
    split: str | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    task_name: str | None = None,
    report_data: str | Path | None = None,
    max_samples: int | None = None,
) -> Splits:
    """The rows to compare sub-networks on, and those to report on.

    Args:
        data: a CSV, JSON (lines) or Parquet file, or a folder with one for each split.
        split: name of the split in the folder; `"selection"` is the part of the training set that was held out of the
            training, as the record says. By default that, where there is such a record and data hold the training
            set, and else the whole file.
        record: of the training, see [`read_record`].
        task_name: of the data, one of [`TASKS`].
        report_data: file to report on; by default the validation splits of the folder.
        max_samples: at most so many rows are compared on; by default 2048 of a held-out part and all of another file.

    Raises:
        ValueError: if files are missing or unreadable, or nothing says which rows the model was not trained on.
    """
    data = Path(data)
    files = _split_files(data)
    split = split if split is not None else _default_split(data, files, record)
    path = files.get("train" if split == SELECTION else split)
    if path is None:
        raise ValueError(
            f"--split {split!r} is not in {str(data)!r}, which has {', '.join(files)}; choose one of them."
        )
    if split == SELECTION:
        selection = _held_out(_read_file(path), str(path), record, task_name)
        max_samples = _MOST_OF_SELECTION if max_samples is None else max_samples
    else:
        if split == "train":
            _warn_of_training_data(path, record)
        selection = _read_file(path)
    if max_samples is not None:
        selection = selection.select(range(min(max_samples, len(selection))))
    if report_data is not None:
        return Splits(selection, {Path(report_data).stem: _read_file(Path(report_data))})
    validation = TASKS[task_name].validation if task_name is not None else ("validation",)
    names = [name for name in validation if data.is_dir() and name in files and name != split]
    return Splits(selection, {name: _read_file(files[name]) for name in names})


def _split_files(data: Path) -> dict[str, Path]:
    """The file of each split: of a folder those with a known ending, else the file itself under the name `data`."""
    if data.is_dir():
        files = {path.stem: path for path in sorted(data.iterdir()) if path.suffix.lower() in _FILE_TYPES}
        if not files:
            raise ValueError(f"--data {str(data)!r} holds no {', '.join(_FILE_TYPES)} file; give a folder that does.")
        return files
    if not data.is_file():
        raise ValueError(f"--data {str(data)!r} does not exist; give a file or a folder.")
    return {"data": data, "train": data}


def _default_split(data: Path, files: Mapping[str, Path], record: Mapping[str, Any] | None) -> str:
    recorded = record or {}
    train_file = recorded.get("train_file")
    is_training_data = data.is_dir() or (train_file is not None and Path(train_file).resolve() == data.resolve())
    if "selection_split" in recorded and "train" in files and is_training_data:
        logger.info("Compared are the examples that were held out of the training, as its record says.")
        return SELECTION
    if data.is_dir():
        raise ValueError(
            f"Nothing says which examples of the splits {', '.join(files)} in {str(data)!r} the model was not trained "
            "on; add --split with one of them."
        )
    return "data"


def _held_out(train: Dataset, where: str, record: Mapping[str, Any] | None, task_name: str | None) -> Dataset:
    """The part of the training set that the training left out, split off as run_glue.py did."""
    if record is None or "selection_split" not in record:
        raise ValueError(
            "The model has no record (run.json) of a selection set held out of its training; give a file that it was "
            "not trained on, or the --split of one."
        )
    if record.get("demo") or record.get("task_name") != task_name:
        trained = "the data of --demo" if record.get("demo") else f"the task {record.get('task_name')!r}"
        raise ValueError(
            f"The model was trained on {trained} and the data are of {task_name!r}, so that no part of theirs "
            "was held out; give the data of the training, or the --split of others."
        )
    share = record["selection_split"]
    try:
        parts = train.train_test_split(train_size=1 - share, seed=record["dataset_seed"])
    except ValueError as error:
        raise ValueError(f"{where} has {len(train)} rows, of which {share} cannot be held out ({error}).") from error
    trained, limit = record.get("train_samples"), record.get("max_train_samples")
    expected = len(parts["train"]) if limit is None else min(limit, len(parts["train"]))
    if trained is not None and trained != expected:
        raise ValueError(
            f"The model was trained on {trained} examples, but of {where} it would have been {expected}, so that the "
            "held-out part is not known; give the data of the training, or the --split of others."
        )
    return parts["test"]


def _warn_of_training_data(path: Path, record: Mapping[str, Any] | None) -> None:
    if record is not None:
        raise ValueError(
            f"The model was trained on {str(path)!r}, where its sub-networks cannot be compared; take --split "
            f"{SELECTION} or another one."
        )
    logger.warning("Sub-networks are compared on %s; if the model was trained on it, the results deceive.", path)


def _read_file(path: Path) -> Dataset:
    if path.suffix.lower() not in _FILE_TYPES:
        raise ValueError(f"{str(path)!r} is none of {', '.join(_FILE_TYPES)}; convert it to one of them.")
    if not path.is_file():
        raise ValueError(f"{str(path)!r} does not exist; give the path of a file.")
    kind = _FILE_TYPES[path.suffix.lower()]
    # A text that reads "null" or "NA" is a text.
    options = {"keep_default_na": False} if kind == "csv" else {}
    try:
        dataset = load_dataset(kind, data_files={"train": str(path)}, split="train", **options)
    except (DatasetsError, ValueError, OSError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()
        raise ValueError(
            f"{str(path)!r} has no rows or is no readable {kind} file ({cause[0] if cause else 'damaged'})."
        ) from error
    if len(dataset) == 0:
        raise ValueError(f"{str(path)!r} has no rows; give a file that does.")
    return dataset
