from dataclasses import replace

import numpy as np
import pytest

from hf_nas.search import (
    Evaluated,
    SearchMethod,
    get_search_method,
    methods,
    register_search_method,
)
from hf_nas.search.methods import NSGA2, LocalSearch, RegularizedEvolution
from hf_nas.search.methods.evolution import best_first
from hf_nas.space.sampling import PublishedSampler
from tests.search.problems import UnitsSpace, accuracy_of, size_of


SPACE = UnitsSpace(layers=4, units=5)
SAMPLER = PublishedSampler(SPACE)


def evaluated(encoding, *costs):
    return Evaluated(SPACE.decode(encoding), encoding, {}, costs)


def size(encoding):
    return size_of(SPACE.decode(encoding))


def known_costs(sub_network):
    return (size_of(sub_network),)


def method_of(name, **options):
    return get_search_method(name, SPACE, SAMPLER, known_costs=known_costs, reference=(1.0, 1.05), **options)


@pytest.mark.parametrize("name", ["random_search", "nsga2", "local_search"])
def test_proposals_reach_both_bounds_of_every_dimension(name):
    method = get_search_method(name, SPACE, SAMPLER)
    rng = np.random.default_rng(0)
    history = [evaluated((2, 2, 2, 2), 0.5, 0.5), evaluated((1, 3, 1, 3), 0.4, 0.6)]
    proposals = np.array([method.propose(history, rng) for _ in range(400)])
    assert (proposals.min(axis=0) == 0).all() and (proposals.max(axis=0) == 4).all()


@pytest.mark.parametrize("name", ["random_search", "nsga2", "local_search", "morea", "model_based", "ehvi"])
def test_proposals_depend_on_the_generator_alone(name):
    method = method_of(name)
    history = [evaluated((2, 2, 2, i), 0.5 - 0.01 * i, 0.5 + 0.05 * i) for i in range(5)]
    history += [evaluated((1, 3, 1, i), 0.4 - 0.01 * i, 0.55 + 0.05 * i) for i in range(5)]
    proposals = []
    for global_seed in (0, 1):
        np.random.seed(global_seed)
        rng = np.random.default_rng(5)
        proposals.append([method.propose(history, rng) for _ in range(2 if name == "ehvi" else 10)])
        # A method made anew, as in a search that was killed, proposes the same.
        method = method_of(name)
    assert proposals[0] == proposals[1]
    assert method.propose([], np.random.default_rng(0)) == SPACE.sample(np.random.default_rng(0))


def test_local_search_changes_one_dimension_of_a_point_of_the_front():
    method = LocalSearch(SPACE, SAMPLER)
    # The first two have equal costs; one of them must stay. The third is dominated, the last undefined.
    history = [
        evaluated((0, 0, 0, 0), 0.5, 0.5),
        evaluated((4, 0, 0, 4), 0.5, 0.5),
        evaluated((4, 4, 4, 4), 0.6, 0.6),
        evaluated((0, 4, 4, 0), float("inf"), 0.1),
    ]
    rng = np.random.default_rng(0)
    for _ in range(50):
        child = method.propose(history, rng)
        assert sum(a != b for a, b in zip(child, (0, 0, 0, 0))) == 1


@pytest.mark.parametrize("name", ["local_search", "nsga2"])
def test_children_have_no_parents_that_were_rejected(name):
    whole = [evaluated((0, 0, 0, i), 0.5 - 0.1 * i, 0.5 + 0.1 * i) for i in range(2)]
    lucky = replace(evaluated((4, 4, 4, 4), 0.1, 0.1), rejected=True)
    seeds = [np.random.default_rng(1) for _ in range(2)]
    for _ in range(20):
        first, second = (method_of(name).propose(h, rng) for h, rng in zip(([*whole, lucky], whole), seeds))
        assert first == second


def test_local_search_fills_gaps():
    # Between the ends of the front one point has neighbours at hand, the other has not.
    costs = [(0.0, 1.0), (0.05, 0.9), (0.1, 0.8), (0.6, 0.1), (1.0, 0.0)]
    history = [evaluated((i, i, i, i), *cost) for i, cost in enumerate(costs)]
    rng = np.random.default_rng(0)
    parents = [int(np.median(LocalSearch(SPACE, SAMPLER).propose(history, rng))) for _ in range(400)]
    counts = np.bincount(parents, minlength=5)
    assert counts[1] < counts[2] < min(counts[0], counts[4]) and counts[1] > 0


