import json

import pytest

from hf_nas import describe
from hf_nas.space import CustomSpace, get_search_space
from hf_nas.space.custom import _KEYS
from hf_nas.subnetwork import NORM_ONLY, SubNetwork
from tests import zoo
from tests.space import bert_base, structure_of
from tests.space.test_named import shrunken_structure


PUBLIC_EXAMPLE = {
    "name": "mine",
    "sub_layers": {
        "encoder.*.attention": [2, 4, 8, 12],
        "encoder.0.feed_forward": [256, 512],
        "encoder.*.feed_forward": [0, 768, 1536],
    },
    "shared": ["encoder.*.attention"],
    "num_layers": {"encoder": [3, 4, 5, 6]},
}


def test_example():
    structure = bert_base().structure
    space = CustomSpace(PUBLIC_EXAMPLE, structure)
    dimensions = {dimension.name: dimension.choices for dimension in space.dimensions}
    assert len(dimensions) == 1 + 1 + 12
    assert dimensions["num_layers"] == (3, 4, 5, 6)
    assert dimensions["encoder.*.attention"] == (2, 4, 8, 12)
    assert dimensions["encoder.0.feed_forward"] == (256, 512)
    assert dimensions["encoder.11.feed_forward"] == (0, 768, 1536)
    assert space.smallest.counts() == (2, 256, 2, None, 2, None) + (None,) * 18
    assert space.largest.counts() == (12, 512) + (12, 1536) * 5 + (None,) * 12
    # 4 layers, 8 heads; the neurons of layers that are gone do not matter.
    encoding = (1, 2, 1, 0, 1, 2) + (0,) * 8
    assert space.decode(encoding).counts() == (8, 512, 8, None, 8, 768, 8, 1536) + (None,) * 16
    assert space.decode(encoding) == space.decode(encoding[:6] + (1,) * 8)


def test_without_shared_every_sub_layer_chooses_for_itself_and_others_stay_full():
    space = CustomSpace({"sub_layers": {"encoder.[12].attention": [4, 1, 0]}}, structure_of("bert"))
    assert [(d.name, d.choices) for d in space.dimensions] == [
        ("encoder.1.attention", (0, 1, 4)),
        ("encoder.2.attention", (0, 1, 4)),
    ]
    assert space.name == "custom"
    assert space.decode((1, 0)).kept == (4, 24, 1, 24, None, 24)


def test_ranges():
    choices = {"min": 0, "max": 24, "step": 8}
    space = CustomSpace({"sub_layers": {"*.feed_forward": choices, "*": {"min": 1, "max": 4}}}, structure_of("bert"))
    assert space.dimensions[0].choices == (0, 8, 16, 24)
    assert space.dimensions[-1].choices == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "specification, smallest",
    [
        ({"sub_layers": {"*": [0, 2, 4]}}, (2,) * 6),
        ({"sub_layers": {"*": [0, 2, 4]}, "num_layers": {"encoder": [0, 2, 3]}}, (2,) * 4 + (None,) * 2),
        ({"sub_layers": {"*.attention": [0, 2, 4]}}, (None, 24) * 3),
        ({"num_layers": {"encoder": [0, 2, 3]}}, (4, 24, 4, 24, None, None)),
        ({"sub_layers": {"*": [0, 2]}, "shared": ["*"]}, (2,) * 6),
        ({"sub_layers": {"*.attention": [0, 1], "*.1.*": [3], "*": [0, 5]}}, (None, None, None, 3, None, None)),
    ],
)
def test_the_smallest_sub_network_has_a_layer(specification, smallest):
    assert CustomSpace(specification, structure_of("bert")).smallest.kept == smallest


def test_the_smallest_sub_network_has_a_layer_in_every_stack():
    space = CustomSpace({"num_layers": {"encoder": [0, 2], "decoder": [1, 4]}}, structure_of("t5"))
    assert [dimension.name for dimension in space.dimensions] == ["encoder_num_layers", "decoder_num_layers"]
    assert space.smallest.counts() == (4, 24, 4, 24, None, None, 4, 4, 24) + (None,) * 9
    space = CustomSpace({"sub_layers": {"encoder.*": [0, 1], "decoder.*": [0, 2]}}, structure_of("t5"))
    assert space.smallest.counts() == (1,) * 6 + (2,) * 12


def test_shared_across_stacks():
    specification = {"sub_layers": {"*attention": [1, 3]}, "shared": ["*attention"]}
    space = CustomSpace(specification, structure_of("bart"))
    assert len(space.dimensions) == 1
    assert space.smallest.counts() == (1, 24) * 3 + (1, 1, 24) * 3
    assert space.encode(space.largest) == (1,)


