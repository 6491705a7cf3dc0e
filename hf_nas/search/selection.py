"""Which of the evaluated sub-networks is handed over."""

import logging
from collections.abc import Callable

import numpy as np

from hf_nas.search.pareto import knee_index
from hf_nas.search.result import SearchResult
from hf_nas.subnetwork import SubNetwork


__all__ = ["choose", "published_demands"]

logger = logging.getLogger(__name__)

Ratio = Callable[[SubNetwork], float]

# Metrics nearer to the bound than this lie on it: 0.3 - 0.1 is not quite 0.2.
_ROUNDING = 1e-9
_LARGE_DROP = 5


def choose(
    result: SearchResult,
    *,
    params_ratio: Ratio,
    macs_ratio: Ratio,
    metric_name: str,
    max_params_ratio: float | None = None,
    max_macs_ratio: float | None = None,
    min_metric: float | None = None,
    max_metric_drop: float | None = None,
    reference_metric: float | None = None,
    greater_is_better: bool = True,
) -> int:
    """Choose one of all evaluated sub-networks, on the front or not.

    With a budget, the one with the lowest error within it; with a metric to reach, the smallest that reaches it
    (within the budget, if there is one as well); with a drop that is tolerated, the one with the fewest MACs whose
    metric is better than the reference less the drop, as in BootstrapNAS, or the largest where none is; with none of
    these, the knee of the front. The error is the first objective.

    Args:
        result: of the search.
        params_ratio: the parameters of a sub-network as a fraction of the full network's.
        macs_ratio: the same of its MACs.
        metric_name: name of the selection metric.
        max_params_ratio: at most this fraction of the parameters.
        max_macs_ratio: at most this fraction of the MACs.
        min_metric: at least this metric; at most, if lower is better.
        max_metric_drop: the metric is worse than the reference by less than this, 0 or more, in the metric's own unit
            (0.01 for a percentage point of an accuracy from 0 to 1).
        reference_metric: the reference of that, by default the metric of the largest sub-network evaluated.
        greater_is_better: whether a larger metric is better.

    Returns:
        The index of the trial in `result.trials`.

    Raises:
        ValueError: for demands that exclude one another, or if no evaluated sub-network meets them; it then names the
            nearest.
    """
    if not result.trials:
        raise ValueError("The search evaluated no sub-network, so there is none to choose; raise num_samples.")
    _check_demands(min_metric, max_metric_drop, reference_metric)
    if max_params_ratio is None and max_macs_ratio is None and min_metric is None and max_metric_drop is None:
        return result.pareto[knee_index([result.trials[index].costs for index in result.pareto])]
    params = np.array([params_ratio(trial.sub_network) for trial in result.trials])
    macs = np.array([macs_ratio(trial.sub_network) for trial in result.trials])
    errors = np.array([trial.costs[0] for trial in result.trials])

    candidates = np.flatnonzero(np.isfinite(errors))
    if len(candidates) == 0:
        raise ValueError(f"None of the {len(errors)} evaluated sub-networks has a finite error; evaluate more.")
    for name, ratios, limit in (("parameters", params, max_params_ratio), ("MACs", macs, max_macs_ratio)):
        if limit is None:
            continue
        within = candidates[ratios[candidates] <= limit]
        if len(within) == 0:
            raise ValueError(
                f"No evaluated sub-network has at most {limit} of the {name}{_also(candidates, result)}; the smallest "
                f"there is has {ratios[candidates].min():.4f}: raise the budget or evaluate more sub-networks."
            )
        candidates = within

    if max_metric_drop is not None:
        by_size = np.lexsort((params, macs))
        if reference_metric is None:
            reference_metric = _reference(result, int(by_size[-1]), metric_name)
        gains = (_metrics(result, candidates, metric_name) - reference_metric) * (1 if greater_is_better else -1)
        near = candidates[gains > -max_metric_drop + _ROUNDING]
        if len(near):
            return int(near[np.lexsort((params[near], errors[near], macs[near]))[0]])
        logger.warning(
            "No evaluated sub-network%s has a %s better than %g less %g; the largest is taken.",
            _also(candidates, result), metric_name, reference_metric, max_metric_drop,
        )  # fmt: skip
        return int(by_size[np.isin(by_size, candidates)][-1])
    if min_metric is None:
        return int(candidates[np.lexsort((params[candidates], errors[candidates]))[0]])

    metrics = _metrics(result, candidates, metric_name)
    reached = candidates[metrics >= min_metric if greater_is_better else metrics <= min_metric]
    if len(reached) == 0:
        best = np.nanmax(metrics) if greater_is_better else np.nanmin(metrics)
        bound = "at least" if greater_is_better else "at most"
        raise ValueError(
            f"No evaluated sub-network{_also(candidates, result)} has a {metric_name} of {bound} {min_metric}; the "
            f"nearest has {best:.4f}: relax the demand or evaluate more sub-networks."
        )
    return int(reached[np.lexsort((errors[reached], macs[reached], params[reached]))[0]])


