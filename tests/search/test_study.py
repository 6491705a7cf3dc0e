import json
import math
import time

import optuna
import pytest

from hf_nas.search import (
    Constraint,
    Objective,
    Rejected,
    SearchFailed,
    SearchResult,
    error_objective,
    hypervolume,
    pareto_indices,
    search,
)
from hf_nas.search.study import DESIGN_SIZE
from tests.search.problems import OBJECTIVES, UnitsSpace, accuracy_of, size_of


METHODS = ("random_search", "nsga2", "local_search")


def run(evaluate=accuracy_of, space=None, **options):
    options = {"num_samples": 40, "method": "random_search", **options}
    return search(space or UnitsSpace(), evaluate, OBJECTIVES, size=size_of, **options)


def sequence(result):
    return [(trial.encoding, trial.costs) for trial in result.trials]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_spends_exactly_its_budget_on_distinct_sub_networks(method):
    calls = []

    def evaluate(sub_network):
        calls.append(sub_network)
        return accuracy_of(sub_network)

    space = UnitsSpace()
    result = run(evaluate, space, method=method, num_samples=60)
    assert len(calls) == len(set(calls)) == len(result.trials) == 60
    assert [trial.sub_network for trial in result.trials] == calls
    assert calls[:2] == [space.largest, space.smallest]
    assert all(space.decode(trial.encoding) == trial.sub_network for trial in result.trials)
    sizes = sorted(size_of(sub_network) for sub_network in calls[: DESIGN_SIZE // 2])
    assert max(b - a for a, b in zip(sizes, sizes[1:])) < 0.25
    assert result.method == method and result.space == "units"
    assert result.hypervolume == hypervolume([trial.costs for trial in result.trials], (1.0, 1.05))


@pytest.mark.parametrize("method", METHODS)
def test_search_depends_on_the_seed_alone_and_a_longer_one_begins_with_a_shorter_one(method):
    first = run(method=method, num_samples=45, seed=3)
    assert sequence(run(method=method, num_samples=45, seed=3)) == sequence(first)
    assert sequence(run(method=method, num_samples=8, seed=3)) == sequence(first)[:8]
    assert sequence(run(method=method, num_samples=45, seed=4)) != sequence(first)


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_search_equals_an_uninterrupted_one(method, tmp_path):
    whole = run(method=method)
    for budget in (7, 7, 23, 40):
        parts = run(method=method, storage=tmp_path / "journal.log", num_samples=budget)
        assert len(parts.trials) == budget
    assert sequence(parts) == sequence(whole)
    assert parts.pareto == whole.pareto
    # A smaller budget does not throw away what is there.
    assert sequence(run(method=method, storage=tmp_path / "journal.log", num_samples=5)) == sequence(whole)


@pytest.mark.parametrize("method", ["local_search", "model_based"])
def test_guided_methods_beat_random_search_on_the_toy_problem(method):
    space = UnitsSpace(layers=8, units=8)

    def volume(method):
        return sum(run(space=space, method=method, num_samples=100, seed=seed).hypervolume for seed in range(3)) / 3

    assert volume(method) > volume("random_search")


class Broken:
    """An evaluation that fails at some calls."""

    def __init__(self, at, error=None):
        self.at, self.error, self.calls = at, error or RuntimeError("out of memory"), []

    def __call__(self, sub_network):
        self.calls.append(sub_network)
        if len(self.calls) in self.at:
            raise self.error
        return accuracy_of(sub_network)


def test_a_candidate_that_fails_does_not_count_and_the_search_goes_on(tmp_path, caplog):
    evaluate = Broken(at=(3, 25))
    result = run(evaluate, storage=tmp_path / "journal.log")
    assert len(result.trials) == 40 and len(evaluate.calls) == 42 == len(set(evaluate.calls))
    assert not {evaluate.calls[2], evaluate.calls[24]} & {trial.sub_network for trial in result.trials}
    assert "could not be evaluated (RuntimeError: out of memory); the search goes on" in caplog.text
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log")))
    trials = optuna.load_study(study_name="hf_nas", storage=storage).trials
    assert [trial.user_attrs.get("failure") for trial in trials if trial.state.name == "FAIL"] == [
        "RuntimeError: out of memory"
    ] * 2
    # Nor is it tried again when the search is continued.
    again = Broken(at=())
    assert len(run(again, storage=tmp_path / "journal.log", num_samples=45).trials) == 45
    assert not {*evaluate.calls} & {*again.calls}


def test_two_failures_in_a_row_stop_the_search_and_are_tried_again_when_it_is_continued(tmp_path):
    evaluate = Broken(at=(25, 26, 27))
    with pytest.raises(SearchFailed, match="Two candidates in a row .* RuntimeError: out of memory; remove the cause"):
        run(evaluate, storage=tmp_path / "journal.log")
    assert len(evaluate.calls) == 26
    again = Broken(at=())
    result = run(again, storage=tmp_path / "journal.log")
    assert len(result.trials) == 40 and again.calls[:2] == evaluate.calls[24:]


def test_failures_of_different_kinds_are_different_and_mistakes_in_the_call_are_no_failures(tmp_path):
    class Both(Broken):
        def __call__(self, sub_network):
            self.error = (RuntimeError, FloatingPointError)[len(self.calls) % 2]("no")
            return super().__call__(sub_network)

    assert len(run(Both(at=(5, 6, 7, 8))).trials) == 40
    mistaken = Broken(at=(25,), error=ValueError("no such column"))
    with pytest.raises(ValueError, match="no such column"):
        run(mistaken, storage=tmp_path / "journal.log")
    result = run(mistaken, storage=tmp_path / "journal.log")
    assert mistaken.calls[24] == mistaken.calls[25] and sequence(result) == sequence(run())


def test_constraints_hold_for_every_evaluated_sub_network():
    limit = Constraint(OBJECTIVES[1], 0.5)
    for method in (*METHODS, "model_based"):
        result = run(method=method, constraints=[limit], num_samples=30)
        sizes = [size_of(trial.sub_network) for trial in result.trials]
        assert len(result.trials) == 30 and max(sizes) <= 0.5 and sum(size > 0.4 for size in sizes[:DESIGN_SIZE]) > 2
    free = run(num_samples=30)
    assert max(size_of(trial.sub_network) for trial in free.trials) == 1.0


def test_a_search_ends_when_its_evaluations_took_their_time(tmp_path):
    def evaluate(sub_network):
        time.sleep(0.02)
        return accuracy_of(sub_network)

    options = {"num_samples": None, "max_seconds": 0.25, "storage": tmp_path / "journal.log"}
    result = run(evaluate, **options)
    assert 2 <= len(result.trials) <= 13
    assert sum(trial.seconds for trial in result.trials[:-1]) < 0.25 <= sum(trial.seconds for trial in result.trials)
    assert len(run(evaluate, **options).trials) == len(result.trials)
    assert len(run(max_seconds=1000.0).trials) == 40
    with pytest.raises(ValueError, match="A search needs an end"):
        run(num_samples=None)
    with pytest.raises(ValueError, match="A search of 0 seconds is none"):
        run(max_seconds=0)


class Racer:
    """Gives up whatever a member of the front beats in size and, by a glance, in accuracy."""

    def __init__(self):
        self.rejected, self.near = [], []

    def __call__(self, sub_network):
        raise AssertionError("a race does not call this")

    def race(self, sub_network, known_costs, front):
        assert known_costs == (size_of(sub_network),)
        metrics = accuracy_of(sub_network)
        for place, rival in enumerate(front):
            if rival.costs[1] <= known_costs[0] and rival.metrics["accuracy"] > metrics["accuracy"] + 0.01:
                self.rejected.append(sub_network)
                return Rejected("accuracy", metrics["accuracy"] + 0.005, 10, 100, place)
        return metrics


def test_a_race_counts_what_it_rejects_and_finds_the_same_front(tmp_path):
    racer = Racer()
    result = run(racer, race=True, storage=tmp_path / "journal.log", num_samples=60)
    assert 5 < len(racer.rejected) < 55 and len(result.trials) == 60
    assert [trial.sub_network for trial in result.trials if trial.rejected] == racer.rejected
    whole = run(num_samples=60)
    assert [result.trials[i].costs for i in result.pareto] == [whole.trials[i].costs for i in whole.pareto]
    assert sequence(run(Racer(), race=True, storage=tmp_path / "journal.log", num_samples=60)) == sequence(result)
    result.save_json(tmp_path / "result.json")
    assert SearchResult.load(tmp_path / "result.json") == result
    late = Objective("latency", lambda _, metrics: metrics["latency"], needs_metrics=True)
    with pytest.raises(ValueError, match="Racing needs all objectives but the first"):
        search(UnitsSpace(), Racer(), (OBJECTIVES[0], late), size=size_of, method="random_search", race=True)


def test_an_evaluator_hears_of_the_front_before_each_call():
    class Listening:
        def __init__(self):
            self.heard = []

        def keep_near(self, sub_networks):
            self.heard.append(list(sub_networks))

        def __call__(self, sub_network):
            return accuracy_of(sub_network)

    evaluate = Listening()
    result = run(evaluate, num_samples=30)
    for count, heard in enumerate(evaluate.heard):
        costs = [trial.costs for trial in result.trials[:count]]
        assert heard == [result.trials[index].sub_network for index in pareto_indices(costs)]


def test_early_stopping_sees_the_others_at_each_level(tmp_path):
    asked = []

    class Halving:
        def stops(self, level, costs, others):
            asked.append((level, len(others)))
            return level == 2 and any(other < costs for other in others)

    def evaluate(sub_network, report):
        metrics = accuracy_of(sub_network)
        for level in (1, 2, 3):
            levels.setdefault(sub_network, []).append(level)
            if not report(level, metrics):
                break
        return {**metrics, "epochs": level}

    levels = {}
    result = run(evaluate, early_stopping=Halving(), storage=tmp_path / "journal.log", num_samples=12)
    assert [count for level, count in asked if level == 1] == list(range(12))
    best = math.inf
    for trial in result.trials:
        expected = 2 if trial.costs[0] > best else 3
        assert levels[trial.sub_network] == list(range(1, expected + 1)) and trial.metrics["epochs"] == expected
        best = min(best, trial.costs[0])
    with pytest.raises(ValueError, match="choose one of the two"):
        run(race=True, early_stopping=Halving())


@pytest.mark.parametrize("cut", range(5))
def test_a_journal_cut_off_anywhere_resumes(cut, tmp_path):
    journal = tmp_path / "journal.log"
    run(storage=journal, num_samples=9)
    data = journal.read_bytes()
    journal.write_bytes(data[: [5, 200, len(data) // 2, len(data) - 30, len(data) - 1][cut]])
    assert sequence(run(storage=journal, num_samples=25)) == sequence(run(num_samples=25))


def test_equivalent_encodings_are_one_sub_network_and_an_exhausted_space_ends_the_search(caplog):
    space = UnitsSpace(layers=3, units=3, first_only=True)
    for method in METHODS:
        caplog.clear()
        result = run(space=space, method=method, num_samples=100)
        assert len({trial.sub_network for trial in result.trials}) == len(result.trials) == 1 + 2 * 9
        assert "no new sub-network left after 19 of 100" in caplog.text


def test_budgets_smaller_than_the_design():
    space = UnitsSpace()
    assert [trial.sub_network for trial in run(num_samples=1).trials] == [space.largest]
    assert [trial.sub_network for trial in run(num_samples=2).trials] == [space.largest, space.smallest]
    with pytest.raises(ValueError, match="A search of 0 sub-networks is none"):
        run(num_samples=0)


def test_a_journal_of_another_search_is_refused(tmp_path):
    journal = tmp_path / "journal.log"
    run(storage=journal, num_samples=3, fingerprint={"dataset": "rte"})
    before = journal.read_bytes()
    with pytest.raises(ValueError, match=r"holds another search \(dataset: 'rte' there, 'mrpc' here\)"):
        run(storage=journal, fingerprint={"dataset": "mrpc"})
    with pytest.raises(ValueError, match="dataset: 'rte' there, None here"):
        run(storage=journal)
    with pytest.raises(ValueError, match="space.dimensions"):
        run(space=UnitsSpace(units=6), storage=journal, fingerprint={"dataset": "rte"})
    with pytest.raises(ValueError, match="objectives"):
        search(
            UnitsSpace(), accuracy_of, OBJECTIVES[:1], size=size_of, storage=journal, fingerprint={"dataset": "rte"}
        )
    assert journal.read_bytes() == before


def test_a_space_in_which_encodings_mean_something_else_is_refused(tmp_path):
    class Reversed(UnitsSpace):
        def to_kept(self, values):
            return super().to_kept(values[::-1])

    run(storage=tmp_path / "journal.log", num_samples=10)
    with pytest.raises(ValueError, match="is another sub-network than in this space"):
        run(space=Reversed(), storage=tmp_path / "journal.log", num_samples=10)


def test_files_that_are_no_journal_are_refused_untouched(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("precious, without a line end")
    with pytest.raises(ValueError, match="is not the journal of a search"):
        run(storage=path)
    assert path.read_text() == "precious, without a line end"


def test_sub_networks_of_thousands_of_dimensions_stay_small_in_the_journal(tmp_path):
    space = UnitsSpace(layers=3000, units=2)
    journal = tmp_path / "journal.log"
    evaluate = lambda sub_network: {"accuracy": size_of(sub_network)}  # noqa: E731
    first = run(evaluate, space, storage=journal, num_samples=4)
    # Names of layers and the like alone would be 100 kB a trial.
    assert journal.stat().st_size < (DESIGN_SIZE + 4 * 20) * 1200
    assert sequence(run(evaluate, space, storage=journal, num_samples=4)) == sequence(first)


def test_undefined_metrics():
    constant = error_objective("accuracy").cost
    assert constant(None, {"accuracy": math.nan}) == 1.0
    assert constant(None, {"accuracy": -0.0125}) == pytest.approx(1.0125)
    assert error_objective("loss", greater_is_better=False).cost(None, {"loss": 0.3}) == 0.3
    with pytest.raises(ValueError, match=r"no metric 'f1' but \['accuracy'\]"):
        error_objective("f1").cost(None, {"accuracy": 1.0})


@pytest.mark.parametrize("method", METHODS)
def test_costs_that_are_not_numbers_never_enter_the_front(method, tmp_path):
    broken = Objective("latency", lambda sub_network, _: math.nan if sub_network.counts()[0] > 2 else 1.0)
    options = {"size": size_of, "method": method, "num_samples": 30, "storage": tmp_path / "journal.log"}
    result = search(UnitsSpace(), accuracy_of, (*OBJECTIVES, broken), **options)
    assert 0 < len(result.pareto)
    assert all(result.trials[index].sub_network.counts()[0] <= 2 for index in result.pareto)
    assert sequence(search(UnitsSpace(), accuracy_of, (*OBJECTIVES, broken), **options)) == sequence(result)
    nowhere = Objective("latency", lambda sub_network, _: math.nan)
    assert search(UnitsSpace(), accuracy_of, (nowhere,), size=size_of, method=method, num_samples=25).pareto == ()


def test_trials_hold_plain_json_in_the_journal(tmp_path):
    result = run(storage=tmp_path / "journal.log", num_samples=3)
    for line in (tmp_path / "journal.log").read_text().splitlines():
        json.loads(line)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log")))
    trial = optuna.load_study(study_name="hf_nas", storage=storage).trials[2]
    assert json.loads(trial.user_attrs["sub_network"]) == result.trials[2].sub_network.to_dict()
    assert trial.params == {} and tuple(trial.values) == result.trials[2].costs


def test_optuna_is_quiet_and_its_verbosity_is_restored(capfd):
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        run(num_samples=3)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(optuna.logging.INFO)
    assert "study" not in capfd.readouterr().err


def test_unfit_arguments_are_refused():
    with pytest.raises(ValueError, match="Unknown search method 'annealing'; choose one of additive"):
        run(method="annealing")
    with pytest.raises(ValueError, match="give one bound each"):
        run(reference=(1.0,))
    with pytest.raises(ValueError, match="give one or more, each with its own name"):
        search(UnitsSpace(), accuracy_of, [OBJECTIVES[0]] * 2, size=size_of)
