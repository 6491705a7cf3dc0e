"""A `Trainer` that trains gates together with the weights that they multiply, in two phases, with one optimizer."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, TrainerCallback

from hf_nas.extraction import save_extracted
from hf_nas.gates import BudgetController
from hf_nas.subnetwork import SubNetwork
from trainer_plugins.distillation.layer_distilling_trainer import LayerDistillingTrainer
from trainer_plugins.pruning.schedule import PruningSchedule, TrainableGates, cannot_maximize, restarted_factor


# Under these names gates and multipliers are parts of the model while it is trained.
_GATES, _CONTROLLER = "unit_gates", "budget_controller"


class PruningTrainer(LayerDistillingTrainer):
    """Trains weights and gates (CoFi; Xia et al., 2022), or, without gates, fine-tunes what was pruned.

    First the model is trained as it is. Then gates act and learn: the optimizer starts anew, the learning rate of the
    weights at its peak, from which it falls over the rest as `args` say. Gates and multipliers have parameter groups
    in the same optimizer, with the learning rate and the clipping of the schedule and without weight decay; weights
    that are frozen stay as they are. While the trainer has gates and multipliers they are parts of the model, so that
    checkpoints hold them and processes share them; [`release`] takes them off. `load_best_model_at_end` chooses among
    the evaluations that meet the target.

    Args:
        gates: attached to the model.
        controller: of the budget, whose target rises as the schedule says; without one nothing holds the gates at a
            size but themselves and their penalty.
        schedule: of the pruning.
        sub_network: what the model was extracted from; it is saved beside it.
        kwargs: of [`LayerDistillingTrainer`], [`DistillingTrainer`] and `Trainer`.

    Raises:
        ValueError: if the target cannot be reached, the losses need a teacher, or for settings of `args` under which
            gates cannot be trained.
    """

    def __init__(
        self,
        *args: Any,
        gates: TrainableGates | None = None,
        controller: BudgetController | None = None,
        schedule: PruningSchedule | None = None,
        sub_network: SubNetwork | None = None,
        **kwargs: Any,
    ):
        self.gates, self.controller, self.schedule = gates, controller, schedule or PruningSchedule()
        self.sub_network = sub_network
        self._start: int | None = None
        self._batches_per_epoch: int | None = None
        self._gate_groups = 0
        super().__init__(*args, **kwargs)
        if gates is not None:
            self.add_callback(_PruningSteps(self))

    def _parts(self) -> dict[str, nn.Module]:
        parts = {_GATES: self.gates, _CONTROLLER: self.controller}
        return {name: module for name, module in parts.items() if module is not None} | super()._parts()

    def _check(self) -> None:
        super()._check()
        if self.gates is None:
            return
        if self.controller is not None:
            self.controller.check(self.gates)
        self.schedule.check(self.args)

    @property
    def is_pruning(self) -> bool:
        """Whether the gates act by now."""
        return self.gates is not None and self.gates.active

    def release(self) -> PreTrainedModel:
        """Take gates, multipliers and maps of layer distillation off the model and return it; they stay here."""
        model = super().release()
        if self.gates is not None:
            self.gates.detach()
        return model

    # Lengths, optimizer and learning rates.

    def get_train_dataloader(self):
        """The batches of an epoch, which are counted."""
        dataloader = super().get_train_dataloader()
        with contextlib.suppress(TypeError):  # a data set without a length
            self._batches_per_epoch = len(dataloader)
        return dataloader

    def _steps_per_epoch(self) -> int:
        if self._batches_per_epoch is None:
            raise ValueError(
                "The training set has no length, so that epochs before and during pruning cannot be counted; give "
                "one that is not streamed."
            )
        return max(-(-self._batches_per_epoch // self.args.gradient_accumulation_steps), 1)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of `Trainer` for the weights, with groups for gates and multipliers."""
        if self.gates is None or self.optimizer is not None:
            return super().create_optimizer(model)
        ours = list(self._gate_parameters())
        for parameter in ours:  # so that it looks frozen to the method that makes the groups of the weights
            parameter.requires_grad_(False)
        try:
            optimizer = super().create_optimizer(model)
        finally:
            for parameter in ours:
                parameter.requires_grad_(True)
        groups = [self.gates.parameter_group(self.schedule.learning_rate)]
        if self.controller is not None:
            if "maximize" not in optimizer.defaults:
                raise ValueError(cannot_maximize(self.args))
            groups.append(self.controller.parameter_group(self.schedule.learning_rate))
        for group in groups:
            optimizer.add_param_group(group)
        self._gate_groups = len(groups)
        return optimizer

    def _gate_parameters(self) -> Iterator[nn.Parameter]:
        for module in (self.gates, self.controller):
            if module is not None:
                yield from module.parameters()

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The learning rates of `args` for the weights, from their beginning again when pruning starts."""
        if self.gates is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = optimizer or self.optimizer
        self._start, warmup = self.schedule.steps(self._steps_per_epoch(), num_training_steps)
        if self.controller is not None:
            self.controller.warmup_steps = warmup
        weights = len(optimizer.param_groups) - self._gate_groups
        factor = restarted_factor(self.args, num_training_steps, self._start)
        ours = factor if self.schedule.decay else (lambda step: 1.0)
        self.lr_scheduler = LambdaLR(optimizer, [factor] * weights + [ours] * self._gate_groups)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        if self.gates is None:
            return super()._clip_grad_norm(model)
        ours = {id(parameter) for parameter in self._gate_parameters()}
        weights = [parameter for parameter in model.parameters() if id(parameter) not in ours]
        return self.accelerator.clip_grad_norm_(weights, self.args.max_grad_norm)

    def clip_gates(self) -> None:
        """Clip the gradients of the gates, of which those of the weights, clipped or not, know nothing."""
        if not self.schedule.gate_gradient_norm > 0:
            return
        if not self.args.max_grad_norm > 0:  # with it, the clipping of the weights has undone the scaling of float16
            self.accelerator.unscale_gradients()
        nn.utils.clip_grad_norm_(self.gates.parameters(), self.schedule.gate_gradient_norm)

    def set_phase(self) -> None:
        """Say whether the gates act from the current optimizer step on."""
        self.gates.active = self.state.global_step >= self._start

    def begin_step(self) -> None:
        """Say whether the gates act in the optimizer step that begins; the optimizer starts anew when they do."""
        self.set_phase()
        if self.state.global_step == self._start > 0:
            # Moments of gates that got gradients of 0 all the time would make their first steps too large.
            self.optimizer.state.clear()

    # Losses.

    def training_loss(self, task_loss: torch.Tensor, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """What is minimised over the weights and gates, and maximised over the multipliers."""
        loss = super().training_loss(task_loss, outputs, inputs)
        penalty = self.gate_penalty()
        if penalty is None:
            return loss
        # Before pruning starts, gates and multipliers get gradients of 0.
        return loss + (penalty if self.is_pruning else 0.0 * penalty)

    @property
    def pruning_step(self) -> int:
        """Optimizer steps since the gates began to act."""
        return max(self.state.global_step - (self._start or 0), 0)

    def gate_penalty(self) -> torch.Tensor | None:
        """What the gates cost in this step, a scalar that may be negative; None if they cost nothing."""
        if self.controller is not None:
            return self.controller.loss(self.gates, self.pruning_step)
        return self.gates.penalty() if self.gates is not None else None

    def _unpruned(self, stack: str) -> torch.Tensor:
        """Which layers of a stack have anything left in this pass, shape `(layers,)`."""
        present = super()._unpruned(stack)
        if self.gates is None:
            return present
        gates = self.gates.current.sub_layers
        layers = []
        for layer, is_present in enumerate(present):
            values = [gates.get(s.name) for s in self._structure.stack(stack) if s.layer == layer and s.units > 0]
            if values and all(value is not None for value in values):
                is_present = torch.stack([value.detach().reshape(()) != 0 for value in values]).any()
            layers.append(is_present)
        return torch.stack(layers)

    # Logs, the best model, and what is saved.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log sparsity, target and multipliers beside losses and metrics."""
        if self.is_in_train and self.is_pruning and self.controller is not None:
            logs = {
                **logs,
                "expected_sparsity": self.expected_sparsity(),
                "target_sparsity": self.controller.target_at(self.pruning_step),
                "lambda_1": self.controller.lambda_1.item(),
                "lambda_2": self.controller.lambda_2.item(),
            }
        super().log(logs, start_time)

    @torch.no_grad()
    def expected_sparsity(self) -> float:
        """The expected sparsity of the gates now."""
        return float(self.controller.expected_sparsity(self.gates))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this is the best evaluation so far; before the target is met, none is."""
        if self.gates is not None:
            self._check_best_metric(metrics)
            if not self.is_pruning:
                return False
            if self.controller is not None:
                if self.expected_sparsity() < self.controller.target - self.schedule.epsilon:
                    return False
        return super()._determine_best_metric(metrics, trial)

    def _check_best_metric(self, metrics: dict[str, float]) -> None:
        """Raise a `ValueError` if what the best model is chosen by is not measured, without waiting for the target."""
        name = self.args.metric_for_best_model
        if name is not None and name not in metrics and f"eval_{name}" not in metrics:
            known = sorted(each.removeprefix("eval_") for each in metrics if each.startswith("eval_"))
            raise ValueError(
                f"metric_for_best_model is '{name}', which is not measured; choose one of {', '.join(known)}."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.sub_network is not None and self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            save_extracted(self.model, self.sub_network, folder, self.processing_class)


class _PruningSteps(TrainerCallback):
    """Tells a trainer with gates when optimizer steps begin and end; all state is in model and optimizer."""

    def __init__(self, trainer: PruningTrainer):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """A training that goes on may do so at its end, without another step."""
        self._trainer.set_phase()

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Say whether the gates act in this step."""
        self._trainer.begin_step()

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Clip the gates, which Trainer leaves to us and which it asks for only where weights are clipped."""
        self._trainer.clip_gates()

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Keep the gates where they can still change."""
        self._trainer.gates.clamp()
