"""From a trained super-network to the Pareto set, the table, the picture and one extracted model."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from hf_nas.extraction import extract, save_extracted
from hf_nas.files import write_json
from hf_nas.profiling import Parts, SizeTable
from hf_nas.report import FrontTable, plot_front
from hf_nas.search import SearchResult, SuperNetworkEvaluator, choose, error_objective, parameters_objective, search
from hf_nas.space import get_search_space
from hf_nas.subnetwork import SubNetwork
from trainer_plugins.arguments import SearchArguments
from trainer_plugins.super_network_trainer import SuperNetworkTrainer


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


def _digest(model: torch.nn.Module, dataset: Sequence[Mapping[str, Any]]) -> str:
    """A short name for these weights and this data, by which a resumed search knows them again."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    for index in range(len(dataset)):
        row = dataset[index]
        digest.update(repr((row.get("input_ids"), row.get("label", row.get("labels")))).encode())
    return digest.hexdigest()


def run_search(
    trainer: SuperNetworkTrainer,
    search_arguments: SearchArguments,
    *,
    selection_dataset: Sequence[Mapping[str, Any]],
    compute_metrics: Callable[[EvalPrediction], Mapping[str, float]],
    metric_name: str = "accuracy",
    greater_is_better: bool = True,
    report_datasets: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    output_dir: str | Path,
) -> SearchOutcome:
    """Search the trainer's super-network and hand over one of its sub-networks as a small model.

    Writes `search/` (the journal, every evaluation, the front as CSV, JSON and picture, the sub-networks of the front)
    and `extracted/` (the chosen model with its tokenizer) into `output_dir`. A search that was killed continues.

    Args:
        trainer: holds the trained super-network.
        search_arguments: method, budget and how to choose.
        selection_dataset: tokenised rows on which sub-networks are compared.
        compute_metrics: as with `Trainer`.
        metric_name: which of the metrics is compared.
        greater_is_better: whether a larger one is better.
        report_datasets: tokenised rows that play no part in the search; the front is measured on each in the end, the
            first one goes into the table.
        output_dir: where to.
    """
    arguments = (selection_dataset, compute_metrics, metric_name, greater_is_better, report_datasets or {})
    # A search is sequential and its journal has one writer: the first process searches, the others read what it found.
    if trainer.is_world_process_zero():
        outcome = _search(trainer, search_arguments, *arguments, Path(output_dir))
        trainer.accelerator.wait_for_everyone()
        return outcome
    trainer.accelerator.wait_for_everyone()
    return _read_outcome(Path(output_dir))


def _search(
    trainer: SuperNetworkTrainer,
    search_arguments: SearchArguments,
    selection_dataset: Sequence[Mapping[str, Any]],
    compute_metrics: Callable[[EvalPrediction], Mapping[str, float]],
    metric_name: str,
    greater_is_better: bool,
    report_datasets: Mapping[str, Sequence[Mapping[str, Any]]],
    output_dir: Path,
) -> SearchOutcome:
    folder = output_dir / "search"
    super_network = trainer.create_super_network()
    model = super_network.model
    space = get_search_space(trainer.super_network_arguments.search_space, super_network.structure)
    lengths = [len(selection_dataset[index]["input_ids"]) for index in range(len(selection_dataset))]
    sizes = _Sizes(SizeTable(model), max(1, round(float(np.mean(lengths)))), space.largest)

    def evaluator(dataset: Sequence[Mapping[str, Any]]) -> SuperNetworkEvaluator:
        batch_size = trainer.args.per_device_eval_batch_size
        return SuperNetworkEvaluator(
            super_network, dataset, trainer.data_collator, compute_metrics, batch_size=batch_size
        )

    result = search(
        space,
        evaluator(selection_dataset),
        [error_objective(metric_name, greater_is_better), parameters_objective(sizes.table)],
        size=sizes.params_ratio,
        method=search_arguments.search_strategy,
        num_samples=search_arguments.num_samples,
        seed=trainer.args.seed,
        journal=folder / "journal.log",
        fingerprint={"model_and_data": _digest(model, selection_dataset), "metric": metric_name},
    )
    chosen = choose(
        result,
        params_ratio=sizes.params_ratio,
        macs_ratio=sizes.macs_ratio,
        metric_name=metric_name,
        max_params_ratio=search_arguments.max_params_ratio,
        max_macs_ratio=search_arguments.max_macs_ratio,
        min_metric=search_arguments.min_metric,
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
    datasets: Mapping[str, Sequence[Mapping[str, Any]]],
    evaluator: Callable[[Sequence[Mapping[str, Any]]], SuperNetworkEvaluator],
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
