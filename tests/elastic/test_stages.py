"""Stages and learning rates of BootstrapNAS against its recordings and its published configurations."""

import json
import logging
import math
from pathlib import Path

import pytest

from hf_nas.elastic.stages import GlobalLearningRate, Stage, StageSchedule


CONFIGS = Path(__file__).resolve().parents[3] / "shared" / "configs" / "eftnas" / "strict"
WIDTH = {"available_elasticity_dims": ["width"]}
# Of NNCF with n = 3 steps an epoch, 3 epochs and 2e-3: before each step, and after the last one.
PUBLISHED_RATES = [2.0, 1.93969, 1.76604, 1.5, 1.5, 1.17365, 0.826352, 0.826352, 0.5, 0.233956]


def training(*stages, **keys):
    return {"schedule": {"list_stage_descriptions": list(stages)}, **keys}


def rates(schedule, steps, **options):
    return [schedule.learning_rate(step, 3, **options) for step in range(steps)]


def test_published_learning_rates_lag():
    schedule = StageSchedule((Stage(("width",), epochs=3, init_lr=2e-3),))
    assert rates(schedule, 10, compat=True) == pytest.approx([1e-3 * rate for rate in PUBLISHED_RATES], rel=1e-5)


def test_the_cosine_starts_at_its_rate_and_reaches_zero():
    schedule = StageSchedule((Stage(("width",), epochs=3, init_lr=2e-3),))
    wanted = [1e-3 * (1 + math.cos(math.pi * step / 9)) for step in range(9)] + [0.0, 0.0]
    assert rates(schedule, 11) == pytest.approx(wanted, abs=1e-12)


def test_each_stage_has_a_cosine_of_its_own():
    schedule = StageSchedule((Stage(("depth",), init_lr=1.0), Stage(("depth", "width"), epochs=2, init_lr=0.1)))
    assert rates(schedule, 10) == pytest.approx(
        [1.0, 0.75, 0.25, 0.1, 0.0933013, 0.075, 0.05, 0.025, 0.0066987, 0.0], rel=1e-4
    )
    # The lag starts afresh too.
    assert rates(schedule, 10, compat=True)[3:8] == pytest.approx([0.1, 0.0933013, 0.075, 0.05, 0.05])


@pytest.mark.parametrize("compat", [False, True])
def test_a_longer_cosine_ends_above_zero_and_a_shorter_one_never_rises_again(compat):
    # As in the published configuration for SQuAD with the medium model: 4 epochs of a cosine of 6.
    longer = StageSchedule((Stage(("width",), epochs=4, epochs_lr=6, init_lr=1.0),))
    assert rates(longer, 2)[1] == pytest.approx(0.5 * (1 + math.cos(math.pi / 18)))
    assert rates(longer, 13, compat=compat)[12] == pytest.approx(0.5 if compat else 0.25)
    shorter = rates(StageSchedule((Stage(("width",), epochs=4, epochs_lr=2, init_lr=1.0),)), 12, compat=compat)
    assert all(later <= earlier for earlier, later in zip(shorter, shorter[1:]))
    assert shorter[8 if compat else 6 :] == pytest.approx([0.0] * (4 if compat else 6))


def test_a_stage_without_a_rate_takes_the_trainers_or_the_published_one_with_a_warning(caplog):
    schedule = StageSchedule((Stage(("width",)),))
    assert schedule.learning_rate(0, 3, default=5e-5) == 5e-5 and not caplog.records
    assert rates(schedule, 3)[0] == 3.5e-6
    assert [record.getMessage() for record in caplog.records] == ["Stage 0 has no 'init_lr'; it gets 3.5e-06."]


def test_global_learning_rate():
    stages = (Stage(("depth",)), Stage(("depth", "width"), epochs=3))
    schedule = StageSchedule(stages, GlobalLearningRate(1.0, warmup_epochs=2, warmup_lr=0.4))
    cosine = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(7)]
    assert rates(schedule, 13) == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, *cosine], abs=1e-12)
    # The published one is one step ahead in the warm-up, and lags a step an epoch.
    assert rates(schedule, 5, compat=True) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.8])
    # Its cosine is as long as the whole training: 4 epochs, of which the warm-up leaves 2.
    published = rates(schedule, 13, compat=True)[6:]
    lagging = [step - (step - 1) // 3 - 6 for step in range(6, 13)]
    expected = [0.5 * (1 + math.cos(math.pi * step / 12)) for step in lagging if step >= 0]
    assert published[-len(expected) :] == pytest.approx(expected)
    longer = StageSchedule(stages, GlobalLearningRate(1.0, num_epochs=8))
    assert longer.learning_rate(12, 3) == pytest.approx(0.5)


def test_stages_follow_one_another():
    schedule = StageSchedule((Stage(("depth",), epochs=2, sample_rate=4), Stage(("depth", "width"), epochs=1)))
    assert schedule.total_epochs == 3
    found = [schedule.stage_at(step, 5) for step in (0, 9, 10, 14, 15)]
    assert [(index, within) for index, _, within in found] == [(0, 0), (0, 9), (1, 0), (1, 4), (1, 5)]
    assert found[2][1] is schedule.stages[1]
    # Every fourth step draws, and a new stage does.
    assert [schedule.random_step(step, 5) for step in range(13)] == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 10, 11, 12]
    for step, steps_per_epoch in ((-1, 5), (0, 0), (0, 2.5)):
        with pytest.raises(ValueError, match="There is no step -1|An epoch of"):
            schedule.stage_at(step, steps_per_epoch)


