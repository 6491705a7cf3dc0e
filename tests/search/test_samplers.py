import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hf_nas.search import hypervolume
from hf_nas.search.samplers import ParameterSpace, SearchMethodSampler


METHODS = ("model_based", "nsga2", "morea", "local_search", "random_search")
CHANNELS = (16, 32, 64)


@pytest.fixture(autouse=True)
def quiet():
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(verbosity)


def size(parameters):
    return sum(parameters[f"depth_{i}"] for i in range(5)) / 50 + parameters["channels"] / 64


def objective(trial):
    """A score to maximise and a size to minimise."""
    parameters = {f"depth_{i}": trial.suggest_int(f"depth_{i}", 2, 10, step=2) for i in range(5)}
    parameters["channels"] = trial.suggest_categorical("channels", CHANNELS)
    score = sum((i + 1) * (1 - 0.7 ** parameters[f"depth_{i}"]) for i in range(5)) / 15
    return score - 0.3 * (parameters["channels"] == 16), size(parameters)


def volume(study):
    return hypervolume([(-trial.values[0], trial.values[1]) for trial in study.trials], (0.0, 2.05))


def optimised(method, n_trials=45, seed=0, **options):
    sampler = SearchMethodSampler(method, known_costs=size, seed=seed, **options)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    return study


@pytest.mark.parametrize("method", METHODS)
def test_every_method_optimises_a_plain_study(method):
    study = optimised(method, reference=(0.0, 2.05))
    assert len({str(trial.params) for trial in study.trials}) > 40
    assert all(set(trial.params) == {*(f"depth_{i}" for i in range(5)), "channels"} for trial in study.trials)
    assert all(trial.params["depth_0"] in range(2, 11, 2) for trial in study.trials)
    # The same seed gives the same study, another one another.
    shorter = optimised(method, n_trials=15, reference=(0.0, 2.05))
    assert [trial.params for trial in shorter.trials] == [trial.params for trial in study.trials[:15]]
    assert [t.params for t in optimised(method, 15, seed=1).trials] != [t.params for t in shorter.trials]


def test_the_default_beats_random_search():
    assert (
        volume(optimised("model_based"))
        > max(volume(optimised("random_search", seed=seed)) for seed in range(3)) + 0.01
    )


def test_directions_of_all_objectives_are_respected():
    seen = []

    def known(parameters):
        seen.append(parameters)
        return -size(parameters), parameters["depth_0"]

    def signed(trial):
        score, total = objective(trial)
        return -score, -total, trial.params["depth_0"]

    sampler = SearchMethodSampler(known_costs=known, seed=0)
    study = optuna.create_study(directions=["minimize", "maximize", "minimize"], sampler=sampler)
    study.optimize(signed, n_trials=25)
    assert seen and set(seen[0]) == {*(f"depth_{i}" for i in range(5)), "channels"}
    # Short first layers cost least; a sampler with a wrong sign would look for long ones.
    late = [trial.params["depth_0"] for trial in study.trials[10:]]
    assert sum(late) / len(late) < 6


def test_trials_that_tell_nothing_are_left_out():
    sampler = SearchMethodSampler(known_costs=size, seed=0, n_startup_trials=3)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.enqueue_trial({"depth_0": 10})

    def failing(trial):
        values = objective(trial)
        if trial.number in (4, 6):
            raise RuntimeError("out of memory")
        return values

    study.optimize(failing, n_trials=12, catch=RuntimeError)
    states = [trial.state.name for trial in study.trials]
    assert states.count("FAIL") == 2 and states.count("COMPLETE") == 10
    assert study.trials[0].params["depth_0"] == 10


def test_nothing_is_proposed_that_another_worker_is_at_or_that_failed():
    sampler = SearchMethodSampler(known_costs=size, seed=0, n_startup_trials=6)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=6)
    space = study.trials[0].distributions
    asked = [study.ask(space) for _ in range(5)]
    assert len({str(trial.params) for trial in [*study.trials[:6], *asked]}) == 11
    for trial in asked:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    asked += [study.ask(space) for _ in range(3)]
    assert len({str(trial.params) for trial in [*study.trials[:6], *asked]}) == 14


def test_given_distributions_with_single_values_and_parameters_of_some_trials():
    space = {
        **{f"depth_{i}": IntDistribution(2, 10, step=2) for i in range(5)},
        "channels": CategoricalDistribution((32,)),
    }
    seen = []

    def known(parameters):
        seen.append(parameters)
        return size(parameters)

    def conditional(trial):
        parameters = {f"depth_{i}": trial.suggest_int(f"depth_{i}", 2, 10, step=2) for i in range(5)}
        parameters["channels"] = trial.suggest_categorical("channels", (32,))
        # Not proposed together with the others.
        bonus = trial.suggest_float("bonus", 0, 1) if parameters["depth_0"] > 4 else 0.0
        return parameters["depth_4"] + 0.1 * bonus, size(parameters)

    sampler = SearchMethodSampler(known_costs=known, search_space=space, seed=0, n_startup_trials=5)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(conditional, n_trials=12)
    assert seen and seen[0]["channels"] == 32
    assert len({str(trial.params) for trial in study.trials}) == 12


def test_copies_of_a_sampler_go_their_own_ways():
    sampler = SearchMethodSampler("random_search", seed=0, n_startup_trials=1)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=3)
    trial, space = study.trials[-1], sampler.infer_relative_search_space(study, study.trials[-1])
    first = sampler.sample_relative(study, trial, space)
    assert sampler.sample_relative(study, trial, space) == first
    sampler.reseed_rng()
    assert sampler.sample_relative(study, trial, space) != first


def test_parameter_space():
    space = ParameterSpace({"depth": (2, 4, 8), "kind": ("a", "b"), "only": (True,)})
    assert space.parameters(space.decode((2, 0, 0))) == {"depth": 8, "kind": "a", "only": True}
    for encoding in (space.largest_encoding, space.smallest_encoding, (1, 1, 0)):
        assert space.encode(space.decode(encoding)) == encoding
    assert len({space.decode((i, j, 0)) for i in range(3) for j in range(2)}) == 6


def test_unfit_samplers_are_refused():
    with pytest.raises(ValueError, match="Unknown search method 'annealing'"):
        SearchMethodSampler("annealing")
    with pytest.raises(ValueError, match="'nsga2' has no option 'size'"):
        SearchMethodSampler("nsga2", method_options={"size": 3})
    with pytest.raises(
        ValueError, match="'rate' has a FloatDistribution, .* integers or categories; suggest it as one"
    ):
        SearchMethodSampler("nsga2", search_space={"rate": FloatDistribution(0, 1)})

    def run(objective=objective, directions=("maximize", "minimize"), **options):
        sampler = SearchMethodSampler(n_startup_trials=2, seed=0, **options)
        optuna.create_study(directions=directions, sampler=sampler).optimize(objective, n_trials=5)

    with pytest.raises(ValueError, match="'model_based' needs all costs but the first"):
        run()
    with pytest.raises(ValueError, match="returned 2 values for a study of 2 objectives; return one"):
        run(known_costs=lambda parameters: (1.0, 2.0))
    with pytest.raises(ValueError, match=r"The reference \[1.0\] does not fit 2 objectives"):
        run(known_costs=size, reference=[1.0])
    with pytest.raises(ValueError, match="'rate' has a FloatDistribution"):
        run(objective=lambda trial: (trial.suggest_float("rate", 0, 1), 1.0), known_costs=size)
