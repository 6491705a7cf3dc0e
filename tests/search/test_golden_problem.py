"""The closed-form problem of the engine comparison: 30 dimensions of 8 ordered choices, three instances."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from hf_nas.search import Objective, error_objective, hypervolume, search
from tests.search.problems import UnitsSpace


FOLDER = Path(__file__).resolve().parents[3] / "shared" / "golden" / "search_problem"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="../shared/golden/search_problem is not there")


def share_of_reference_volume(instance: int, method: str, num_samples: int = 200, **method_options) -> float:
    """Hypervolume after some evaluations, relative to the reference front."""
    spec = importlib.util.spec_from_file_location("problem", FOLDER / "problem.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    problem = module.Problem(instance)

    def costs(sub_network):
        return problem(np.array(sub_network.counts()) - 1)

    objectives = [
        error_objective("error", greater_is_better=False),
        Objective("size", lambda sub_network, _: costs(sub_network)[1]),
    ]
    result = search(
        UnitsSpace(layers=module.D, units=module.K),
        lambda sub_network: {"error": costs(sub_network)[0]},
        objectives,
        size=lambda sub_network: costs(sub_network)[1],
        method=method,
        method_options=method_options,
        num_samples=num_samples,
        seed=instance,
        reference=problem.ref,
    )
    assert len(result.trials) == num_samples
    return result.hypervolume / hypervolume(np.load(FOLDER / f"ideal_{instance}.npy"), problem.ref)


# Measured over 6 seeds with other implementations: .84, .875, .83 and .82; one seed an instance here is less certain.
@pytest.mark.parametrize(
    ("method", "least"), [("random_search", 0.80), ("nsga2", 0.84), ("local_search", 0.78), ("morea", 0.78)]
)
def test_share_of_the_reference_volume(method, least):
    shares = [share_of_reference_volume(instance, method) for instance in range(2)]
    print(method, shares)
    assert np.mean(shares) >= least


def test_the_default_needs_fifty_evaluations_for_what_others_need_two_hundred():
    """The aims after 100 and 200 evaluations (.95 and 1) are checked by benchmarks/search_methods.py."""
    # Fewer candidates than by default, for a quick test.
    shares = [share_of_reference_volume(instance, "model_based", 50, candidates=250) for instance in range(3)]
    print(shares)
    assert np.mean(shares) >= 0.86