def test_a_stage_round_trips_through_its_entry():
    entry = {
        "train_dims": ["depth", "width"],
        "epochs": 5,
        "width_indicator": -1,
        "init_lr": 3e-5,
        "reorg_interval": 2,
    }
    stage = Stage.from_nncf(entry)
    assert stage == Stage(("depth", "width"), 5, width_indicator=-1, init_lr=3e-5, reorg_interval=2)
    written = json.loads(json.dumps(stage.to_nncf()))
    assert entry.items() <= written.items() and "epochs_lr" not in written
    assert Stage.from_nncf(written) == stage


def test_a_sample_rate_below_one_counts_as_one(caplog):
    assert Stage.from_nncf({"train_dims": ["width"], "sample_rate": 0}, "Stage 2").sample_rate == 1
    assert "Stage 2 has the 'sample_rate' 0, which counts as 1." in caplog.text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"epoch": 3}, "Stage 1 has the unknown key 'epoch'; choose from 'train_dims', 'epochs'"),
        ({"epochs": 0}, "Stage 1 has the 'epochs' 0; give a whole number of 1 or more"),
        ({"epochs": True}, "the 'epochs' True"),
        ({"epochs": None}, "the 'epochs' None; give a whole number"),
        ({"epochs_lr": 2.5}, "the 'epochs_lr' 2.5"),
        ({"width_indicator": 0}, "the 'width_indicator' 0; give a whole number of 1 or more, or -1 for all"),
        ({"width_indicator": -2}, "the 'width_indicator' -2"),
        ({"depth_indicator": 0}, "the 'depth_indicator' 0"),
        ({"init_lr": -1}, "the 'init_lr' -1; give a number above 0"),
        ({"init_lr": "2e-5"}, "the 'init_lr' '2e-5'"),
        ({"init_lr": math.nan}, "the 'init_lr' nan"),
        ({"bn_adapt": 1}, "the 'bn_adapt' 1; give true or false"),
        ({"reorg_interval": 0}, "the 'reorg_interval' 0"),
        ({"train_dims": ["kernel"]}, "the 'train_dims' \\['kernel'\\]; .*kernels are for convolutions"),
        ({"train_dims": []}, "the 'train_dims' \\[\\]"),
        ({"train_dims": ["width", "width"]}, "the 'train_dims' \\['width', 'width'\\]"),
        ({"train_dims": "width"}, "the 'train_dims' 'width'"),
        ({"train_dims": [["width"]]}, "the 'train_dims' \\[\\['width'\\]\\]"),
    ],
)
def test_bad_stages_are_refused_by_name(entry, message):
    with pytest.raises(ValueError, match=message):
        Stage.from_nncf({"train_dims": ["width"], **entry}, "Stage 1")


def test_a_stage_needs_dimensions_and_an_object():
    with pytest.raises(ValueError, match="Stage 1 has no 'train_dims', which by default is 'kernel'"):
        Stage.from_nncf({"epochs": 3}, "Stage 1")
    with pytest.raises(ValueError, match="Stage 1 is 3; write an object"):
        Stage.from_nncf(3, "Stage 1")
    with pytest.raises(ValueError, match="A stage has the 'epochs' -3"):
        Stage(("width",), -3)


def test_a_schedule_is_read(caplog):
    keys = {"lr_schedule": {"params": {"base_lr": 2.5e-6, "num_epochs": 7}}, "algorithm": "progressive_shrinking"}
    read = StageSchedule.from_nncf(training({"train_dims": ["width"], "epochs": 7}, elasticity=WIDTH, **keys))
    assert read == StageSchedule((Stage(("width",), 7),), GlobalLearningRate(2.5e-6, 7))
    shorter = training({"train_dims": ["width"], "epochs": 3, "epochs_lr": 2, "init_lr": 1e-4})
    assert StageSchedule.from_nncf(shorter).global_learning_rate is None
    assert "has the learning rate 0 in its last 1 epochs, by 'epochs_lr'" in caplog.text


