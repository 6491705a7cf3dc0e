"""From a pretrained model to the Pareto set without a super-network: every candidate is fine-tuned on its own."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel, set_seed

from hf_nas.files import write_json
from hf_nas.main_input import MainInput
from hf_nas.report import SearchOutcome, hand_over
from hf_nas.search import Evaluated, SearchResult, is_allowed, search
from hf_nas.search.moasha import SuccessiveHalving
from hf_nas.space import SearchSpace
from trainer_plugins.arguments import SearchArguments
from trainer_plugins.run_state import TRAINING_KEYS
from trainer_plugins.search.candidates import Candidates
from trainer_plugins.search.goals import SearchGoals, search_goals
from trainer_plugins.search.run import method_options
from trainer_plugins.search.task_evaluation import (
    ComputeMetrics,
    Rows,
    ScoredRows,
    SearchTask,
    contents_of,
    digest_of,
    precision_of,
    scored,
)
from trainer_plugins.super_network.super_network_trainer import SuperNetworkTrainer


__all__ = ["run_standard_nas"]

CANDIDATES_FOLDER = "candidates"
REFERENCE_FILE = "metrics.json"
# So many rows of the training set tell whether it is the same one.
_DIGESTED_ROWS = 1000


def run_standard_nas(
    trainer: SuperNetworkTrainer,
    search_arguments: SearchArguments,
    *,
    selection_dataset: Rows | ScoredRows,
    compute_metrics: ComputeMetrics | None = None,
    metric_name: str = "accuracy",
    greater_is_better: bool = True,
    metric_scale: float = 1.0,
    report_datasets: Mapping[str, Rows | ScoredRows] | None = None,
    output_dir: str | Path,
) -> SearchOutcome:
    """Search sub-networks of a pretrained model, each of which is extracted and fine-tuned by itself.

    The units are put in order of importance first, as for a super-network. After each epoch a candidate is measured on
    the selection set; its best epoch counts. With the search strategy `moasha`, what is not among the best third after
    1, 3, 9, ... epochs is not trained on ([`hf_nas.search.moasha.SuccessiveHalving`]). This costs a training a
    candidate; Klein et al. (2024) compare the search of one super-network with it.

    Writes `search/` and `extracted/` into `output_dir` as [`run_search`] does, and the fine-tuned models on the front
    into `candidates/`. A search that was killed continues when it is called again and loses the candidate that it was
    at; processes with the same storage and `output_dir` share the search. Under torchrun all processes train each
    candidate together.

    Args:
        trainer: holds the pretrained model, the training set and the arguments that each candidate is trained with.
        search_arguments: method, budget, objectives and how to choose. A limit on a size limits both what is searched
            and what is chosen; the largest sub-network is then trained beside the search, for comparison.
        selection_dataset: rows on which candidates are compared, as the model reads them: texts tokenised, images as
            `pixel_values`.
        compute_metrics: as with `Trainer`; may be left out if every data set comes as `ScoredRows`.
        metric_name: which of the metrics is compared.
        greater_is_better: whether a larger one is better.
        metric_scale: the metric's value of a perfect model: 100 for one in percent.
        report_datasets: rows that play no part in the search; the front is measured on each in the end, the
            first one goes into the table.
        output_dir: where to.

    Returns:
        The same in every process.

    Raises:
        ValueError: for arguments that do not fit one another, the model or what `output_dir` holds, and where no
            candidate meets the demands.
        SearchFailed: if two candidates in a row fail with the same type of error.
    """
    _check(trainer, search_arguments)
    selection = scored(selection_dataset, compute_metrics)
    reports = {name: scored(dataset, compute_metrics) for name, dataset in (report_datasets or {}).items()}
    task = SearchTask({None: selection, **reports}, metric_name, greater_is_better, metric_scale)
    trainer.create_super_network()
    # An importance may look at batches, which a search that goes on must draw again.
    set_seed(trainer.args.seed)
    trainer.reorder_units()
    options = method_options(trainer, search_arguments, None)
    candidates = Candidates(
        trainer,
        selection,
        reports,
        Path(output_dir) / CANDIDATES_FOLDER,
        metric_name=metric_name,
        greater_is_better=greater_is_better,
        kept=[trainer.searched_space().largest],
    )
    work = partial(_search, trainer, search_arguments, task, options, candidates, Path(output_dir))
    outcome = candidates.followers.lead(work)
    trainer.handed_over = Path(output_dir)
    return outcome


def _check(trainer: SuperNetworkTrainer, arguments: SearchArguments) -> None:
    if arguments.nas_type != "standard":
        raise ValueError(
            f"nas_type is {arguments.nas_type!r}, but candidates are trained one by one by 'standard'; choose that, "
            "or call run_search."
        )
    if arguments.race:
        raise ValueError("race is True, but racing gives up evaluations, not trainings; choose the strategy moasha.")
    if trainer.strategy is not None:
        raise ValueError(
            f"The trainer has the sampling strategy {trainer.super_network_arguments.sampling_strategy!r} of a "
            "super-network, and standard NAS trains none; leave it out."
        )
    if trainer.train_dataset is None:
        raise ValueError("The trainer has no training set to fine-tune candidates on; give it a train_dataset.")
    sharded = [name for name in ("deepspeed", "fsdp") if getattr(trainer.args, name, None)]
    if sharded:
        raise ValueError(
            f"With {sharded[0]} no process has the whole weights of a candidate to keep; leave out --{sharded[0]}."
        )


def _search(
    trainer: SuperNetworkTrainer,
    arguments: SearchArguments,
    task: SearchTask,
    method_options: dict[str, Any] | None,
    candidates: Candidates,
    output_dir: Path,
) -> SearchOutcome:
    folder = output_dir / "search"
    space, rows = trainer.searched_space(), task.datasets[None].rows
    length = MainInput.of(trainer.model).mean_tokens(rows)
    goals = search_goals(
        trainer.model, space, arguments, metric_name=task.metric_name, greater_is_better=task.greater_is_better,
        metric_scale=task.metric_scale, sequence_length=length, folder=folder,
    )  # fmt: skip
    fingerprint = _fingerprint(trainer, task, goals)
    result = search(
        space,
        candidates,
        goals.objectives,
        size=goals.sizes.params_ratio,
        method=arguments.search_strategy,
        method_options=method_options,
        num_samples=arguments.most_samples,
        max_seconds=arguments.runtime,
        seed=trainer.args.seed,
        constraints=goals.constraints,
        early_stopping=SuccessiveHalving() if arguments.search_strategy == "moasha" else _ToTheEnd(),
        storage=folder / "journal.log" if arguments.search_storage is None else arguments.search_storage,
        fingerprint=fingerprint,
    )
    # Other processes of the search may be at the same, or delete what is not on their front.
    with candidates.locked():
        reference = None
        if not is_allowed(goals.constraints, space.largest):
            reference = _reference(space, candidates, fingerprint)
        outcome = _hand_over(result, task, goals, space, arguments, candidates, reference, output_dir)
        kept = {result.trials[index].sub_network for index in (*result.pareto, outcome.chosen)} | candidates.kept
        candidates.delete({trial.sub_network for trial in result.trials} - kept)
    return outcome


class _ToTheEnd:
    """Stops no training; but the search is asked after each epoch, and ends it when its time is over."""

    def stops(self, level: int, costs: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> bool:
        """Never."""
        return False


def _fingerprint(trainer: SuperNetworkTrainer, task: SearchTask, goals: SearchGoals) -> dict[str, Any]:
    """What the metrics of a candidate depend on."""
    arguments = trainer.args.to_dict()
    distillation = {} if trainer.teacher is None else {"distillation": asdict(trainer.distillation)}
    return {
        "nas_type": "standard",
        "model_and_data": digest_of(trainer.model, task.datasets[None]),
        "training_data": _digest_of_rows(trainer.model, trainer.train_dataset),
        "training": {name: arguments[name] for name in TRAINING_KEYS},
        "metric": task.metric_name,
        "precision": precision_of(trainer.args),
        **distillation,
        **goals.facts,
    }


def _digest_of_rows(model: PreTrainedModel, rows: Rows) -> str:
    main_input = MainInput.of(model)
    # Images of a training are usually cropped at random, whenever they are read; their labels must do.
    name = main_input.name if main_input.tokens is None else None
    digest = hashlib.blake2b(digest_size=16)
    for index in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _DIGESTED_ROWS)).astype(int)).tolist():
        digest.update(contents_of(rows[index], name))
    return f"{len(rows)}, {digest.hexdigest()}"


def _reference(space: SearchSpace, candidates: Candidates, fingerprint: Mapping[str, Any]) -> Evaluated:
    """The largest candidate, trained once for all processes and repetitions of a search that it is no part of."""
    path = candidates.path(space.largest) / REFERENCE_FILE
    wanted = json.loads(json.dumps(fingerprint))
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("fingerprint") != wanted:
        found = {"fingerprint": wanted, "metrics": candidates(space.largest)}
        # Goes with the folder when the candidate is trained again.
        write_json(path, found)
    return Evaluated(space.largest, space.largest_encoding, found["metrics"], ())


def _hand_over(
    result: SearchResult,
    task: SearchTask,
    goals: SearchGoals,
    space: SearchSpace,
    arguments: SearchArguments,
    candidates: Candidates,
    reference: Evaluated | None,
    output_dir: Path,
) -> SearchOutcome:
    trials = [*result.trials, *([] if reference is None else [reference])]

    def report(indices: Iterable[int]) -> dict[str, dict[int, dict[str, float]]]:
        indices = list(indices)
        for index in indices:
            candidates.ensure(trials[index].sub_network, trials[index].metrics)
        return {
            name: {
                index: candidates.measure(name, trials[index].sub_network)
                for index in tqdm(indices, desc=f"Report on {name}", unit="net")
            }
            for name in candidates.reports
        }

    def save_model(index: int, target: Path) -> None:
        candidates.save(trials[index].sub_network, target)

    return hand_over(
        result,
        output_dir,
        sizes=goals.sizes,
        metric_name=task.metric_name,
        greater_is_better=task.greater_is_better,
        largest=space.largest,
        limits=arguments.limits,
        report=report,
        save_model=save_model,
        reference=reference,
    )
