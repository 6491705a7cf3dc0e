"""What comes after a search: one sub-network is chosen, the front is measured, and everything is written."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock

from hf_nas.files import write_json
from hf_nas.profiling import Parts, SizeTable
from hf_nas.report.data import FrontTable
from hf_nas.report.outcome import EXTRACTED_FOLDER, SEARCH_FOLDER, SearchOutcome, fully_evaluated
from hf_nas.report.page import write_page
from hf_nas.report.plots import plot_front, plot_progress
from hf_nas.report.progress import SearchProgress
from hf_nas.search import Evaluated, SearchResult, choose
from hf_nas.subnetwork import SubNetwork


__all__ = ["RelativeSizes", "Reported", "hand_over"]

logger = logging.getLogger(__name__)

# Metrics by name of the data set and index of the trial.
Reported = Mapping[str, Mapping[int, Mapping[str, float]]]

_SUB_NETWORK_FILE = re.compile(r"\d+\.json")


@dataclass(frozen=True)
class RelativeSizes:
    """Sizes of sub-networks relative to the full one: parameters inside the layers, and MACs of a sequence.

    Args:
        table: of the model.
        sequence_length: at which operations are counted, in tokens.
        decoder_length: tokens of the decoder of an encoder-decoder, by default the same.
    """

    table: SizeTable
    sequence_length: int
    decoder_length: int | None = None

    @cached_property
    def _full(self) -> tuple[int, int]:
        full = SubNetwork.full(self.table.structure)
        return self.table.parameters(full, Parts.encoder()), self.macs(full)

    def macs(self, sub_network: SubNetwork) -> int:
        """Multiply-accumulate operations of a sequence."""
        return self.table.macs(sub_network, self.sequence_length, self.decoder_length)

    def parameters(self, sub_network: SubNetwork) -> int:
        """Number of parameters of the whole extracted model."""
        return self.table.parameters(sub_network)

    def params_ratio(self, sub_network: SubNetwork) -> float:
        """The parameters inside the layers as a fraction of the full network's."""
        return self.table.parameters(sub_network, Parts.encoder()) / self._full[0]

    def macs_ratio(self, sub_network: SubNetwork) -> float:
        """The multiply-accumulate operations as a fraction of the full network's."""
        return self.macs(sub_network) / self._full[1]


def hand_over(
    result: SearchResult,
    folder: str | Path,
    *,
    sizes: RelativeSizes,
    metric_name: str,
    greater_is_better: bool = True,
    largest: SubNetwork,
    limits: Mapping[str, Any],
    report: Callable[[Iterable[int]], Reported],
    save_model: Callable[[int, Path], None],
    reference: Evaluated | None = None,
) -> SearchOutcome:
    """Choose a sub-network, measure the front with it and with the largest one, and write what was found.

    Writes into `folder` `search/` (`result.json`, `evaluations.csv`, the front as `front.json`, `front.csv` and
    `front.png`, how the search got on as `progress.csv` and `progress.png`, `summary.json`, and the front's and the
    chosen one's `sub_networks/*.json`) and has the chosen model written into `extracted/`. Trials that were given up
    early are neither chosen nor measured, and are not in the table. A page about the run, `report.html`, is written
    beside them. Several processes may hand over the same result
    into the same folder.

    Args:
        result: of the search.
        folder: where to.
        sizes: of the sub-networks.
        metric_name: of the selection metric, among the metrics of each trial.
        greater_is_better: whether a larger one is better.
        largest: the largest sub-network of the space.
        limits: demands on the chosen one: arguments of [`hf_nas.search.choose`] such as `max_params_ratio`. With
            `max_latency_ratio` beside them, to which the search kept as its constraint, the best of all is chosen
            where the others are None.
        report: measures trials, given by their indices, on data that played no part in the search. The first data set
            goes into the table.
        save_model: writes the model of the trial with this index into a folder.
        reference: the largest sub-network with its metrics on the selection set, where the search did not evaluate it,
            since it is beyond a constraint. `report` is then asked for it as well, by the index `len(result.trials)`,
            and its metric is what `max_metric_drop` refers to.

    Raises:
        ValueError: if no sub-network meets the demands, or a metric is missing.
    """
    folder = Path(folder)
    limits = _limits(limits, metric_name, reference)
    chosen = _choose(result, sizes, metric_name, greater_is_better, limits)
    trials = [*result.trials, *([] if reference is None else [reference])]
    measured = {*result.pareto, chosen, *_index_of(largest, trials)}
    reported = report(sorted(measured))
    table = _table(result, trials, sizes, metric_name, greater_is_better, chosen, reported)
    metrics = _summary(result, chosen, table, reported)
    outcome = SearchOutcome(result, table, chosen, folder / EXTRACTED_FOLDER, metrics)
    search_folder = folder / SEARCH_FOLDER
    search_folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(search_folder / ".handover.lock"):
        _write(outcome, search_folder)
        save_model(chosen, outcome.chosen_folder)
        # Last, so that what it names is there.
        write_json(search_folder / "summary.json", {"chosen": chosen, "metrics": metrics})
        _write_page(folder)
    return outcome