def published_demands(
    ref_acc: float = -1.0, acc_delta: float = 1.0, *, metric_scale: float = 1.0
) -> dict[str, float | None]:
    """What the keys `ref_acc` and `acc_delta` of `bootstrapNAS.search` demand of [`choose`].

    Args:
        ref_acc: reference metric in percent; -1 stands for none, and then it is the largest sub-network's. (The
            published code takes the negated metric instead, above which every sub-network lies.)
        acc_delta: tolerated drop in percentage points.
        metric_scale: value of the metric that is 100 percent: 1 for fractions, 100 for percent.

    Returns:
        `reference_metric` and `max_metric_drop`, in the unit of the metric.

    Raises:
        ValueError: for a reference or a drop outside 0 to 100.
    """
    if ref_acc != -1 and not 0 <= ref_acc <= 100:
        raise ValueError(f"The 'ref_acc' is {ref_acc}; give a metric in percent, 0 to 100, or -1 for none.")
    if not 0 <= acc_delta <= 100:
        raise ValueError(f"The 'acc_delta' is {acc_delta}; give percentage points, 0 to 100.")
    if acc_delta > _LARGE_DROP:
        logger.warning("The 'acc_delta' tolerates a drop of %g percentage points.", acc_delta)
    reference = None if ref_acc == -1 else ref_acc / 100 * metric_scale
    return {"reference_metric": reference, "max_metric_drop": acc_delta / 100 * metric_scale}


def _check_demands(min_metric: float | None, max_metric_drop: float | None, reference_metric: float | None) -> None:
    if max_metric_drop is None:
        if reference_metric is not None:
            raise ValueError(f"reference_metric is {reference_metric} without max_metric_drop; give both or neither.")
        return
    if min_metric is not None:
        raise ValueError(f"min_metric is {min_metric} and max_metric_drop {max_metric_drop}; give one of them.")
    if not max_metric_drop >= 0:
        raise ValueError(f"max_metric_drop is {max_metric_drop}; give 0 or more, in the unit of the metric.")
    if reference_metric is not None and not np.isfinite(reference_metric):
        raise ValueError(f"reference_metric is {reference_metric}; give a number or leave it out.")


def _metrics(result: SearchResult, indices: np.ndarray, metric_name: str) -> np.ndarray:
    """The metric of these trials."""
    if missing := [index for index in indices if metric_name not in result.trials[index].metrics]:
        known = sorted(result.trials[missing[0]].metrics)
        raise ValueError(f"The search recorded no metric {metric_name!r} but {known}; choose by one of these.")
    return np.array([result.trials[index].metrics[metric_name] for index in indices], dtype=float)


def _reference(result: SearchResult, largest: int, metric_name: str) -> float:
    (metric,) = _metrics(result, np.array([largest]), metric_name)
    if not np.isfinite(metric):
        raise ValueError(
            f"The largest evaluated sub-network has the {metric_name} {metric}, with which none can be compared; give "
            "reference_metric."
        )
    return float(metric)


def _also(candidates: np.ndarray, result: SearchResult) -> str:
    """Says, where it is so, that the demands before left only some of the trials."""
    return "" if len(candidates) == len(result.trials) else f" (of the {len(candidates)} that meet the other demands)"
