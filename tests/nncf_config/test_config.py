"""Reading configurations: what they say arrives, and what cannot be honoured is refused by name."""

import json
import logging

import pytest

from hf_nas.elastic.stages import Stage
from hf_nas.nncf_config import NncfConfig, SearchSettings
from tests.nncf_config.configs import attention_block, config, projections


TRAINING = "nas__training__"
ELASTICITY = f"{TRAINING}elasticity__"
SEARCH = "nas__search__"


def test_everything_arrives() -> None:
    read = NncfConfig.from_dict(config(kd_temperature=3, kd_teacher_model="teacher", log_dir="logs"))
    assert read.sequence_length == 16
    assert read.input_info[0].keyword == "input_ids"
    assert (read.kd_teacher_model, read.kd_temperature, read.kd_mode, read.log_dir) == (
        "teacher",
        3.0,
        "original",
        "logs",
    )
    assert read.model_class == "BertForSequenceClassification"
    training = read.training
    assert training.schedule.stages == (Stage(("width", "depth"), epochs=3, width_indicator=3, init_lr=2e-5),)
    assert training.available_dims == training.progressivity == ("width", "depth")
    assert training.bn_adaptation_samples == 0
    assert training.width.overwrite_groups[0] == tuple(projections(0))
    assert training.width.overwrite_groups_widths[1] == (24, 16)  # widest first, as NNCF sorts them
    assert training.depth.skipped_blocks[0] == tuple(attention_block(0))
    assert (read.search.num_evals, read.search.population, read.search.generations) == (100, 8, 12)
    assert read.movement.warmup_end_epoch == 3


def test_defaults_are_the_published_ones() -> None:
    read = NncfConfig.from_dict(
        {"input_info": {"sample_size": [1, 8]}, "bootstrapNAS": {"search": {"algorithm": "NSGA2"}}}
    )
    assert read.search == SearchSettings(
        algorithm="NSGA2", num_evals=3000, population=40, seed=0, crossover_prob=0.9, crossover_eta=10.0,
        mutation_prob=0.02, mutation_eta=3.0, acc_delta=1.0, ref_acc=-1.0, eval_metric_name=None,
        bn_adaptation_samples=2000,
    )  # fmt: skip
    assert (read.training, read.movement, read.kd_temperature, read.model_class) == (None, None, 2.0, None)
    blocks = {"skipped_blocks": []}
    read = NncfConfig.from_dict(
        {"input_info": {"sample_size": [1, 8]}, "bootstrapNAS": {"training": {"elasticity": {"depth": blocks}}}}
    )
    width = read.training.width
    assert (width.min_width, width.max_num_widths, width.width_step, width.filter_importance) == (32, -1, 32, "L1")
    assert read.training.available_dims == ("width", "depth")
    assert len(read.training.schedule.stages) == 4