def _limits(limits: Mapping[str, Any], metric_name: str, reference: Evaluated | None) -> dict[str, Any]:
    """The demands in the terms of `choose`."""
    limits = dict(limits)
    latency = limits.pop("max_latency_ratio", None)
    demands = ("max_params_ratio", "max_macs_ratio", "min_metric", "max_metric_drop")
    if latency is not None and all(limits.get(name) is None for name in demands):
        # Everything evaluated is fast enough. A limit that nothing exceeds asks for the best instead of the knee.
        limits["max_macs_ratio"] = float("inf")
    if reference is not None and limits.get("max_metric_drop") is not None and limits.get("reference_metric") is None:
        limits["reference_metric"] = _metric(reference.metrics, metric_name, "The largest sub-network")
    return limits


def _choose(
    result: SearchResult, sizes: RelativeSizes, metric_name: str, greater_is_better: bool, limits: Mapping[str, Any]
) -> int:
    candidates = [index for index, trial in enumerate(result.trials) if not trial.rejected]
    place = choose(
        fully_evaluated(result),
        params_ratio=sizes.params_ratio,
        macs_ratio=sizes.macs_ratio,
        metric_name=metric_name,
        greater_is_better=greater_is_better,
        **limits,
    )
    return candidates[place]


def _index_of(sub_network: SubNetwork, trials: Sequence[Evaluated]) -> list[int]:
    """Where a sub-network was fully evaluated, if it was."""
    return [i for i, trial in enumerate(trials) if trial.sub_network == sub_network and not trial.rejected][:1]


def _table(
    result: SearchResult,
    trials: Sequence[Evaluated],
    sizes: RelativeSizes,
    metric_name: str,
    greater_is_better: bool,
    chosen: int,
    reported: Reported,
) -> FrontTable:
    first = next(iter(reported.values()), {})
    # What is not a trial of the search is not on its front, even if it is better.
    beside = tuple(replace(trial, rejected=True) for trial in trials[len(result.trials) :])
    table = FrontTable.of(
        replace(result, trials=(*result.trials, *beside)),
        parameters=sizes.parameters,
        params_ratio=sizes.params_ratio,
        macs_ratio=sizes.macs_ratio,
        metric_name=metric_name,
        chosen=chosen,
        reported={i: _metric(metrics, metric_name, f"The report of trial {i}") for i, metrics in first.items()},
        greater_is_better=greater_is_better,
    )
    return replace(table, rows=tuple(row for row in table.rows if not trials[row.index].rejected))


def _metric(metrics: Mapping[str, float], name: str, owner: str) -> float:
    if name not in metrics:
        raise ValueError(f"{owner} has no metric {name!r} but {sorted(metrics)}; search by one of these.")
    return metrics[name]


def _summary(result: SearchResult, chosen: int, table: FrontTable, reported: Reported) -> dict[str, float]:
    row = table.chosen
    metrics: dict[str, float] = {
        "search_evaluations": len(result.trials),
        "search_rejected": sum(trial.rejected for trial in result.trials),
        "search_front": len(result.pareto),
        "search_hypervolume": result.hypervolume,
        "chosen_parameters": row.parameters,
        "chosen_params_ratio": row.parameters_share,
        "chosen_macs_ratio": row.macs_share,
    }
    for name, by_index in reported.items():
        for metric, value in by_index[chosen].items():
            metrics[f"chosen_{name}_{metric}"] = value
    return metrics


def _write_page(folder: Path) -> None:
    """Write the page about the run; what else lies in the folder must not make a finished search fail."""
    try:
        write_page(folder)
    except ValueError as error:
        logger.warning("There is no report.html of the search: %s", error)


def _write(outcome: SearchOutcome, folder: Path) -> None:
    result = outcome.result
    result.save_json(folder / "result.json")
    result.save_csv(folder / "evaluations.csv")
    outcome.table.to_json(folder / "front.json")
    outcome.table.to_csv(folder / "front.csv")
    plot_front(outcome.table, folder / "front.png")
    progress = SearchProgress.of(result)
    progress.to_csv(folder / "progress.csv")
    plot_progress(progress, folder / "progress.png")
    sub_networks = folder / "sub_networks"
    kept = {f"{index}.json": result.trials[index].sub_network for index in {*result.pareto, outcome.chosen}}
    for name, sub_network in kept.items():
        sub_network.save(sub_networks / name)
    # What was on the front of a shorter search may not be any more.
    for path in sub_networks.iterdir():
        if path.name not in kept and _SUB_NETWORK_FILE.fullmatch(path.name):
            path.unlink()