def test_encoding_of_a_layer_that_is_skipped_by_its_units():
    """Of 3 layers the last is empty by its own choice; 2 is no choice for the depth, so 3 layers are."""
    space = CustomSpace({"sub_layers": {"*": [0, 2, 4]}, "num_layers": {"encoder": [1, 3]}}, structure_of("bert"))
    sub_network = SubNetwork.of(space.structure, {"encoder.0.feed_forward": 2, "encoder.1.attention": 2,
        "encoder.1.feed_forward": None, "encoder.2.attention": None, "encoder.2.feed_forward": None})  # fmt: skip
    assert space.encode(sub_network) == (1, 2, 1, 1, 0, 0, 0)


def test_skipping_may_keep_the_norm():
    specification = {"sub_layers": {"*": [0, 4]}, "skip_keeps_norm": ["*.feed_forward"]}
    space = CustomSpace(specification, structure_of("bert"))
    assert space.decode((0,) * 6).kept == (None, NORM_ONLY) * 3
    assert space.encode(space.decode((0, 1, 0, 0, 1, 1))) == (0, 1, 0, 0, 1, 1)
    assert space.smallest.counts() == (4, 4) * 3
    without_norm = dict.fromkeys(space.structure.names, 4) | {"encoder.0.feed_forward": None}
    with pytest.raises(ValueError, match="closest in the space nothing but the norm"):
        space.encode(SubNetwork.of(space.structure, without_norm))
    # Where the norm comes first it goes with the rest.
    assert CustomSpace(specification, structure_of("llama")).decode((0,) * 6).kept == (None,) * 6


def test_sub_layers_that_are_gone_already_have_no_dimension():
    space = CustomSpace({"sub_layers": {"*.feed_forward": [0, 5]}}, shrunken_structure())
    assert [d.name for d in space.dimensions] == ["encoder.0.feed_forward", "encoder.2.feed_forward"]
    assert space.largest.kept == (None, 5, None, None, 3, 5)
    with pytest.raises(ValueError, match="pattern 'encoder.1.*', but the sub-layers it matches are gone"):
        CustomSpace({"sub_layers": {"encoder.1.*": [0, 1]}}, shrunken_structure())
    # The choices of a pattern must fit all its sub-layers.
    with pytest.raises(ValueError, match=r"pattern '\*.feed_forward' the choice 6, but there are only 5 units"):
        CustomSpace({"sub_layers": {"*.feed_forward": [0, 6]}}, shrunken_structure())


def test_layers_that_share_their_weights_are_one_to_choose() -> None:
    structure = describe(zoo.build("albert"))
    space = CustomSpace({"num_layers": {"encoder": [0, 1]}}, structure)
    assert space.decode((0,)).kept == (None, None)
    with pytest.raises(ValueError, match=r"the choice 2, but there are only 1 layers \(one runs 3 times\)"):
        CustomSpace({"num_layers": {"encoder": [1, 2]}}, structure)


@pytest.mark.parametrize(
    "specification", [PUBLIC_EXAMPLE, {"sub_layers": {"*.feed_forward": {"min": 1, "max": 3072}}}]
)
def test_files_round_trip(tmp_path, specification):
    structure = bert_base().structure
    space = CustomSpace(specification, structure)
    space.save(tmp_path / "folder" / "space.json")
    loaded = get_search_space(str(tmp_path / "folder" / "space.json"), structure)
    assert loaded.to_dict() == space.to_dict() == {"name": "custom", **specification}
    assert loaded.dimensions == space.dimensions and loaded.name == space.name
    assert loaded.smallest == space.smallest and loaded.largest == space.largest


def test_a_file_names_its_space(tmp_path):
    path = tmp_path / "narrow.json"
    path.write_text('{"sub_layers": {"*": [1, 2]}}')
    assert CustomSpace.load(path, structure_of("bert")).name == "narrow"


def test_the_specification_is_a_copy():
    specification = {"sub_layers": {"*": [1, 2]}}
    space = CustomSpace(specification, structure_of("bert"))
    specification["sub_layers"]["*"].append(3)
    space.to_dict()["sub_layers"]["*"].append(4)
    assert space.to_dict()["sub_layers"] == {"*": [1, 2]}


def sub_layers(pattern, choices):
    return {"sub_layers": {pattern: choices}}


