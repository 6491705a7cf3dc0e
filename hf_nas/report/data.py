"""The numbers of a search, ready to read: which sub-network costs what and how good it is."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_nas.files import write_text
from hf_nas.search.result import SearchResult
from hf_nas.subnetwork import SubNetwork


__all__ = ["FrontRow", "FrontTable"]

_FORMAT = "hf_nas.front_table/1"


@dataclass(frozen=True)
class FrontRow:
    """One evaluated sub-network in numbers.

    Args:
        index: of its trial in the search result.
        parameters: of the whole extracted model.
        parameters_share: parameters as a fraction of the full network's, by the definition of the table's maker.
        macs_share: MACs as a fraction of the full network's.
        metric: by which sub-networks were compared; None where it is undefined.
        reported: the same metric on data that played no part in the search, None where it was not measured.
        on_front: whether it is on the Pareto front of the search.
        chosen: whether it is the one that is handed over.
    """

    index: int
    parameters: int
    parameters_share: float
    macs_share: float
    metric: float | None
    reported: float | None = None
    on_front: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class FrontTable:
    """All evaluated sub-networks of a search, smallest first.

    Args:
        rows: one a sub-network.
        metric_name: name of the metric, for people.
        greater_is_better: whether a larger metric is better.
    """

    rows: tuple[FrontRow, ...]
    metric_name: str
    greater_is_better: bool = True

    @classmethod
    def of(
        cls,
        result: SearchResult,
        *,
        parameters: Callable[[SubNetwork], int],
        params_ratio: Callable[[SubNetwork], float],
        macs_ratio: Callable[[SubNetwork], float],
        metric_name: str,
        chosen: int | None = None,
        reported: Mapping[int, float] | None = None,
        label: str | None = None,
        greater_is_better: bool = True,
    ) -> "FrontTable":
        """Make the table of a search result.

        Args:
            result: of the search.
            parameters: number of parameters of a sub-network.
            params_ratio: its parameters as a fraction of the full network's.
            macs_ratio: its MACs as a fraction of the full network's.
            metric_name: of the selection metric among the metrics of the trials.
            chosen: index of the trial that is handed over.
            reported: by index of the trial, the metric on data that played no part in the search.
            label: name of the metric for people, by default `metric_name`.
            greater_is_better: whether a larger metric is better.

        Raises:
            ValueError: if a trial is without the metric, or `chosen` is no trial.
        """
        if chosen is not None and not 0 <= chosen < len(result.trials):
            raise ValueError(f"The chosen trial is {chosen}, but there are {len(result.trials)}, counted from 0.")
        front, reported = set(result.pareto), reported or {}
        rows = []
        for index, trial in enumerate(result.trials):
            if metric_name not in trial.metrics:
                raise ValueError(f"Trial {index} has no metric {metric_name!r} but {sorted(trial.metrics)}.")
            rows.append(
                FrontRow(
                    index=index,
                    parameters=parameters(trial.sub_network),
                    parameters_share=params_ratio(trial.sub_network),
                    macs_share=macs_ratio(trial.sub_network),
                    metric=_defined(trial.metrics[metric_name]),
                    reported=_defined(reported[index]) if index in reported else None,
                    on_front=index in front,
                    chosen=index == chosen,
                )
            )
        rows.sort(key=lambda row: (row.parameters_share, row.macs_share, row.index))
        return cls(tuple(rows), label or metric_name, greater_is_better)

    @property
    def front(self) -> tuple[FrontRow, ...]:
        """The rows on the Pareto front, smallest first."""
        return tuple(row for row in self.rows if row.on_front)

    @property
    def chosen(self) -> FrontRow | None:
        """The row that is handed over, if one is."""
        return next((row for row in self.rows if row.chosen), None)

    @property
    def largest(self) -> FrontRow | None:
        """The row with the most parameters, None in an empty table."""
        return max(self.rows, key=lambda row: (row.parameters_share, row.macs_share, -row.index), default=None)

    def to_markdown(self, everything: bool = False) -> str:
        """The table in Markdown, aligned so that it reads well as plain text too.

        Args:
            everything: all evaluated sub-networks instead of the front, the chosen and the largest one.
        """
        with_reported = any(row.reported is not None for row in self.rows)
        header = ["net", "parameters", "encoder", "MACs", f"{self.metric_name} (selection)"]
        header += [f"{self.metric_name} (validation)"] if with_reported else []
        lines = [[*header, ""]]
        for row in self.rows:
            if not (everything or row.on_front or row.chosen or row is self.largest):
                continue
            cells = [str(row.index), f"{row.parameters:,}", _percent(row.parameters_share), _percent(row.macs_share)]
            cells.append(_number(row.metric))
            cells += [_number(row.reported)] if with_reported else []
            lines.append([*cells, "chosen" if row.chosen else "largest" if row is self.largest else ""])
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        last = len(widths) - 1
        rule = ["-" * width if column == last else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
        lines.insert(1, rule)
        aligned = (
            [cell.ljust(width) if column == last else cell.rjust(width) for column, (cell, width) in enumerate(cells)]
            for cells in (zip(line, widths) for line in lines)
        )
        return "".join(f"| {' | '.join(cells)} |\n" for cells in aligned)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of [`FrontTable.from_dict`]."""
        return {
            "format": _FORMAT,
            "metric_name": self.metric_name,
            "greater_is_better": self.greater_is_better,
            "rows": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FrontTable":
        """Read what [`FrontTable.to_dict`] wrote.

        Raises:
            ValueError: if it is something else.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"Not a table of sub-networks: its 'format' is {found!r}, not {_FORMAT!r}.")
        rows = tuple(FrontRow(**row) for row in data["rows"])
        return cls(rows, data["metric_name"], data["greater_is_better"])

    def to_json(self, path: str | Path) -> None:
        """Write the numbers as JSON, atomically."""
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    def to_csv(self, path: str | Path) -> None:
        """Write the numbers as CSV, atomically: the fields of [`FrontRow`], truth values as 0 and 1."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        names = list(FrontRow.__dataclass_fields__)
        writer.writerow(names)
        for row in self.rows:
            values = (getattr(row, name) for name in names)
            writer.writerow([int(value) if isinstance(value, bool) else value for value in values])
        write_text(path, buffer.getvalue())


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
