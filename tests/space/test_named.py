import time

import numpy as np
import pytest

from hf_nas.resize import own_position_bias, resize
from hf_nas.space import get_search_space
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork
from tests.space import MODELS, SPACES, bert_base, structure_of


@pytest.mark.parametrize("name, count", [("small", 3), ("medium", 24), ("layer", 12), ("large", 37_008)])
def test_published_numbers_of_dimensions_of_bert_base(name, count):
    space = get_search_space(name, bert_base().structure)
    assert len(space.dimensions) == count
    assert len({dimension.name for dimension in space.dimensions}) == count


def test_published_names_and_bounds_of_bert_base():
    structure = bert_base().structure
    small = {d.name: d.choices for d in get_search_space("small", structure).dimensions}
    assert list(small) == ["num_layers", "num_heads", "num_units"]
    assert small["num_layers"] == tuple(range(13)) and small["num_heads"] == tuple(range(1, 13))
    assert small["num_units"] == tuple(range(1, 3073))
    medium = {d.name: d.choices for d in get_search_space("medium", structure).dimensions}
    assert list(medium)[:3] == ["num_heads_0", "num_units_0", "num_heads_1"]
    assert medium["num_heads_11"] == tuple(range(13)) and medium["num_units_11"] == tuple(range(3073))
    layer = {d.name: d.choices for d in get_search_space("layer", structure).dimensions}
    assert layer == {f"layer_{i}": (0, 1) for i in range(12)}
    large = {d.name: d.choices for d in get_search_space("large", structure).dimensions}
    assert large["layer_mha_11_11"] == large["layer_ffn_0_3071"] == (0, 1)


@pytest.mark.parametrize(
    "values, size",
    [
        ((12, 12, 3072), 108_311_810),
        ((0, 12, 3072), 23_257_346),
        ((0, 1, 1), 23_257_346),
        ((6, 5, 1535), 43_344_764),
        ((9, 2, 1223), 43_758_977),
        ((1, 1, 1), 23_460_291),
    ],
)
def test_exact_sizes_of_small_sub_networks(values, size):
    table = bert_base()
    layers, heads, units = values
    sub_network = get_search_space("small", table.structure).decode((layers, heads - 1, units - 1))
    assert table.parameters(sub_network) == size


def test_small_keeps_the_first_layers():
    space = get_search_space("small", structure_of("bert"))
    assert space.decode((2, 2, 9)).kept == (3, 10, 3, 10, None, None)
    assert space.decode((0, 2, 9)).kept == (None,) * 6


def test_medium_skips_what_has_no_unit():
    space = get_search_space("medium", structure_of("bert"))
    assert space.decode((0, 3, 4, 0, 0, 0)).kept == (None, 3, 4, None, None, None)


def test_layer_keeps_any_layers():
    space = get_search_space("layer", structure_of("bert"))
    assert space.decode((1, 0, 1)).kept == (4, 24, None, None, 4, 24)


def test_large_keeps_any_units():
    space = get_search_space("large", structure_of("bert"))
    assert len(space.dimensions) == 3 * (4 + 24)
    encoding = [0] * len(space.dimensions)
    for index in (1, 3, 4 + 23, 28, 29):
        encoding[index] = 1
    assert space.decode(encoding).kept == ((1, 3), (23,), 2, None, None, None)


# The third kind of sub-layer of a decoder with an encoder is cross-attention.
@pytest.mark.parametrize(
    "model, name, kept",
    [
        ("bert", "small", (1, 1, None, None, None, None)),
        ("bert", "medium", (1,) * 6),
        ("bert", "layer", (4, 24, None, None, None, None)),
        ("bert", "large", (1, 1, None, None, None, None)),
        ("llama", "small", (1, 1, None, None, None, None)),
        ("llama", "layer", (4, 24, None, None, None, None)),
        ("bart", "small", (1, 1, *[None] * 4, 1, 1, 1, *[None] * 6)),
        ("bart", "medium", (1,) * 15),
        ("bart", "layer", (4, 24, *[None] * 4, 4, 4, 24, *[None] * 6)),
        ("bart", "large", (1, 1, *[None] * 4, 1, 1, 1, *[None] * 6)),
        ("t5", "small", (1, 1, *[None] * 4, 1, 1, 1, *[None] * 9)),
        ("t5", "large", (1, 1, *[None] * 4, 1, 1, 1, *[None] * 9)),
    ],
)
def test_smallest_is_meaningful_in_every_stack(model, name, kept):
    assert get_search_space(name, structure_of(model)).smallest.kept == kept


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("model", ["bert", "llama", "t5", "bart"])
def test_largest_is_the_full_model(model, name):
    structure = structure_of(model)
    assert get_search_space(name, structure).largest == SubNetwork.full(structure)


