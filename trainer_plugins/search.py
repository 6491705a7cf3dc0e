"""From a trained super-network to the Pareto set, the table, the picture and one extracted model."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from hf_nas.extraction import extract, save_extracted
from hf_nas.files import write_json
from hf_nas.nncf_config import NncfConfig
from hf_nas.profiling import Parts, SizeTable
from hf_nas.report import FrontTable, plot_front
from hf_nas.search import (
    Objective,
    SearchResult,
    SuperNetworkEvaluator,
    choose,
    error_objective,
    macs_objective,
    parameters_objective,
    search,
    write_old_files,
)
from hf_nas.subnetwork import SubNetwork
from trainer_plugins.arguments import SearchArguments
from trainer_plugins.eftnas import old_groups, published_search
from trainer_plugins.super_network_trainer import SuperNetworkTrainer


Rows = Sequence[Mapping[str, Any]]
ComputeMetrics = Callable[[EvalPrediction], Mapping[str, float]]


@dataclass(frozen=True)
class ScoredRows:
    """Rows with a metric of their own, for tasks whose metric needs more of a data set than its labels.

    Args:
        rows: tokenised rows.
        compute_metrics: as with `Trainer`.
        digest: a short name for what the metric compares with, by which a resumed search knows it again.
    """

    rows: Rows
    compute_metrics: ComputeMetrics
    digest: str = ""


@dataclass(frozen=True)
class SearchOutcome:
    """What a search leaves behind.

    Args:
        result: every evaluated sub-network.
        table: sizes and metrics of them, of the front also on the data the search never saw.
        chosen: index of the trial that was extracted.
        chosen_folder: folder of the extracted model.
        metrics: numbers for `trainer.log_metrics("search", ...)`.
    """

    result: SearchResult
    table: FrontTable
    chosen: int
    chosen_folder: Path
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Sizes:
    """Sizes of sub-networks relative to the full one: parameters inside the layers, and MACs at the mean length."""

    table: SizeTable
    sequence_length: int
    full: SubNetwork

    def parameters(self, sub_network: SubNetwork) -> int:
        return self.table.parameters(sub_network)

    def params_ratio(self, sub_network: SubNetwork) -> float:
        encoder = Parts.encoder()
        return self.table.parameters(sub_network, encoder) / self.table.parameters(self.full, encoder)

    def macs_ratio(self, sub_network: SubNetwork) -> float:
        macs = [self.table.macs(each, self.sequence_length) for each in (sub_network, self.full)]
        return macs[0] / macs[1]


def _digest(model: torch.nn.Module, dataset: ScoredRows) -> str:
    """A short name for these weights and this data, by which a resumed search knows them again."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    for index in range(len(dataset.rows)):
        row = dataset.rows[index]
        digest.update(repr((row.get("input_ids"), row.get("label", row.get("labels")))).encode())
    digest.update(dataset.digest.encode())
    return digest.hexdigest()


def run_search(
    trainer: SuperNetworkTrainer,
    search_arguments: SearchArguments,
    *,
    config: NncfConfig | None = None,
    selection_dataset: Rows | ScoredRows,
    compute_metrics: ComputeMetrics | None = None,
    metric_name: str = "accuracy",
    greater_is_better: bool = True,
    metric_scale: float = 1.0,
    predictions: Callable[[Any], tuple[torch.Tensor, ...]] | None = None,
    report_datasets: Mapping[str, Rows | ScoredRows] | None = None,
    output_dir: str | Path,
) -> SearchOutcome:
    """Search the trainer's super-network and hand over one of its sub-networks as a small model.

    Writes `search/` (the journal, every evaluation, the front as CSV, JSON and picture, the sub-networks of the front)
    and `extracted/` (the chosen model with its tokenizer) into `output_dir`. A search that was killed continues.

    Args:
        trainer: holds the trained super-network.
        search_arguments: method, budget, objectives and how to choose.
        config: an NNCF configuration, whose length of the input MACs are counted for, and whose files are written.
        selection_dataset: tokenised rows on which sub-networks are compared.
        compute_metrics: as with `Trainer`; may be left out if every data set comes as `ScoredRows`.
        metric_name: which of the metrics is compared.
        greater_is_better: whether a larger one is better.
        metric_scale: the metric's value of a perfect model: 100 for one in percent.
        predictions: takes from the model's outputs what the metrics need; by default the logits.
        report_datasets: tokenised rows that play no part in the search; the front is measured on each in the end, the
            first one goes into the table.
        output_dir: where to.
    """
    selection = _scored(selection_dataset, compute_metrics)
    reports = {name: _scored(dataset, compute_metrics) for name, dataset in (report_datasets or {}).items()}
    arguments = (selection, metric_name, greater_is_better, metric_scale, predictions, reports)
    # A search is sequential and its journal has one writer: the first process searches, the others read what it found.
    if trainer.is_world_process_zero():
        outcome = _search(trainer, search_arguments, config, *arguments, Path(output_dir))
        trainer.accelerator.wait_for_everyone()
        return outcome
    trainer.accelerator.wait_for_everyone()
    return _read_outcome(Path(output_dir))


def _scored(dataset: Rows | ScoredRows, compute_metrics: ComputeMetrics | None) -> ScoredRows:
    if isinstance(dataset, ScoredRows):
        return dataset
    if compute_metrics is None:
        raise ValueError("There is no metric for the data to search on; give compute_metrics or pass ScoredRows.")
    return ScoredRows(dataset, compute_metrics)


