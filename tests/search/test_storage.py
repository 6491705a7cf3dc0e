"""Searches that are killed, and searches that several processes share, in a journal file and in a database."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from tqdm.auto import tqdm

from hf_nas.search import search, workers
from tests.search.problems import OBJECTIVES, UnitsSpace, accuracy_of, size_of


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")

FORK = multiprocessing.get_context("fork")


class Logged:
    """An evaluation that takes a moment and notes itself in a file, before it begins and when it is done."""

    def __init__(self, path: Path, seconds: float = 0.02):
        self.path, self.seconds = path, seconds

    def __call__(self, sub_network):
        self.note("begin", sub_network)
        time.sleep(self.seconds)
        self.note("end", sub_network)
        return accuracy_of(sub_network)

    def note(self, event, sub_network):
        with self.path.open("a") as file:
            file.write(f"{event} {sub_network.counts()}\n")

    def noted(self, event):
        return [line for line in self.path.read_text().splitlines() if line.startswith(event)]


def run(storage, evaluate=accuracy_of, **options):
    options = {"num_samples": 60, "method": "random_search", **options}
    return search(UnitsSpace(), evaluate, OBJECTIVES, size=size_of, storage=storage, **options)


def sequence(result):
    return [(trial.encoding, trial.costs) for trial in result.trials]


def run_on_its_own(storage, evaluate, options):
    # tqdm's lock is shared with forked processes: one that is killed while it holds it would block all bars for good.
    tqdm.set_lock(threading.RLock())
    run(storage, evaluate, **options)


def begin(storage, evaluate, **options):
    process = FORK.Process(target=run_on_its_own, args=(storage, evaluate, options))
    process.start()
    return process


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def wait_for(condition, process):
    end = time.monotonic() + 100
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("method", ["random_search", "nsga2"])
def test_twenty_kills_at_random_moments_change_nothing(method, tmp_path):
    journal, evaluate = tmp_path / "journal.log", Logged(tmp_path / "calls.txt")
    moments = random.Random(0)
    for _ in range(20):
        size = journal.stat().st_size if journal.exists() else 0
        process = begin(journal, evaluate, method=method)
        # Under way: it recorded something. Then anywhere, in an evaluation or while it is recorded.
        wait_for(lambda size=size: journal.exists() and journal.stat().st_size > size, process)
        time.sleep(moments.uniform(0.0, 0.08))
        kill(process)
    result = run(journal, evaluate, method=method)
    assert len({trial.sub_network for trial in result.trials}) == len(result.trials) == 60
    assert sequence(result) == sequence(run(None, method=method))
    # A kill costs no more than what was under way.
    assert len(evaluate.noted("begin")) <= 60 + 20
    assert len(evaluate.noted("end")) <= 60 + 20
    states = [trial.state.name for trial in trials_of(journal)]
    assert states.count("COMPLETE") == 60 and "RUNNING" not in states


def trials_of(journal):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    return optuna.load_study(study_name="hf_nas", storage=storage).trials


def check_shared(storage, evaluate, processes, method, num_samples):
    options = {"method": method, "num_samples": num_samples}
    begun = [begin(storage, evaluate, **options) for _ in range(processes)]
    for process in begun:
        process.join(100)
        assert process.exitcode == 0
    result = run(storage, lambda sub_network: pytest.fail("all is evaluated"), **options)
    assert len({trial.sub_network for trial in result.trials}) == len(result.trials) == num_samples
    assert len(evaluate.noted("begin")) == len(set(evaluate.noted("begin"))) == num_samples
    return result


@pytest.mark.parametrize(("method", "num_samples"), [("random_search", 60), ("model_based", 25)])
def test_processes_share_a_journal(method, num_samples, tmp_path):
    evaluate = Logged(tmp_path / "calls.txt")
    result = check_shared(tmp_path / "journal.log", evaluate, 3, method, num_samples)
    owners = {trial.user_attrs["worker"] for trial in trials_of(tmp_path / "journal.log")}
    assert len(owners) == 3
    assert not (tmp_path / "journal.log.workers").exists()
    # What they found is a search like any other.
    assert {trial.sub_network for trial in result.trials[:2]} == {UnitsSpace().largest, UnitsSpace().smallest}


def test_what_a_killed_process_was_about_is_taken_up_by_another(tmp_path):
    journal = tmp_path / "journal.log"
    slow, quick = Logged(tmp_path / "slow.txt", 1000.0), Logged(tmp_path / "quick.txt")
    hanging = begin(journal, slow, num_samples=10)
    wait_for(lambda: slow.path.exists() and slow.noted("begin"), hanging)
    other = begin(journal, quick, num_samples=10)
    wait_for(lambda: quick.path.exists() and len(quick.noted("end")) == 9, other)
    time.sleep(1.0)
    # All the rest is done, and the other process waits for the last one.
    assert other.is_alive() and len(quick.noted("begin")) == 9
    kill(hanging)
    other.join(60)
    assert other.exitcode == 0
    assert quick.noted("begin")[-1] == slow.noted("begin")[0]
    assert len(run(journal, num_samples=10).trials) == 10


def test_a_database_shared_by_sqlite_and_counted_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "INTERVAL", 0.1)
    monkeypatch.setattr(workers, "GRACE", 1.5)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    slow, quick = Logged(tmp_path / "slow.txt", 3.0), Logged(tmp_path / "quick.txt")
    hanging = begin(url, slow, num_samples=6)
    wait_for(lambda: slow.path.exists() and slow.noted("begin"), hanging)
    # Longer than the time of grace, it is still alive and nobody takes its candidate.
    result = run(url, quick, num_samples=6)
    assert len(result.trials) == 6 and not set(slow.noted("end")[:1]) & set(quick.noted("end"))
    hanging.join(60)
    slow.path.unlink()
    hanging = begin(url, slow, num_samples=12)
    wait_for(lambda: slow.path.exists() and slow.noted("begin"), hanging)
    kill(hanging)
    assert len(run(url, quick, num_samples=12).trials) == 12
    assert slow.noted("begin")[-1].replace("begin", "end") in quick.noted("end")


def test_databases_that_cannot_be_used_are_refused_without_the_password():
    with pytest.raises(ValueError, match=r"postgresql://me:\*\*\*@localhost:1/none cannot be used \(.*; start it, or"):
        run("postgresql://me:secret@localhost:1/none")
    with pytest.raises(ValueError, match="cannot be read; write postgresql://USER:PASSWORD@HOST/DATABASE"):
        run("://nothing")
    with pytest.raises(ValueError, match="The database oracle://here needs a Python package that is missing"):
        run("oracle://here")


def postgresql_programs() -> Path | None:
    found = [Path(path).resolve().parent for path in (shutil.which("initdb"),) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@pytest.fixture
def postgresql(tmp_path_factory):
    """The URL of a database server that lives as long as the test."""
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install hf-nas[postgresql])")
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    # The server refuses to run as root.
    become = {}
    if os.geteuid() == 0:
        try:
            shutil.chown(folder, "postgres")
        except LookupError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        become = {"user": "postgres", "cwd": folder}
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "hf_nas", "--auth", "trust"], check=True, capture_output=True, **become
    )
    options = ["-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
    server = subprocess.Popen([programs / "postgres", *options], stderr=subprocess.DEVNULL, **become)
    try:
        end = time.monotonic() + 60
        while subprocess.run([programs / "pg_isready", "-h", folder], capture_output=True).returncode:
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        yield f"postgresql://hf_nas@/postgres?host={folder}"
    finally:
        stop = [programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
        subprocess.run(stop, capture_output=True, **become)
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_processes_share_a_postgresql_database(postgresql, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "INTERVAL", 0.2)
    monkeypatch.setattr(workers, "GRACE", 3.0)
    # They start at once on an empty database, and one of them is killed.
    evaluate, lost = Logged(tmp_path / "calls.txt", 0.05), Logged(tmp_path / "lost.txt", 1000.0)
    hanging = begin(postgresql, lost)
    others = [begin(postgresql, evaluate) for _ in range(2)]
    wait_for(lambda: lost.path.exists() and lost.noted("begin"), hanging)
    kill(hanging)
    for process in others:
        process.join(200)
        assert process.exitcode == 0
    result = run(postgresql)
    assert len({trial.sub_network for trial in result.trials}) == len(result.trials) == 60
    assert len(evaluate.noted("begin")) == len(set(evaluate.noted("begin"))) == 60
    assert lost.noted("begin")[0] in evaluate.noted("begin")
    # Another search in the same database keeps to itself.
    assert sequence(run(postgresql, num_samples=5, seed=7)) == sequence(run(None, num_samples=5, seed=7))
    assert len(run(postgresql).trials) == 60