def test_nsga2_breeds_from_the_best():
    rng = np.random.default_rng(0)
    good = [evaluated((4, 4, 4, i), 0.1 + 0.1 * i, 0.5 - 0.1 * i) for i in range(3)]
    bad = [evaluated((0, 0, i % 4, i // 4), 1.0, 1.0 + i) for i in range(10)]
    method = NSGA2(SPACE, SAMPLER, population=3)
    children = np.array([method.propose([*bad, *good], rng) for _ in range(200)])
    # One or two mutations a child leave most of the parents' common values in place.
    assert (children[:, :3] == 4).mean() > 0.5
    # Of one front, the extremes come before what lies between them.
    assert [encoding[3] for encoding in method._best([*bad, *good])] == [0, 2, 1]


def test_morea_breeds_from_the_best_of_the_youngest():
    # Better than all others, but too old to be alive.
    old = [evaluated((0, 0, 0, i), 0.0, 0.0) for i in range(3)]
    best = evaluated((4, 4, 4, 4), 0.1, 0.1)
    alive = [evaluated((1, 1, i % 4, i // 4), 0.5 + 0.01 * i, 0.5 + 0.01 * i) for i in range(9)]
    method = RegularizedEvolution(SPACE, SAMPLER, population=10, tournament=60)
    rng = np.random.default_rng(0)
    for _ in range(50):
        child = method.propose([*old, best, *alive], rng)
        assert sum(a != b for a, b in zip(child, best.encoding)) == 1
    # Of one member drawn, everyone is a parent at times.
    method = RegularizedEvolution(SPACE, SAMPLER, population=10, tournament=1)
    children = [method.propose([*old, best, *alive], rng) for _ in range(300)]
    for parent in [best, *alive]:
        assert any(sum(a != b for a, b in zip(child, parent.encoding)) == 1 for child in children)
    # Without enough members, or with undefined costs, it draws.
    assert method.propose(alive, np.random.default_rng(3)) == SPACE.sample(np.random.default_rng(3))
    undefined = [*alive, evaluated((2, 2, 2, 2), float("inf"), 0.1)]
    assert method.propose(undefined, np.random.default_rng(3)) == SPACE.sample(np.random.default_rng(3))
    for options, message in (
        ({"population": 0}, "population of morea is 0; give a whole number"),
        ({"tournament": 1.5}, "tournament of morea is 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            get_search_method("morea", SPACE, SAMPLER, **options)


def test_the_best_have_the_lowest_rank_not_the_argsort_of_one():
    # The published implementation takes an argsort for ranks, by which the third one would be the best here.
    assert best_first([(3, 3), (1, 1), (2, 2)]) == [1, 2, 0]
    # The ends of a front come before what lies between them, that before the next front.
    assert best_first([(3, 3), (1, 2), (2, 1), (1.9, 1.9), (1.5, 1.5)]) == [1, 2, 4, 3, 0]


@pytest.mark.parametrize("units", [5, 200])
def test_ehvi_proposes_choices(units):
    space = UnitsSpace(layers=3, units=units)
    encodings = [(step,) * 3 for step in np.linspace(0, units - 1, 5).astype(int).tolist()]
    costs = [(0.5 - 0.4 * first / units, 0.2 + 0.8 * first / units) for first, _, _ in encodings]
    history = [Evaluated(space.decode(each), each, {}, cost) for each, cost in zip(encodings, costs)]
    method = get_search_method("ehvi", space, PublishedSampler(space))
    for seed in range(3):
        proposal = method.propose(history, np.random.default_rng(seed))
        assert all(type(index) is int and 0 <= index < units for index in proposal)
        assert space.decode(proposal) not in {trial.sub_network for trial in history}


def test_ehvi_refuses_what_it_cannot_model():
    wide = UnitsSpace(layers=201, units=2)
    with pytest.raises(ValueError, match="each of the 201 dimensions .* choose model_based"):
        get_search_method("ehvi", wide, PublishedSampler(wide)).propose([], np.random.default_rng(0))


@pytest.mark.parametrize("limit", [0.3, 0.4, 0.5])
def test_ehvi_proposes_what_the_search_takes(limit):
    """Its models know no limits: asked again, they would propose what is too large again, for seconds each."""
    rng = np.random.default_rng(0)
    encodings = {encoding for encoding in (SPACE.sample(rng) for _ in range(200)) if size(encoding) <= limit}
    history = [evaluated(each, 1 - accuracy_of(SPACE.decode(each))["accuracy"], size(each)) for each in encodings]
    method = method_of("ehvi")
    seen = {trial.sub_network for trial in history}
    method.is_candidate = lambda sub_network: sub_network not in seen and size_of(sub_network) <= limit
    for seed in range(4):
        assert method.is_candidate(SPACE.decode(method.propose(history, np.random.default_rng(seed))))


def test_ehvi_finds_the_last_sub_network_of_a_small_space():
    space = UnitsSpace(layers=2, units=3)
    history = [
        Evaluated(space.decode((i, j)), (i, j), {}, (1 - 0.2 * i - 0.1 * j, 0.1 * (i + j)))
        for i in range(3)
        for j in range(3)
        if (i, j) != (0, 2)
    ]
    method = get_search_method("ehvi", space, PublishedSampler(space))
    assert {method.propose(history, np.random.default_rng(seed)) for seed in range(3)} == {(0, 2)}


def test_known_costs_are_handed_to_methods_and_missed_where_needed():
    method = method_of("nsga2")
    assert method.known_costs is known_costs and method.reference == (1.0, 1.05)
    assert get_search_method("nsga2", SPACE, SAMPLER).known_costs is None
    with pytest.raises(
        ValueError, match="'model_based' needs all costs but the first .* choose one of additive, ehvi"
    ):
        get_search_method("model_based", SPACE, SAMPLER)
    # A name can be checked before there is a space.
    get_search_method("model_based", None, None)


def test_own_methods_are_registered_by_name(monkeypatch):
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))

    class Largest(SearchMethod):
        def propose(self, history, rng):
            return self.space.largest_encoding

    register_search_method("largest", Largest)
    assert isinstance(get_search_method("largest", SPACE, SAMPLER), Largest)
    with pytest.raises(ValueError, match="registered already"):
        register_search_method("nsga2", Largest)