def test_comments_and_trailing_commas(tmp_path) -> None:
    text = json.dumps(config(), indent=2).replace('"search": {', '"search": { // found by hand\n/* twice */')
    path = tmp_path / "config.json"
    path.write_text(text.replace('"population": 8', '"population": 8,'))
    assert "// found" in path.read_text()
    assert NncfConfig.load(path) == NncfConfig.from_dict(config())


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot be read as JSON"),
        ('{"input_info": 1, "input_info": 2}', "cannot be read as JSON.*input_info"),
        ("[]", "holds \\[\\]"),
        ("", "cannot be read as JSON"),
        ('{"input_info": [{"sample_size": [1, 8]}], "bootstrapNAS": 3}', "'bootstrapNAS' is 3; write an object"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as refusal:
        NncfConfig.load(path)
    assert "mine.json" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        NncfConfig.load(tmp_path / "none.json")


REFUSED = {
    # unknown keys, with the nearest known one
    "bootstrapNas": (1, "'bootstrapNas' is no key .* did you mean 'bootstrapNAS'"),
    f"{SEARCH}populaton": (4, "'bootstrapNAS.search.populaton' .* did you mean 'population'"),
    f"{ELASTICITY}width__overwrite_group": ([], "elasticity.width.overwrite_group' .* 'overwrite_groups'"),
    f"{ELASTICITY}depth__skipped_block": ([], "elasticity.depth.skipped_block' .* 'skipped_blocks'"),
    f"{TRAINING}shedule": ({}, "training.shedule' .* 'schedule'"),
    f"{TRAINING}schedule__stages": ([], "stages"),
    # what hf-nas has not
    "kd_mode": ("self_attention_distillation", "attention maps"),
    "data_ratio": (0.5, "'data_ratio' is not supported: .*run_mlm"),
    "tokenized_datasets_cache_file": ("x", "not supported: .*run_mlm"),
    f"{TRAINING}train_steps": (5, "not supported: .*--max_steps"),
    f"{TRAINING}compression": ({"algorithm": "knowledge_distillation"}, "not supported: .*kd_teacher_model"),
    f"{ELASTICITY}kernel": ({"max_num_kernels": 3}, "elasticity.kernel' is not supported: .*no convolutions"),
    f"{ELASTICITY}available_elasticity_dims": (["width", "kernel"], "no convolutions"),
    f"{ELASTICITY}ignored_scopes": (["a"], "not supported: NNCF does not honour it"),
    f"{ELASTICITY}target_scopes": ("a", "not supported: NNCF does not honour it"),
    f"{ELASTICITY}depth": ({"min_block_size": 6}, "min_block_size' is not supported: .*list the blocks"),
    f"{SEARCH}algorithm": ("RNSGA2", "reference points; choose 'NSGA2'"),
    f"{SEARCH}aspiration_points": ([[0, 0]], "aspiration_points' is not supported: it belongs to RNSGA2"),
    f"{SEARCH}num_constraints": (2, "num_constraints' is 2"),
    "compression": ([{"algorithm": "quantization"}], r"compression\[0\].algorithm' is 'quantization'; .*movement"),
    # values
    "input_info": ([], "'input_info' is missing or empty"),
    "kd_temperature": (0, "kd_temperature' is 0; give a finite number above 0"),
    "movement_sparsity_total_epochs": (0, "give an integer of 1 or more"),
    "log_dir": (3, "'log_dir' is 3; give a string"),
    "target_device": ("TOASTER", "choose from 'ANY'"),
    f"{TRAINING}algorithm": ("shrink", "choose from 'progressive_shrinking'"),
    f"{TRAINING}batchnorm_adaptation": ({"num_bn_adaptation_samples": -1}, "integer of 0 or more"),
    f"{ELASTICITY}width__overwrite_groups_widths": ([[8]], "has 1 lists for 6 groups"),
    f"{ELASTICITY}width__overwrite_groups": ([[]], r"overwrite_groups\[0\]' is \[\]"),
    f"{ELASTICITY}width__min_width": (0, "min_width' is 0; give an integer of 1 or more"),
    f"{ELASTICITY}width__max_num_widths": (0, "give an integer of 1 or more, or -1"),
    f"{ELASTICITY}width__width_step": (1.5, "width_step' is 1.5"),
    f"{ELASTICITY}width__width_multipliers": ([1.5], "shares of the full width"),
    f"{ELASTICITY}width__filter_importance": ("L3", "choose from 'L1', 'L2', 'geometric_median'"),
    f"{ELASTICITY}width__add_dynamic_inputs": ([1], "give a list of strings"),
    f"{ELASTICITY}depth__skipped_blocks": ([["a"]], r"skipped_blocks\[0\]' is \['a'\]"),
    f"{ELASTICITY}depth__fixed_skipped_blocks": ([0], r"fixed_skipped_blocks\[0\]' is 0"),
    f"{SEARCH}population": (101, "at most the 100 evaluations"),
    f"{SEARCH}num_evals": (0, "num_evals' is 0; give an integer of 1 or more"),
    f"{SEARCH}seed": ("x", "seed' is 'x'; give an integer"),
    f"{SEARCH}crossover_prob": (1.1, "crossover_prob' is 1.1; give a finite number from 0 up to 1"),
    f"{SEARCH}mutation_prob": (True, "mutation_prob' is True"),
    f"{SEARCH}acc_delta": (51, "acc_delta' is 51"),
    f"{SEARCH}ref_acc": (float("nan"), "ref_acc' is nan"),
    f"{SEARCH}eval_metric_name": ("", "give a string"),
}  # fmt: skip


@pytest.mark.parametrize("path", REFUSED)
def test_refusals_name_the_file_and_the_key(path: str) -> None:
    value, message = REFUSED[path]
    with pytest.raises(ValueError, match=message) as refusal:
        NncfConfig.from_dict(config(**{path: value}), "Configuration 'mine.json'")
    assert "mine.json" in str(refusal.value) and "\n" not in str(refusal.value)


def stages(**values) -> dict:
    return config(**{f"{TRAINING}schedule": {"list_stage_descriptions": [{"train_dims": ["width"], **values}]}})


@pytest.mark.parametrize(
    "data, message",
    [
        (stages(width_indicator=0), "width_indicator"),
        (stages(width_indicators=2), "width_indicators"),
        (stages(train_dims=["kernel"]), "kernel"),
        (config(**{f"{ELASTICITY}depth": None}), "elasticity.depth.skipped_blocks' is missing"),
        (config(**{f"{SEARCH}algorithm": None}), "search.algorithm' is missing"),
        (config(input_info=None), "'input_info' is missing"),
        (config(compression=None, compression_lr_multiplier=2), "no 'compression' it could belong to"),
        (config(compression=[config()["compression"]] * 2), "second movement_sparsity"),
        (config(input_info=[{"sample_size": [1, 8]}, {"sample_size": [1, 9]}]), "8 and 9 tokens"),
        (config(input_info=[{"sample_size": [1, 3, 4, 4]}]), "such as \\[1, 128\\]"),
        (
            config(**{f"{ELASTICITY}width__overwrite_groups_widths": [[8, 8], [8], [8], [8], [8], [8]]}),
            r"widths\[0\]' has the width 8 twice",
        ),
        (
            config(**{f"{ELASTICITY}width__overwrite_groups_widths": [[0], [8], [8], [8], [8], [8]]}),
            r"widths\[0\]' has the width 0",
        ),
        (config(**{f"{ELASTICITY}depth__skipped_blocks": [attention_block(0)] * 2}), "a second time"),
    ],
)
def test_more_refusals(data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        NncfConfig.from_dict(data, "Configuration 'mine.json'")
    assert "mine.json" in str(refusal.value)


def test_what_has_no_effect_is_said(caplog) -> None:
    caplog.set_level(logging.INFO)
    read = NncfConfig.from_dict(
        config(
            target_device="CPU",
            **{
                f"{TRAINING}batchnorm_adaptation": {"num_bn_adaptation_samples": 100},
                f"{ELASTICITY}depth__max_block_size": 50,
            },
        )
    )
    assert read.training.bn_adaptation_samples == 100
    NncfConfig.from_dict(stages(bn_adapt=True))
    for key in ("target_device", "num_bn_adaptation_samples", "max_block_size", "bn_adapt"):
        assert any(key in record.message and "no effect" in record.message for record in caplog.records), key


def test_a_large_drop_is_warned_of(caplog) -> None:
    NncfConfig.from_dict(config(**{f"{SEARCH}acc_delta": 6}))
    assert "drop of 6 percent" in caplog.text


def test_the_multiplier_at_the_root_is_the_default_of_the_algorithms() -> None:
    read = NncfConfig.from_dict(config(compression_lr_multiplier=0.5))
    assert read.movement.compression_lr_multiplier == 0.5
    own = {**config()["compression"], "compression_lr_multiplier": 0.25}
    read = NncfConfig.from_dict(config(compression_lr_multiplier=0.5, compression=own))
    assert read.movement.compression_lr_multiplier == 0.25


def test_a_decoder_may_have_a_length_of_its_own() -> None:
    inputs = [{"sample_size": [1, 7], "keyword": "decoder_input_ids"}, {"sample_size": [1, 9], "keyword": "input_ids"}]
    assert NncfConfig.from_dict(config(input_info=inputs)).sequence_length == 9
