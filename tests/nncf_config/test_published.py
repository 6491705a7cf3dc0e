"""All published configurations, against the numbers recomputed from them, and against recordings of NNCF 2.x."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from hf_nas import SizeTable, SuperNetwork, extract
from hf_nas.elastic.stages import Stage
from hf_nas.nncf_config import NncfConfig, describe_config, named_sub_network, nncf_space, with_space
from hf_nas.profiling import Parts
from tests.nncf_config.configs import GOLDEN, PUBLISHED, needs_golden, needs_published
from tests.nncf_config.golden import batch, golden_model, recordings, sub_network


WEIGHTS = Parts(embeddings=False, norms=False, biases=False)
MEDIUM = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}

# By file: length, MMACs of the largest, the smallest listed and the smallest reachable sub-network, the sub-layers
# that can be skipped, decimal logarithm of the size.
BOTH_KINDS = [f"encoder.{index}.{kind}" for index in range(12) for kind in ("attention", "feed_forward")]
TABLE = {
    "nncf_base_config_for_bert_base": (128, "11174.2", "1668.8", "0.6", BOTH_KINDS, "18.7"),
    "nncf_eftnas_s1_bert_base_cola": (128, "11174.2", "4377.9", "5827.6", [], "12.7"),
    "nncf_eftnas_s1_bert_base_mnli": (128, "11174.2", "4433.3", "4433.3", [], "12.7"),
    "nncf_eftnas_s1_bert_base_mrpc": (128, "11174.2", "4463.7", "4463.7", [], "12.6"),
    "nncf_eftnas_s1_bert_base_qnli": (128, "11174.2", "4458.9", "4458.9", [], "14.8"),
    "nncf_eftnas_s1_bert_base_qqp": (128, "11174.2", "4483.9", "4483.9", [], "13.1"),
    "nncf_eftnas_s1_bert_base_rte": (128, "11174.2", "4475.0", "4475.0", [], "12.4"),
    "nncf_eftnas_s1_bert_base_squadv1": (384, "35333.4", "14158.1", "14158.1", [], "11.7"),
    "nncf_eftnas_s1_bert_base_squadv2": (384, "35333.4", "14149.3", "14149.3", [], "12.7"),
    "nncf_eftnas_s1_bert_base_sst2": (128, "11174.2", "4341.6", "4341.6", [], "15.2"),
    "nncf_eftnas_s2_bert_medium_cola": (128, "3355.7", "1600.9", "1600.9", [], "9.4"),
    "nncf_eftnas_s2_bert_medium_mnli": (128, "3355.7", "1671.6", "1614.9", ["encoder.1.attention"], "8.7"),
    "nncf_eftnas_s2_bert_medium_mrpc": (128, "3355.7", "1591.7", "1591.7", [], "6.5"),
    "nncf_eftnas_s2_bert_medium_qnli": (128, "3355.7", "1664.6", "1857.6", ["encoder.7.attention"], "9.0"),
    "nncf_eftnas_s2_bert_medium_qqp": (128, "3355.7", "1568.9", "1568.9", [], "8.8"),
    "nncf_eftnas_s2_bert_medium_rte": (128, "3355.7", "1610.4", "1995.6", [], "6.3"),
    "nncf_eftnas_s2_bert_medium_squadv1": (384, "10872.0", "5111.8", "5111.8", [], "7.3"),
    "nncf_eftnas_s2_bert_medium_squadv2": (384, "10872.0", "5188.9", "5188.9", [], "7.2"),
    "nncf_eftnas_s2_bert_medium_sst2": (128, "3355.7", "1515.2", "1806.7", [], "9.3"),
}


def bert(name: str, num_labels: int | None = None):
    head = BertForQuestionAnswering if "squad" in name else BertForSequenceClassification
    labels = num_labels or (3 if "mnli" in name else 2)
    with torch.device("meta"):
        return head(BertConfig(num_labels=labels, **(MEDIUM if "medium" in name else {})))


@needs_published
def test_there_are_nineteen() -> None:
    files = {path.stem for path in PUBLISHED.glob("*.json")} - {"summary"}
    assert files == set(TABLE) and len(files) == 19


@needs_published
@pytest.mark.parametrize("name", TABLE)
def test_the_published_numbers(name: str) -> None:
    length, largest, listed, reachable, skippable, size = TABLE[name]
    config = NncfConfig.load(PUBLISHED / f"{name}.json")
    assert config.sequence_length == length
    model = bert(name)
    found = describe_config(config, model)
    everything = describe_config(config, model, ignore_width_indicator=True)
    assert f"{found.largest.macs / 1e6:.1f}" == largest
    assert f"{everything.smallest_without_skipping.macs / 1e6:.1f}" == listed
    assert f"{found.smallest.macs / 1e6:.1f}" == reachable
    assert list(found.skippable) == skippable
    assert f"{found.log10_size_as_published:.1f}" == size
    assert found.log10_size <= found.log10_size_as_published


@needs_published
@pytest.mark.parametrize("name", TABLE)
def test_the_published_lists_and_settings(name: str) -> None:
    summary = json.loads((PUBLISHED / "summary.json").read_text())[f"{name}.json"]
    config = NncfConfig.load(PUBLISHED / f"{name}.json")
    assert NncfConfig.load(PUBLISHED / "strict" / f"{name}.json") == config
    model = bert(name)
    space = nncf_space(config, model)
    sub_layers = space.to_dict()["sub_layers"]
    for kind, unit in (("attention", 64), ("feed_forward", 1)):
        for index, widths in enumerate(summary[f"{kind.removesuffix('_forward').replace('feed', 'ffn')}_widths"]):
            units = [number * unit for number in sub_layers[f"encoder.{index}.{kind}"] if number]
            assert units == sorted(widths), (kind, index)
    skipped = {"att": "attention", "ff": "feed_forward"}
    expected = {f"encoder.{index}.{skipped[kind]}" for kind, index in summary["skipped_blocks"] or ()}
    assert {choice for choice, units in sub_layers.items() if 0 in units} == expected
    stage = {**summary["stage"], "train_dims": tuple(summary["stage"]["train_dims"])}
    assert config.training.schedule.stages == (Stage(**stage),)
    search = {
        key: value for key, value in summary["search"].items() if key not in ("algorithm", "batchnorm_adaptation")
    }
    assert {key: getattr(config.search, key) for key in search} == search
    assert config.movement.warmup_end_epoch == summary["movement"]["warmup_end_epoch"]
    # Putting its own space into a configuration changes no name and no width.
    again = with_space(config, space, model).training
    assert again.width == replace(config.training.width, add_dynamic_inputs=again.width.add_dynamic_inputs)
    assert set(again.width.add_dynamic_inputs) == set(config.training.width.add_dynamic_inputs)
    assert set(again.depth.skipped_blocks) == set(config.training.depth.skipped_blocks or ())


@needs_published
def test_a_configuration_for_another_size() -> None:
    base, medium = (
        NncfConfig.load(PUBLISHED / f"nncf_eftnas_{name}.json")
        for name in ("s1_bert_base_cola", "s2_bert_medium_cola")
    )
    with pytest.raises(
        ValueError,
        match="layer.8.* with 8 layers in the encoder does not have; take a configuration that was made for",
    ):
        nncf_space(base, bert("medium"))
    with pytest.raises(ValueError, match="made for a smaller model"):
        nncf_space(medium, bert("base"))


@pytest.mark.parametrize(
    "name, labels, length, macs, weights",
    [
        ("base", 2, 128, 11_174_217_216, 85_526_016),
        ("medium", 3, 128, 3_355_706_880, 25_429_504),
        ("medium_squad", 2, 384, 10_872_029_184, 25_166_848),
    ],
)
def test_the_counting_of_nncf(name: str, labels: int, length: int, macs: int, weights: int) -> None:
    data = {"input_info": {"sample_size": [1, length]}, "bootstrapNAS": {"training": {"elasticity": {}}}}
    data["bootstrapNAS"]["training"]["elasticity"] = {"depth": {"skipped_blocks": []}}
    found = describe_config(NncfConfig.from_dict(data), bert(name, labels))
    assert (found.largest.macs, found.largest.weights) == (macs, weights)


@needs_golden
@pytest.mark.parametrize("case", range(10))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_recorded_sub_networks(case: int, attention: str) -> None:
    name, recorded = list(recordings()["subnets"].items())[case]
    model = golden_model("reordered_weights.npz")
    model.set_attn_implementation(attention)
    table = SizeTable(model)
    chosen = sub_network(table.structure, recorded["width"], recorded["depth"])
    assert table.macs(chosen, 32) == round(recorded["mmacs"] * 1e6), name
    assert table.parameters(chosen, WEIGHTS) == recorded["weights"], name
    config = NncfConfig.load(GOLDEN / "space" / "source_config.json")
    space = nncf_space(config, model)
    assert space.decode(space.encode(chosen)) == chosen
    expected = torch.tensor(recorded["logits"])
    with SuperNetwork(model) as super_network, super_network.activated(chosen), torch.no_grad():
        assert (model(**batch()).logits - expected).abs().max() <= 5e-6
    with torch.no_grad():
        assert (extract(model, chosen)(**batch()).logits - expected).abs().max() <= 5e-6


@needs_golden
def test_the_recorded_extraction() -> None:
    recorded = recordings()["subnets"]["mix"]
    model = golden_model("reordered_weights.npz")
    chosen = sub_network(SizeTable(model).structure, recorded["width"], recorded["depth"])
    small = extract(model, chosen)
    state = small.state_dict()
    with np.load(GOLDEN / "reorder_subnets" / "clean_mix_weights.npz") as arrays:
        names = set(arrays) - {"bert.embeddings.position_ids"}
        assert names == set(state) - {"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"}
        for name in names:
            assert np.array_equal(arrays[name], state[name].numpy()), name
    assert sum(p.numel() for p in small.parameters()) == recorded["clean_num_params"]


@needs_golden
@pytest.mark.parametrize("indicator", [1, 2, 3, 5])
def test_recorded_width_indicators(indicator: int) -> None:
    recorded = recordings()[f"width_indicator_{indicator}"]
    config = NncfConfig.load(GOLDEN / "space" / "source_config.json")
    space = nncf_space(config, golden_model("reordered_weights.npz"), Stage(("width",), width_indicator=indicator))
    structure = space.structure
    for name, end in (("minimal", "min"), ("maximal", "max")):
        widths = [recorded[end][str(group)] for group in range(6)]
        assert named_sub_network(space, name) == sub_network(structure, widths, [])
    for group, widths in recorded["space"].items():
        index, unit = int(group) % 3, 64 if int(group) < 3 else 1
        kind = "attention" if unit == 64 else "feed_forward"
        assert space.to_dict()["sub_layers"][f"encoder.{index}.{kind}"] == [w // unit for w in reversed(widths)]


@needs_golden
def test_a_recorded_space_with_blocks_that_depend_on_each_other() -> None:
    model = golden_model("init_weights.npz")
    config = NncfConfig.load(GOLDEN / "space" / "generated_cmax25_cmin7_N5.json")
    # The attention and the feed-forward of layer 2 follow one another, so that only the latter may go.
    space = nncf_space(config, model, config.training.schedule.stages[0])
    lists = space.to_dict()["sub_layers"]
    assert lists["encoder.2.attention"] == [1, 2, 3] and lists["encoder.2.feed_forward"] == [0, 35, 116, 160]
    with pytest.raises(ValueError, match="one after the other"):
        nncf_space(config, model)
    apart = NncfConfig.load(GOLDEN / "space" / "source_config.json")
    assert all(choices[0] == 0 for choices in nncf_space(apart, model).to_dict()["sub_layers"].values())


@needs_golden
def test_a_recorded_space_is_written_as_nncf_wrote_it() -> None:
    model = golden_model("init_weights.npz")
    recorded = NncfConfig.load(GOLDEN / "space" / "generated_cmax25_cmin5_N5.json")
    source = NncfConfig.load(GOLDEN / "space" / "source_config.json")
    written = with_space(source, nncf_space(recorded, model), model)
    assert written.training.width == recorded.training.width
    assert set(written.training.depth.skipped_blocks) == set(recorded.training.depth.skipped_blocks)
    assert replace(written, training=None) == replace(recorded, training=None, log_dir=written.log_dir)
