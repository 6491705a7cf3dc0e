"""`hf-nas search`: from a trained super-network and labelled texts to a front of sub-networks and one small model."""

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from hf_nas.cli.flags import get_device
from hf_nas.cli.models import load_text_classifier, read_space
from hf_nas.cli.search_arguments import add_arguments, check_arguments, output_folder
from hf_nas.cli.text_data import TASKS, load_splits, read_record
from hf_nas.cli.text_metrics import TextMetric, default_metric, get_metric, positive_number
from hf_nas.cli.text_rows import TextColumns, check_tokens, token_limit, tokenize
from hf_nas.elastic import SuperNetwork
from hf_nas.extraction import extract, save_extracted
from hf_nas.importance import gradient
from hf_nas.profiling import LatencyTable, MemoryTable, SizeTable
from hf_nas.report import RelativeSizes, SearchOutcome, hand_over
from hf_nas.report.handover import Reported
from hf_nas.run_files import SPACE_FILE, record_folder
from hf_nas.search import (
    Evaluated,
    Objective,
    ObjectiveSources,
    Racing,
    SuperNetworkEvaluator,
    check_constraints,
    error_objective,
    get_constraints,
    get_objectives,
    is_allowed,
    search,
)
from hf_nas.search.additive import unit_costs
from hf_nas.search.published_results import write_published_results
from hf_nas.space import SearchSpace


__all__ = ["add_parser"]

logger = logging.getLogger(__name__)

Rows = list[dict[str, Any]]

