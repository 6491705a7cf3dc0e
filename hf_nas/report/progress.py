"""How a search got on, in numbers: the hypervolume evaluation by evaluation, and the front on the way."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_nas.files import write_text
from hf_nas.search.pareto import hypervolume, pareto_indices
from hf_nas.search.result import SearchResult


__all__ = ["ProgressFront", "ProgressStep", "SearchProgress"]

SHARES = (0.1, 0.25, 0.5, 1.0)
SIZES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ProgressStep:
    """The state of a search after one more evaluation.

    Args:
        evaluations: begun and over by then, with those that were given up early.
        seconds: that these took, summed up. With several processes at once less time passed.
        hypervolume: of the front, up to the reference of the search.
        front: number of sub-networks on it.
        best_errors: for each size of [`SearchProgress`], the lowest error among the fully evaluated sub-networks of at
            most this size; None where there is none yet.
    """

    evaluations: int
    seconds: float
    hypervolume: float
    front: int
    best_errors: tuple[float | None, ...]


@dataclass(frozen=True)
class ProgressFront:
    """The front after a share of the evaluations.

    Args:
        share: of all evaluations.
        evaluations: their number.
        indices: of the trials on the front, by the first objective downwards and thus the second one upwards.
        costs: of each of them, one value an objective.
    """

    share: float
    evaluations: int
    indices: tuple[int, ...]
    costs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SearchProgress:
    """The progress of one search. Trials that were given up count as evaluations and never improve the front.

    The hypervolume depends on this search alone: the costs are not scaled by those of others.

    Args:
        objectives: names of the objectives, the error first.
        reference: upper bound of each objective for the hypervolume.
        sizes: thresholds of the second objective, at which the lowest error is read.
        steps: one an evaluation.
        fronts: after growing shares of the evaluations.
    """

    objectives: tuple[str, ...]
    reference: tuple[float, ...]
    sizes: tuple[float, ...]
    steps: tuple[ProgressStep, ...]
    fronts: tuple[ProgressFront, ...]

    @classmethod
    def of(
        cls, result: SearchResult, *, shares: Sequence[float] = SHARES, sizes: Sequence[float] = SIZES
    ) -> "SearchProgress":
        """Count the progress of a search.

        Args:
            result: of the search, finished or not.
            shares: of the evaluations after which the front is kept, above 0 and at most 1.
            sizes: upper bounds of the second objective, usually a fraction of the full network; none where there is
                only one objective.

        Raises:
            ValueError: if a share is outside of that, or a size is no number.
        """
        if wrong := [share for share in shares if not 0 < share <= 1]:
            raise ValueError(f"A front after {wrong[0]} of the evaluations is none; give shares above 0 and up to 1.")
        if wrong := [size for size in sizes if math.isnan(size)]:
            raise ValueError(f"The sizes hold {wrong[0]}; give numbers.")
        sizes = tuple(sizes) if len(result.objectives) > 1 else ()
        count = len(result.trials)
        # Of shares that mean the same number of evaluations, the last one is kept.
        ends = {max(1, math.ceil(share * count - 1e-9)): share for share in sorted(shares)} if count else {}
        steps: list[ProgressStep] = []
        fronts: list[ProgressFront] = []
        front: list[int] = []
        volume, seconds = 0.0, 0.0
        best: list[float | None] = [None] * len(sizes)
        for index, trial in enumerate(result.trials):
            seconds += trial.seconds
            if not trial.rejected:
                # Beaten points never come back, so that the front so far stands for all points before.
                candidates = [*front, index]
                costs = [result.trials[i].costs for i in candidates]
                remaining = [candidates[place] for place in pareto_indices(costs)]
                if index in remaining:
                    volume += _gain(trial.costs, costs[:-1], result.reference)
                front = remaining
                best = [_lower(error, trial.costs, size) for error, size in zip(best, sizes)]
            steps.append(ProgressStep(index + 1, seconds, volume, len(front), tuple(best)))
            if index + 1 in ends:
                ordered = sorted(front, key=lambda i: (-result.trials[i].costs[0], *result.trials[i].costs[1:], i))
                points = tuple(result.trials[i].costs for i in ordered)
                fronts.append(ProgressFront(ends[index + 1], index + 1, tuple(ordered), points))
        return cls(result.objectives, result.reference, sizes, tuple(steps), tuple(fronts))

    def to_csv(self, path: str | Path) -> None:
        """Write the steps as CSV, atomically.

        Columns: `evaluations`, `seconds`, `hypervolume`, `front`, and for each size `best_error_at_<size>`, which is
        empty where there is none yet.
        """
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        names = (f"best_error_at_{size:g}" for size in self.sizes)
        writer.writerow(["evaluations", "seconds", "hypervolume", "front", *names])
        for step in self.steps:
            errors = ("" if error is None else error for error in step.best_errors)
            writer.writerow([step.evaluations, step.seconds, step.hypervolume, step.front, *errors])
        write_text(path, buffer.getvalue())


def _gain(point: Sequence[float], others: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume that a point dominates and no other one does.

    Of the others only what lies in the point's own box counts (While et al. 2012). Few of them matter there, so that
    this is much less work than the volume of all.
    """
    if not all(cost < bound for cost, bound in zip(point, reference)):
        return 0.0
    inside = [tuple(map(max, point, other)) for other in others]
    return math.prod(bound - cost for cost, bound in zip(point, reference)) - hypervolume(inside, reference)


def _lower(error: float | None, costs: tuple[float, ...], size: float) -> float | None:
    """The lower one of the best error so far and of this trial's, if that is small enough."""
    if not costs[1] <= size or not math.isfinite(costs[0]):
        return error
    return costs[0] if error is None else min(error, costs[0])
