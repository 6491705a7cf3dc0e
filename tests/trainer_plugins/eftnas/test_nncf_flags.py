"""A configuration speaks where a flag has its default; what contradicts it is refused before anything is learnt."""

from dataclasses import dataclass, replace

import pytest
from transformers import TrainingArguments

from hf_nas import describe
from hf_nas.nncf_config import NncfConfig, write
from hf_nas.space import CustomSpace
from tests import zoo
from tests.nncf_config.configs import config, feed_forward_block
from trainer_plugins import (
    EftnasArguments,
    NasArguments,
    SearchArguments,
    SuperNetworkArguments,
    apply_config,
    plan_super_network,
)
from trainer_plugins.checks import check_arguments
from trainer_plugins.eftnas import plan as eftnas
from trainer_plugins.eftnas.nncf_flags import movement_settings
from trainer_plugins.scripts.checks import needed_splits


STAGES = "nas__training__schedule"


@dataclass
class Model:
    model_name_or_path: str | None = None


def applied(tmp_path, changes=(), **sections) -> NasArguments:
    """The flags in `sections` beside the configuration with `changes`."""
    path = tmp_path / "config.json"
    write(NncfConfig.from_dict(config(**dict(changes))), path)
    given = sections.pop("eftnas", EftnasArguments())
    nas = NasArguments(eftnas=replace(given, nncf_config=str(path)), **sections)
    apply_config(nas, Model())
    return nas


def test_movement_sparsity_is_that_of_the_configuration_but_for_the_flags(tmp_path) -> None:
    model = zoo.build("bert")
    found = movement_settings(applied(tmp_path), model)
    assert found == NncfConfig.from_dict(config()).movement and found.warmup_end_epoch == 3
    flags = EftnasArguments(movement_warmup_end_epoch=5.0, importance_regularization_factor=0.5)
    found = movement_settings(applied(tmp_path, eftnas=flags), model)
    assert (found.warmup_start_epoch, found.warmup_end_epoch, found.importance_regularization_factor) == (1, 5.0, 0.5)
    # All else is still the configuration's.
    assert found.ignored_scopes == ("{re}.*embeddings.*",) and len(found.sparse_structure_by_scopes) == 1


def test_the_length_of_the_importance_training(tmp_path) -> None:
    def length(changes=(), epochs=3.0, only=True, **flags) -> float:
        given = EftnasArguments(only_generate_importance_weight=only, **flags)
        training = TrainingArguments(str(tmp_path), num_train_epochs=epochs, report_to=[])
        return eftnas._importance_epochs(applied(tmp_path, changes, eftnas=given), training)

    in_file = {"movement_sparsity_total_epochs": 9}
    assert length() == 2 * 3  # twice the end of the warm-up, as published
    assert length(movement_warmup_end_epoch=4.0) == 8
    assert length(in_file) == 9 and length(in_file, movement_num_train_epochs=11) == 11
    # Where nothing else is trained, Trainer's flag says it; beside a super-network it is the super-network's.
    assert length(epochs=7.0) == 7 and length(in_file, epochs=7.0) == 9
    assert length(epochs=7.0, only=False) == 6


@pytest.mark.parametrize("limit", ["max_params_ratio", "max_macs_ratio", "max_latency_ratio", "min_metric"])
def test_a_choice_by_flags_takes_the_place_of_the_configurations(limit: str, tmp_path) -> None:
    assert applied(tmp_path).search.max_metric_drop == pytest.approx(0.01)
    assert applied(tmp_path, search=SearchArguments(**{limit: 0.5})).search.max_metric_drop is None


def test_a_space_beside_that_of_the_configuration_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="search_space is 'medium', but the stages of Configuration .* train the spa"):
        applied(tmp_path, super_network=SuperNetworkArguments(search_space="medium"))
    assert applied(tmp_path).super_network.search_space == "small"  # which nothing reads then
    found = applied(tmp_path, super_network=SuperNetworkArguments(search_space="generated"))
    assert found.super_network.search_space == "generated"


def test_a_space_is_generated_where_the_configuration_gives_no_widths(tmp_path) -> None:
    width = "nas__training__elasticity__width__"
    without = {f"{width}overwrite_groups_widths": None}
    assert applied(tmp_path, without).super_network.search_space == "generated"
    # How lists are made is a way to give them.
    for key, value in {"width_multipliers": [0.5], "width_step": 8, "min_width": 8, "max_num_widths": 2}.items():
        assert applied(tmp_path, {**without, f"{width}{key}": value}).super_network.search_space == "small"
    assert applied(tmp_path, {**without, "compression": None}).super_network.search_space == "small"


