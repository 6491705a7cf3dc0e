"""A `Trainer` that is taught layers, logits and labels, as in CoFi."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.distillation import (
    ROW_COLUMN,
    DistillationObjective,
    LayerDistillation,
    LayerOutputs,
    TeacherLogits,
    logits_of,
    position_mask,
    present_layers,
)
from hf_nas.structures import describe
from trainer_plugins.distillation.distilling_trainer import DistillingTrainer


# Under this name the maps of layer distillation are a part of the model while it is trained.
_LAYERS = "layer_distillation"


class LayerDistillingTrainer(DistillingTrainer):
    """A [`DistillingTrainer`] with the losses of CoFi (Xia et al., 2022), and answers of the teacher kept on disk.

    What is trained beside the model, such as the maps from its layers to those of the teacher, is a part of it while
    there is this trainer, so that checkpoints hold it and processes share it; [`release`] takes it off.

    Args:
        objective: weights of the losses on layers, logits and labels; by default those of [`DistillingTrainer`].
        layer_distillation: a module for each stack of layers, by name, if layers are taught.
        teacher_logits: the teacher's answers for rows of the training set, which has the column for them; without, it
            is asked each time.
        kwargs: of [`DistillingTrainer`] and `Trainer`.

    Raises:
        ValueError: if the losses need a teacher, or for settings of `args` under which the maps cannot be trained.
    """

    def __init__(
        self,
        *args: Any,
        objective: DistillationObjective | None = None,
        layer_distillation: Mapping[str, LayerDistillation] | None = None,
        teacher_logits: TeacherLogits | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.objective, self.teacher_logits = objective, teacher_logits
        self.layer_distillation = None if layer_distillation is None else nn.ModuleDict(layer_distillation)
        self._check()
        self._structure = describe(self.model)
        self._rows: torch.Tensor | None = None
        self._student_layers: LayerOutputs | None = None
        self._teacher_layers: LayerOutputs | None = None
        for name, module in self._parts().items():
            self.model.add_module(name, module.to(self.args.device))
        if self.layer_distillation is not None:
            self._student_layers = LayerOutputs(self.model, tuple(self.layer_distillation))
            teacher = self.accelerator.unwrap_model(self.teacher, keep_torch_compile=False)
            self._teacher_layers = LayerOutputs(teacher, tuple(self.layer_distillation))

    def _parts(self) -> dict[str, nn.Module]:
        """What is trained beside the model, by its name in it."""
        return {} if self.layer_distillation is None else {_LAYERS: self.layer_distillation}

    def _check(self) -> None:
        if self.teacher is None and (self.objective or self.layer_distillation or self.teacher_logits):
            raise ValueError(
                "Distillation is asked for, but there is no teacher; give a model fine-tuned on the task."
            )
        if self.objective is not None and self.objective.layer_weight > 0 and self.layer_distillation is None:
            raise ValueError(
                f"layer_weight is {self.objective.layer_weight:g}, but there is no layer_distillation; give one, or "
                "set the weight to 0."
            )
        if self.layer_distillation is not None and (self.objective is None or self.objective.layer_weight == 0):
            raise ValueError(
                "There is a layer_distillation, but no objective with a layer_weight above 0, so it would not be "
                "trained; give one, or leave it out."
            )
        if self._parts() and (self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.n_gpu > 1):
            raise ValueError(
                "Gates and layer distillation are trained on one device or with data parallelism by processes, not "
                "with FSDP, DeepSpeed or several devices in one process; start the training with torchrun."
            )
        handler = self.accelerator.ddp_handler
        if self._parts() and handler is not None:
            if self.args.ddp_find_unused_parameters:
                raise ValueError(
                    "ddp_find_unused_parameters is True, with which parameters that only the loss uses cannot be "
                    "trained; leave it out."
                )
            handler.find_unused_parameters = False

    def release(self) -> PreTrainedModel:
        """Take off the model what was trained beside it and return it; the parts stay here."""
        for name in self._parts():
            if hasattr(self.model, name):
                delattr(self.model, name)
        return self.model

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.teacher_logits is not None and ROW_COLUMN not in self._signature_columns:
            self._signature_columns.append(ROW_COLUMN)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One forward and backward pass, of rows whose numbers are kept apart."""
        inputs = dict(inputs)
        self._rows = inputs.pop(ROW_COLUMN, None)
        return super().training_step(model, inputs, num_items_in_batch)

    def _ask_teacher(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        if self.teacher_logits is None:
            with self._teacher_layers or contextlib.nullcontext():
                return super()._ask_teacher(inputs)
        if self._rows is None:
            raise ValueError(f"The batch has no column {ROW_COLUMN!r}; train on what TeacherLogits.attach returned.")
        mask = inputs.get("attention_mask")
        logits = self.teacher_logits.lookup(self._rows, mask if self.teacher_logits.per_position else None)
        return tuple(each.to(self.args.device) for each in logits)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Mean loss over the batch, in training with the teacher's parts."""
        collects = self._student_layers is not None and model.training
        with self._student_layers if collects else contextlib.nullcontext():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def training_loss(self, task_loss: torch.Tensor, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """What is minimised, by the objective if there is one."""
        if self.objective is None:
            return super().training_loss(task_loss, outputs, inputs)
        logits = logits_of(outputs)
        loss = self.objective(
            student_logits=logits,
            teacher_logits=self._teacher_logits,
            layer_loss=self._layer_loss(inputs) if self.layer_distillation is not None else None,
            task_loss=task_loss,
            regression=self.is_regression,
            mask=self.distillation_mask(logits, inputs),
        ).total
        if self.objective.soft_label_weight == self.objective.label_weight == 0:
            # Data parallelism waits for a gradient of the task head as well.
            loss = loss + 0.0 * sum(each.float().sum() for each in logits)
        return loss

    def _layer_loss(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        # Layers that teach are drawn by the step, so that all processes and a resumed run draw the same.
        generator = torch.Generator().manual_seed((self.args.seed << 32) + self.state.global_step)
        losses = [
            distillation(
                self._student_layers[stack],
                self._teacher_layers[stack],
                position_mask(inputs, stack, self.model.config.is_encoder_decoder),
                self._unpruned(stack),
                generator,
            ).loss
            for stack, distillation in self.layer_distillation.items()
        ]
        return sum(losses)

    def _unpruned(self, stack: str) -> torch.Tensor:
        """Which layers of a stack have anything left in this pass, shape `(layers,)`."""
        return present_layers(self._structure, stack).to(self.args.device)
