import numpy as np
import pytest

from hf_nas.space import (
    CustomSpace,
    PublishedSampler,
    SizeStratifiedSampler,
    get_sampler,
    get_search_space,
)
from tests.space import SPACES, bert_base, structure_of, table_of


def sampler_of(name, table):
    return SizeStratifiedSampler(get_search_space(name, table.structure), table.parameters)


def sizes_of(sampler, encodings):
    """Between 0 (smallest) and 1 (largest)."""
    sizes = np.array([sampler.size(sampler.space.decode(encoding)) for encoding in encodings])
    return (sizes - sampler.lowest) / (sampler.highest - sampler.lowest)


# Mean and standard deviation of 20 000 samples: small .418 and .161, medium .608 and .050, layer .608 and .113.
@pytest.mark.parametrize(
    "name, mean, deviation", [("small", 0.418, 0.161), ("medium", 0.608, 0.050), ("layer", 0.608, 0.113)]
)
def test_published_distribution_of_sizes(name, mean, deviation):
    table = bert_base()
    space, rng = get_search_space(name, table.structure), np.random.default_rng(0)
    sampler = PublishedSampler(space)
    sizes = [table.parameters(space.decode(sampler.sample(rng))) / 108_311_810 for _ in range(4000)]
    assert np.mean(sizes) == pytest.approx(mean, abs=0.01)
    assert np.std(sizes) == pytest.approx(deviation, abs=0.01)


def test_what_lists_can_skip_is_skipped_half_of_the_time_as_published():
    structure = structure_of("bert")
    lists = {"encoder.0.attention": [0, 1, 2, 4], "encoder.1.feed_forward": [2, 4, 8], "encoder.2.attention": [0]}
    space, rng = CustomSpace({"sub_layers": lists}, structure), np.random.default_rng(0)
    sampler = PublishedSampler(space)
    drawn = np.array([sampler.sample(rng) for _ in range(3000)])
    shares = [np.bincount(column, minlength=4) / len(drawn) for column in drawn.T]
    assert shares[0] == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.03)
    assert shares[1] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.03)
    assert shares[2][0] == 1


def test_published_large_space_hardly_leaves_its_mean():
    table = bert_base()
    space, rng = get_search_space("large", table.structure), np.random.default_rng(0)
    sizes = [table.parameters(space.decode(space.sample(rng))) / 108_311_810 for _ in range(100)]
    assert np.mean(sizes) == pytest.approx(0.608, abs=0.005)
    assert np.std(sizes) == pytest.approx(0.011, abs=0.003)


@pytest.mark.parametrize("name", SPACES)
def test_stratified_sizes_are_spread_evenly(name):
    # As deep as BERT-base; narrower for the space of single units, to save time.
    table = bert_base(intermediate_size=128) if name == "large" else bert_base()
    sampler, rng = sampler_of(name, table), np.random.default_rng(0)
    sizes = sizes_of(sampler, [sampler.sample(rng) for _ in range(500)])
    assert sizes.min() >= 0 and sizes.max() <= 1
    shares = np.histogram(sizes, bins=10, range=(0, 1))[0] / len(sizes)
    # 0.1 +- 0.013 by chance; whole layers come in steps of 1/11, so that the outer deciles get 1.5/11 = 0.136.
    assert shares.min() > 0.055 and shares.max() < 0.18
    published = sizes_of(sampler, [sampler.space.sample(rng) for _ in range(200)])
    if name in ("medium", "large"):
        # Mean 0.5, standard deviation at most 0.065.
        assert published.min() > 0.2 and published.max() < 0.8