@pytest.mark.parametrize("smallest", [0.001, 4400.0])
def test_sizes_out_of_reach_are_refused_before_the_importance_is_learnt(smallest: float, tmp_path) -> None:
    nas = NasArguments(
        super_network=SuperNetworkArguments(sampling_strategy="sandwich", search_space="generated"),
        eftnas=EftnasArguments(space_smallest=smallest),
    )
    with pytest.raises(ValueError, match=f"No search space is generated with space_smallest {smallest:g}, "):
        # Without data, learning would fail at once.
        plan_super_network(
            nas, TrainingArguments(str(tmp_path), report_to=[]), zoo.build("bert"), lambda: zoo.build("bert"),
            sequence_length=16,
        )  # fmt: skip


def a_space(model) -> CustomSpace:
    lists = {s.name: [1, 2, 4] if s.layout.is_attention else [3, 9, 17, 24] for s in describe(model)}
    lists["encoder.1.feed_forward"] = [0, 9, 24]
    return CustomSpace({"name": "generated", "sub_layers": lists, "skip_keeps_norm": ["encoder.*.feed_forward"]},
                       describe(model))  # fmt: skip


def test_a_stage_takes_of_a_generated_space_what_it_takes_of_a_listed_one(tmp_path) -> None:
    model = zoo.build("bert")
    schedule = {"list_stage_descriptions": [
        {"train_dims": ["width"], "width_indicator": 2, "init_lr": 1e-3},
        {"train_dims": ["width", "depth"], "width_indicator": -1, "init_lr": 1e-3},
    ]}  # fmt: skip
    nas = applied(tmp_path, {STAGES: schedule})
    stages = eftnas.stages_of(nas, model, a_space(model))
    first, last = ({d.name: d.choices for d in space.dimensions} for space in stages.spaces)
    assert set(first["encoder.0.attention"]) == {2, 4} and set(first["encoder.0.feed_forward"]) == {17, 24}
    assert set(first["encoder.1.feed_forward"]) == {9, 24}
    assert set(last["encoder.0.feed_forward"]) == {3, 9, 17, 24} and set(last["encoder.1.feed_forward"]) == {0, 9, 24}
    fixed = {"nas__training__elasticity__depth": {"fixed_skipped_blocks": [feed_forward_block(1)],
                                                  "skipped_blocks": []}}  # fmt: skip
    with pytest.raises(ValueError, match="skips 'encoder.1.feed_forward' always .'fixed_skipped_blocks'., but search"):
        eftnas.stages_of(applied(tmp_path, fixed), model, a_space(model))


def test_stages_that_cannot_be_are_refused_before_the_importance_is_learnt(tmp_path) -> None:
    model = zoo.build("bert")
    again = {STAGES: {"list_stage_descriptions": [
        {"train_dims": ["width"], "epochs": 4, "reorg_interval": 2, "init_lr": 1e-3}]}}  # fmt: skip
    for space in ("small", "generated"):
        nas = applied(tmp_path, again, super_network=SuperNetworkArguments(search_space=space))
        with pytest.raises(ValueError, match="'reorg_interval' is 2, but the importance is learnt once"):
            check_arguments(nas, model)
    too_wide = {"nas__training__elasticity__width__overwrite_groups_widths": [[64]] * 6}
    with pytest.raises(ValueError, match="the width 64, but in this model it has 32 channels"):
        check_arguments(applied(tmp_path, too_wide), model)


def test_steps_are_refused_where_epochs_say_the_length(tmp_path) -> None:
    training = TrainingArguments(str(tmp_path), do_train=True, max_steps=50, report_to=[])
    with pytest.raises(ValueError, match="max_steps is 50, but the stages of the configuration say .* .3 epochs"):
        needed_splits(training, applied(tmp_path))
    nas = NasArguments(eftnas=EftnasArguments(only_generate_importance_weight=True))
    with pytest.raises(ValueError, match="--max_steps is 50, but movement sparsity ends with its warm-up"):
        needed_splits(training, nas)


def test_a_metric_that_the_task_does_not_have_is_refused(tmp_path) -> None:
    search = {"algorithm": "NSGA2", "num_evals": 8, "population": 4, "eval_metric_name": "eval_f1"}
    nas = applied(tmp_path, {"nas__search": search})
    assert nas.metric_name("accuracy", ("accuracy", "f1")) == "f1" == nas.metric_name("accuracy")
    with pytest.raises(ValueError, match="'eval_metric_name' 'eval_f1', which the task does not have; choose"):
        nas.metric_name("matthews_correlation", ("matthews_correlation",))
    assert NasArguments().metric_name("accuracy", ("accuracy",)) == "accuracy"
