"""Extracted models beside the dense ones that they were made of."""

import pytest

from hf_nas import SubNetwork, extract, save_extracted
from hf_nas.report import profile_small
from tests import zoo


def test_a_small_model_beside_its_dense_one(tmp_path) -> None:
    model = zoo.build("bert")
    sub_network = zoo.corner_cases(model)["everything at once"]
    save_extracted(extract(model, sub_network), sub_network, tmp_path / "small")
    found = profile_small(tmp_path / "small", repeats=2)
    # RoBERTa and its kin, which are told by nothing, keep two of the 40 positions.
    assert found["sequence_length"] == 38 and found["repeats"] == 2
    dense, small = found["models"]
    assert dense["parameters"]["all"] == sum(p.numel() for p in model.parameters()) > small["parameters"]["all"]
    assert len(small["latency"]["seconds"]) == 2 and small["speed_up"] > 0
    assert SubNetwork.from_dict(found["sub_network"]) == sub_network


def test_a_model_without_a_record_is_refused(tmp_path) -> None:
    zoo.build("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no sub_network.json, which tells of what it was made"):
        profile_small(tmp_path, measured=False)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_a_decoder_without_some_of_its_layers_of_two_types(name, tmp_path) -> None:
    model = zoo.build(name)
    sub_network = zoo.corner_cases(model)["middle layer gone"]
    save_extracted(extract(model, sub_network), sub_network, tmp_path)
    dense, small = profile_small(tmp_path, measured=False)["models"]
    assert dense["parameters"]["all"] == sum(p.numel() for p in model.parameters())
    assert len(dense["layers"]) == 3 and len(small["layers"]) == 2 and dense["macs"] > small["macs"]
