"""The lines of a comparison: models of one method joined over their sizes, with means and ranges over seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


__all__ = ["Series", "SeriesPoint", "series_of_fronts", "series_of_settings"]

# Size and score of a model.
Model = tuple[float, float]


@dataclass(frozen=True)
class SeriesPoint:
    """The mean and range of the scores of so many runs at one size."""

    size: float
    mean: float
    lowest: float
    highest: float
    runs: int


@dataclass(frozen=True)
class Series:
    """A line: of one label, along one axis.

    Args:
        label: of the runs.
        points: from the smallest to the largest; none where the runs have no sizes in common.
        models: every single one.
    """

    label: str
    points: tuple[SeriesPoint, ...]
    models: tuple[Model, ...]

    @property
    def has_band(self) -> bool:
        """Whether any point is of more than one run."""
        return any(point.runs > 1 for point in self.points)


def series_of_settings(label: str, models: Sequence[Model], settings: Sequence[str]) -> Series:
    """One point a setting: the models that were asked for in the same words differ only in their seeds.

    Args:
        label: of the runs.
        models: size and score of each.
        settings: what each was asked for.
    """
    groups: dict[str, list[Model]] = {}
    for model, setting in zip(models, settings):
        groups.setdefault(setting, []).append(model)
    points = [_point(*zip(*group)) for group in groups.values()]
    return Series(label, tuple(sorted(points, key=lambda point: (point.size, point.mean))), tuple(models))


def series_of_fronts(label: str, models: Sequence[Model], runs: Sequence[str]) -> Series:
    """The mean of several fronts, whose models differ in size.

    All models of a run are joined by straight lines, also those that a smaller one beats: what is left out by the
    scores that are shown would flatter the rest. The lines are averaged at every size of a model between the smallest
    and the largest that all runs have.

    Args:
        label: of the runs.
        models: size and score of each.
        runs: which run each is of.
    """
    lines = [_line([model for model, other in zip(models, runs) if other == run]) for run in dict.fromkeys(runs)]
    start, end = max(min(line) for line in lines), min(max(line) for line in lines)
    sizes = sorted({size for line in lines for size in line if start <= size <= end})
    scores = [np.interp(sizes, list(line), list(line.values())).tolist() for line in lines]
    points = [_point([size] * len(lines), [each[place] for each in scores]) for place, size in enumerate(sizes)]
    return Series(label, tuple(points), tuple(models))


def _point(sizes: Sequence[float], scores: Sequence[float]) -> SeriesPoint:
    return SeriesPoint(statistics.fmean(sizes), statistics.fmean(scores), min(scores), max(scores), len(scores))


def _line(models: Iterable[Model]) -> dict[float, float]:
    """Score by size, from the smallest; the mean where models have the same size."""
    scores: dict[float, list[float]] = {}
    for size, score in sorted(models):
        scores.setdefault(size, []).append(score)
    return {size: statistics.fmean(group) for size, group in scores.items()}
