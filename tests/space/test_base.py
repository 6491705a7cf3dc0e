import numpy as np
import pytest

from hf_nas.space import (
    CustomSpace,
    Dimension,
    MediumSpace,
    SearchSpace,
    get_search_space,
    known_search_spaces,
    register_search_space,
)
from hf_nas.subnetwork import SubNetwork
from tests.space import SPACES, structure_of


CUSTOM = {
    "name": "mine",
    "sub_layers": {"encoder.*.attention": [1, 2, 4], "encoder.*": [0, 8, 24]},
    "shared": ["encoder.*.attention"],
    "num_layers": {"encoder": [0, 2, 3]},
}


def make(space: str, model: str = "bert"):
    structure = structure_of(model)
    return CustomSpace(CUSTOM, structure) if space == "custom" else get_search_space(space, structure)


def differences(first, second):
    return [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]


EVERY_SPACE = pytest.mark.parametrize("name", [*SPACES, "custom"])


@EVERY_SPACE
def test_decode_and_encode_are_inverse(name):
    space, rng = make(name), np.random.default_rng(0)
    encodings = [space.largest_encoding, space.smallest_encoding, (0,) * len(space.dimensions)]
    for encoding in [*encodings, *(space.sample(rng) for _ in range(60))]:
        sub_network = space.decode(encoding)
        again = space.encode(sub_network)
        assert all(type(index) is int for index in again)
        assert space.decode(again) == sub_network
        assert SubNetwork.from_dict(sub_network.to_dict(), space.structure) == sub_network


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("model", ["llama", "t5", "bart"])
def test_other_structures_round_trip_too(name, model):
    space, rng = make(name, model), np.random.default_rng(0)
    for _ in range(30):
        sub_network = space.decode(space.sample(rng))
        assert space.decode(space.encode(sub_network)) == sub_network
    assert space.encode(space.smallest) == space.smallest_encoding
    assert space.encode(space.largest) == space.largest_encoding


def test_different_encodings_of_one_function_are_equal_values():
    small = make("small")
    assert small.decode((0, 0, 0)) == small.decode((0, 3, 23)) != small.decode((1, 0, 0))
    assert hash(small.decode((0, 0, 0))) == hash(small.decode((0, 3, 23)))
    large, medium = make("large"), make("medium")
    assert large.decode(large.largest_encoding) == medium.decode(medium.largest_encoding) == small.largest
    # A prefix of heads is the same thing, whichever space it comes from.
    assert large.decode((1, 1, 0, 0, 1) + (0,) * 79) == medium.decode((2, 1, 0, 0, 0, 0))


@EVERY_SPACE
def test_sampling_reaches_every_bound(name):
    space, rng = make(name), np.random.default_rng(0)
    samples = np.array([space.sample(rng) for _ in range(400)])
    assert (samples.min(axis=0) == 0).all()
    assert tuple(samples.max(axis=0)) == space.largest_encoding


@EVERY_SPACE
def test_randomness_comes_from_the_generator_alone(name):
    space, runs = make(name), []
    for global_seed in (1, 2):
        np.random.seed(global_seed)
        state = np.random.get_state()[1].copy()
        rng = np.random.default_rng(3)
        first, second = space.sample(rng), space.sample(rng)
        runs.append((first, second, space.mutate(first, rng), space.crossover(first, second, rng)))
        assert (np.random.get_state()[1] == state).all()
    assert runs[0] == runs[1]
    assert space.sample(np.random.default_rng(4)) != runs[0][0]


@EVERY_SPACE
def test_mutation_changes_one_dimension(name):
    space, rng = make(name), np.random.default_rng(0)
    encoding = space.sample(rng)
    changed = set()
    for _ in range(700):
        mutated = space.mutate(encoding, rng)
        (dimension,) = differences(encoding, mutated)
        assert 0 <= mutated[dimension] < len(space.dimensions[dimension].choices)
        changed.add((dimension, mutated[dimension]))
    assert {dimension for dimension, _ in changed} == set(range(len(space.dimensions)))
    if name == "custom":
        expected = {(i, k) for i, d in enumerate(space.dimensions) for k in range(len(d.choices))}
        assert changed == expected - set(enumerate(encoding))


