"""Several methods on one task: what each of their models costs and how good it is, over seeds. Numbers only."""

import csv
import io
import logging
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_nas.files import write_json, write_text
from hf_nas.report.compare_folders import MeasuredModel, RunResults
from hf_nas.report.compare_series import Series, series_of_fronts, series_of_settings
from hf_nas.subnetwork import SubNetwork, kept_ids


__all__ = ["AXES", "ComparedModel", "Comparison", "DenseModel", "compare_runs"]

logger = logging.getLogger(__name__)

AXES = ("heads", "parameters", "macs")
_FORMAT = "hf_nas.comparison/1"
# The first of these that all runs have is the main metric of their task.
_MAIN_METRICS = (
    "f1", "matthews_correlation", "spearmanr", "bleu", "accuracy", "token_accuracy", "mse",
)  # fmt: skip
_SMALLER_IS_BETTER = frozenset({"loss", "mse"})
_SEQUENCE_LENGTH = 128


@dataclass(frozen=True)
class ComparedModel:
    """One measured model in numbers.

    Args:
        label: of the runs it is from.
        seed: of its run, None where it is not recorded.
        heads: attention heads that are kept; under grouped-query attention key-value heads with their queries.
        heads_share: as a fraction of those of the dense model, as the other shares.
        parameters: of the whole model.
        parameters_share: see above.
        macs: multiply-accumulate operations for one sequence.
        macs_share: see above.
        metric: its score.
        setting: what was asked for; None for what a search found.
        folder: of its run.
        is_dense: whether it is the plainly fine-tuned dense model and no result of a method.
    """

    label: str
    seed: int | None
    heads: int
    heads_share: float
    parameters: int
    parameters_share: float
    macs: int
    macs_share: float
    metric: float
    setting: str | None
    folder: str
    is_dense: bool = False