def test_default_stages_are_the_published_ones_without_kernels(caplog):
    caplog.set_level(logging.INFO)
    both = ("depth", "width")
    last = Stage(both, width_indicator=2, reorg_weights=True, bn_adapt=True)
    wanted = (Stage(("depth",)), Stage(("depth",), depth_indicator=2), Stage(both), last)
    assert StageSchedule.from_nncf({}).stages == wanted
    assert "gets 4 stages of one epoch" in caplog.text
    only_width = StageSchedule.from_nncf({"elasticity": WIDTH}).stages
    assert only_width == (Stage(("width",)), Stage(("width",), width_indicator=2, reorg_weights=True, bn_adapt=True))
    only_depth = StageSchedule.from_nncf({"elasticity": {"available_elasticity_dims": ["kernel", "depth"]}}).stages
    assert only_depth == wanted[:2]


WITH_BOTH = {"train_dims": ["width", "depth"]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            training(WITH_BOTH, elasticity=WIDTH),
            "Stage 0 of the file trains .*'depth' is not among its 'available_ela",
        ),
        (training(WITH_BOTH, {"train_dims": ["width"]}), "Stage 1 of .*one before it 'depth', .*can go back"),
        (
            training(WITH_BOTH, progressivity_of_elasticity=["width"]),
            "makes 'depth' elastic, but its 'progress.*add it",
        ),
        (
            training(WITH_BOTH, progressivity_of_elasticity=["widht"]),
            r"the 'progressivity_of_.*\['widht'\]; give a list",
        ),
        (
            training(elasticity={"available_elasticity_dims": "width"}),
            "'available_elasticity_dims' 'width'; give a list",
        ),
        (training(elasticity=["width"]), "the 'elasticity' \\['width'\\]; write an object"),
        (training(), r"the 'list_stage_descriptions' \[\]; give a list of stages"),
        ({"schedule": {"stages": []}}, "'schedule' of the file has the unknown key 'stages'"),
        ({"schedule": []}, r"'schedule' of the file is \[\]; write an object"),
        ({"elasticity": {"available_elasticity_dims": ["kernel"]}}, "only elastic kernels"),
        (
            training({**WITH_BOTH, "init_lr": 1e-4}, lr_schedule={"params": {"base_lr": 1e-3}}),
            "the file gives stage 0 the 'init_lr' 0.0001 beside a global 'lr_schedule'; remove one",
        ),
        (training(WITH_BOTH, lr_schedule={"base_lr": 1}), "'lr_schedule' of the file has the unknown key 'base_lr'"),
        (training(WITH_BOTH, lr_schedule={"params": {"lr": 1}}), "'params' of .* has the unknown key 'lr'"),
        (training(WITH_BOTH, lr_schedule={"params": {"num_epochs": 1}}), "has no 'base_lr'; give a number above 0"),
        (training(WITH_BOTH, lr_schedule={"params": {"base_lr": 0}}), "has the 'base_lr' 0; give a number above 0"),
        (
            training(WITH_BOTH, lr_schedule={"params": {"base_lr": 1, "warmup_epochs": True}}),
            "has the 'warmup_epochs' True; give a whole number",
        ),
    ],
)
def test_bad_schedules_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        StageSchedule.from_nncf(given, "the file")


def test_a_schedule_has_stages_and_one_kind_of_learning_rate():
    with pytest.raises(ValueError, match="has no stage"):
        StageSchedule(())
    with pytest.raises(ValueError, match="gives stage 1 the 'init_lr' 0.1 beside"):
        StageSchedule((Stage(("width",)), Stage(("width",), init_lr=0.1)), GlobalLearningRate(1.0))


@pytest.mark.skipif(not CONFIGS.exists(), reason="../shared/configs/eftnas/strict is not there")
def test_published_configurations_are_read():
    found = {}
    for path in sorted(CONFIGS.glob("nncf_*.json")):
        config = json.loads(path.read_text())["bootstrapNAS"]["training"]
        (stage,) = StageSchedule.from_nncf(config, path.name).stages
        assert stage.to_nncf().items() >= config["schedule"]["list_stage_descriptions"][0].items()
        found[path.stem.removeprefix("nncf_eftnas_")] = stage
    assert len(found) == 19
    assert found["s2_bert_medium_squadv1"] == Stage(
        ("width",), 4, width_indicator=5, init_lr=3e-5, epochs_lr=6, sample_rate=1
    )
    assert found["s1_bert_base_cola"].width_indicator == 4 and found["s1_bert_base_mrpc"].depth_indicator == 9
