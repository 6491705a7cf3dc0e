import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from hf_nas.search import Objective, error_objective, hypervolume, search
from hf_nas.search.study import DESIGN_SIZE
from tests.search.problems import OBJECTIVES, UnitsSpace, accuracy_of, size_of


METHODS = ("random_search", "nsga2", "local_search")


def run(evaluate=accuracy_of, space=None, **options):
    return search(space or UnitsSpace(), evaluate, OBJECTIVES, size=size_of, **{"num_samples": 40, **options})


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
        parts = run(method=method, journal=tmp_path / "journal.log", num_samples=budget)
        assert len(parts.trials) == budget
    assert sequence(parts) == sequence(whole)
    assert parts.pareto == whole.pareto
    # A smaller budget does not throw away what is there.
    assert sequence(run(method=method, journal=tmp_path / "journal.log", num_samples=5)) == sequence(whole)


def test_guided_methods_beat_random_search_on_the_toy_problem():
    space = UnitsSpace(layers=8, units=8)
    volume = {method: run(space=space, method=method, num_samples=150).hypervolume for method in METHODS}
    assert volume["nsga2"] > volume["random_search"]
    assert volume["local_search"] > volume["random_search"]


def test_an_evaluation_that_fails_is_repeated_after_the_restart(tmp_path):
    calls = []

    def evaluate(sub_network):
        calls.append(sub_network)
        if len(calls) == 25:
            raise RuntimeError("out of memory")
        return accuracy_of(sub_network)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(evaluate, journal=tmp_path / "journal.log")
    result = run(evaluate, journal=tmp_path / "journal.log")
    assert calls[24] == calls[25]
    assert sequence(result) == sequence(run())


CHILD = """
import sys, time
from tests.search.problems import OBJECTIVES, UnitsSpace, accuracy_of, size_of
from hf_nas.search import search

def evaluate(sub_network):
    with open(sys.argv[2], "a") as file:
        file.write(".")
    time.sleep(0.02)
    return accuracy_of(sub_network)

search(UnitsSpace(), evaluate, OBJECTIVES, size=size_of, method=sys.argv[3], num_samples=1000, journal=sys.argv[1])
"""


def begin_and_kill(journal: Path, method: str, evaluations: int) -> None:
    """Start a search in another process and kill it without notice after some evaluations."""
    count = journal.with_suffix(".count")
    count.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(journal), str(count), method], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not count.exists() or count.stat().st_size < evaluations:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("method", ["nsga2", "random_search"])
def test_killed_search_resumes_to_the_same_result(method, tmp_path):
    journal = tmp_path / "journal.log"
    begin_and_kill(journal, method, 6 if method == "nsga2" else 26)
    calls = []

    def evaluate(sub_network):
        calls.append(sub_network)
        return accuracy_of(sub_network)

    result = run(evaluate, method=method, journal=journal, num_samples=50)
    finished_before = {trial.sub_network for trial in result.trials[: 50 - len(calls)]}
    assert 0 < len(finished_before) == 50 - len(calls) < 50
    assert finished_before.isdisjoint(calls) and len(set(calls)) == len(calls)
    assert sequence(result) == sequence(run(method=method, num_samples=50))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    states = [trial.state.name for trial in optuna.load_study(study_name="hf_nas", storage=storage).trials]
    assert states.count("COMPLETE") == 50 and "RUNNING" not in states


@pytest.mark.parametrize("cut", range(5))
def test_a_journal_cut_off_anywhere_resumes(cut, tmp_path):
    journal = tmp_path / "journal.log"
    run(journal=journal, num_samples=9)
    data = journal.read_bytes()
    journal.write_bytes(data[: [5, 200, len(data) // 2, len(data) - 30, len(data) - 1][cut]])
    assert sequence(run(journal=journal, num_samples=25)) == sequence(run(num_samples=25))


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
    run(journal=journal, num_samples=3, fingerprint={"dataset": "rte"})
    before = journal.read_bytes()
    with pytest.raises(ValueError, match=r"holds another search \(dataset: 'rte' there, 'mrpc' here\)"):
        run(journal=journal, fingerprint={"dataset": "mrpc"})
    with pytest.raises(ValueError, match="dataset: 'rte' there, None here"):
        run(journal=journal)
    with pytest.raises(ValueError, match="space.dimensions"):
        run(space=UnitsSpace(units=6), journal=journal, fingerprint={"dataset": "rte"})
    with pytest.raises(ValueError, match="objectives"):
        search(
            UnitsSpace(), accuracy_of, OBJECTIVES[:1], size=size_of, journal=journal, fingerprint={"dataset": "rte"}
        )
    assert journal.read_bytes() == before


def test_a_space_in_which_encodings_mean_something_else_is_refused(tmp_path):
    class Reversed(UnitsSpace):
        def to_kept(self, values):
            return super().to_kept(values[::-1])

    run(journal=tmp_path / "journal.log", num_samples=10)
    with pytest.raises(ValueError, match="is another sub-network than in this space"):
        run(space=Reversed(), journal=tmp_path / "journal.log", num_samples=10)


def test_files_that_are_no_journal_are_refused_untouched(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("precious, without a line end")
    with pytest.raises(ValueError, match="is not the journal of a search"):
        run(journal=path)
    assert path.read_text() == "precious, without a line end"


def test_two_processes_do_not_search_with_one_journal(tmp_path):
    def evaluate(sub_network):
        with pytest.raises(ValueError, match="Another process is searching"):
            run(journal=tmp_path / "journal.log", num_samples=1)
        return accuracy_of(sub_network)

    run(evaluate, journal=tmp_path / "journal.log", num_samples=1)


def test_sub_networks_of_thousands_of_dimensions_stay_small_in_the_journal(tmp_path):
    space = UnitsSpace(layers=3000, units=2)
    journal = tmp_path / "journal.log"
    evaluate = lambda sub_network: {"accuracy": size_of(sub_network)}  # noqa: E731
    first = run(evaluate, space, journal=journal, num_samples=4)
    # Names of layers and the like alone would be 100 kB a trial.
    assert journal.stat().st_size < (DESIGN_SIZE + 4 * 20) * 1200
    assert sequence(run(evaluate, space, journal=journal, num_samples=4)) == sequence(first)


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
    options = {"size": size_of, "method": method, "num_samples": 30, "journal": tmp_path / "journal.log"}
    result = search(UnitsSpace(), accuracy_of, (*OBJECTIVES, broken), **options)
    assert 0 < len(result.pareto)
    assert all(result.trials[index].sub_network.counts()[0] <= 2 for index in result.pareto)
    assert sequence(search(UnitsSpace(), accuracy_of, (*OBJECTIVES, broken), **options)) == sequence(result)
    nowhere = Objective("latency", lambda sub_network, _: math.nan)
    assert search(UnitsSpace(), accuracy_of, (nowhere,), size=size_of, method=method, num_samples=25).pareto == ()


def test_trials_hold_plain_json_in_the_journal(tmp_path):
    result = run(journal=tmp_path / "journal.log", num_samples=3)
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
    with pytest.raises(ValueError, match="Unknown search method 'annealing'; choose one of local_search"):
        run(method="annealing")
    with pytest.raises(ValueError, match="give one bound each"):
        run(reference=(1.0,))
    with pytest.raises(ValueError, match="give one or more, each with its own name"):
        search(UnitsSpace(), accuracy_of, [OBJECTIVES[0]] * 2, size=size_of)
