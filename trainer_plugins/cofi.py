"""CoFi (Xia et al., 2022) in one run: training with gates, projection to the target, extraction, fine-tuning.

In the output folder, `pruning/` has the checkpoints with gates, `pruned/` the small model as it is after extraction,
`finetuned/` that model after the final fine-tuning, with the checkpoints of it. The same command continues a run that
was killed, from the last checkpoint or the last of these folders that is complete.
"""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import SchedulerType

from hf_nas.distillation import LayerDistillation, cache_teacher_logits
from hf_nas.extraction import extract, save_extracted
from hf_nas.extraction.sizes import HIDDEN_FIELD
from hf_nas.files import write_json
from hf_nas.gates import BudgetController, UnitGates, fold, parse_kinds, project, published_sparsity
from hf_nas.profiling import SizeTable, UnitCosts
from hf_nas.structures import describe
from hf_nas.subnetwork import FILE_NAME, SubNetwork
from trainer_plugins.cofi_arguments import PruningArguments
from trainer_plugins.cofi_checks import objective_of, schedule_of
from trainer_plugins.cofi_files import (
    REPORT_FILE,
    REPORT_FORMAT,
    budget_costs,
    last_complete_checkpoint,
    load_layer_maps,
    read_report,
    read_sub_network,
    save_layer_maps,
    set_embeddings,
)
from trainer_plugins.pruning_trainer import PruningTrainer
from trainer_plugins.run_state import prepare_output_folder, write_run


logger = logging.getLogger(__name__)

PRUNING_FOLDER, PRUNED_FOLDER, FINETUNED_FOLDER = "pruning", "pruned", "finetuned"
_LOGITS_FOLDER = "teacher_logits"
# What the gates do not depend on.
_LATER = (
    "pretrained_pruned_model", "do_final_finetune", "final_finetune_epochs", "final_finetune_learning_rate", "ex_name",
    "test",
)  # fmt: skip
# So far below the target, closing units that the training left open costs more than pruning them would have.
_LARGE_GAP = 0.05


@dataclass(frozen=True)
class PruningOutcome:
    """What a pruning hands over.

    Args:
        trainer: holds the small model, for evaluation and prediction; it writes into the folder of the run.
        folder: of the small model.
        sub_network: what was kept.
        report: what `pruning.json` says; empty if the model was pruned elsewhere.
    """

    trainer: PruningTrainer
    folder: Path
    sub_network: SubNetwork
    report: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> str:
        """The sizes in words, by all definitions."""
        if not self.report:
            return f"The model is in {self.folder}."
        published = self.report["published_sparsity"]
        return (
            f"Sparsity {self.report['sparsity']:.4f} in {self.report['budget']} (target {self.report['target']:g}); "
            f"as published in logs {published['training']:.4f}, by evaluation.py {published['evaluation']:.4f}, in "
            f"the README {published['readme']:.4f}.\n"
            f"{self.report['parameters']:,} of {self.report['dense_parameters']:,} parameters are left. The model is "
            f"in {self.folder}."
        )


@dataclass(frozen=True)
class _Run:
    """What the steps of a run have in common."""

    arguments: TrainingArguments
    pruning: PruningArguments
    trainer_class: type[PruningTrainer]
    teacher: PreTrainedModel | None
    record: Mapping[str, Any]
    trainer_arguments: Mapping[str, Any]

    @property
    def output(self) -> Path:
        return Path(self.arguments.output_dir)

    @property
    def writes(self) -> bool:
        return self.arguments.should_save

    def arguments_in(self, folder: Path, **changes: Any) -> TrainingArguments:
        """The arguments of Trainer for a step that works in a folder of its own, and pushes nothing of it."""
        arguments = copy.deepcopy(self.arguments)
        changes = {"output_dir": str(folder), "push_to_hub": False, **changes}
        for name, value in changes.items():
            setattr(arguments, name, value)
        return arguments

    def schedule_type(self) -> dict[str, Any]:
        """The change that `--scheduler_type` makes."""
        if self.pruning.scheduler_type is None:
            return {}
        linear = self.pruning.scheduler_type == "linear"
        return {"lr_scheduler_type": SchedulerType.LINEAR if linear else SchedulerType.CONSTANT}

    def layer_maps(self, model: PreTrainedModel, hidden: Sequence[int] | None) -> dict[str, LayerDistillation] | None:
        """A map for each stack of layers that student and teacher have, None if layers are not taught."""
        if not self.pruning.do_layer_distill:
            return None
        student, teacher = _width(model), _width(self.teacher)
        kept = hidden if hidden is not None and max(hidden) < teacher else None
        version, depths = self.pruning.layer_distill_version, describe(self.teacher).depths
        stacks = [stack for stack, depth in describe(model).depths.items() if depth and depths.get(stack)]
        if not stacks:
            logger.warning("The model has no layer left that the teacher could teach; it learns the logits alone.")
            return None
        return {stack: LayerDistillation(student, teacher, version=version, kept_dims=kept) for stack in stacks}

    def begin(self, folder: Path, record: dict[str, Any]) -> bool:
        """Claim a folder for a step; whether the step is finished there.

        Raises:
            ValueError: if it holds another one.
        """
        is_finished, _ = prepare_output_folder(folder, record)
        if not is_finished and self.writes:
            write_run(folder, record, finished=False)
        return is_finished

    def train(self, trainer: PruningTrainer) -> None:
        """Train, from the last checkpoint if there is one."""
        folder = Path(trainer.args.output_dir)
        checkpoint = trainer.args.resume_from_checkpoint or last_complete_checkpoint(folder)
        logger.info("Training in '%s' is %s.", folder, f"resumed from {checkpoint}" if checkpoint else "new")
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
        metrics["train_samples"] = len(trainer.train_dataset)
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()

    def trainer(self, model: PreTrainedModel, arguments: TrainingArguments, **options: Any) -> PruningTrainer:
        """A trainer that learns from the teacher, if there is one."""
        options = {**self.trainer_arguments, "teacher": self.teacher, **options}
        options["objective"] = objective_of(self.pruning, options.get("layer_distillation") is not None)
        if self.pruning.cache_teacher_logits:
            with self.arguments.main_process_first(desc="logits of the teacher"):
                logits = cache_teacher_logits(
                    self.teacher.to(self.arguments.device),
                    options["train_dataset"],
                    self.output / _LOGITS_FOLDER,
                    options["data_collator"],
                    batch_size=self.arguments.per_device_eval_batch_size,
                )
            options |= {"teacher_logits": logits, "train_dataset": logits.attach(options["train_dataset"])}
        return self.trainer_class(model=model, args=arguments, **options)

    def evaluator(self, model: PreTrainedModel, folder: Path, arguments: TrainingArguments) -> PruningTrainer:
        """A trainer for evaluation of a small model."""
        return self.trainer_class(
            model=model, args=arguments, sub_network=read_sub_network(folder), **self.trainer_arguments
        )


