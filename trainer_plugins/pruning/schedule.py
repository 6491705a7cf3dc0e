"""When gates act and how fast they and the weights learn, for a [`PruningTrainer`]."""

import inspect
import math
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments, get_scheduler

from hf_nas.gates import GateValues
from hf_nas.structures import ModelStructure


class TrainableGates(Protocol):
    """What the trainer needs to know of gates: a module attached to the model, such as [`hf_nas.gates.UnitGates`]."""

    structure: ModelStructure
    active: bool

    @property
    def current(self) -> GateValues | None:
        """What the last forward pass multiplied with."""

    def clamp(self) -> None:
        """Called after each optimizer step."""

    def detach(self) -> None:
        """Take all hooks off the model."""

    def parameter_group(self, learning_rate: float) -> dict[str, Any]:
        """Their parameters as a group of an optimizer."""

    def penalty(self) -> torch.Tensor | None:
        """What the loss of a training is raised by, unless a budget holds the gates at a size; None for nothing."""


@dataclass(frozen=True)
class PruningSchedule:
    """When the gates act and how fast they learn.

    Args:
        prepruning_epochs: during which the gates do not act and do not learn.
        warmup_epochs: after these, over which the target of the budget rises from 0.
        learning_rate: of gates and multipliers.
        epsilon: how much less than the target the expected sparsity of the best model may be.
        decay: whether this learning rate falls as that of the weights does; or else it is constant.
        gate_gradient_norm: to which the gradient of all gates together is clipped, apart from that of the weights; 0
            for no clipping.

    Raises:
        ValueError: for numbers out of range.
    """

    prepruning_epochs: float = 1.0
    warmup_epochs: float = 2.0
    learning_rate: float = 0.01
    epsilon: float = 0.01
    decay: bool = False
    gate_gradient_norm: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prepruning_epochs", "warmup_epochs", "epsilon", "gate_gradient_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} of the pruning is {getattr(self, name)}; give a number of at least 0.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"The learning rate of the gates is {self.learning_rate}; give a number above 0.")

    @property
    def shortest(self) -> float:
        """Epochs that a training takes longer than."""
        return self.prepruning_epochs + self.warmup_epochs

    def check(self, arguments: TrainingArguments) -> None:
        """Raise a `ValueError` unless a training with these arguments outlasts the schedule."""
        if arguments.max_steps <= 0 and arguments.num_train_epochs <= self.shortest:
            raise ValueError(
                f"num_train_epochs is {arguments.num_train_epochs:g}, but pruning begins after epoch "
                f"{self.prepruning_epochs:g} and its target is reached {self.warmup_epochs:g} epochs later; train for "
                "longer than that."
            )
        rate_factor(arguments, 1)

    def steps(self, steps_per_epoch: int, max_steps: int) -> tuple[int, int]:
        """The optimizer step before which the gates begin to act, and how many steps the target rises after it.

        Raises:
            ValueError: if nothing is left of the training after these.
        """
        start = round(self.prepruning_epochs * steps_per_epoch)
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if start + warmup >= max_steps:
            raise ValueError(
                f"The training has {max_steps} steps, but pruning begins after {start} and its target is reached "
                f"{warmup} steps later; train for longer than that."
            )
        return start, warmup


def training_steps(arguments: TrainingArguments, rows: int, epochs: float | None = None) -> int:
    """Optimizer steps of a training on so many rows, as `Trainer` counts them.

    Args:
        arguments: of the training.
        rows: of the training set.
        epochs: instead of the length that the arguments say.
    """
    if epochs is None and arguments.max_steps > 0:
        return arguments.max_steps
    batches = rows / (arguments.train_batch_size * arguments.world_size)
    batches = math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)
    per_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    return math.ceil((arguments.num_train_epochs if epochs is None else epochs) * per_epoch)


def check_steps(schedule: PruningSchedule, arguments: TrainingArguments, rows: Any) -> None:
    """Refuse a training that is too short for its schedule, before the teacher or anything else runs.

    Args:
        schedule: of the gates.
        arguments: of the training.
        rows: the training set; one without a length is refused when the training begins.

    Raises:
        ValueError: that says how many steps there are, and how many are needed.
    """
    if isinstance(rows, Sized):
        schedule.steps(training_steps(arguments, len(rows), epochs=1), training_steps(arguments, len(rows)))


def check_trainable(arguments: TrainingArguments, *, has_multipliers: bool = True) -> None:
    """Refuse settings under which gates, and multipliers of a budget, cannot be trained.

    Args:
        arguments: of Trainer.
        has_multipliers: whether a budget is held by them.

    Raises:
        ValueError: that says which can be had instead.
    """
    optimizer, _ = Trainer.get_optimizer_cls_and_kwargs(arguments)
    if has_multipliers and "maximize" not in inspect.signature(optimizer).parameters:
        raise ValueError(cannot_maximize(arguments))
    if arguments.gradient_checkpointing and (arguments.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ValueError(
            "gradient_checkpointing_kwargs has use_reentrant True, which cannot take gradients of gates that all "
            'layers share; give {"use_reentrant": false}.'
        )


def cannot_maximize(arguments: TrainingArguments) -> str:
    """What is wrong with an optimizer that cannot."""
    return (
        f"optim is '{getattr(arguments.optim, 'value', arguments.optim)}', which cannot maximise over the multipliers "
        "of the budget; choose adamw_torch_fused or adamw_torch."
    )


def rate_factor(arguments: TrainingArguments, steps: int) -> Callable[[int], float]:
    """What the learning rate of `arguments` is multiplied with at each step of so many.

    Raises:
        ValueError: if that depends on more than the number of the step.
    """
    try:
        scheduler = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=arguments.learning_rate),
            num_warmup_steps=arguments.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
    except TypeError as error:
        raise ValueError(
            f"lr_scheduler_type is '{arguments.lr_scheduler_type.value}' with the lr_scheduler_kwargs "
            f"{arguments.lr_scheduler_kwargs}, which do not fit: {error}."
        ) from error
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"lr_scheduler_type is '{arguments.lr_scheduler_type.value}', which goes by more than the number of the "
            "step, so that it cannot start again when pruning does; choose linear, cosine or constant."
        )
    return scheduler.lr_lambdas[0]


def restarted_factor(arguments: TrainingArguments, steps: int, start: int) -> Callable[[int], float]:
    """The same, from its beginning again at step `start`, over the rest of the steps."""
    before, after = rate_factor(arguments, steps), rate_factor(arguments, steps - start)
    return lambda step: before(step) if step < start else after(step - start)