def test_mutation_leaves_alone_what_has_no_choice():
    structure = structure_of("bert")
    space = CustomSpace({"sub_layers": {"encoder.0.attention": [2], "encoder.1.attention": [1, 2]}}, structure)
    rng = np.random.default_rng(0)
    assert {space.mutate((0, 0), rng) for _ in range(20)} == {(0, 1)}
    single = CustomSpace({"sub_layers": {"encoder.0.attention": [2]}}, structure)
    with pytest.raises(ValueError, match="one choice in every dimension, so nothing can be mutated"):
        single.mutate((0,), rng)


@EVERY_SPACE
def test_crossover_takes_every_dimension_from_a_parent(name):
    space, rng = make(name), np.random.default_rng(0)
    first, second = (0,) * len(space.dimensions), space.largest_encoding
    children = np.array([space.crossover(first, second, rng) for _ in range(300)])
    assert set((children / np.array(second)).ravel()) == {0.0, 1.0}
    from_second = (children > 0).mean(axis=0)
    assert ((from_second > 0.35) & (from_second < 0.65)).all()


@EVERY_SPACE
def test_neighbours_are_all_points_one_step_away(name):
    space, rng = make(name), np.random.default_rng(0)
    for encoding in (space.largest_encoding, (0,) * len(space.dimensions), space.sample(rng)):
        neighbours = list(space.neighbours(encoding))
        for neighbour in neighbours:
            (dimension,) = differences(encoding, neighbour)
            assert abs(neighbour[dimension] - encoding[dimension]) == 1
            assert 0 <= neighbour[dimension] < len(space.dimensions[dimension].choices)
        steps = sum((i > 0) + (i + 1 < len(d.choices)) for i, d in zip(encoding, space.dimensions))
        assert len(set(neighbours)) == len(neighbours) == steps


@pytest.mark.parametrize(
    "encoding, message",
    [
        ((1, 2), "'medium' has 6 entries but 2 are given"),
        (
            (0, 0, 0, 0, 5, 0),
            "'num_heads_2' of search space 'medium' has 5 choices but index 5 is given; choose 0 to 4",
        ),
        ((0, -1, 0, 0, 0, 0), "'num_units_0' of search space 'medium' has 25 choices but index -1 is given"),
        ((0, 0, 1.5, 0, 0, 0), "has the entry 1.5; give indices, which are integers"),
        ((0, 0, "1", 0, 0, 0), "has the entry '1'; give indices, which are integers"),
    ],
)
def test_wrong_encodings_are_refused(encoding, message):
    space, rng = make("medium"), np.random.default_rng(0)
    operations = (
        space.decode,
        lambda e: space.mutate(e, rng),
        lambda e: space.crossover(e, space.largest_encoding, rng),
        lambda e: space.crossover(space.largest_encoding, e, rng),
        lambda e: next(space.neighbours(e)),
    )
    for operation in operations:
        with pytest.raises(ValueError, match=message):
            operation(encoding)


