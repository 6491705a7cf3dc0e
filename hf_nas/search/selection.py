"""Which of the evaluated sub-networks is handed over."""

from collections.abc import Callable

import numpy as np

from hf_nas.search.pareto import knee_index
from hf_nas.search.result import SearchResult
from hf_nas.subnetwork import SubNetwork


__all__ = ["choose"]

Ratio = Callable[[SubNetwork], float]


def choose(
    result: SearchResult,
    *,
    params_ratio: Ratio,
    macs_ratio: Ratio,
    metric_name: str,
    max_params_ratio: float | None = None,
    max_macs_ratio: float | None = None,
    min_metric: float | None = None,
    greater_is_better: bool = True,
) -> int:
    """Choose one of all evaluated sub-networks, on the front or not.

    With a budget, the one with the lowest error within it; with a metric to reach, the smallest that reaches it
    (within the budget, if there is one as well); with neither, the knee of the front. The error is the first
    objective.

    Args:
        result: of the search.
        params_ratio: the parameters of a sub-network as a fraction of the full network's.
        macs_ratio: the same of its MACs.
        metric_name: name of the selection metric.
        max_params_ratio: at most this fraction of the parameters.
        max_macs_ratio: at most this fraction of the MACs.
        min_metric: at least this metric; at most, if lower is better.
        greater_is_better: whether a larger metric is better.

    Returns:
        The index of the trial in `result.trials`.

    Raises:
        ValueError: if no evaluated sub-network meets the demands; it names the nearest.
    """
    if not result.trials:
        raise ValueError("The search evaluated no sub-network, so there is none to choose; raise num_samples.")
    if max_params_ratio is None and max_macs_ratio is None and min_metric is None:
        return result.pareto[knee_index([result.trials[index].costs for index in result.pareto])]
    params = np.array([params_ratio(trial.sub_network) for trial in result.trials])
    macs = np.array([macs_ratio(trial.sub_network) for trial in result.trials])
    errors = np.array([trial.costs[0] for trial in result.trials])

    candidates = np.flatnonzero(np.isfinite(errors))
    for name, ratios, limit in (("parameters", params, max_params_ratio), ("MACs", macs, max_macs_ratio)):
        if limit is None:
            continue
        within = candidates[ratios[candidates] <= limit]
        if len(within) == 0:
            smallest = f"{ratios[candidates].min():.4f}" if len(candidates) else "none with a finite error"
            raise ValueError(
                f"No evaluated sub-network has at most {limit} of the {name}{_also(candidates, result)}; the smallest "
                f"there is has {smallest}: raise the budget or evaluate more sub-networks."
            )
        candidates = within
    if min_metric is None:
        return int(candidates[np.lexsort((params[candidates], errors[candidates]))[0]])

    if missing := [index for index in candidates if metric_name not in result.trials[index].metrics]:
        known = sorted(result.trials[missing[0]].metrics)
        raise ValueError(f"The search recorded no metric {metric_name!r} but {known}; choose by one of these.")
    metrics = np.array([result.trials[index].metrics[metric_name] for index in candidates], dtype=float)
    reached = candidates[metrics >= min_metric if greater_is_better else metrics <= min_metric]
    if len(reached) == 0:
        best = np.nanmax(metrics) if greater_is_better else np.nanmin(metrics)
        bound = "at least" if greater_is_better else "at most"
        raise ValueError(
            f"No evaluated sub-network{_also(candidates, result)} has a {metric_name} of {bound} {min_metric}; the "
            f"nearest has {best:.4f}: relax the demand or evaluate more sub-networks."
        )
    return int(reached[np.lexsort((errors[reached], macs[reached], params[reached]))[0]])


def _also(candidates: np.ndarray, result: SearchResult) -> str:
    """Says, where it is so, that the demands before left only some of the trials."""
    return "" if len(candidates) == len(result.trials) else f" (of the {len(candidates)} that meet the other demands)"
