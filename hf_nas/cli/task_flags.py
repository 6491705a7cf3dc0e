"""The flags of the commands that compute metrics and measure speed on the texts of a task."""

import argparse
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_nas.cli.evaluate_data import Batches, load_batches
from hf_nas.cli.flags import check_numbers
from hf_nas.cli.text_data import TASKS
from hf_nas.cli.text_rows import check_tokens


__all__ = ["add_data_flags", "add_measuring_flags", "batches_of", "check_task_flags", "task_of"]

_NUMBERS = ("batch_size", "max_length", "passes", "timed_batches", "threads")


def add_data_flags(group: argparse._ArgumentGroup) -> None:
    """Add those that say on what is evaluated."""
    group.add_argument(
        "--data_dir",
        "--data",
        metavar="FOLDER",
        help="Evaluate on this folder with a file for each split, e.g. validation.parquet, or on one file.",
    )
    group.add_argument("--split", help="The split to evaluate on; by default the validation splits of the task.")
    group.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME",
        help="Names of the model's labels in the order of its outputs, where its configuration does not tell them.",
    )


def add_measuring_flags(parser: argparse.ArgumentParser, batch_size: int, timed_batches: int | None) -> None:
    """Add those that say how it is measured, with the defaults of the command (None: all batches)."""
    parser.add_argument("--batch_size", type=int, default=batch_size, help="Texts of a forward pass.")
    parser.add_argument("--max_length", type=int, default=128, help="Tokens that each text is cut or padded to.")
    parser.add_argument("--passes", type=int, default=5, help="Measurements of each batch, whose median counts.")
    parser.add_argument(
        "--timed_batches",
        type=int,
        default=timed_batches,
        help=f"Measure so many batches at most; by default {timed_batches or 'all'}.",
    )
    parser.add_argument("--threads", type=int, help="Threads on a CPU; by default those of PyTorch.")
    parser.add_argument("--json", metavar="FILE", help="Write the results to this file too.")


def check_task_flags(arguments: argparse.Namespace) -> None:
    """Refuse what both functions above added, before anything is loaded.

    Raises:
        ValueError: for a number out of range, a file of results that is a folder, or a split without data.
    """
    check_numbers(arguments, *_NUMBERS)
    if arguments.json is not None and Path(arguments.json).is_dir():
        raise ValueError(f"--json {arguments.json!r} is a folder; give the path of a file.")
    if arguments.split is not None and arguments.data_dir is None:
        raise ValueError(f"--split {arguments.split!r} is of no folder; add --data_dir with the one it is in.")


def task_of(given: str) -> str:
    """The name of a task in our spelling.

    Raises:
        ValueError: if it is not known.
    """
    name = given.lower().replace("-", "")
    if name not in TASKS:
        raise ValueError(f"There is no task {given!r}; choose from {', '.join(TASKS)}.")
    return name


def batches_of(
    arguments: argparse.Namespace, task: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int
) -> dict[str, Batches]:
    """The batches of each split that the flags name, whose tokens the model has.

    Args:
        arguments: of the command.
        task: name of the task.
        model: that is evaluated, with its labels.
        tokenizer: of the model.
        length: tokens that each text is cut or padded to.

    Raises:
        ValueError: if data are missing or cannot be read, or do not fit task and model.
    """
    found = load_batches(
        task, arguments.data_dir, arguments.split, model.config, tokenizer, arguments.batch_size, length
    )
    for each in found.values():
        check_tokens(each.rows, model, arguments.model)
    return found
