"""What the methods that prune in or after a training have in common: steps in folders, the fine-tuning, the outcome.

In the output folder, `pruning/` has the training of what is pruned by, `pruned/` the small model as it is after
extraction, `finetuned/` that model after the final fine-tuning. The same command continues a run that was killed, from
the last checkpoint or the last of these folders that is complete.
"""

import copy
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import SchedulerType, has_length

from hf_nas.extraction import save_extracted
from hf_nas.files import write_json
from hf_nas.run_files import FINETUNED_FOLDER, PRUNING_FILE, read_object
from hf_nas.subnetwork import FILE_NAME, SubNetwork
from trainer_plugins.arguments import PruningArguments
from trainer_plugins.pruning.files import read_sub_network
from trainer_plugins.pruning.pruning_trainer import PruningTrainer
from trainer_plugins.run_state import last_complete_checkpoint, prepare_output_folder, write_run


logger = logging.getLogger(__name__)


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
        """The sizes in words; the sparsity of a pruning to a budget by all definitions."""
        if not self.report:
            return f"The model is in {self.folder}."
        return (
            f"{self._method()}\n{self.report['parameters']:,} of {self.report['dense_parameters']:,} parameters are "
            f"left. The model is in {self.folder}."
        )

    def _heads(self) -> str:
        report = self.report
        text = f"{report['heads']} of {report['dense_heads']} heads are left (--pruning_method {report['method']})"
        if kinds := report.get("heads_by_kind"):
            text += ": " + ", ".join(f"{name} {counts['kept']} of {counts['of']}" for name, counts in kinds.items())
        if "budget" in report:
            text += (
                f"; {report['neurons']} of {report['dense_neurons']} neurons. Sparsity {report['sparsity']:.4f} in "
                f"{report['budget']} (target {report['target']:g})"
            )
        return f"{text}."

    def _method(self) -> str:
        if "dense_heads" in self.report:
            return self._heads()
        published = self.report["published_sparsity"]
        return (
            f"Sparsity {self.report['sparsity']:.4f} in {self.report['budget']} (target {self.report['target']:g}); "
            f"as published in logs {published['training']:.4f}, by evaluation.py {published['evaluation']:.4f}, in "
            f"the README {published['readme']:.4f}."
        )


