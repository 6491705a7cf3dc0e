"""Threshold and factor of every optimizer step."""

import math

import pytest

from hf_nas.importance.movement import MovementSchedule, MovementSettings, Stage


SCALES = (0, 0.330078, 0.578125, 0.755859, 0.875, 0.947266, 0.984375, 0.998047)
FACTORS = (0.0, 0.0066016, 0.0115625, 0.0151172, 0.0175, 0.0189453, 0.0196875, 0.0199609)


def schedule(start: float = 1, end: float = 3, **others) -> MovementSchedule:
    return MovementSchedule(MovementSettings(start, end, 0.02, **others))


def test_the_worked_schedule() -> None:
    ours = schedule(init_importance_threshold=-0.01944635)
    assert ours.stage(100) is Stage.BEFORE
    ours.tell_steps_per_epoch(None)
    ours.tell_steps_per_epoch(4)
    for step in range(4):
        assert ours.stage(step) is Stage.BEFORE
        assert (ours.threshold(step), ours.factor(step)) == (-math.inf, 0.0)
    for step, scale, factor in zip(range(4, 12), SCALES, FACTORS):
        assert ours.stage(step) is Stage.WARMUP
        assert ours.scale(step) == pytest.approx(scale, abs=1e-6)
        assert ours.factor(step) == pytest.approx(factor, abs=1e-7)
        assert ours.threshold(step) == pytest.approx(-0.01944635 * (1 - scale), abs=1e-7)
    for step in (12, 13, 1000):
        assert ours.stage(step) is Stage.AFTER
        assert (ours.threshold(step), ours.factor(step)) == (0.0, 0.02)
    assert ours.total_steps(4) == 13


def test_a_warm_up_before_the_steps_are_counted_is_refused() -> None:
    early = schedule(0.5, 2)
    with pytest.raises(ValueError, match="give 'steps_per_epoch', or a 'warmup_start_epoch' of at least 1"):
        early.tell_steps_per_epoch(None)
    early.tell_steps_per_epoch(4)
    early.tell_steps_per_epoch(None)
    assert early.stage(1) is Stage.BEFORE and early.stage(2) is Stage.WARMUP


def test_fractions_of_epochs_and_other_ends() -> None:
    ours = schedule(
        0, 0.5, steps_per_epoch=10, init_importance_threshold=-1.0, final_importance_threshold=1.0, power=1
    )
    assert [ours.stage(step) for step in (0, 4, 5)] == [Stage.WARMUP, Stage.WARMUP, Stage.AFTER]
    assert [ours.threshold(step) for step in (0, 1, 4, 5)] == pytest.approx([-1.0, -0.6, 0.6, 1.0])
    assert ours.total_steps(10) == 6
    assert schedule(1.5, 2.5).total_steps(3) == 8


def test_epochs_must_be_equally_long() -> None:
    counted = schedule()
    counted.tell_steps_per_epoch(4)
    counted.tell_steps_per_epoch(4)
    with pytest.raises(ValueError, match="An epoch has 5 optimizer steps, but it was 4 in an epoch before"):
        counted.tell_steps_per_epoch(5)
    configured = schedule(steps_per_epoch=6)
    with pytest.raises(
        ValueError, match="An epoch has 5 optimizer steps, but it was 6 according to 'steps_per_epoch'"
    ):
        configured.tell_steps_per_epoch(5)
    for wrong in (0, 2.5, True, "4"):
        with pytest.raises(ValueError, match="give a whole number above 0"):
            counted.tell_steps_per_epoch(wrong)
