"""The sub-network is a canonical, immutable value that survives JSON."""

import json

import pytest

from hf_nas import SizeTable, SubNetwork, SuperNetwork, describe, extract
from hf_nas.subnetwork import NORM_ONLY
from tests import zoo


@pytest.fixture(scope="module")
def structure():
    return describe(zoo.build("bert"))


def test_equal_choices_are_equal_values(structure) -> None:
    name = "encoder.1.attention"
    by_count, by_ids = SubNetwork.of(structure, {name: 2}), SubNetwork.of(structure, {name: [1, 0]})
    assert by_count == by_ids and len({by_count, by_ids}) == 1
    assert SubNetwork.of(structure, {name: range(4)}) == SubNetwork.full(structure)
    assert SubNetwork.of(structure, {name: [0, 2]}) != by_count
    assert SubNetwork.of(structure, {name: 0}) != SubNetwork.of(structure, {name: None})
    assert SubNetwork.of(structure, {name: []})[name] == 0


@pytest.mark.parametrize("case", zoo.corner_cases(zoo.build("bert")))
def test_json_round_trip(structure, case: str, tmp_path) -> None:
    sub_network = zoo.corner_cases(zoo.build("bert"))[case]
    sub_network.save(tmp_path / "sub_network.json")
    assert SubNetwork.load(tmp_path) == SubNetwork.load(tmp_path / "sub_network.json", structure) == sub_network
    assert SubNetwork.from_dict(json.loads(json.dumps(sub_network.to_dict()))) == sub_network


def test_only_the_norm_stays_where_it_comes_after_the_rest(structure) -> None:
    name = "encoder.1.feed_forward"
    assert SubNetwork.of(structure, {name: NORM_ONLY})[name] == NORM_ONLY
    assert len({SubNetwork.of(structure, {name: kept}) for kept in (NORM_ONLY, None, 0)}) == 3
    decoder = describe(zoo.build("llama"))
    name = "decoder.1.feed_forward"
    assert SubNetwork.of(decoder, {name: NORM_ONLY}) == SubNetwork.of(decoder, {name: None})


def test_a_model_of_which_only_a_norm_is_left() -> None:
    model = zoo.build("bert")
    name = "encoder.1.feed_forward"
    small = extract(model, SubNetwork.of(describe(model), {name: NORM_ONLY}))
    structure = describe(small)
    assert structure[name].norm_only and not structure[name].skipped
    assert SubNetwork.full(structure)[name] == SubNetwork.of(structure, {name: 0})[name] == NORM_ONLY
    with pytest.raises(ValueError, match="has 0 units but 1 are asked for"):
        SubNetwork.of(structure, {name: 1})
    smaller = SubNetwork.of(structure, {name: None, "encoder.0.attention": 1})
    inputs = zoo.inputs_for(small)
    wanted = zoo.logits(extract(model, SubNetwork.of(describe(model), {name: None, "encoder.0.attention": 1})), inputs)
    assert (zoo.logits(extract(small, smaller), inputs) - wanted).abs().max() <= 1e-5
    with SuperNetwork(small) as super_network:
        super_network.activate(smaller)
        assert (zoo.logits(small, inputs) - wanted).abs().max() <= 1e-5
    table = SizeTable(small)
    for sub_network in (SubNetwork.full(structure), smaller):
        parameters = sum(p.numel() for p in extract(small, sub_network).parameters())
        assert table.parameters(sub_network) == parameters


def test_hidden_dimensions(structure, tmp_path) -> None:
    full = SubNetwork.full(structure)
    assert SubNetwork.of(structure, {}, 32) == SubNetwork.of(structure, {}, range(32)) == full and full.hidden is None
    some = SubNetwork.of(structure, {}, [3, 0, 31])
    assert some.hidden == (0, 3, 31) and some == SubNetwork.of(structure, {}, (31, 3, 0)) and some != full
    assert len({some, SubNetwork.of(structure, {}, 3), SubNetwork.of(structure, {}, [0, 1, 2]), full}) == 3
    some.save(tmp_path / "some.json")
    assert SubNetwork.load(tmp_path / "some.json") == SubNetwork.load(tmp_path / "some.json", structure) == some
    full.require_full_width("anything")
    with pytest.raises(ValueError, match="keeps only 3 of the hidden dimensions, with which anything is not possible"):
        some.require_full_width("anything")


