"""What is written is read back as the same value, and a space goes into a configuration under the names of NNCF."""

import itertools
import json
import logging

import numpy as np
import pytest

from hf_nas import SubNetwork, describe
from hf_nas.nncf_config import NncfConfig, named_sub_network, nncf_space, to_nncf, with_space, write
from hf_nas.space import CustomSpace
from hf_nas.subnetwork import NORM_ONLY
from tests import zoo
from tests.nncf_config.configs import (
    attention_block,
    config,
    feed_forward_block,
    layer,
    neurons,
    projections,
)


ELASTICITY = "nas__training__elasticity__"
EVERYTHING = {
    "log_dir": "logs",
    "target_device": "CPU",
    "movement_sparsity_total_epochs": 7,
    "model_name_or_path": "bert-base-uncased",
    "kd_teacher_model": "teacher",
    "kd_temperature": 5.5,
    "compression_lr_multiplier": 0.5,
    "input_info": [
        {"sample_size": [2, 16], "type": "long", "keyword": "input_ids", "filler": "ones"},
        {"sample_size": [2, 16]},
    ],
    "nas__search": {
        "algorithm": "NSGA2", "num_evals": 41, "population": 3, "seed": 5, "crossover_prob": 0.1, "crossover_eta": 2,
        "mutation_prob": 0.5, "mutation_eta": 4, "acc_delta": 2.5, "ref_acc": 88.5, "eval_metric_name": "eval_f1",
        "batchnorm_adaptation": {"num_bn_adaptation_samples": 3},
    },
    f"{ELASTICITY}depth__fixed_skipped_blocks": [feed_forward_block(0)],
    f"{ELASTICITY}width__width_multipliers": [0.5, 1],
    f"{ELASTICITY}width__min_width": 3,
    f"{ELASTICITY}width__max_num_widths": 4,
    f"{ELASTICITY}width__width_step": 5,
    f"{ELASTICITY}width__filter_importance": "geometric_median",
}  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        config(),
        config(**EVERYTHING),
        config(nas=None),
        config(compression=None),
        config(nas__search=None),
        {"input_info": {"sample_size": [1, 8]}},
        config(nas__training__schedule=None),
        config(
            nas__training__schedule={"list_stage_descriptions": [{"train_dims": ["width"]}]},
            nas__training__lr_schedule={"params": {"base_lr": 1e-3, "warmup_epochs": 1}},
        ),
        config(**{f"{ELASTICITY}depth__skipped_blocks": []}),
    ],
)
def test_reading_what_was_written(tmp_path, data: dict) -> None:
    first = NncfConfig.from_dict(data)
    write(first, tmp_path / "written.json")
    strict = json.loads((tmp_path / "written.json").read_text())  # without comments or trailing commas
    assert strict == to_nncf(first)
    assert NncfConfig.load(tmp_path / "written.json") == first
    assert [path.name for path in tmp_path.iterdir()] == ["written.json"]


def test_what_is_written_is_what_was_read() -> None:
    data = config(**EVERYTHING)
    written = to_nncf(NncfConfig.from_dict(data))
    multiplier = data.pop("compression_lr_multiplier")
    assert written["compression"][0]["compression_lr_multiplier"] == multiplier
    for key in ("log_dir", "kd_temperature", "movement_sparsity_total_epochs", "input_info", "target_device"):
        assert written[key] == data[key] or key == "input_info"
    assert written["input_info"][0] == data["input_info"][0]
    nas, given = written["bootstrapNAS"], data["bootstrapNAS"]
    assert nas["search"] == given["search"]
    for section in ("width", "depth"):
        found, expected = nas["training"]["elasticity"][section], given["training"]["elasticity"][section]
        assert found == {
            **expected,
            **({"overwrite_groups_widths": found["overwrite_groups_widths"]} if section == "width" else {}),
        }
    assert nas["training"]["elasticity"]["width"]["overwrite_groups_widths"][1] == [24, 16]


def a_space(model, **changes) -> CustomSpace:
    specification = {
        "name": "generated",
        "sub_layers": {
            "encoder.1.attention": [0, 1, 3],
            "encoder.2.attention": [0, 4],
            "encoder.2.feed_forward": [0, 7, 20],
        },
        "skip_keeps_norm": ["encoder.*.feed_forward"],
        **changes,
    }
    return CustomSpace(specification, describe(model))


def test_a_space_under_the_names_of_nncf() -> None:
    model = zoo.build("bert")
    before = NncfConfig.from_dict(config())
    after = with_space(before, a_space(model), model)
    width, depth = after.training.width, after.training.depth
    assert width.overwrite_groups == tuple(map(tuple, [*map(projections, range(3)), *map(neurons, range(3))]))
    assert width.overwrite_groups_widths == ((32,), (24, 8), (32,), (24,), (24,), (20, 7))
    assert width.add_dynamic_inputs == tuple(
        f"{layer(index)}/BertAttention[attention]/BertSelfOutput[output]/NNCFLinear[dense]/linear_0"
        for index in range(3)
    )
    # Feed-forwards first: so no block ends where the next one begins.
    blocks = [feed_forward_block(2), attention_block(1), attention_block(2)]
    assert depth.skipped_blocks == tuple(map(tuple, blocks))
    # All else stays.
    assert (after.search, after.movement, after.input_info) == (before.search, before.movement, before.input_info)
    assert after.training.schedule == before.training.schedule
    found = nncf_space(after, model)
    assert {found.decode(found.sample(rng)) for rng in _generators()} <= _all(a_space(model))
    assert named_sub_network(found, "minimal") == named_sub_network(a_space(model), "minimal")