_MAX_LENGTH = 128
_NUM_SAMPLES = 100
_IMPORTANCE_BATCHES = 32


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser("search", help="Search a trained super-network of texts for smaller models.")
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: for arguments that do not fit together, or a model, data or a space that cannot be read.
        hf_nas.search.SearchFailed: if sub-networks cannot be evaluated.
    """
    check_arguments(arguments)
    started = time.perf_counter()
    model, tokenizer = load_text_classifier(arguments.checkpoint, get_device(arguments.device))
    record = read_record(arguments.checkpoint)
    space = read_space(_space_name(arguments, record), model)
    model_loaded = time.perf_counter()
    task_name = arguments.task_name or (record or {}).get("task_name")
    texts = _load_texts(arguments, record, task_name, model, tokenizer)
    data_loaded = time.perf_counter()
    searching = _Search(arguments, model, tokenizer, space, texts)
    outcome = searching.run()
    if arguments.published_json:
        name = task_name or Path(arguments.data).stem
        # Without the largest one, where that stands beside the search.
        rows = [row for row in outcome.table.rows if row.index < len(outcome.result.trials)]
        write_published_results(
            output_folder(arguments) / "search" / f"results_{name}.json",
            outcome.result,
            dataset=name,
            parameters=searching.sizes.params_ratio,
            model_loading_time=model_loaded - started,
            data_loading_time=data_loaded - model_loaded,
            reported={row.index: row.reported for row in rows if row.reported is not None},
            greater_is_better=texts.metric.greater_is_better,
            space=space,
        )
    print(f"\n{outcome.table.to_markdown()}\nThe chosen model is in {outcome.chosen_folder}.")


@dataclass(frozen=True)
class _Texts:
    """The data of the search as rows of tokens."""

    selection: Rows
    reports: Mapping[str, Rows]
    metric: TextMetric

    @property
    def mean_length(self) -> int:
        """At which operations are counted."""
        return max(1, round(float(np.mean([len(row["input_ids"]) for row in self.selection]))))


def _load_texts(
    arguments: argparse.Namespace,
    record: Mapping[str, Any] | None,
    task_name: str | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> _Texts:
    task, count = TASKS.get(task_name), model.config.num_labels
    name = arguments.metric or (task.metric if task is not None else default_metric(count))
    metric = get_metric(name, count, positive_number(model.config, task.labels if task is not None else ()))
    if arguments.race:
        Racing(metric=metric.name)  # refuses other metrics than accuracy
    splits = load_splits(
        arguments.data,
        arguments.split,
        record=record,
        task_name=task_name,
        report_data=arguments.report_data,
        max_samples=arguments.max_samples,
    )
    columns = TextColumns(
        tuple(arguments.text_columns) if arguments.text_columns else task.columns if task is not None else None,
        arguments.label_column,
        task.labels if task is not None else (),
    )
    wanted = arguments.max_length or (record or {}).get("max_seq_length") or _MAX_LENGTH
    length = token_limit(wanted, model, tokenizer)

    def rows(dataset: Any, where: str) -> Rows:
        return tokenize(dataset, columns, model.config, tokenizer, length, where)

    selection = rows(splits.selection, "the data to compare on")
    texts = _Texts(selection, {name: rows(dataset, name) for name, dataset in splits.reports.items()}, metric)
    for each in (selection, *texts.reports.values()):
        check_tokens(each, model, arguments.checkpoint)
    return texts


def _space_name(arguments: argparse.Namespace, record: Mapping[str, Any] | None) -> str:
    record = record or {}
    if record.get("sampling_strategy") is None:
        logger.warning(
            "Nothing says that %s was trained as a super-network, without which smaller sub-networks are poor.",
            arguments.checkpoint,
        )
    if arguments.search_space is not None:
        return arguments.search_space
    if record.get("nncf_config") is not None or record.get("search_space") == "generated":
        path = record_folder(arguments.checkpoint) / SPACE_FILE
        if path.is_file():
            return str(path)
        raise ValueError(
            f"The super-network was trained in a search space of its own, but {str(path)!r} does not exist; give the "
            "file of the space, or the NNCF configuration that lists its widths, by --search_space."
        )
    return record.get("search_space", "small")


class _Search:
    """One search of a model on rows of tokens."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        space: SearchSpace,
        texts: _Texts,
    ):
        self.arguments, self.model, self.tokenizer = arguments, model, tokenizer
        self.space, self.texts = space, texts
        self.folder = output_folder(arguments)
        self.sizes = RelativeSizes(SizeTable(model), texts.mean_length)

    def run(self) -> SearchOutcome:
        """Search and hand over."""
        arguments, metric = self.arguments, self.texts.metric
        sources = ObjectiveSources(
            error_objective(metric.name, metric.greater_is_better),
            self.sizes.table,
            self.texts.mean_length,
            self._latency_table,
            self._memory_table,
        )
        objectives = get_objectives(arguments.search_objectives, sources)
        ratios = {name: getattr(arguments, f"max_{name}_ratio") for name in ("params", "macs", "latency")}
        constraints = get_constraints(ratios, sources)
        check_constraints(constraints, self.space.smallest)
        num_samples = arguments.num_samples
        if num_samples is None and arguments.max_seconds is None:
            num_samples = _NUM_SAMPLES
        options = self._method_options()
        # Attached last: importance and latency are those of the plain model.
        self.super_network = SuperNetwork(self.model)
        evaluator = self._evaluator(self.texts.selection, Racing(metric=metric.name) if arguments.race else False)
        result = search(
            self.space,
            evaluator,
            objectives,
            size=self.sizes.params_ratio,
            method=arguments.search_strategy,
            method_options=options,
            num_samples=num_samples,
            max_seconds=arguments.max_seconds,
            seed=arguments.seed,
            constraints=constraints,
            race=arguments.race,
            storage=arguments.search_storage or self.folder / "search" / "journal.log",
            fingerprint={
                "model_and_data": _digest(self.model, self.texts.selection),
                "metric": metric.name,
                "precision": arguments.precision,
                "race": arguments.race,
                **self._facts(sources, {*arguments.search_objectives, *(name for name in ratios if ratios[name])}),
            },
        )
        # Beyond a limit it is no candidate, but all others are compared with it.
        reference = None if is_allowed(constraints, self.space.largest) else self._largest(evaluator, objectives)
        evaluator.clear()
        trials = [*result.trials, *([] if reference is None else [reference])]
        limits = ("max_params_ratio", "max_macs_ratio", "max_latency_ratio", "min_metric")
        return hand_over(
            result,
            self.folder,
            sizes=self.sizes,
            metric_name=metric.name,
            greater_is_better=metric.greater_is_better,
            largest=self.space.largest,
            limits={name: getattr(arguments, name) for name in limits},
            report=partial(self._report, trials),
            save_model=partial(self._save_model, trials),
            reference=reference,
        )

    def _largest(self, evaluator: SuperNetworkEvaluator, objectives: Sequence[Objective]) -> Evaluated:
        largest = self.space.largest
        metrics = evaluator(largest)
        costs = tuple(float(objective.cost(largest, metrics)) for objective in objectives)
        return Evaluated(largest, self.space.encode(largest), metrics, costs)

    def _method_options(self) -> dict[str, Any] | None:
        """The scores and costs of units that the method `additive` adds up."""
        if self.arguments.search_strategy != "additive":
            return None
        collate, rows = DataCollatorWithPadding(self.tokenizer), self.texts.selection
        size, device = self.arguments.batch_size, self.model.device
        starts = range(0, len(rows), size)[:_IMPORTANCE_BATCHES]
        batches = (collate(rows[start : start + size]).to(device) for start in starts)
        structure = self.sizes.table.structure
        return {
            "scores": gradient(self.model, structure, batches),
            "costs": unit_costs(structure, self.sizes.table.parameters),
        }

    def _evaluator(self, rows: Rows, racing: Racing | bool = False) -> SuperNetworkEvaluator:
        return SuperNetworkEvaluator(
            self.super_network,
            rows,
            DataCollatorWithPadding(self.tokenizer),
            self.texts.metric,
            batch_size=self.arguments.batch_size,
            racing=racing,
            precision=self.arguments.precision,
        )

    def _facts(self, sources: ObjectiveSources, names: set[str]) -> dict[str, Any]:
        """What the costs depend on, in JSON types."""
        facts: dict[str, Any] = {"sequence_length": self.texts.mean_length}
        if names & {"latency", "memory"}:
            facts["latency_batch_size"] = self.arguments.latency_batch_size
        if "latency" in names:
            measured = json.dumps(sources.latency_table.to_dict(), sort_keys=True)
            facts["latency_table"] = hashlib.sha256(measured.encode()).hexdigest()[:12]
        return facts

    def _latency_table(self) -> LatencyTable:
        """Measured once, so that a search that continues, or another process of it, has the same numbers."""
        path = self.folder / "search" / "latency_table.json"
        wanted = {"batch_size": self.arguments.latency_batch_size, "sequence_length": self.texts.mean_length}
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.parent / ".latency_table.lock"):
            if not path.is_file():
                table = LatencyTable.measure(self.model, **wanted)
                table.save(path)
                return table
        table = LatencyTable.load(path, self.sizes.table.structure)
        found = {name: table.settings.get(name) for name in wanted}
        if found != wanted:
            raise ValueError(f"{path} was measured with {found} and not with {wanted}; delete it to measure anew.")
        return table

    def _memory_table(self) -> MemoryTable:
        return MemoryTable(self.model, self.arguments.latency_batch_size, self.texts.mean_length)

    def _report(self, trials: Sequence[Evaluated], indices: Iterable[int]) -> Reported:
        wanted, found = sorted(indices), {}
        for name, rows in self.texts.reports.items():
            evaluator = self._evaluator(rows)
            bar = tqdm(wanted, desc=f"Measuring on {name}", unit="net")
            found[name] = {index: evaluator(trials[index].sub_network) for index in bar}
            evaluator.clear()
        return found

    def _save_model(self, trials: Sequence[Evaluated], index: int, folder: Path) -> None:
        sub_network = trials[index].sub_network
        save_extracted(extract(self.model, sub_network), sub_network, folder, self.tokenizer)


def _digest(model: PreTrainedModel, rows: Sequence[Mapping[str, Any]]) -> str:
    """A short name for these weights and rows, by which a search that continues knows them again."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    for row in rows:
        digest.update(repr((row["input_ids"], row["label"])).encode())
    return digest.hexdigest()