def _error(metric_name: str, greater_is_better: bool, scale: float) -> Objective:
    """The error by a metric whose best value is `scale`."""
    error = error_objective(metric_name, greater_is_better)

    def cost(sub_network: SubNetwork, metrics: Mapping[str, float]) -> float:
        return error.cost(sub_network, {name: value / scale for name, value in metrics.items()})

    return Objective(error.name, cost)


def _objectives(names: Sequence[str], sizes: _Sizes, error: Objective) -> list[Objective]:
    """The objectives of these names, the error first."""
    known = {
        "params": parameters_objective(sizes.table),
        "macs": macs_objective(sizes.table, sizes.sequence_length),
    }
    return [error, *(known[name] for name in names if name != "error")]


def _search(
    trainer: SuperNetworkTrainer,
    search_arguments: SearchArguments,
    config: NncfConfig | None,
    selection: ScoredRows,
    metric_name: str,
    greater_is_better: bool,
    metric_scale: float,
    predictions: Callable[[Any], tuple[torch.Tensor, ...]] | None,
    report_datasets: Mapping[str, ScoredRows],
    output_dir: Path,
) -> SearchOutcome:
    folder = output_dir / "search"
    super_network = trainer.create_super_network()
    model, space = super_network.model, trainer.searched_space()
    lengths = [len(selection.rows[index]["input_ids"]) for index in range(len(selection.rows))]
    length = max(1, round(float(np.mean(lengths)))) if config is None else config.sequence_length
    sizes = _Sizes(SizeTable(model), length, super_network.full)
    published = published_search(config) if config is not None and config.search is not None else {}
    is_published = published.get("method") == search_arguments.search_strategy

    def evaluator(dataset: ScoredRows) -> SuperNetworkEvaluator:
        options: dict[str, Any] = {"batch_size": trainer.args.per_device_eval_batch_size}
        if predictions is not None:
            options["predictions"] = predictions
        return SuperNetworkEvaluator(
            super_network, dataset.rows, trainer.data_collator, dataset.compute_metrics, **options
        )

    result = search(
        space,
        evaluator(selection),
        _objectives(search_arguments.search_objectives, sizes, _error(metric_name, greater_is_better, metric_scale)),
        size=sizes.params_ratio,
        method=search_arguments.search_strategy,
        num_samples=search_arguments.num_samples,
        method_options=published["method_options"] if is_published else None,
        seed=published.get("seed", trainer.args.seed),
        journal=folder / "journal.log",
        fingerprint={"model_and_data": _digest(model, selection), "metric": metric_name},
    )
    chosen = choose(
        result,
        params_ratio=sizes.params_ratio,
        macs_ratio=sizes.macs_ratio,
        metric_name=metric_name,
        max_params_ratio=search_arguments.max_params_ratio,
        max_macs_ratio=search_arguments.max_macs_ratio,
        min_metric=search_arguments.min_metric,
        max_metric_drop=search_arguments.max_metric_drop,
        reference_metric=search_arguments.reference_metric,
        greater_is_better=greater_is_better,
    )
    largest = next((i for i, trial in enumerate(result.trials) if trial.sub_network == space.largest), chosen)
    reported = _report(result, {*result.pareto, chosen, largest}, report_datasets, evaluator)
    table = FrontTable.of(
        result,
        parameters=sizes.parameters,
        params_ratio=sizes.params_ratio,
        macs_ratio=sizes.macs_ratio,
        metric_name=metric_name,
        chosen=chosen,
        reported={index: metrics[metric_name] for index, metrics in next(iter(reported.values()), {}).items()},
        greater_is_better=greater_is_better,
    )
    chosen_folder = output_dir / "extracted"
    result.save_json(folder / "result.json")
    result.save_csv(folder / "evaluations.csv")
    table.to_json(folder / "front.json")
    table.to_csv(folder / "front.csv")
    plot_front(table, folder / "front.png")
    if config is not None and greater_is_better:
        groups = old_groups(space)
        macs = partial(sizes.table.macs, sequence_length=length)
        write_old_files(folder, result, groups, metric_name=metric_name, metric_scale=metric_scale, macs=macs)
    for index in {*result.pareto, chosen}:
        result.trials[index].sub_network.save(folder / "sub_networks" / f"{index}.json")
    sub_network = result.trials[chosen].sub_network
    save_extracted(extract(model, sub_network), sub_network, chosen_folder, trainer.processing_class)
    metrics = _summary(result, chosen, table, reported)
    write_json(folder / "summary.json", {"chosen": chosen, "metrics": metrics})
    return SearchOutcome(result, table, chosen, chosen_folder, metrics)


def _read_outcome(output_dir: Path) -> SearchOutcome:
    folder = output_dir / "search"
    result = SearchResult.load(folder / "result.json")
    table = FrontTable.from_dict(json.loads((folder / "front.json").read_text(encoding="utf-8")))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return SearchOutcome(result, table, summary["chosen"], output_dir / "extracted", summary["metrics"])


def _report(
    result: SearchResult,
    indices: set[int],
    datasets: Mapping[str, ScoredRows],
    evaluator: Callable[[ScoredRows], SuperNetworkEvaluator],
) -> dict[str, dict[int, dict[str, float]]]:
    reported: dict[str, dict[int, dict[str, float]]] = {}
    for name, dataset in datasets.items():
        evaluate = evaluator(dataset)
        reported[name] = {index: evaluate(result.trials[index].sub_network) for index in sorted(indices)}
    return reported


def _summary(
    result: SearchResult,
    chosen: int,
    table: FrontTable,
    reported: Mapping[str, Mapping[int, Mapping[str, float]]],
) -> dict[str, float]:
    row = table.chosen
    metrics: dict[str, float] = {
        "search_evaluations": len(result.trials),
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
