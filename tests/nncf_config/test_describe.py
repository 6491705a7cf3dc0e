"""The numbers of a space, computed by hand for the tiny BERT."""

import json
import math

import pytest

from hf_nas import SizeTable, SubNetwork, describe, extract, get_search_space
from hf_nas.nncf_config import NncfConfig, describe_config, describe_space
from tests import zoo
from tests.nncf_config.configs import config


HIDDEN, LENGTH, LABELS = 32, 16, 3


def macs(widths: list[int], neurons: list[int], length: int = LENGTH) -> int:
    attention = sum(4 * length * HIDDEN * width + 2 * length**2 * width for width in widths)
    return attention + sum(2 * length * HIDDEN * count for count in neurons) + HIDDEN**2 + HIDDEN * LABELS


def weights(widths: list[int], neurons: list[int]) -> int:
    return 4 * HIDDEN * sum(widths) + 2 * HIDDEN * sum(neurons) + HIDDEN**2 + HIDDEN * LABELS


def test_the_numbers_by_hand() -> None:
    found = describe_config(NncfConfig.from_dict(config()), zoo.build("bert"))
    assert (found.name, found.model, found.sequence_length) == ("nncf", "BertForSequenceClassification", 16)
    largest, smallest, unskipped = ([32, 24, 32], [24, 24, 20]), ([16], [9, 5]), ([8, 16, 32], [9, 24, 5])
    for cost, kept in (
        (found.largest, largest), (found.smallest, smallest), (found.smallest_without_skipping, unskipped)
    ):  # fmt: skip
        assert (cost.macs, cost.weights) == (macs(*kept), weights(*kept))
    assert found.skippable == ("encoder.0.attention", "encoder.1.feed_forward", "encoder.2.attention")
    # The last stage hides the smallest of four widths: 4 * 2 * 2 * 3 * 2 * 2, or with two more choices for skipping
    # where there are several widths: 6 * 2 * 2 * 3 * 2 * 2.
    assert found.log10_size == pytest.approx(math.log10(192))
    assert found.log10_size_as_published == pytest.approx(math.log10(288))


def test_the_width_indicator_can_be_ignored() -> None:
    found = describe_config(NncfConfig.from_dict(config()), zoo.build("bert"), 8, ignore_width_indicator=True)
    assert found.smallest_without_skipping.macs == macs([8, 16, 32], [3, 24, 5], length=8)
    assert found.sub_layers[1].units == (24, 17, 9, 3)


def test_the_decoder_of_a_configuration_has_a_length_of_its_own() -> None:
    inputs = [
        {"sample_size": [1, 16], "keyword": "input_ids"},
        {"sample_size": [1, 5], "keyword": "decoder_input_ids"},
    ]
    model = zoo.build("bart")
    elasticity = "nas__training__elasticity__"
    given = NncfConfig.from_dict(
        config(**{"input_info": inputs, f"{elasticity}width": {}, f"{elasticity}depth": {"skipped_blocks": []}})
    )
    assert given.lengths == (16, 5) and NncfConfig.from_dict(config()).lengths == (16, None)
    full, sizes = SubNetwork.full(describe(model)), SizeTable(model)
    assert describe_config(given, model).largest.macs == sizes.macs(full, 16, 5) < sizes.macs(full, 16)


def test_plain_json() -> None:
    found = describe_config(NncfConfig.from_dict(config()), zoo.build("bert")).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["sub_layers"]["encoder.0.attention"] == {
        "units": [4, 2, 1],
        "widths": [32, 16, 8],
        "skip": "identity",
    }
    assert found["sub_layers"]["encoder.1.feed_forward"] == {"units": [24], "widths": [24], "skip": "norm"}
    assert found["sub_layers"]["encoder.2.feed_forward"] == {"units": [20, 5], "widths": [20, 5], "skip": None}
    assert found["largest"] == {
        "mmacs": macs([32, 24, 32], [24, 24, 20]) / 1e6,
        "weights": weights([32, 24, 32], [24, 24, 20]),
    }


@pytest.mark.parametrize("name", ["small", "medium", "layer", "large"])
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_any_space(name: str, family: str) -> None:
    model = zoo.build(family)
    structure = describe(model)
    found = describe_space(get_search_space(name, structure), model, LENGTH)
    assert [choices.name for choices in found.sub_layers] == list(structure.names)
    assert set(found.skippable) == set(structure.names)
    for choices in found.sub_layers:
        units = structure[choices.name].units
        assert choices.units == ((units,) if name == "layer" else tuple(range(units, 0, -1)))
    assert found.smallest.macs < found.smallest_without_skipping.macs <= found.largest.macs
    one_each = SubNetwork.of(structure, {} if name == "layer" else dict.fromkeys(structure.names, 1))
    assert found.smallest_without_skipping.macs == SizeTable(model).macs(one_each, LENGTH)
    assert found.log10_size_as_published is None
    if name == "large":
        assert found.log10_size == pytest.approx(sum(s.units for s in structure) * math.log10(2))


def test_what_is_gone_from_the_model_is_not_described() -> None:
    model = zoo.build("bert")
    model = extract(model, SubNetwork.of(describe(model), {"encoder.1.attention": None, "encoder.0.feed_forward": 7}))
    found = describe_space(get_search_space("medium", describe(model)), model, LENGTH)
    names = [choices.name for choices in found.sub_layers]
    assert "encoder.1.attention" not in names and len(names) == 5
    assert found.sub_layers[1].units == tuple(range(7, 0, -1))
