"""From a trained super-network to the Pareto set, the table, the picture and one extracted model."""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_nas.extraction import extract, save_extracted
from hf_nas.importance import get_importance
from hf_nas.main_input import mean_lengths
from hf_nas.nncf_config import NncfConfig, with_space
from hf_nas.profiling import SizeTable
from hf_nas.report import SearchOutcome, hand_over
from hf_nas.search import Evaluated, is_allowed, search
from hf_nas.search.additive import unit_costs
from trainer_plugins.arguments import SearchArguments
from trainer_plugins.eftnas.nncf_flags import published_search
from trainer_plugins.search.followers import Followers
from trainer_plugins.search.goals import SearchGoals, search_goals
from trainer_plugins.search.published_files import write_published_files
from trainer_plugins.search.task_evaluation import (
    ComputeMetrics,
    Rows,
    ScoredRows,
    SearchTask,
    SelectionEvaluator,
    TaskEvaluators,
    digest_of,
    precision_of,
    scored,
)
from trainer_plugins.super_network.super_network_trainer import SuperNetworkTrainer


__all__ = ["ScoredRows", "SearchGoals", "SearchOutcome", "run_search", "scored", "search_goals"]

logger = logging.getLogger(__name__)


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
    and `extracted/` (the chosen model with its tokenizer) into `output_dir`. A search that was killed continues. Under
    torchrun the first process searches, and all share the examples of every evaluation.

    Args:
        trainer: holds the trained super-network.
        search_arguments: method, budget, objectives and how to choose. A limit on a size limits both what is searched
            and what is chosen; the largest sub-network is then evaluated beside the search, for comparison.
        config: an NNCF configuration, for whose lengths of the inputs MACs are counted, and whose files are written,
            into its `log_dir` if it has one. Without one the lengths are the means of the selection set.
        selection_dataset: rows on which sub-networks are compared, as the model reads them: texts tokenised, images as
            `pixel_values`.
        compute_metrics: as with `Trainer`; may be left out if every data set comes as `ScoredRows`.
        metric_name: which of the metrics is compared.
        greater_is_better: whether a larger one is better.
        metric_scale: the metric's value of a perfect model: 100 for one in percent.
        predictions: takes from the model's outputs what the metrics need; by default the logits.
        report_datasets: rows that play no part in the search; the front is measured on each in the end, the
            first one goes into the table.
        output_dir: where to.

    Returns:
        The same in every process.

    Raises:
        ValueError: for arguments that do not fit one another, the model or what `output_dir` holds, and where no
            sub-network meets the demands.
        SearchFailed: if two candidates in a row fail with the same type of error.
    """
    if search_arguments.nas_type != "weight_sharing":
        raise ValueError(
            f"nas_type is {search_arguments.nas_type!r}, but a trained super-network is searched by 'weight_sharing'; "
            "choose that, or call run_standard_nas."
        )
    if search_arguments.race and not greater_is_better:
        raise ValueError(f"race is True, but of {metric_name!r} less is better; search without race.")
    selection = scored(selection_dataset, compute_metrics)
    reports = {name: scored(dataset, compute_metrics) for name, dataset in (report_datasets or {}).items()}
    task = SearchTask({None: selection, **reports}, metric_name, greater_is_better, metric_scale, predictions)
    evaluators = TaskEvaluators(trainer, task, search_arguments.race)
    options = method_options(trainer, search_arguments, config)
    followers = Followers(evaluators.functions())
    work = partial(_search, trainer, search_arguments, config, task, options, followers, Path(output_dir))
    try:
        outcome = followers.lead(work)
    finally:
        evaluators.clear()
    trainer.handed_over = Path(output_dir)
    return outcome


def method_options(
    trainer: SuperNetworkTrainer, arguments: SearchArguments, config: NncfConfig | None
) -> dict[str, Any] | None:
    """The options of the search method; to be called by all processes, which see batches of their own."""
    published = published_search(config) if config is not None and config.search is not None else {}
    if published.get("method") == arguments.search_strategy:
        return published["method_options"]
    if arguments.search_strategy != "additive":
        return None
    super_network = trainer.create_super_network()
    name = trainer.super_network_arguments.importance
    # The scores of a movement were those of the units before they were put in order by them, and trained.
    name = "magnitude" if name in ("none", "movement") else name
    scores = get_importance(name)(super_network.model, super_network.structure, trainer._importance_batches())
    scores = {
        key: trainer.accelerator.reduce(score.to(trainer.args.device), "mean").cpu() for key, score in scores.items()
    }
    return {"scores": scores, "costs": unit_costs(super_network.structure, SizeTable(super_network.model).parameters)}


def _search(
    trainer: SuperNetworkTrainer,
    arguments: SearchArguments,
    config: NncfConfig | None,
    task: SearchTask,
    method_options: dict[str, Any] | None,
    followers: Followers,
    output_dir: Path,
) -> SearchOutcome:
    folder = output_dir / "search"
    model, space, selection = trainer.create_super_network().model, trainer.searched_space(), task.datasets[None]
    lengths = config.lengths if config is not None else mean_lengths(model, selection.rows)
    goals = search_goals(
        model, space, arguments, metric_name=task.metric_name, greater_is_better=task.greater_is_better,
        metric_scale=task.metric_scale, sequence_length=lengths[0], decoder_length=lengths[1], folder=folder,
    )  # fmt: skip
    evaluate = SelectionEvaluator(followers)
    reference = None
    if not is_allowed(goals.constraints, space.largest):
        reference = Evaluated(space.largest, space.largest_encoding, evaluate(space.largest), ())
    published = published_search(config) if config is not None and config.search is not None else {}
    result = search(
        space,
        evaluate,
        goals.objectives,
        size=goals.sizes.params_ratio,
        method=arguments.search_strategy,
        method_options=method_options,
        num_samples=arguments.most_samples,
        max_seconds=arguments.runtime,
        seed=published.get("seed", trainer.args.seed),
        constraints=goals.constraints,
        race=arguments.race,
        storage=folder / "journal.log" if arguments.search_storage is None else arguments.search_storage,
        fingerprint={
            "model_and_data": digest_of(model, selection),
            "metric": task.metric_name,
            "precision": precision_of(trainer.args),
            "race": arguments.race,
            **goals.facts,
        },
    )
    trials = [*result.trials, *([] if reference is None else [reference])]

    def report(indices: Iterable[int]) -> dict[str, dict[int, dict[str, float]]]:
        indices, reported = list(indices), {}
        for name in task.datasets:
            if name is not None:
                reported[name] = {
                    index: followers.call("evaluate", name, trials[index].sub_network)
                    for index in tqdm(indices, desc=f"Report on {name}", unit="net")
                }
        return reported

    def save_model(index: int, target: Path) -> None:
        sub_network = result.trials[index].sub_network
        save_extracted(extract(model, sub_network), sub_network, target, trainer.processing_class)

    outcome = hand_over(
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
    if config is not None and task.greater_is_better:
        if trainer.super_network_arguments.search_space == "generated" and config.training is not None:
            config = with_space(config, space, model)
        write_published_files(
            folder if config.log_dir is None else config.log_dir, result, config, space, model, goals.sizes, task
        )
    return outcome