@dataclass(frozen=True)
class DenseModel:
    """The model that all others were made of.

    Args:
        heads: attention heads.
        parameters: of the whole model.
        macs: multiply-accumulate operations for one sequence.
        metrics: its scores when it is plainly fine-tuned, one a seed; empty where none is among the runs.
    """

    heads: int
    parameters: int
    macs: int
    metrics: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean of its scores."""
        return statistics.fmean(self.metrics) if self.metrics else None


@dataclass(frozen=True)
class Comparison:
    """The measured models of several methods on one task.

    Args:
        rows: one a model, in the order of the labels, then from the largest to the smallest.
        dense: what they were made of.
        metric_name: by which they are compared.
        greater_is_better: whether a larger metric is better.
        sequence_length: tokens of a sequence for which operations are counted.
        task: name of the task, None where no run recorded it.
    """

    rows: tuple[ComparedModel, ...]
    dense: DenseModel
    metric_name: str
    greater_is_better: bool
    sequence_length: int
    task: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order in which they were given, without that of plainly fine-tuned dense models."""
        return tuple(dict.fromkeys(row.label for row in self.rows if not row.is_dense))

    def series(self, axis: str) -> tuple[Series, ...]:
        """One line a label.

        Models that were asked for in the same words are the seeds of one point. What searches found has no such words:
        the models of each run are joined, and the lines averaged between the sizes that all of them reach.

        Args:
            axis: one of [`AXES`].
        """
        return tuple(self._line(label, axis) for label in self.labels)

    def _line(self, label: str, axis: str) -> Series:
        rows = [row for row in self.rows if row.label == label and not row.is_dense]
        models = [(getattr(row, axis), row.metric) for row in rows]
        if all(row.setting is not None for row in rows):
            return series_of_settings(label, models, [row.setting for row in rows])
        return series_of_fronts(label, models, [row.folder for row in rows])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "format": _FORMAT,
            "task": self.task,
            "metric": self.metric_name,
            "greater_is_better": self.greater_is_better,
            "sequence_length": self.sequence_length,
            "dense": {**asdict(self.dense), "metrics": list(self.dense.metrics)},
            "rows": [asdict(row) for row in self.rows],
        }

    def to_json(self, path: str | Path) -> None:
        """Write the numbers as JSON, atomically."""
        write_json(path, self.to_dict())

    def to_csv(self, path: str | Path) -> None:
        """Write the rows as CSV, atomically: the fields of [`ComparedModel`], truth values as 0 and 1."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(ComparedModel.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), "is_dense": int(row.is_dense)} for row in self.rows)
        write_text(path, buffer.getvalue())

    def to_markdown(self) -> str:
        """A table of all points, the largest first, with the mean and range of several runs."""
        lines = [["method", "heads", "parameters", "MACs", self.metric_name, "lowest", "highest", "runs"]]
        if self.dense.metrics:
            lines.append(_cells("dense", [1.0, 1.0, 1.0], self.dense, self.dense.metrics))
        for label in self.labels:
            for group in self._groups(label):
                shares = [statistics.fmean(getattr(row, f"{axis}_share") for row in group) for axis in AXES]
                lines.append(_cells(label, shares, self.dense, [row.metric for row in group]))
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        return "".join(
            f"| {' | '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])} |\n" for line in lines
        )

    def _groups(self, label: str) -> list[list[ComparedModel]]:
        """The models of a label that share a line of the table."""
        groups: dict[Any, list[ComparedModel]] = {}
        for place, row in enumerate(self.rows):
            if row.label == label and not row.is_dense:
                groups.setdefault(place if row.setting is None else row.setting, []).append(row)
        return sorted(groups.values(), key=lambda group: -statistics.fmean(row.parameters for row in group))


def compare_runs(
    runs: Sequence[RunResults], *, metric_name: str | None = None, sequence_length: int | None = None
) -> Comparison:
    """Bring runs on one task onto common axes.

    Args:
        runs: what was read from their folders; those with the same label are seeds.
        metric_name: by which they are compared; by default the main one of the task.
        sequence_length: tokens of a sequence for which operations are counted; by default that of the first run that
            recorded one, or 128.

    Raises:
        ValueError: if there are none, or they differ in task, examples, base model or metric, or a run is there twice.
    """
    if not runs:
        raise ValueError("There are no runs to compare; give one or more as LABEL=FOLDER.")
    _check_same(runs)
    name = _check_metric(runs, metric_name)
    greater = name not in _SMALLER_IS_BETTER and not any(name in run.smaller_is_better for run in runs)
    if sequence_length is None:
        sequence_length = next((run.sequence_length for run in runs if run.sequence_length), _SEQUENCE_LENGTH)
    full = SubNetwork.full(runs[0].table.structure)
    sizes = _sizes(runs[0], full, sequence_length)
    rows, scores = [], _dense_scores(runs, name)
    for run in runs:
        for model in run.models:
            if name in model.metrics:
                own = _sizes(run, model.sub_network, sequence_length)
                rows.append(_row(run, model, model.metrics[name], own, sizes))
    if all(row.is_dense for row in rows):
        raise ValueError(f"The runs of {runs[0].label!r} are dense models alone; add one that made a model smaller.")
    order = list(dict.fromkeys(row.label for row in rows))
    rows.sort(key=lambda row: (order.index(row.label), -row.parameters, -row.macs))
    _check_repeats(rows)
    task = next((run.task for run in runs if run.task), None)
    return Comparison(tuple(rows), DenseModel(*sizes, tuple(scores)), name, greater, sequence_length, task)


def _sizes(run: RunResults, sub_network: SubNetwork, sequence_length: int) -> tuple[int, int, int]:
    """Heads, parameters and operations."""
    table = run.table
    heads = sum(len(kept_ids(sub_network[row.name])) for row in table.structure if row.layout.is_attention)
    return heads, table.parameters(sub_network), table.macs(sub_network, sequence_length)


def _row(
    run: RunResults, model: MeasuredModel, metric: float, sizes: tuple[int, int, int], dense: tuple[int, int, int]
) -> ComparedModel:
    shares = [size / full if full else 0.0 for size, full in zip(sizes, dense)]
    pairs = [number for pair in zip(sizes, shares) for number in pair]
    return ComparedModel(run.label, run.seed, *pairs, metric, model.setting, str(run.folder), run.is_dense)


def _dense_scores(runs: Iterable[RunResults], name: str) -> list[float]:
    """Scores of the plainly fine-tuned dense model: of runs that are nothing else, or the first points of others."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for run in runs:
        full = SubNetwork.full(run.table.structure)
        if run.full_is_dense:
            found[run.is_dense] += [m.metrics[name] for m in run.models if m.sub_network == full and name in m.metrics]
    return found[True] or found[False]


