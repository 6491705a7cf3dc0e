"""`hf-nas front`: what a search has found, while it runs or after it."""

import argparse
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from hf_nas.report import SearchOutcome, fully_evaluated, read_outcome
from hf_nas.search import choose, hypervolume, knee_index, pareto_indices
from hf_nas.subnetwork import SubNetwork


__all__ = ["add_parser"]

logger = logging.getLogger(__name__)

_JOURNAL, _LAST_WRITTEN = "journal.log", "summary.json"
_FIRST_BYTES = b'{"op_code"'
# The objective that a limit is on, where only the journal of a running search is at hand.
_LIMITED = {"max_params_ratio": "parameters", "max_macs_ratio": "macs"}
# The largest cost that counts for the hypervolume, as in every search by a command: of the error, and of the others.
_REFERENCE = (1.0, 1.05)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser("front", help="Show what a search has found, while it runs or after it.")
    parser.add_argument(
        "folder",
        metavar="RUN_FOLDER",
        help="Output folder of a search, or the journal file of one that is running or was killed.",
    )
    parser.add_argument("--max_params_ratio", type=float, help="Mark the best with at most this share of parameters.")
    parser.add_argument("--max_macs_ratio", type=float, help="Mark the best with at most this share of operations.")
    parser.add_argument("--min_metric", type=float, help="Mark the smallest with at least this metric.")
    parser.add_argument(
        "--max_metric_drop", type=float, help="Mark the one with the fewest operations that loses less than this."
    )
    parser.add_argument("--all", action="store_true", help="Show every sub-network that was fully evaluated.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: if there is no search in the folder, or none of its sub-networks is within the limits.
    """
    names = ("max_params_ratio", "max_macs_ratio", "min_metric", "max_metric_drop")
    limits = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if wrong := [name for name, limit in limits.items() if math.isnan(limit)]:
        raise ValueError(f"--{wrong[0]} is nan; give a number.")
    given = Path(arguments.folder)
    folder = given / "search" if (given / "search").is_dir() else given
    journal = given if given.is_file() else folder / _JOURNAL
    written = folder / _LAST_WRITTEN
    if not given.is_file() and written.is_file():
        if journal.is_file() and journal.stat().st_mtime > written.stat().st_mtime:
            logger.warning("The search went on after this was written; give %s to see how far it is.", journal)
        found, table = _finished(read_outcome(folder.parent), limits, arguments.all)
    elif journal.is_file():
        found, table = _running(_read_journal(journal), limits, arguments.all)
    else:
        raise ValueError(f"{arguments.folder!r} holds no search; give the output folder or the journal file of one.")
    print(json.dumps(found, indent=2, allow_nan=False) if arguments.json else f"{_headline(found)}\n\n{table}", end="")
    if arguments.json:
        print()


def _headline(found: dict[str, Any]) -> str:
    bounds = ", ".join(f"{name} {bound:g}" for name, bound in zip(found["objectives"], found["reference"]))
    rejected = f", {found['rejected']} of them given up early" if found["rejected"] else ""
    return (
        f"{found['evaluations']} sub-networks evaluated{rejected}; {found['front']} on the front; hypervolume "
        f"{found['hypervolume']:.4f} (up to {bounds})"
    )


def _finished(outcome: SearchOutcome, limits: dict[str, float], everything: bool) -> tuple[dict[str, Any], str]:
    """The numbers and the table of a search that ended."""
    result, table = outcome.result, outcome.table
    chosen = _chosen_within(outcome, limits) if limits else outcome.chosen
    table = replace(table, rows=tuple(replace(row, chosen=row.index == chosen) for row in table.rows))
    found = {
        "finished": True,
        "evaluations": len(result.trials),
        "rejected": sum(trial.rejected for trial in result.trials),
        "front": len(result.pareto),
        "objectives": list(result.objectives),
        "reference": list(result.reference),
        "hypervolume": result.hypervolume,
        "metric": table.metric_name,
        "chosen": chosen,
        "sub_networks": [asdict(row) for row in table.rows if everything or row.on_front or row.chosen],
    }
    return found, table.to_markdown(everything)


def _chosen_within(outcome: SearchOutcome, limits: dict[str, float]) -> int:
    """The trial that these limits choose."""
    trials, table = outcome.result.trials, outcome.table
    rows = {trials[row.index].sub_network: row for row in table.rows if row.index < len(trials)}
    # The largest one is in the table alone where it was beyond a limit of the search.
    beside = [row.metric for row in table.rows if row.index >= len(trials)]

    def params_ratio(sub_network: SubNetwork) -> float:
        return rows[sub_network].parameters_share

    def macs_ratio(sub_network: SubNetwork) -> float:
        return rows[sub_network].macs_share

    place = choose(
        fully_evaluated(outcome.result),
        params_ratio=params_ratio,
        macs_ratio=macs_ratio,
        metric_name=table.metric_name,
        greater_is_better=table.greater_is_better,
        reference_metric=beside[0] if beside and "max_metric_drop" in limits else None,
        **limits,
    )
    return [index for index, trial in enumerate(trials) if not trial.rejected][place]


@dataclass(frozen=True)
class _Journal:
    """What the journal of a search tells without the model: costs by trial, None where it was given up early."""

    objectives: tuple[str, ...]
    costs: tuple[tuple[float, ...] | None, ...]


def _read_journal(path: Path) -> _Journal:
    try:
        with path.open("rb") as file:
            head = file.read(len(_FIRST_BYTES))
        if not _FIRST_BYTES.startswith(head):
            raise ValueError(f"it begins with {head!r}")
        storage = JournalStorage(JournalFileBackend(str(path)))
        names = optuna.get_all_study_names(storage)
        study = optuna.load_study(study_name=names[0], storage=storage) if names else None
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(f"{str(path)!r} is not the journal of a search ({error}); give another file.") from error
    trials = [] if study is None else study.get_trials(deepcopy=False)
    over = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if not over:
        raise ValueError(f"The search of {str(path)!r} has not evaluated a sub-network yet; wait for the first one.")
    costs = tuple(tuple(trial.values) if trial.state == TrialState.COMPLETE else None for trial in over)
    return _Journal(tuple(study.metric_names), costs)


def _running(journal: _Journal, limits: dict[str, float], everything: bool) -> tuple[dict[str, Any], str]:
    """The numbers and the table of a search that has not ended, from its journal."""
    full = {index: costs for index, costs in enumerate(journal.costs) if costs is not None}
    indices = list(full)
    front = [indices[place] for place in pareto_indices([full[index] for index in indices])]
    chosen = _chosen_of_running(journal, full, front, limits)
    reference = [_REFERENCE[0], *_REFERENCE[1:] * (len(journal.objectives) - 1)]
    found = {
        "finished": False,
        "evaluations": len(journal.costs),
        "rejected": len(journal.costs) - len(full),
        "front": len(front),
        "objectives": list(journal.objectives),
        "reference": reference,
        "hypervolume": hypervolume([full[index] for index in front], reference),
        "chosen": chosen,
        "sub_networks": [
            {
                "index": index,
                "costs": {
                    name: cost if math.isfinite(cost) else None for name, cost in zip(journal.objectives, full[index])
                },
                "on_front": index in front,
                "chosen": index == chosen,
            }
            for index in sorted(full, key=lambda index: (*full[index][1:], index))
            if everything or index in front or index == chosen
        ],
    }
    lines = [["net", *journal.objectives, ""]]
    for row in found["sub_networks"]:
        costs = ("" if cost is None else f"{cost:.4f}" for cost in row["costs"].values())
        lines.append([str(row["index"]), *costs, "chosen" if row["chosen"] else ""])
    return found, _markdown(lines)


def _chosen_of_running(
    journal: _Journal, full: dict[int, tuple[float, ...]], front: Sequence[int], limits: dict[str, float]
) -> int | None:
    if not limits:
        return front[knee_index([full[index] for index in front])] if front else None
    within = [index for index in full if math.isfinite(full[index][0])]
    for name, limit in limits.items():
        objective = _LIMITED.get(name)
        if objective not in journal.objectives:
            raise ValueError(
                f"--{name} {limit} cannot be applied to a search that has not ended, which knows only "
                f"{', '.join(journal.objectives)}; wait for its end, or leave it out."
            )
        place = journal.objectives.index(objective)
        within = [index for index in within if full[index][place] <= limit]
        if not within:
            raise ValueError(f"No sub-network evaluated so far has {objective} of at most {limit}; raise the limit.")
    return min(within, key=lambda index: (full[index], index))


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * (width - 1) + ":" for width in widths[:-1]] + ["-" * widths[-1]]
    aligned = [[cell.rjust(width) for cell, width in zip(line, widths)] for line in (lines[0], rule, *lines[1:])]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in aligned)
