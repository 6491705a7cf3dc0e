import numpy as np
import pytest

from hf_nas.search import Evaluated, SearchMethod, get_search_method, methods, register_search_method
from hf_nas.search.methods import NSGA2, LocalSearch
from hf_nas.space.sampling import PublishedSampler
from tests.search.problems import UnitsSpace


SPACE = UnitsSpace(layers=4, units=5)
SAMPLER = PublishedSampler(SPACE)


def evaluated(encoding, *costs):
    return Evaluated(SPACE.decode(encoding), encoding, {}, costs)


@pytest.mark.parametrize("name", ["random_search", "nsga2", "local_search"])
def test_proposals_reach_both_bounds_of_every_dimension(name):
    method = get_search_method(name, SPACE, SAMPLER)
    rng = np.random.default_rng(0)
    history = [evaluated((2, 2, 2, 2), 0.5, 0.5), evaluated((1, 3, 1, 3), 0.4, 0.6)]
    proposals = np.array([method.propose(history, rng) for _ in range(400)])
    assert (proposals.min(axis=0) == 0).all() and (proposals.max(axis=0) == 4).all()


@pytest.mark.parametrize("name", ["random_search", "nsga2", "local_search"])
def test_proposals_depend_on_the_generator_alone(name):
    method = get_search_method(name, SPACE, SAMPLER)
    history = [evaluated((2, 2, 2, 2), 0.5, 0.5), evaluated((1, 3, 1, 3), 0.4, 0.6)]
    proposals = []
    for global_seed in (0, 1):
        np.random.seed(global_seed)
        rng = np.random.default_rng(5)
        proposals.append([method.propose(history, rng) for _ in range(10)])
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


def test_own_methods_are_registered_by_name(monkeypatch):
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))

    class Largest(SearchMethod):
        def propose(self, history, rng):
            return self.space.largest_encoding

    register_search_method("largest", Largest)
    assert isinstance(get_search_method("largest", SPACE, SAMPLER), Largest)
    with pytest.raises(ValueError, match="registered already"):
        register_search_method("nsga2", Largest)
