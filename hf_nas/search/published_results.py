"""The result file of the published offline search, `results_<task>.json`, for scripts that read it."""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_nas.files import write_text
from hf_nas.search.result import SearchResult
from hf_nas.space.base import SearchSpace
from hf_nas.subnetwork import SubNetwork


__all__ = ["write_published_results"]


def write_published_results(
    path: str | Path,
    result: SearchResult,
    *,
    dataset: str,
    parameters: Callable[[SubNetwork], float],
    model_loading_time: float,
    data_loading_time: float,
    reported: Mapping[int, float] | None = None,
    greater_is_better: bool = True,
    space: SearchSpace | None = None,
) -> None:
    """Write a search in the format of the published offline search (Klein et al., 2024), atomically.

    One entry a sub-network, in the order of the search, in each of: `config` (the choice of every dimension),
    `runtime` (seconds up to its end, those of the evaluations summed up), `error`, `params`, `test_error`, and
    `indices`. The last one holds no indices but, as published, true for those on the front. `params_pareto`,
    `eval_pareto` and `test_pareto` hold those on the front alone. Sub-networks that were given up early are left out,
    so that each number is of a full evaluation.

    The published code picked `test_pareto` by taking the truth values for positions, so that it only held the first
    two sub-networks; here it is what it says. It also measured every sub-network on the test set; here null stands
    for those that were not measured.

    Args:
        path: of the file.
        result: of the search, the error its first objective.
        dataset: name of the task.
        parameters: the size that `params` states; the published one is the fraction of the full network's.
        model_loading_time: seconds.
        data_loading_time: seconds.
        reported: by index of the trial, the metric on data that played no part in the search; one that is not a number
            counts as error 1, and is null where less is better.
        greater_is_better: whether a larger metric is better, so that 1 - metric is the error.
        space: that was searched; without it there is no `config`.

    Raises:
        ValueError: if `reported` names a trial that there is not.
    """
    reported = dict(reported or {})
    if unknown := sorted(index for index in reported if not 0 <= index < len(result.trials)):
        raise ValueError(
            f"There is a test metric of trial {unknown[0]}, but there are {len(result.trials)} trials, counted from 0."
        )

    def test_error(index: int) -> float | None:
        if index not in reported:
            return None
        metric = float(reported[index])
        if math.isnan(metric):
            return 1.0 if greater_is_better else None
        return 1 - metric if greater_is_better else metric

    front = set(result.pareto)
    ends = list(itertools.accumulate(trial.seconds for trial in result.trials))
    listed = [(index, trial) for index, trial in enumerate(result.trials) if not trial.rejected]
    columns: dict[str, list[Any]] = {
        "runtime": [ends[index] for index, _ in listed],
        "error": [_finite(trial.costs[0]) for _, trial in listed],
        "params": [parameters(trial.sub_network) for _, trial in listed],
        "test_error": [test_error(index) for index, _ in listed],
        "indices": [index in front for index, _ in listed],
    }
    if space is not None:
        names = [dimension.name for dimension in space.dimensions]
        values = [
            [dimension.choices[place] for dimension, place in zip(space.dimensions, trial.encoding, strict=True)]
            for _, trial in listed
        ]
        columns["config"] = [dict(zip(names, chosen)) for chosen in values]
    data = {
        "dataset": dataset,
        **columns,
        **{
            name: list(itertools.compress(columns[source], columns["indices"]))
            for name, source in (("params_pareto", "params"), ("eval_pareto", "error"), ("test_pareto", "test_error"))
        },
        "model_loading_time": model_loading_time,
        "data_loading_time": data_loading_time,
    }
    write_text(path, json.dumps(data, allow_nan=False) + "\n")


def _finite(error: float) -> float | None:
    # JSON has no infinity, which is the error of what could not be scored.
    return error if math.isfinite(error) else None