@pytest.mark.parametrize(
    "name, kept, message",
    [
        (
            "small",
            {"encoder.1.attention": 2},
            "it keeps 2 of sub-layer 'encoder.1.attention', the closest in the space 4",
        ),
        ("small", {"encoder.0.attention": None, "encoder.0.feed_forward": None}, "nothing .skipped. of sub-layer"),
        ("medium", {"encoder.0.attention": [0, 2]}, r"it keeps \[0, 2\] of sub-layer 'encoder.0.attention'.* 2;"),
        ("medium", {"encoder.0.attention": 0}, "it keeps 0 of sub-layer 'encoder.0.attention', .* nothing .skipped."),
        (
            "layer",
            {"encoder.2.attention": 3},
            "it keeps 3 of sub-layer 'encoder.2.attention', the closest in the .* 4",
        ),
        ("large", {"encoder.1.feed_forward": 0}, "it keeps 0 of sub-layer 'encoder.1.feed_forward'"),
        ("custom", {f"encoder.{i}.attention": 3 for i in range(3)}, r"would be 3 but has the choices \[1, 2, 4\]"),
        ("custom", {"encoder.0.attention": 2}, "it keeps 4 of sub-layer 'encoder.1.attention'"),
        (
            "custom",
            {"encoder.0.feed_forward": 7},
            r"'encoder.0.feed_forward' would be 7 but has the choices \[0, 8, 24",
        ),
    ],
)
def test_sub_networks_outside_the_space_are_refused(name, kept, message):
    space = make(name)
    with pytest.raises(ValueError, match=f"does not contain this sub-network.*({message})"):
        space.encode(SubNetwork.of(space.structure, kept))


def test_sub_networks_of_other_models_are_refused():
    with pytest.raises(ValueError, match="belongs to a llama model"):
        make("medium").encode(SubNetwork.full(structure_of("llama")))


@pytest.mark.parametrize("choices", [(), (2, 1), (1, 1)])
def test_dimensions_need_ascending_choices(choices):
    with pytest.raises(ValueError, match="'depth' has the choices .* give at least one, in ascending order"):
        Dimension("depth", choices)


class Halves(SearchSpace):
    """All layers with 2 or 4 heads, in a space that a user wrote."""

    def __init__(self, structure, names=("first", "rest"), smallest_values=None):
        super().__init__("halves", structure, [Dimension(name, (2, 4)) for name in names], smallest_values)

    def to_kept(self, values):
        first, *others = [name for name in self.structure.names if "attention" in name]
        return {first: int(values[0]), **dict.fromkeys(others, int(values[1]))}

    def to_values(self, sub_network):
        return sub_network["encoder.0.attention"], sub_network["encoder.1.attention"]


def test_a_space_of_your_own():
    space = Halves(structure_of("bert"), smallest_values=(4, 2))
    assert space.smallest_encoding == (1, 0) and space.smallest.kept == (4, 24, 2, 24, 2, 24)
    assert [space.encode(space.decode((i, j))) for i in (0, 1) for j in (0, 1)] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"names": ("a", "a")}, "'halves' has two dimensions called 'a'"),
        ({"names": ()}, "'halves' has nothing to choose from in this bert model"),
        ({"smallest_values": (2, 1)}, "'rest' would be 1 but has the choices .2, 4."),
        ({"smallest_values": (3, 2)}, "'first' would be 3"),
        ({"smallest_values": (2, 5)}, "'rest' would be 5"),
        ({"smallest_values": (2,)}, "'halves' has 2 dimensions but 1 values are given"),
    ],
)
def test_wrong_spaces_of_your_own_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Halves(structure_of("bert"), **arguments)


def test_spaces_are_found_by_name_and_path(tmp_path):
    structure = structure_of("bert")
    assert [get_search_space(name, structure).name for name in SPACES] == list(SPACES)
    CustomSpace(CUSTOM, structure).save(tmp_path / "mine.json")
    assert get_search_space(str(tmp_path / "mine.json"), structure).name == "mine"
    assert get_search_space(tmp_path / "mine.json", structure).to_dict() == CUSTOM
    with pytest.raises(
        ValueError, match="no search space 'tiny'; choose from 'small', 'medium', 'layer', 'large'.*path"
    ):
        get_search_space("tiny", structure)


def test_registered_spaces_are_found(monkeypatch):
    monkeypatch.setattr("hf_nas.space._SPACES", {"small": MediumSpace})
    register_search_space("halves", lambda structure: CustomSpace({"sub_layers": {"*.attention": [2, 4]}}, structure))
    assert known_search_spaces() == ("small", "halves")
    assert len(get_search_space("halves", structure_of("bert")).dimensions) == 3