@pytest.mark.parametrize("name", ["small", "medium", "large"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_target_size_is_met(name, share):
    sampler, rng = sampler_of(name, bert_base()), np.random.default_rng(1)
    target = sampler.lowest + share * (sampler.highest - sampler.lowest)
    sizes = sizes_of(sampler, [sampler.sample(rng, target) for _ in range(5)])
    # Small sub-networks lack sizes in between where a further layer is added.
    assert np.abs(sizes - share).max() < (0.06 if name == "small" else 0.005)
    assert np.abs(sizes - share).mean() < (0.02 if name == "small" else 0.002)


@pytest.mark.parametrize("model", ["llama", "t5", "bart"])
@pytest.mark.parametrize("name", SPACES)
def test_other_structures_are_spread_too(name, model):
    sampler, rng = sampler_of(name, table_of(model)), np.random.default_rng(0)
    sizes = sizes_of(sampler, [sampler.sample(rng) for _ in range(200)])
    # Three layers have only three sizes, hence thirds.
    shares = np.histogram(sizes, bins=3, range=(0, 1))[0] / len(sizes)
    assert sizes.min() >= 0 and shares.min() > 0.15


@pytest.mark.parametrize("name", SPACES)
def test_stratified_reaches_every_bound(name):
    sampler, rng = sampler_of(name, table_of("bert")), np.random.default_rng(0)
    samples = np.array([sampler.sample(rng) for _ in range(600)])
    smallest_is_lowest = name == "small"  # without any layer a sample is replaced by the smallest one
    assert samples.min(axis=0).tolist() == [int(smallest_is_lowest and i == 0) for i in range(samples.shape[1])]
    assert tuple(samples.max(axis=0)) == sampler.space.largest_encoding


def test_samples_of_one_size_differ():
    sampler, rng = sampler_of("layer", bert_base()), np.random.default_rng(0)
    target = (sampler.highest - sampler.lowest) / 11 * 0.1 + sampler.lowest
    kept = {sampler.space.decode(sampler.sample(rng, target)) for _ in range(100)}
    assert len(kept) == 12, "every single layer is as small as the first one"


def test_size_is_monotone_along_the_path():
    sampler, rng = sampler_of("medium", table_of("t5")), np.random.default_rng(0)
    quantiles = rng.random(len(sampler.space.dimensions))
    path = [sampler._indices(quantiles, p) for p in np.linspace(0.001, 0.999, 60)]
    assert all((first <= second).all() for first, second in zip(path, path[1:]))
    assert (path[0] == 0).all() and tuple(path[-1].tolist()) == sampler.space.largest_encoding
    middle = sampler._indices(quantiles, 0.5)
    counts = np.array([len(d.choices) for d in sampler.space.dimensions])
    assert (middle == np.floor(quantiles * counts)).all(), "p = 1/2 is the published distribution"


@pytest.mark.parametrize("name", SPACES)
def test_few_sizes_are_counted(name):
    table, calls = table_of("bert"), []
    space = get_search_space(name, table.structure)
    sampler = SizeStratifiedSampler(space, lambda sub_network: calls.append(0) or table.parameters(sub_network))
    calls.clear()
    rng = np.random.default_rng(0)
    for _ in range(50):
        sampler.sample(rng)
    assert 50 <= len(calls) <= 50 * 15


@pytest.mark.parametrize("kind", ["stratified", "published"])
def test_same_seed_gives_the_same_samples(kind):
    table, runs = table_of("bert"), []
    sampler = get_sampler(kind, get_search_space("medium", table.structure), table.parameters)
    for global_seed in (1, 2):
        np.random.seed(global_seed)
        rng = np.random.default_rng(7)
        runs.append([sampler.sample(rng) for _ in range(20)])
    assert runs[0] == runs[1] != [sampler.sample(rng) for _ in range(20)]


@pytest.mark.parametrize("name", SPACES)
def test_design_covers_the_sizes(name):
    sampler = sampler_of(name, bert_base(intermediate_size=128) if name == "large" else bert_base())
    design = sampler.design(8)
    assert design == sampler.design(8) != sampler.design(8, seed=1)
    space = sampler.space
    assert len({space.decode(encoding) for encoding in design}) == len(design) == 8
    assert design[:2] == [space.largest_encoding, space.smallest_encoding]
    sizes = sizes_of(sampler, design[2:])
    assert (np.diff(sizes) >= 0).all()
    assert np.abs(sizes - np.arange(1, 7) / 7).max() < 0.1
    assert [sampler.design(count) for count in (1, 2)] == [design[:1], design[:2]]


def test_design_has_every_sub_network_of_a_tiny_space():
    sampler = sampler_of("layer", table_of("bert"))
    design = sampler.design(30)
    # All but that without any layer, which is smaller than the smallest.
    assert sorted(design) == [tuple(map(int, f"{i:03b}")) for i in range(1, 8)]
    assert (np.diff(sizes_of(sampler, design[2:])) >= 0).all()


def test_single_sub_network():
    structure, table = structure_of("bert"), table_of("bert")
    sampler = SizeStratifiedSampler(CustomSpace({"sub_layers": {"*": [2]}}, structure), table.parameters)
    assert sampler.sample(np.random.default_rng(0)) == (0,) * 6
    assert sampler.design(4) == [(0,) * 6]


def test_wrong_arguments_are_refused():
    table = table_of("bert")
    space = get_search_space("small", table.structure)
    with pytest.raises(ValueError, match="no sampler 'uniform'; choose 'stratified' or 'published'"):
        get_sampler("uniform", space, table.parameters)
    with pytest.raises(ValueError, match="give a size that grows"):
        SizeStratifiedSampler(space, lambda sub_network: -table.parameters(sub_network))
    sampler = get_sampler("stratified", space, table.parameters)
    with pytest.raises(ValueError, match="A sub-network of size 5 is asked for, but those of space 'small' have"):
        sampler.sample(np.random.default_rng(0), target=5)
    with pytest.raises(ValueError, match="A design of 0 points is asked for; choose at least 1"):
        sampler.design(0)