REFUSED = [
    (
        {"sub_layer": {"*": [1]}},
        "has the unknown key 'sub_layer'; choose from 'name', 'sub_layers', 'shared', 'skip_k",
    ),
    ({"name": "x"}, "chooses nothing; give it 'sub_layers' or 'num_layers'"),
    ({"name": 3, **sub_layers("*", [1])}, "has the name 3; give a string"),
    ({"sub_layers": [1]}, r"has the 'sub_layers' \[1\]; write an object from pattern to choices"),
    ({"num_layers": [1]}, r"has the 'num_layers' \[1\]; write an object from stack to choices"),
    ([1], r"is \[1\]; write an object with the keys"),
    (
        sub_layers("decoder.*", [1]),
        "pattern 'decoder.\\*', which matches no sub-layer of this bert model.*'encoder.0.att",
    ),
    ({"sub_layers": {"*": [1], "encoder.0.*": [1]}}, "pattern 'encoder.0.\\*', but patterns before it match all"),
    (
        sub_layers("*.attention", [1, 5]),
        "pattern '\\*.attention' the choice 5, but there are only 4 units; choose 0 to 4",
    ),
    (sub_layers("*.attention", {"min": 1, "max": 10**15}), "the choice 1000000000000000, but there are only 4 units"),
    (sub_layers("*", [-1]), "the choice -1; choose 0 to 4"),
    (sub_layers("*", [1, 2, 1]), "the choice 1 more than once"),
    (sub_layers("*", []), r"pattern '\*' the choices \[\]; give a list of integers"),
    (sub_layers("*", 3), r"pattern '\*' the choices 3; give a list of integers"),
    (sub_layers("*", "12"), r"pattern '\*' the choices '12'; give a list of integers"),
    (sub_layers("*", [1.5]), "the choice 1.5; choices are integers"),
    (sub_layers("*", [True]), "the choice True; choices are integers"),
    (sub_layers("*", ["1"]), "the choice '1'; choices are integers"),
    (sub_layers("*", [None]), "the choice None; choices are integers"),
    (sub_layers("*", {"min": 1}), "a range without 'max'"),
    (sub_layers("*", {"min": 1, "max": 2, "stop": 3}), "has the unknown key 'stop'; choose from 'min', 'max', 'step'"),
    (sub_layers("*", {"min": 1, "max": 2.0}), "a range with the max 2.0; give an integer"),
    (sub_layers("*", {"min": 1, "max": 4, "step": 2}), "from 1 to 4 in steps of 2, which does not end at its 'max'"),
    (sub_layers("*", {"min": 3, "max": 1}), "from 3 to 1 in steps of 1"),
    (sub_layers("*", {"min": 1, "max": 3, "step": 0}), "in steps of 0"),
    ({"shared": ["*.attention"], **sub_layers("*", [1])}, "lists '\\*.attention' in 'shared', which is no pattern"),
    ({"shared": "*", **sub_layers("*", [1])}, r"has the 'shared' '\*'; write a list of patterns"),
    ({"skip_keeps_norm": "*", **sub_layers("*", [1])}, r"has the 'skip_keeps_norm' '\*'; write a list of patterns"),
    ({"skip_keeps_norm": ["a.*"], **sub_layers("*", [1])}, r"pattern 'a.\*' in 'skip_keeps_norm', which matches no"),
    ({"num_layers": {"decoder": [1]}}, "stack 'decoder', which this bert model does not have; choose from 'encoder'"),
    ({"num_layers": {"encoder": [1, 4]}}, "num_layers of 'encoder' the choice 4, but there are only 3 layers"),
]


@pytest.mark.parametrize("specification, message", REFUSED)
def test_wrong_specifications_are_refused(tmp_path, specification, message):
    with pytest.raises(ValueError, match=message) as direct:
        CustomSpace(specification, structure_of("bert"))
    assert "\n" not in str(direct.value)
    path = tmp_path / "space.json"
    path.write_text(json.dumps(specification))
    with pytest.raises(ValueError, match=message) as from_file:
        get_search_space(str(path), structure_of("bert"))
    assert str(path) in str(from_file.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"sub_layers": ', "is not valid JSON: Expecting value: line 1"),
        ('{"sub_layers": {"*": [1], "*": [2]}}', "is not valid JSON: the key '\\*' stands there twice"),
        (b"\xff\xfe", "is not valid JSON"),
    ],
)
def test_broken_files_are_refused(tmp_path, text, message):
    path = tmp_path / "space.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        get_search_space(str(path), structure_of("bert"))


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="missing.json' does not exist; give the path of a JSON file"):
        get_search_space(str(tmp_path / "missing.json"), structure_of("bert"))


def test_every_key_is_documented():
    assert all(f'"{key}"' in CustomSpace.__doc__ for key in _KEYS)