# What may not be on one page.


def _check_same(runs: Sequence[RunResults]) -> None:
    for folder, count in Counter(run.folder.resolve() for run in runs).items():
        if count > 1:
            raise ValueError(f"The folder '{folder}' is given {count} times; give it once.")
    for name, what, advice in (
        ("task", "are on the task", "compare runs on one task"),
        ("examples", "were evaluated on so many examples:", "evaluate all of them on the same ones"),
        ("base", "were made of the model", "compare runs that start from one model"),
    ):
        known = [(run, getattr(run, name)) for run in runs if getattr(run, name) is not None]
        _refuse_second(known, what, advice)
    _refuse_second(
        [(run, _dense_words(run)) for run in runs], "were made of a", "compare runs that start from one model"
    )


def _refuse_second(known: Sequence[tuple[RunResults, Any]], what: str, advice: str) -> None:
    for run, value in known[1:]:
        first, expected = known[0]
        if value != expected:
            raise ValueError(
                f"The models of {first.label!r} in '{first.folder}' {what} {expected}, those of {run.label!r} in "
                f"'{run.folder}' {value}; {advice}."
            )


def _dense_words(run: RunResults) -> str:
    """The dense model by its sizes."""
    full = SubNetwork.full(run.table.structure)
    heads, parameters, _ = _sizes(run, full, 1)
    layers = sum(run.table.structure.depths.values())
    return f"{full.model_type} model of {layers} layers, {heads} heads and {parameters:,} parameters"


def _check_metric(runs: Sequence[RunResults], wanted: str | None) -> str:
    """The metric that is compared by; all runs must have it."""
    known = [{name for model in run.models for name in model.metrics} for run in runs]
    common = set.intersection(*known)
    if wanted is None:
        # Every run has a loss, but losses of different methods say little; it must be asked for.
        ordered = [name for name in _MAIN_METRICS if name in common] or sorted(common - {"loss"})
        if not ordered:
            texts = (f"{run.label!r} has {', '.join(sorted(names)) or 'none'}" for run, names in zip(runs, known))
            raise ValueError(
                f"The runs have no metric in common: {'; '.join(texts)}; evaluate all by one, or name it by --metric."
            )
        wanted = ordered[0]
    for run, names in zip(runs, known):
        if wanted not in names:
            every = f"all runs have {', '.join(sorted(common))}" if common else "the runs have no metric in common"
            raise ValueError(
                f"There is no metric {wanted!r} of {run.label!r} in '{run.folder}', which has "
                f"{', '.join(sorted(names)) or 'none'}; choose another --metric ({every})."
            )
        missing = sum(wanted not in model.metrics for model in run.models)
        if missing:
            logger.warning(
                "%d of the %d models of '%s' have no %s and are left out.",
                missing,
                len(run.models),
                run.folder,
                wanted,
            )
    return wanted


def _check_repeats(rows: Iterable[ComparedModel]) -> None:
    """Refuse two runs that would count as one seed twice."""
    first: dict[Any, ComparedModel] = {}
    for row in rows:
        if row.seed is None:
            continue
        earlier = first.setdefault((row.label, row.setting, row.seed), row)
        if earlier.folder != row.folder:
            raise ValueError(
                f"'{earlier.folder}' and '{row.folder}' are both {row.label!r} with seed {row.seed}"
                f"{f' and {row.setting}' if row.setting else ''}; give them different labels, or leave out one."
            )


def _cells(label: str, shares: Sequence[float], dense: DenseModel, scores: Sequence[float]) -> list[str]:
    heads, parameters, macs = (
        share * full for share, full in zip(shares, (dense.heads, dense.parameters, dense.macs))
    )
    sizes = [f"{heads:.4g}", f"{parameters / 1e6:.2f}M ({shares[1]:.1%})", f"{macs / 1e6:.1f}M ({shares[2]:.1%})"]
    return [
        label,
        *sizes,
        f"{statistics.fmean(scores):.4f}",
        f"{min(scores):.4f}",
        f"{max(scores):.4f}",
        f"{len(scores)}",
    ]