def test_files_say_nothing_of_hidden_dimensions_unless_some_are_gone(structure) -> None:
    assert set(SubNetwork.full(structure).to_dict()) == {"format", "model_type", "units", "kept"}
    assert SubNetwork.of(structure, {}, [1, 2]).to_dict()["hidden"] == [1, 2]


@pytest.mark.parametrize(
    "hidden, message",
    [
        (0, "hidden dimensions 0 to 31 but is to keep 0; give each kept one once, and at least one"),
        ([], "and at least one"),
        (33, "is to keep 33"),
        ([0, 32], r"is to keep \[0, 32\]"),
        ([1, 1], "give each kept one once"),
        ("all", "given as 'all'; give a number, a list of ids, or None"),
        (True, "given as True"),
    ],
)
def test_hidden_dimensions_that_a_model_does_not_have_are_refused(structure, hidden, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubNetwork.of(structure, {}, hidden)


def test_hidden_dimensions_in_a_file_are_checked(structure) -> None:
    data = SubNetwork.full(structure).to_dict()
    with pytest.raises(ValueError, match="keeps the hidden dimensions 5, which are not ids in order"):
        SubNetwork.from_dict({**data, "hidden": 5})
    wide = SubNetwork.from_dict({**data, "hidden": [0, 40]})
    with pytest.raises(ValueError, match=r"is to keep \[0, 40\]"):
        wide.check(structure)


def test_it_cannot_be_changed(structure) -> None:
    with pytest.raises(AttributeError):
        SubNetwork.full(structure).kept = ()


@pytest.mark.parametrize(
    "kept, message",
    [
        ({"encoder.0.attention": 5}, "'encoder.0.attention' has 4 units but 5 are asked for; choose 0 to 4"),
        ({"encoder.0.attention": -1}, "has 4 units but -1 are asked for"),
        ({"encoder.0.attention": [0, 4]}, "units 0 to 3 but is given the ids"),
        ({"encoder.0.attention": [1, 1]}, "give each kept unit once"),
        ({"encoder.0.attention": "all"}, "is given 'all'; give a number of units, a list of unit ids, None"),
        ({"encoder.0.attention": 1.5}, "is given 1.5"),
        ({"encoder.0.attention": True}, "is given True"),
        ({"encoder.9.attention": 1}, "This bert model has no sub-layer 'encoder.9.attention'"),
    ],
)
def test_what_is_no_sub_network_is_refused(structure, kept: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubNetwork.of(structure, kept)


def test_files_that_are_no_sub_network_are_refused(structure, tmp_path) -> None:
    (tmp_path / "a.json").write_text('{"heads": 3}')
    with pytest.raises(ValueError, match="Not a sub-network: its 'format' is None, not 'hf_nas.sub_network/1'"):
        SubNetwork.load(tmp_path / "a.json")
    SubNetwork.full(describe(zoo.build("roberta"))).save(tmp_path / "b.json")
    with pytest.raises(ValueError, match="belongs to a roberta model"):
        SubNetwork.load(tmp_path / "b.json", structure)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kept": 3}, "must have the same sub-layers as entries"),
        ({"units": {}}, "must have the same sub-layers as entries"),
        ({"model_type": None}, "'model_type' of a sub-network is None"),
        ({"units": {"0": 4}, "kept": {"0": 2}}, "has 4 units of '0', as no sub-layer"),
        ({"kept": {"encoder.0.attention": 5}}, "keeps 5 of 'encoder.0.attention', which has 4 units"),
        ({"kept": {"encoder.0.attention": [2, 1]}}, "in rising order"),
        ({"kept": {"encoder.0.attention": True}}, "keeps True of"),
        ({"kept": {"encoder.0.attention": {"a": 1}}}, "keeps {'a': 1} of"),
        ({"hidden": [1, 1]}, "hidden dimensions .1, 1., which are not ids in order"),
    ],
)
def test_files_with_values_that_no_sub_network_has_are_refused(change, message: str, tmp_path) -> None:
    record = {
        "format": "hf_nas.sub_network/1",
        "model_type": "bert",
        "units": {"encoder.0.attention": 4},
        "kept": {"encoder.0.attention": 2},
    }
    path = tmp_path / "sub_network.json"
    path.write_text(json.dumps(record))
    assert SubNetwork.load(path)["encoder.0.attention"] == 2
    path.write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=message):
        SubNetwork.load(path)
    path.write_text(json.dumps(record)[:-5])
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        SubNetwork.load(path)