def run_pruning(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    pruning: PruningArguments,
    *,
    sequence_length: int,
    teacher: PreTrainedModel | None = None,
    trainer_class: type[PruningTrainer] = PruningTrainer,
    latency_batch_size: int = 1,
    record: Mapping[str, Any] | None = None,
    **trainer_arguments: Any,
) -> PruningOutcome:
    """Prune a model and fine-tune what is left, as far as that is not done already in the output folder.

    Args:
        model: pretrained, with a task head; with `pretrained_pruned_model` the model in that folder.
        arguments: of the training with gates (or of the fine-tuning, if that is all there is to do).
        pruning: what to do.
        sequence_length: tokens of a sequence, for budgets in operations or latency.
        teacher: fine-tuned on the task.
        trainer_class: for tasks that are evaluated in another way.
        latency_batch_size: sequences of a pass, for a budget in latency.
        record: what else the weights depend on; a run with another record in the same folder is refused.
        trainer_arguments: of `Trainer`: data, collator, metric and tokenizer.

    Raises:
        ValueError: if the flags contradict each other or do not fit the model, or the folder holds another run.
    """
    if not pruning.is_active:
        raise ValueError("Nothing is to be pruned; set pruning_type, or pretrained_pruned_model to fine-tune one.")
    run = _Run(arguments, pruning, trainer_class, teacher, dict(record or {}), trainer_arguments)
    if pruning.pretrained_pruned_model is not None:
        changes = {**run.schedule_type()}
        return _finetune(run, model, Path(pruning.pretrained_pruned_model), changes)
    pruned, model_class = run.output / PRUNED_FOLDER, type(model)
    attention = model.config._attn_implementation
    _prune(run, model, pruned, sequence_length, latency_batch_size)
    # From the disk, so that a run that goes on from here has the same model.
    small = model_class.from_pretrained(pruned, attn_implementation=attention)
    if not pruning.do_final_finetune:
        return _outcome(run, small, pruned)
    _evaluate_pruned(run, small, pruned)
    changes = {
        "num_train_epochs": pruning.final_finetune_epochs,
        "max_steps": -1,
        "learning_rate": pruning.final_finetune_learning_rate or arguments.learning_rate,
        "lr_scheduler_type": SchedulerType.CONSTANT,
        "warmup_steps": 0,
        "resume_from_checkpoint": None,
    }
    return _finetune(run, small, pruned, changes)


# The steps.


def _prune(run: _Run, model: PreTrainedModel, pruned: Path, sequence_length: int, latency_batch_size: int) -> None:
    """Train gates and weights, and write the small model that is left."""
    folder, pruning = run.output / PRUNING_FOLDER, run.pruning
    settings = {name: value for name, value in asdict(pruning).items() if name not in _LATER}
    measured = {"latency_batch_size": latency_batch_size} if pruning.pruning_budget == "latency" else {}
    record = _plain({**run.record, **settings, "sequence_length": sequence_length, **measured})
    if run.begin(folder, record) and (pruned / REPORT_FILE).is_file():
        logger.info("The pruning in '%s' is done.", folder)
        return
    model.to(run.arguments.device)
    with run.arguments.main_process_first(desc="costs of the units"):
        costs = budget_costs(pruning.pruning_budget, model, folder, sequence_length, latency_batch_size)
    set_embeddings(model, trained=not pruning.freeze_embeddings)
    gates = UnitGates(
        model,
        parse_kinds(pruning.pruning_type),
        droprate_init=pruning.droprate_init,
        temperature=pruning.gate_temperature,
        seed=run.arguments.seed,
    )
    trainer = run.trainer(
        model,
        run.arguments_in(folder, **run.schedule_type()),
        gates=gates,
        controller=BudgetController(costs, pruning.target_sparsity),
        schedule=schedule_of(pruning),
        layer_distillation=run.layer_maps(model, None),
    )
    run.train(trainer)
    _hand_over(run, trainer, gates, costs, pruned)
    if run.writes:
        write_run(folder, record, finished=True)
    trainer.accelerator.wait_for_everyone()


