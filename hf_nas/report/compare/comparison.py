"""A comparison in numbers: what each model of several methods costs and how good it is, over seeds."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_nas.files import write_json, write_text
from hf_nas.report.compare.series import Series, series_of_fronts, series_of_settings


__all__ = ["AXES", "ComparedModel", "Comparison", "DenseModel"]

AXES = ("heads", "parameters", "macs")
_FORMAT = "hf_nas.comparison/1"


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