def _generators() -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(20)]


def _all(space: CustomSpace) -> set[SubNetwork]:
    return {space.decode(e) for e in itertools.product(*(range(len(d.choices)) for d in space.dimensions))}


@pytest.mark.parametrize("family", ["roberta", "electra", "distilbert", "bart", "llama", "t5", "gpt2"])
@pytest.mark.parametrize("keeps_norm", [True, False])
def test_a_space_of_any_family_comes_back(family: str, keeps_norm: bool) -> None:
    model = zoo.build(family)
    structure = describe(model)
    lists = {s.name: [0, 1, s.units] for s in structure}
    names = list(structure.names) if keeps_norm else []
    space = CustomSpace({"sub_layers": lists, "skip_keeps_norm": names}, structure)
    back = nncf_space(with_space(NncfConfig.from_dict(config()), space, model), model)
    assert back.to_dict()["sub_layers"] == lists
    for name in ("maximal", "minimal", "heuristic"):
        assert named_sub_network(back, name) == named_sub_network(space, name)
    post_norm = family not in ("llama", "t5", "gpt2")
    assert (NORM_ONLY in named_sub_network(back, "minimal").kept) == (keeps_norm and post_norm)


@pytest.mark.parametrize("family", ["bert", "bart", "llama", "modernbert", "t5", "gpt2"])
def test_skipping_any_sub_layers_comes_back_in_a_stage(family: str) -> None:
    """Blocks that begin where another one ends must not be listed after it, or NNCF takes them for one."""
    model = zoo.build(family)
    structure = describe(model)
    given = NncfConfig.from_dict(
        config(nas__training__schedule={"list_stage_descriptions": [{"train_dims": ["depth"], "width_indicator": -1}]})
    )
    stage = given.training.schedule.stages[0]
    assert stage.depth_indicator == 1
    rng = np.random.default_rng(0)
    for _ in range(30):
        skippable = [name for name in structure.names if rng.random() < 0.5]
        keeping = [name for name in skippable if rng.random() < 0.5]
        lists = {name: [0, structure[name].units] for name in skippable}
        space = CustomSpace({"sub_layers": lists, "skip_keeps_norm": keeping}, structure)
        back = nncf_space(with_space(given, space, model), model, stage)
        assert {d.name for d in back.dimensions if 0 in d.choices} == set(skippable)
        assert back.smallest == space.smallest


def test_what_is_always_skipped_becomes_a_fixed_block() -> None:
    model = zoo.build("bert")
    space = a_space(model, sub_layers={"encoder.1.attention": [0], "encoder.0.attention": [2, 4]})
    after = with_space(NncfConfig.from_dict(config()), space, model)
    assert after.training.depth.fixed_skipped_blocks == (tuple(attention_block(1)),)
    assert after.training.depth.skipped_blocks == ()
    assert nncf_space(after, model).largest == space.largest


def test_what_no_stage_reaches_is_warned_of(caplog) -> None:
    caplog.set_level(logging.WARNING)
    model = zoo.build("bert")
    data = config(
        nas__training__schedule={"list_stage_descriptions": [{"train_dims": ["width"], "width_indicator": 2}]}
    )
    longer = a_space(model, sub_layers={"encoder.1.attention": [1, 2, 3]})
    with_space(NncfConfig.from_dict(data), longer, model)
    assert "'width_indicator' 2 of the last stage hides" in caplog.text and "elastic in depth" not in caplog.text
    with_space(NncfConfig.from_dict(data), a_space(model), model)
    assert "elastic in depth, but no stage trains it" in caplog.text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shared": ["encoder.2.attention"]}, "has 'shared', which a configuration of NNCF cannot say"),
        ({"num_layers": {"encoder": [1, 3]}}, "has 'num_layers'"),
    ],
)
def test_spaces_that_nncf_has_no_words_for(changes: dict, message: str) -> None:
    model = zoo.build("bert")
    with pytest.raises(ValueError, match=message):
        with_space(NncfConfig.from_dict(config()), a_space(model, **changes), model)


def test_spaces_that_do_not_fit() -> None:
    model = zoo.build("bert")
    with pytest.raises(ValueError, match="belongs to a bert model"):
        with_space(NncfConfig.from_dict(config()), a_space(model), zoo.build("roberta"))
    with pytest.raises(ValueError, match="no 'bootstrapNAS.training'"):
        with_space(NncfConfig.from_dict(config(nas=None)), a_space(model), model)
