"""Training a super-network in stages: each with its own search space, length and learning rate (BootstrapNAS)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, TrainingArguments

from hf_nas.elastic.stages import StageSchedule
from hf_nas.importance import magnitude
from hf_nas.space import SearchSpace
from hf_nas.structures import ModelStructure


@dataclass(frozen=True)
class StagedTraining:
    """The stages of a training.

    Args:
        schedule: lengths, learning rates and sampling rates of the stages.
        spaces: the search space of each stage; the last one is searched afterwards.
        norm: importance by which stages that reorder sort the units when they begin.
        compat: follow the published code where it differs from what was meant: a learning rate that lags behind and
            never reaches zero and is 3.5e-6 where a stage has none, and AdamW with the epsilon of transformers 4.

    Raises:
        ValueError: for a stage that would sort the units by scores of their first order again and again.
    """

    schedule: StageSchedule
    spaces: tuple[SearchSpace, ...]
    norm: Callable[[PreTrainedModel, ModelStructure], dict[str, torch.Tensor]] = magnitude
    compat: bool = False

    def __post_init__(self):
        check_order(self.schedule)

    def set_length(self, arguments: TrainingArguments) -> None:
        """Let the training take as many epochs as the stages do.

        Raises:
            ValueError: if it is limited to a number of steps.
        """
        check_length(self.schedule, arguments)
        arguments.num_train_epochs = float(self.schedule.total_epochs)

    def steps_per_epoch(self, max_steps: int) -> int:
        """Optimizer steps an epoch, of a training of `max_steps` in all."""
        return max(max_steps // self.schedule.total_epochs, 1)

    def reorders_at(self, step: int, max_steps: int) -> bool:
        """Whether a stage that sorts the units by norm begins with this optimizer step."""
        _, stage, within = self.schedule.stage_at(step, self.steps_per_epoch(max_steps))
        return stage.reorg_weights and within == 0

    @staticmethod
    def optimizer() -> tuple[type[Optimizer], dict[str, Any]]:
        """Class and arguments of the optimizer that the published code used."""
        return PublishedAdamW, {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8}

    def learning_rates(self, optimizer: Optimizer, max_steps: int) -> LambdaLR:
        """A scheduler that follows the stages; those without a learning rate have that of the optimizer."""
        steps_per_epoch = self.steps_per_epoch(max_steps)
        # Not that of its groups, which a first attempt with larger batches has changed.
        default = None if self.compat else optimizer.defaults["lr"]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] = 1.0

        def learning_rate(step: int) -> float:
            # Asked once more after the last step.
            step = min(step, max_steps)
            return self.schedule.learning_rate(step, steps_per_epoch, compat=self.compat, default=default)

        return LambdaLR(optimizer, learning_rate)


def check_order(schedule: StageSchedule) -> None:
    """Refuse a first stage that would sort the units again.

    Raises:
        ValueError: that says so.
    """
    first = schedule.stages[0]
    if first.reorg_interval is not None and first.reorg_interval < first.epochs:
        raise ValueError(
            f"'reorg_interval' is {first.reorg_interval}, but the importance is learnt once, before the training, "
            f"for the first order of the units; choose {first.epochs} or more, or leave it out."
        )


def check_length(schedule: StageSchedule, arguments: TrainingArguments) -> None:
    """Refuse a number of steps for a training whose stages say how long it takes.

    Raises:
        ValueError: that says so.
    """
    if arguments.max_steps > 0:
        raise ValueError(
            f"max_steps is {arguments.max_steps}, but the stages of the configuration say how long the training "
            f"takes ({schedule.total_epochs} epochs); leave max_steps out."
        )


class PublishedAdamW(AdamW):
    """AdamW as transformers 4 had it: epsilon is added before the bias correction.

    With the bias-corrected second moment of torch, `sqrt(v / c) + e` with c = 1 - beta2^t becomes
    `(sqrt(v) + e) / sqrt(c)` when e is divided by sqrt(c).
    """

    def step(self, closure=None):
        """One step, with the epsilon of the step."""
        given = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            step = 1 + max((int(self.state[p].get("step", 0)) for p in group["params"] if p in self.state), default=0)
            group["eps"] /= (1 - group["betas"][1] ** step) ** 0.5
        try:
            return super().step(closure)
        finally:
            for group, epsilon in zip(self.param_groups, given):
                group["eps"] = epsilon