def test_stacks_have_dimensions_of_their_own():
    structure = structure_of("t5")
    small = get_search_space("small", structure)
    assert {d.name: d.choices[-1] for d in small.dimensions} == {
        "encoder_num_layers": 3,
        "encoder_num_heads": 4,
        "encoder_num_units": 24,
        "decoder_num_layers": 4,
        "decoder_num_heads": 4,
        "decoder_num_cross_heads": 4,
        "decoder_num_units": 24,
    }
    kept = small.decode((1, 0, 4, 2, 1, 2, 3)).kept
    assert kept == (1, 5, *[None] * 4, 2, 3, 4, 2, 3, 4, *[None] * 6)
    medium = [d.name for d in get_search_space("medium", structure).dimensions]
    assert len(medium) == 3 * 2 + 4 * 3 and "encoder_num_heads_2" in medium and "decoder_num_cross_heads_3" in medium
    layer = [d.name for d in get_search_space("layer", structure).dimensions]
    assert layer == [f"encoder_layer_{i}" for i in range(3)] + [f"decoder_layer_{i}" for i in range(4)]
    assert "decoder_layer_cross_mha_3_0" in {d.name for d in get_search_space("large", structure).dimensions}


def test_grouped_query_attention_counts_groups():
    space = get_search_space("small", structure_of("llama"))
    assert [(d.name, d.choices[-1]) for d in space.dimensions] == [
        ("num_layers", 3),
        ("num_heads", 4),
        ("num_units", 24),
    ]


def shrunken_structure():
    """Of a BERT model that lost its middle layer and some units, without being renumbered."""
    model_class, config = MODELS["bert"]
    model = model_class(config)
    structure = describe(model)
    kept = dict(SubNetwork.of(structure, {
        "encoder.0.attention": None, "encoder.0.feed_forward": 5, "encoder.1.attention": None,
        "encoder.1.feed_forward": None, "encoder.2.attention": 3, "encoder.2.feed_forward": 20,
    }).items())  # fmt: skip
    resize(model, structure, kept, own_position_bias(structure, kept), drop_layers=False)
    return describe(model)


@pytest.mark.parametrize(
    "name, dimensions, smallest",
    [
        ("small", ["num_layers", "num_units", "num_heads"], (None, 1, None, None, None, None)),
        ("medium", ["num_units_0", "num_heads_2", "num_units_2"], (None, 1, None, None, 1, 1)),
        ("layer", ["layer_0", "layer_2"], (None, 5, None, None, None, None)),
        ("large", None, (None, 1, None, None, None, None)),
    ],
)
def test_what_is_gone_already_stays_gone(name, dimensions, smallest):
    structure = shrunken_structure()
    space = get_search_space(name, structure)
    if dimensions is not None:
        assert [dimension.name for dimension in space.dimensions] == dimensions
    else:
        assert len(space.dimensions) == 5 + 3 + 20
    assert space.largest.kept == (None, 5, None, None, 3, 20)
    assert space.smallest.kept == smallest
    rng = np.random.default_rng(0)
    for _ in range(30):
        sub_network = space.decode(space.sample(rng))
        assert space.decode(space.encode(sub_network)) == sub_network


def test_small_takes_all_units_of_sub_layers_with_fewer():
    space = get_search_space("small", shrunken_structure())
    # 2 layers, 10 neurons, 2 heads
    assert space.decode((2, 9, 1)).kept == (None, 5, None, None, 2, 10)


def test_large_is_fast():
    space, rng = get_search_space("large", bert_base().structure), np.random.default_rng(0)
    started = time.process_time()
    for _ in range(10):
        space.decode(space.sample(rng))
    # About 0.05 s here; a loop over dimensions in Python takes seconds.
    assert time.process_time() - started < 0.5