@dataclass(frozen=True)
class PruningRun:
    """What the steps of a run have in common.

    Args:
        arguments: of Trainer, for the whole run.
        trainer_class: for the task.
        teacher: fine-tuned on the task, if there is one.
        record: what else the weights depend on; a run with another record in the same folder is refused.
        trainer_arguments: of `Trainer`: data, collator, metric and tokenizer.
    """

    arguments: TrainingArguments
    trainer_class: type[PruningTrainer]
    teacher: PreTrainedModel | None
    record: Mapping[str, Any]
    trainer_arguments: Mapping[str, Any]

    def __post_init__(self):
        rows = self.trainer_arguments.get("train_dataset")
        if rows is not None and not has_length(rows):
            raise ValueError(
                "The training set is a stream, whose length is not known, and the schedule of a pruning goes by it; "
                "give a data set with a length."
            )

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return Path(self.arguments.output_dir)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self.arguments.should_save

    def arguments_in(self, folder: Path, **changes: Any) -> TrainingArguments:
        """The arguments of Trainer for a step that works in a folder of its own, and pushes nothing of it."""
        arguments = copy.deepcopy(self.arguments)
        changes = {"output_dir": str(folder), "push_to_hub": False, **changes}
        for name, value in changes.items():
            setattr(arguments, name, value)
        return arguments

    def record_with(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The record of a step that depends on these settings too, as JSON gives it back."""
        return json.loads(json.dumps({**self.record, **settings}))

    def begin(self, folder: Path, record: dict[str, Any], may_change: Collection[str] = ()) -> bool:
        """Claim a folder for a step; whether the step is finished there.

        Args:
            folder: of the step.
            record: what it depends on.
            may_change: what of that may be otherwise in an attempt that came to no checkpoint.

        Raises:
            ValueError: if it holds another one.
        """
        is_finished, _ = prepare_output_folder(folder, record, may_change)
        if not is_finished and self.writes:
            write_run(folder, record, finished=False)
        return is_finished

    def finish(self, trainer: PruningTrainer, folder: Path, record: dict[str, Any]) -> None:
        """Record that the step in a folder is finished, for all processes."""
        if self.writes:
            write_run(folder, record, finished=True)
        trainer.accelerator.wait_for_everyone()

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
        return self.trainer_class(model=model, args=arguments, **options)

    def evaluator(self, model: PreTrainedModel, folder: Path, arguments: TrainingArguments) -> PruningTrainer:
        """A trainer for evaluation of the small model of a folder."""
        return self.trainer_class(
            model=model, args=arguments, sub_network=read_sub_network(folder), **self.trainer_arguments
        )

    def outcome(self, model: PreTrainedModel, folder: Path) -> PruningOutcome:
        """What the run hands over: the small model of a folder."""
        evaluator = self.evaluator(model, folder, self.arguments)
        return PruningOutcome(evaluator, folder, read_sub_network(folder), read_object(folder / PRUNING_FILE))

    def hand_over(self, model: PreTrainedModel, pruned: Path, final: PruningArguments) -> PruningOutcome:
        """What comes after the pruning: the small model from the disk, fine-tuned if that is asked for.

        Args:
            model: that was pruned.
            pruned: folder of the small one.
            final: whether and how it is fine-tuned.
        """
        # From the disk, so that a run that goes on from here has the same model.
        small = type(model).from_pretrained(pruned, attn_implementation=model.config._attn_implementation)
        if not final.do_final_finetune:
            return self.outcome(small, pruned)
        self._evaluate_pruned(small, pruned)
        changes = {
            "num_train_epochs": final.final_finetune_epochs,
            "max_steps": -1,
            "learning_rate": final.final_finetune_learning_rate or self.arguments.learning_rate,
            "lr_scheduler_type": SchedulerType(final.final_finetune_scheduler_type),
            "lr_scheduler_kwargs": None,  # those given are for the schedule of the pruning
            "warmup_steps": final.final_finetune_warmup_steps,
            "resume_from_checkpoint": None,
        }
        return self.finetune(small, pruned, changes)

    def _evaluate_pruned(self, model: PreTrainedModel, pruned: Path) -> None:
        """Write the metrics before fine-tuning, if evaluation is asked for; what is measured may have changed."""
        if not self.arguments.do_eval:
            return
        evaluator = self.evaluator(model, pruned, self.arguments_in(pruned))
        metrics = evaluator.evaluate()
        evaluator.log_metrics("eval", metrics)
        evaluator.save_metrics("eval", metrics, combined=False)

    def finetune_settings(self) -> Mapping[str, Any]:
        """What the fine-tuned weights depend on beside the record and the arguments of Trainer."""
        return {}

    def finetune_options(self, model: PreTrainedModel, pruned: Path) -> Mapping[str, Any]:
        """What the trainer of the fine-tuning needs; called before it is made, where there is something to train."""
        return {}

    def finetune(self, model: PreTrainedModel, pruned: Path, changes: Mapping[str, Any]) -> PruningOutcome:
        """Fine-tune a pruned model into `finetuned/`, with these changes of the arguments."""
        folder, sub_network = self.output / FINETUNED_FOLDER, read_sub_network(pruned)
        arguments = self.arguments_in(folder, **changes)
        names = ("learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "warmup_steps")
        record = self.record_with({**self.finetune_settings(), **{name: getattr(arguments, name) for name in names}})
        attention = model.config._attn_implementation
        # Nothing is lost in the folder until there is a checkpoint.
        if not (self.begin(folder, record, may_change=record) and (folder / FILE_NAME).is_file()):
            options = self.finetune_options(model, pruned)
            trainer = self.trainer(model, arguments, sub_network=sub_network, **options)
            self.train(trainer)
            model = trainer.release()
            if self.writes:
                save_extracted(model, sub_network, folder, self.trainer_arguments.get("processing_class"))
                if report := read_object(pruned / PRUNING_FILE):
                    write_json(folder / PRUNING_FILE, report)
            self.finish(trainer, folder, record)
        return self.outcome(type(model).from_pretrained(folder, attn_implementation=attention), folder)


def best_checkpoint(trainer: PruningTrainer) -> str:
    """Name of the checkpoint whose weights were taken in the end; "last" if they are the last ones."""
    best = trainer.state.best_model_checkpoint
    return Path(best).name if best is not None and trainer.args.load_best_model_at_end else "last"