def _hand_over(run: _Run, trainer: PruningTrainer, gates: UnitGates, costs: UnitCosts, pruned: Path) -> None:
    """Meet the target exactly, extract and write the small model with its report."""
    target, expected, best = run.pruning.target_sparsity, trainer.expected_sparsity(), _best_checkpoint(trainer)
    if expected < target - _LARGE_GAP:
        logger.warning(
            "The gates were trained to a sparsity of %.3f, and %.3f is the target: more units are closed now that "
            "the model was not trained without. Train for longer, or give the gates a larger --reg_learning_rate.",
            expected,
            target,
        )
    values = project(gates, costs, target)
    model = trainer.release()
    sub_network = values.sub_network(describe(model))
    small = extract(fold(model, values), sub_network)
    table = SizeTable(model)
    report = {
        "format": REPORT_FORMAT,
        "name": run.pruning.ex_name,
        "pruning_type": run.pruning.pruning_type,
        "budget": run.pruning.pruning_budget,
        "target": target,
        "sparsity": costs.sparsity(sub_network),
        "expected_sparsity": expected,
        "published_sparsity": published_sparsity(model, sub_network).to_dict(),
        "parameters": sum(parameter.numel() for parameter in small.parameters()),
        "dense_parameters": table.parameters(SubNetwork.full(table.structure)),
        "checkpoint": best or "last",
    }
    if run.writes:
        save_extracted(small, sub_network, pruned, run.trainer_arguments.get("processing_class"))
        if trainer.layer_distillation is not None:
            save_layer_maps(trainer.layer_distillation, sub_network, pruned)
        write_json(pruned / REPORT_FILE, report)


def _evaluate_pruned(run: _Run, model: PreTrainedModel, pruned: Path) -> None:
    """Write the metrics before fine-tuning, if evaluation is asked for."""
    if not run.arguments.do_eval or (pruned / "eval_results.json").is_file():
        return
    evaluator = run.evaluator(model, pruned, run.arguments_in(pruned))
    metrics = evaluator.evaluate()
    evaluator.log_metrics("eval", metrics)
    evaluator.save_metrics("eval", metrics, combined=False)


def _finetune(run: _Run, model: PreTrainedModel, pruned: Path, changes: Mapping[str, Any]) -> PruningOutcome:
    """Fine-tune a pruned model into `finetuned/`, with these changes of the arguments."""
    folder, sub_network = run.output / FINETUNED_FOLDER, read_sub_network(pruned)
    arguments = run.arguments_in(folder, **changes)
    names = ("learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "warmup_steps")
    settings = {name: value for name, value in asdict(run.pruning).items() if name not in ("ex_name", "test")}
    record = _plain({**run.record, **settings, **{name: getattr(arguments, name) for name in names}})
    attention = model.config._attn_implementation
    if not (run.begin(folder, record) and (folder / FILE_NAME).is_file()):
        set_embeddings(model, trained=not run.pruning.freeze_embeddings)
        maps = run.layer_maps(model, sub_network.hidden)
        if maps is not None:
            load_layer_maps(maps, pruned)
        trainer = run.trainer(model, arguments, layer_distillation=maps, sub_network=sub_network)
        run.train(trainer)
        model = trainer.release()
        if run.writes:
            save_extracted(model, sub_network, folder, run.trainer_arguments.get("processing_class"))
            if report := read_report(pruned):
                write_json(folder / REPORT_FILE, report)
            write_run(folder, record, finished=True)
        trainer.accelerator.wait_for_everyone()
    return _outcome(run, type(model).from_pretrained(folder, attn_implementation=attention), folder)


def _outcome(run: _Run, model: PreTrainedModel, folder: Path) -> PruningOutcome:
    evaluator = run.evaluator(model, folder, run.arguments)
    return PruningOutcome(evaluator, folder, read_sub_network(folder), read_report(folder))


def _best_checkpoint(trainer: PruningTrainer) -> str | None:
    """Name of the checkpoint whose weights were taken in the end; None if they are the last ones."""
    best = trainer.state.best_model_checkpoint
    return Path(best).name if best is not None and trainer.args.load_best_model_at_end else None


def _width(model: PreTrainedModel) -> int:
    return getattr(model.config, HIDDEN_FIELD, None) or model.config.hidden_size


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The same as JSON gives it back."""
    return json.loads(json.dumps(record))
