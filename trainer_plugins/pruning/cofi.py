"""CoFi (Xia et al., 2022) in one run: training with gates, projection to the target, extraction, fine-tuning."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import SchedulerType

from hf_nas.distillation import LayerDistillation, cache_teacher_logits
from hf_nas.extraction import extract, save_extracted
from hf_nas.extraction.sizes import HIDDEN_FIELD
from hf_nas.files import write_json
from hf_nas.gates import BudgetController, UnitGates, fold, parse_kinds, published_sparsity
from hf_nas.main_input import SequenceLengths
from hf_nas.profiling import SizeTable
from hf_nas.run_files import PRUNED_FOLDER, PRUNING_FILE, PRUNING_FOLDER
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork
from trainer_plugins.arguments import PruningArguments
from trainer_plugins.pruning.budget import PruningBudget
from trainer_plugins.pruning.checks import check_pruning_values, objective_of, schedule_of
from trainer_plugins.pruning.files import (
    REPORT_FORMAT,
    freeze_embeddings,
    load_layer_maps,
    read_sub_network,
    save_layer_maps,
)
from trainer_plugins.pruning.pruning_trainer import PruningTrainer
from trainer_plugins.pruning.run import PruningOutcome, PruningRun, best_checkpoint
from trainer_plugins.pruning.schedule import check_steps


logger = logging.getLogger(__name__)

_LOGITS_FOLDER = "teacher_logits"
# What the gates do not depend on.
_LATER = (
    "pretrained_pruned_model", "do_final_finetune", "final_finetune_epochs", "final_finetune_learning_rate",
    "final_finetune_scheduler_type", "final_finetune_warmup_steps", "ex_name", "test",
)  # fmt: skip
# So far below the target, closing units that the training left open costs more than pruning them would have.
_LARGE_GAP = 0.05


@dataclass(frozen=True)
class _Run(PruningRun):
    """The same with the flags of CoFi."""

    pruning: PruningArguments

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

    def trainer(self, model: PreTrainedModel, arguments: TrainingArguments, **options: Any) -> PruningTrainer:
        """A trainer that learns from the teacher, if there is one, as the flags say."""
        options["objective"] = objective_of(self.pruning, options.get("layer_distillation") is not None)
        if self.pruning.cache_teacher_logits:
            rows, collator = self.trainer_arguments["train_dataset"], self.trainer_arguments["data_collator"]
            with self.arguments.main_process_first(desc="logits of the teacher"):
                logits = cache_teacher_logits(
                    self.teacher.to(self.arguments.device),
                    rows,
                    self.output / _LOGITS_FOLDER,
                    collator,
                    batch_size=self.arguments.per_device_eval_batch_size,
                )
            options |= {"teacher_logits": logits, "train_dataset": logits.attach(rows)}
        return super().trainer(model, arguments, **options)

    def finetune_settings(self) -> Mapping[str, Any]:
        """All flags but the labels."""
        return {name: value for name, value in asdict(self.pruning).items() if name not in ("ex_name", "test")}

    def finetune_options(self, model: PreTrainedModel, pruned: Path) -> Mapping[str, Any]:
        """The maps of layer distillation, as far as they were learnt in the pruning."""
        if self.pruning.freeze_embeddings:
            freeze_embeddings(model)
        maps = self.layer_maps(model, read_sub_network(pruned).hidden)
        if maps is not None:
            load_layer_maps(maps, pruned)
        return {"layer_distillation": maps}


def run_pruning(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    pruning: PruningArguments,
    *,
    sequence_length: int,
    decoder_length: int | None = None,
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
        decoder_length: tokens of a sequence that an encoder-decoder writes, by default as many.
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
    check_pruning_values(pruning, teacher is not None)
    if pruning.prunes:
        check_steps(schedule_of(pruning), arguments, trainer_arguments["train_dataset"])
    run = _Run(arguments, trainer_class, teacher, dict(record or {}), trainer_arguments, pruning)
    if pruning.pretrained_pruned_model is not None:
        return run.finetune(model, Path(pruning.pretrained_pruned_model), run.schedule_type())
    pruned = run.output / PRUNED_FOLDER
    _prune(run, model, pruned, SequenceLengths(sequence_length, decoder_length), latency_batch_size)
    return run.hand_over(model, pruned, pruning)


def _prune(run: _Run, model: PreTrainedModel, pruned: Path, lengths: SequenceLengths, latency_batch_size: int) -> None:
    """Train gates and weights, and write the small model that is left."""
    folder, pruning = run.output / PRUNING_FOLDER, run.pruning
    settings = {name: value for name, value in asdict(pruning).items() if name not in _LATER}
    measured = lengths.stated()
    if pruning.pruning_budget == "latency":
        measured["latency_batch_size"] = latency_batch_size
    record = run.record_with({**settings, **measured})
    if run.begin(folder, record) and (pruned / PRUNING_FILE).is_file():
        logger.info("The pruning in '%s' is done.", folder)
        return
    model.to(run.arguments.device)
    with run.arguments.main_process_first(desc="costs of the units"):
        budget = PruningBudget.of(pruning.pruning_budget, model, folder, lengths, latency_batch_size)
    if pruning.freeze_embeddings:
        freeze_embeddings(model)
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
        controller=BudgetController(budget.costs, pruning.target_sparsity),
        schedule=schedule_of(pruning),
        layer_distillation=run.layer_maps(model, None),
    )
    run.train(trainer)
    _hand_over(run, trainer, gates, budget, pruned)
    run.finish(trainer, folder, record)


def _hand_over(run: _Run, trainer: PruningTrainer, gates: UnitGates, budget: PruningBudget, pruned: Path) -> None:
    """Meet the target exactly, extract and write the small model with its report."""
    target, expected = run.pruning.target_sparsity, trainer.expected_sparsity()
    if expected < target - _LARGE_GAP:
        logger.warning(
            "The gates were trained to a sparsity of %.3f, and %.3f is the target: more units are closed now that "
            "the model was not trained without. Train for longer, or give the gates a larger --reg_learning_rate.",
            expected,
            target,
        )
    checkpoint = best_checkpoint(trainer)
    if checkpoint == "last" and trainer.args.load_best_model_at_end:
        logger.warning(
            "No evaluation met the target, so the last weights are pruned to it; train for longer, or give a larger "
            "--reg_learning_rate or --sparsity_epsilon."
        )
    values = budget.project(gates, target)
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
        "sparsity": budget.sparsity(sub_network),
        "expected_sparsity": expected,
        "published_sparsity": published_sparsity(model, sub_network).to_dict(),
        "parameters": sum(parameter.numel() for parameter in small.parameters()),
        "dense_parameters": table.parameters(SubNetwork.full(table.structure)),
        "checkpoint": checkpoint,
    }
    if run.writes:
        save_extracted(small, sub_network, pruned, run.trainer_arguments.get("processing_class"))
        if trainer.layer_distillation is not None:
            save_layer_maps(trainer.layer_distillation, sub_network, pruned)
        write_json(pruned / PRUNING_FILE, report)


def _width(model: PreTrainedModel) -> int:
    return getattr(model.config, HIDDEN_FIELD, None) or model.config.hidden_size
