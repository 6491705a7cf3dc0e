"""`hf-nas compare`: the results of several methods on one task, in one table and one picture."""

import argparse
import glob
import logging
from pathlib import Path

from tqdm.auto import tqdm

from hf_nas.cli.flags import check_numbers
from hf_nas.report import compare_runs, plot_comparison, read_run


__all__ = ["add_parser"]

logger = logging.getLogger(__name__)

_NAME = "comparison"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser(
        "compare",
        help="Draw the results of several methods on one task on one page.",
        description="Read what runs on one task left in their output folders and draw their scores against kept "
        "heads, parameters and operations.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="LABEL=FOLDER",
        help="Output folder of a run, or a pattern in quotes such as 'dsp=runs/mrpc-dsp-*'; folders with the same "
        "label are seeds of one method.",
    )
    parser.add_argument("--metric", help="What to compare by, e.g. accuracy; by default the main metric of the task.")
    parser.add_argument(
        "--sequence_length",
        type=int,
        help="Tokens of a sequence for which operations are counted; by default that of the first run.",
    )
    parser.add_argument(
        "--output_dir",
        default=_NAME,
        help=f"Folder for {_NAME}.png, .csv and .json; by default '{_NAME}'.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: if a folder holds no results, or they cannot be compared.
    """
    check_numbers(arguments, "sequence_length")
    output = Path(arguments.output_dir)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output_dir {arguments.output_dir!r} is a file; give the name of a folder.")
    folders = [pair for given in arguments.runs for pair in _folders(given)]
    found = [read_run(*pair) for pair in tqdm(folders, desc="Reading runs", unit="run", leave=False)]
    comparison = compare_runs(found, metric_name=arguments.metric, sequence_length=arguments.sequence_length)
    comparison.to_csv(output / f"{_NAME}.csv")
    comparison.to_json(output / f"{_NAME}.json")
    plot_comparison(comparison, output / f"{_NAME}.png")
    print(f"{comparison.to_markdown()}\nThe picture is {output / _NAME}.png; its numbers are beside it.")


def _folders(given: str) -> list[tuple[str, Path]]:
    """The folders that an argument names, with their label."""
    label, equals, pattern = given.partition("=")
    if not equals or not label.strip() or not pattern:
        raise ValueError(f"{given!r} is no LABEL=FOLDER; give for example dsp=runs/dsp.")
    if Path(pattern).is_dir():
        return [(label.strip(), Path(pattern))]
    folders = [Path(path) for path in sorted(glob.glob(pattern)) if Path(path).is_dir()]
    if not folders:
        raise ValueError(f"There is no folder {pattern!r} for {label.strip()!r}; give the output folder of a run.")
    return [(label.strip(), folder) for folder in folders]
