"""The flags of `hf-nas search`, and which of them are refused before anything is loaded."""

import argparse
from pathlib import Path

from hf_nas.cli.flags import check_numbers
from hf_nas.cli.text_data import TASKS
from hf_nas.cli.text_metrics import METRICS
from hf_nas.search import get_search_method, known_objectives


__all__ = ["add_arguments", "check_arguments", "output_folder"]

_STANDARD_NAS_ONLY = "moasha"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="Folder of a super-network that run_glue.py trained.")
    parser.add_argument(
        "--output_dir",
        help="Where search/ and extracted/ are written; by default CHECKPOINT. The same command again continues.",
    )
    _add_data(parser.add_argument_group("data"))
    _add_method(parser.add_argument_group("search"))
    _add_limits(parser.add_argument_group("limits, of the search and of the sub-network that is handed over"))
    parser.add_argument("--batch_size", type=int, default=64, help="Texts of a forward pass.")
    parser.add_argument("--device", help="Where to compute, e.g. cpu or cuda; by default a GPU if there is one.")
    parser.add_argument("--precision", choices=("bf16", "fp16"), help="Compute in this precision; by default float32.")
    parser.add_argument(
        "--published_json", action="store_true", help="Write search/results_TASK.json in the published format too."
    )


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        required=True,
        help="CSV, JSON or Parquet file with labelled texts that the model was not trained on, or a folder with one "
        "for each split, e.g. train.parquet and validation.parquet.",
    )
    group.add_argument(
        "--split",
        help="The split in that folder to compare on. selection, the default for a model of run_glue.py, is the part "
        "of the training set that was held out of its training.",
    )
    group.add_argument("--report_data", help="File to measure the front on; by default the folder's validation split.")
    group.add_argument("--task_name", choices=sorted(TASKS), help="Task of the data; by default that of the training.")
    group.add_argument("--text_columns", nargs="+", metavar="COLUMN", help="The one or two columns with texts.")
    group.add_argument("--label_column", default="label", help="The column with labels.")
    group.add_argument("--metric", choices=list(METRICS), help="By which to compare; by default that of the task.")
    group.add_argument(
        "--max_samples",
        type=int,
        help="Compare on the first so many texts; by default all, and 2048 of a part of the training set.",
    )
    group.add_argument("--max_length", type=int, help="Tokens of a text; by default as in the training, or 128.")


def _add_method(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--search_space",
        help="small, medium, layer, large, or a JSON file; by default that of the training, or small.",
    )
    group.add_argument(
        "--search_strategy",
        default="model_based",
        help="model_based, random_search, local_search, morea, nsga2, ehvi or additive.",
    )
    group.add_argument("--num_samples", type=int, help="Sub-networks to evaluate; 100, unless --max_seconds is given.")
    group.add_argument("--max_seconds", type=float, help="Begin no evaluation after so many seconds of them.")
    group.add_argument(
        "--search_objectives",
        nargs="+",
        default=["error", "params"],
        metavar="OBJECTIVE",
        help=f"error and one or more of {', '.join(name for name in known_objectives() if name != 'error')}.",
    )
    group.add_argument(
        "--latency_batch_size", type=int, default=1, help="Texts of a pass whose latency and memory are meant."
    )
    group.add_argument(
        "--search_storage",
        help="File or database URL, such as postgresql://USER@HOST/NAME, in which the search is recorded and which "
        "several processes may share; by default search/journal.log in the output folder.",
    )
    group.add_argument(
        "--race", action="store_true", help="Give up sub-networks early that hardly reach the front (by accuracy)."
    )
    group.add_argument("--seed", type=int, default=0, help="Of the search.")


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max_params_ratio", type=float, help="At most this share of the parameters of the layers.")
    group.add_argument("--max_macs_ratio", type=float, help="At most this share of the operations.")
    group.add_argument("--max_latency_ratio", type=float, help="At most this share of the latency.")
    group.add_argument("--min_metric", type=float, help="Hand over the smallest one with at least this metric.")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse before anything is loaded.

    Raises:
        ValueError: for numbers out of range, an unknown method, or no place to write to.
    """
    check_numbers(arguments, "batch_size", "latency_batch_size", "max_samples", "max_length", "num_samples")
    for name in ("max_seconds", "max_params_ratio", "max_macs_ratio", "max_latency_ratio"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}; give a number above 0.")
    if arguments.seed < 0:
        raise ValueError(f"--seed is {arguments.seed}; give 0 or more.")
    if arguments.text_columns is not None and len(arguments.text_columns) > 2:
        raise ValueError(f"--text_columns are {', '.join(arguments.text_columns)}; give one or two.")
    if arguments.search_strategy == _STANDARD_NAS_ONLY:
        raise ValueError(
            f"--search_strategy {_STANDARD_NAS_ONLY} stops trainings early and nothing is trained here; use it with "
            "--nas_type standard of run_glue.py, or choose another one."
        )
    get_search_method(arguments.search_strategy, None, None)
    if arguments.output_dir is None and not Path(arguments.checkpoint).is_dir():
        raise ValueError(f"--output_dir is missing, as {arguments.checkpoint!r} is no folder; give one.")


def output_folder(arguments: argparse.Namespace) -> Path:
    """Where everything is written."""
    return Path(arguments.output_dir or arguments.checkpoint)
