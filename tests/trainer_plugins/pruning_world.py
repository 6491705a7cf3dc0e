"""Tiny trainings with gates that the tests start in this process, under torchrun, or to kill them.

Usage: python -m tests.trainer_plugins.pruning_world OUTPUT_DIR JSON_OF_SETTINGS
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import EvalPrediction, TrainerCallback, TrainingArguments, default_data_collator

from hf_nas.distillation import DistillationObjective, LayerDistillation
from hf_nas.gates import KINDS, BudgetController, UnitGates
from hf_nas.profiling import parameter_costs
from hf_nas.structures import describe
from tests import zoo
from tests.trainer_plugins.worlds import rows
from trainer_plugins import PruningArguments, PruningSchedule, PruningTrainer, run_pruning


EPOCH = 6  # steps: 48 rows in batches of 8


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def rows_for(model: str) -> list[dict]:
    """Rows of a classification, or with tokens to predict."""
    if model in ("llama", "bart"):
        return [{**row, "labels": row["input_ids"]} for row in rows()]
    return rows()


def arguments(folder: str | Path, **settings) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 8, "num_train_epochs": 3, "learning_rate": 1e-2, "logging_steps": 1,
            "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 0,
            "lr_scheduler_type": "linear", "max_grad_norm": 0.0, "train_sampling_strategy": "sequential", **settings,
        },
    )  # fmt: skip


def make_trainer(
    folder: str | Path,
    model: str = "bert",
    kinds: tuple[str, ...] = KINDS,
    target: float = 0.5,
    schedule: PruningSchedule | None = None,
    version: int | None = None,
    **settings,
) -> PruningTrainer:
    """A trainer with gates on a tiny model without dropout; with a version of layer distillation also a teacher."""
    student = zoo.without_dropout(zoo.build(model))
    gates = UnitGates(student, kinds, seed=0)
    options = {}
    if version is not None:
        teacher = zoo.build(model, seed=5)
        width = student.config.hidden_size
        maps = {stack: LayerDistillation(width, width, version=version) for stack in describe(student).depths}
        options = {"teacher": teacher, "objective": DistillationObjective(), "layer_distillation": maps}
    data = rows_for(model)
    return PruningTrainer(
        model=student,
        args=arguments(folder, **settings),
        gates=gates,
        controller=BudgetController(parameter_costs(student), target),
        schedule=schedule or PruningSchedule(prepruning_epochs=1, warmup_epochs=1, learning_rate=0.1),
        train_dataset=data,
        eval_dataset=data[:16],
        data_collator=default_data_collator,
        compute_metrics=accuracy if data[0]["labels"].__class__ is int else None,
        **options,
    )


def prune(folder: str | Path, model=None, teacher=None, pruning: dict | None = None, **settings):
    """A whole run on a tiny BERT: 2 epochs of training with gates, 1 of fine-tuning."""
    flags = {
        "pruning_type": "structured_heads+structured_mlp+hidden+layer", "target_sparsity": 0.5,
        "prepruning_finetune_epochs": 0.5, "lagrangian_warmup_epochs": 0.5, "reg_learning_rate": 0.1,
        "do_final_finetune": True, "final_finetune_epochs": 1.0, "final_finetune_learning_rate": 5e-3,
        **(pruning or {}),
    }  # fmt: skip
    data = rows()
    return run_pruning(
        model if model is not None else zoo.build("bert"),
        arguments(folder, **{"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, **settings}),
        PruningArguments(**flags),
        sequence_length=8,
        teacher=teacher,
        record={"seed": 0},
        train_dataset=data,
        eval_dataset=data[:16],
        data_collator=default_data_collator,
        compute_metrics=accuracy,
    )


class Slow(TrainerCallback):
    """Makes steps long enough to be killed in between."""

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.3)


def main() -> None:
    output_dir, settings = sys.argv[1], json.loads(sys.argv[2])
    if settings.pop("prune", False):
        init = PruningTrainer.__init__

        def slowly(self, *args, **kwargs):
            init(self, *args, **kwargs)
            self.add_callback(Slow())

        PruningTrainer.__init__ = slowly
        prune(output_dir, **settings)
        return
    run = make_trainer(output_dir, **settings)
    run.train()
    rank = os.environ.get("RANK", "0")
    tensors = {name: tensor.contiguous().clone() for name, tensor in run.model.state_dict().items()}
    current = run.gates.current
    tensors |= {f"drawn.{name}": gate.detach().clone() for name, gate in (current.units | current.sub_layers).items()}
    tensors["drawn.hidden"] = current.hidden.detach().clone()
    save_file({name: torch.atleast_1d(tensor) for name, tensor in tensors.items()}, f"{output_dir}/{rank}.safetensors")


if __name__ == "__main__":
    main()
