"""When threshold and regularisation rise, and when the scores are frozen."""

from enum import IntEnum

from hf_nas.importance.movement.settings import MovementSettings


__all__ = ["MovementSchedule", "Stage"]


class Stage(IntEnum):
    """Where a run stands: before, in or after the warm-up."""

    BEFORE = 0
    WARMUP = 1
    AFTER = 2


class MovementSchedule:
    """Threshold and regularisation factor of each optimizer step.

    Both rise along 1 - (1 - progress)^power during the warm-up. Before it nothing is masked or regularised.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: MovementSettings):
        self.settings = settings
        self.initial_threshold: float | None = settings.init_importance_threshold
        steps = settings.steps_per_epoch
        self._steps_per_epoch: int | None = None if steps is None else int(steps)

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of one epoch, None as long as they are being counted."""
        return self._steps_per_epoch

    def tell_steps_per_epoch(self, steps: int | None) -> None:
        """State the number of optimizer steps of one epoch, None while it is not known.

        Raises:
            ValueError: if it is no number above 0, another number was stated before, or the warm-up begins before the
                steps are counted.
        """
        if steps is None:
            if self._steps_per_epoch is None and self.settings.warmup_start_epoch < 1:
                raise ValueError(
                    f"Movement sparsity warms up from epoch {self.settings.warmup_start_epoch} on, before the steps "
                    "of an epoch have been counted; give 'steps_per_epoch', or a 'warmup_start_epoch' of at least 1."
                )
            return
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"An epoch is said to have {steps!r} optimizer steps; give a whole number above 0.")
        if self._steps_per_epoch not in (None, steps):
            origin = "according to 'steps_per_epoch'" if self.settings.steps_per_epoch else "in an epoch before"
            raise ValueError(
                f"An epoch has {steps} optimizer steps, but it was {self._steps_per_epoch} {origin}; movement "
                "sparsity needs epochs of equal length, so give 'steps_per_epoch' the right number or train on data "
                "of a fixed size."
            )
        self._steps_per_epoch = steps

    def first_step(self, stage: Stage) -> int | None:
        """The optimizer step at which a stage begins, None while the steps of an epoch are not known."""
        if stage is Stage.BEFORE:
            return 0
        if self._steps_per_epoch is None:
            return None
        settings = self.settings
        epoch = settings.warmup_start_epoch if stage is Stage.WARMUP else settings.warmup_end_epoch
        return int(epoch * self._steps_per_epoch)

    def stage(self, step: int) -> Stage:
        """The stage of an optimizer step, counted from 0."""
        if self._steps_per_epoch is None:
            return Stage.BEFORE
        return max(stage for stage in Stage if step >= self.first_step(stage))

    def scale(self, step: int) -> float:
        """How far threshold and factor have risen at an optimizer step of the warm-up or after it: 0 to 1."""
        settings = self.settings
        start = settings.warmup_start_epoch * self._steps_per_epoch
        length = (settings.warmup_end_epoch - settings.warmup_start_epoch) * self._steps_per_epoch
        progress = min(max((step - start) / length, 0.0), 1.0)
        return 1 - (1 - progress) ** settings.power

    def threshold(self, step: int) -> float:
        """The threshold of an optimizer step: minus infinity before the warm-up.

        The threshold of the warm-up's start must be set in `initial_threshold` by then.
        """
        stage, last = self.stage(step), self.settings.final_importance_threshold
        if stage is Stage.BEFORE:
            return float("-inf")
        if stage is Stage.AFTER:
            return last
        return self.initial_threshold + self.scale(step) * (last - self.initial_threshold)

    def factor(self, step: int) -> float:
        """The regularisation factor of an optimizer step."""
        stage = self.stage(step)
        if stage is Stage.BEFORE:
            return 0.0
        scale = 1.0 if stage is Stage.AFTER else self.scale(step)
        return scale * self.settings.importance_regularization_factor

    def total_steps(self, steps_per_epoch: int) -> int:
        """Number of optimizer steps until the scores are frozen, the step that freezes them included."""
        return int(self.settings.warmup_end_epoch * steps_per_epoch) + 1
