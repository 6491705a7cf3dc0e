"""Where the study of a search is kept: in memory, in a journal file, or in a database."""

import importlib.util
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import filelock
import optuna
import sqlalchemy
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from hf_nas.search.workers import FileWorkers, HeartbeatWorkers, SoleWorker, Workers


__all__ = ["is_database", "name_objectives", "open_optuna_study"]

logger = logging.getLogger(__name__)

_FIRST_BYTES = b'{"op_code"'
# Two processes that create the tables of a database at the same moment get in each other's way once.
_ATTEMPTS = 5


class _SystemLock(JournalFileOpenLock):
    """A lock of the operating system. Optuna's own lock files outlive a killed process and block all others."""

    def __init__(self, journal: Path):
        super().__init__(str(journal))
        self._journal = journal
        self._lock = filelock.FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        _cut_unfinished_line(self._journal)
        return True

    def release(self) -> None:
        self._lock.release()


def _cut_unfinished_line(path: Path) -> None:
    """Cut off a last line that a killed process left unfinished: Optuna would append to it and could read neither."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        logger.warning("The last line of %s is unfinished; what it was about to record is evaluated again.", path)
        file.truncate(whole)


def _check_journal(path: Path) -> None:
    if path.exists():
        with path.open("rb") as file:
            found = file.read(len(_FIRST_BYTES))
        if not _FIRST_BYTES.startswith(found):
            raise ValueError(f"{path} is not the journal of a search; give another path, or delete the file.")


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def is_database(storage: str | Path | None) -> bool:
    """Whether a storage is the URL of a database and not the path of a file."""
    return isinstance(storage, str) and "://" in storage


@contextmanager
def open_optuna_study(
    storage: str | Path | None, name: str, objectives: list[str]
) -> Iterator[tuple[optuna.Study, Workers, str]]:
    """Open a study, or create it; Optuna is quiet inside the block, and this process takes part in the study.

    Args:
        storage: None for memory, the path of a journal file, or the URL of a database that SQLAlchemy knows.
        name: of the study.
        objectives: their names.

    Returns:
        The study, the processes that share it, and what to call its storage in messages.

    Raises:
        ValueError: if the file is no journal or damaged, or the database cannot be reached.
    """
    with ExitStack() as stack:
        stack.enter_context(_quiet_optuna())
        label = "The study in memory"
        backend: optuna.storages.BaseStorage = optuna.storages.InMemoryStorage()
        if is_database(storage):
            backend, label = _database(str(storage))
        elif storage is not None:
            path = Path(storage).absolute()
            backend, label = _journal(path), f"The journal {path}"
        study = _open(backend, name, len(objectives))
        workers: Workers = SoleWorker()
        if storage is not None:
            workers = HeartbeatWorkers(study) if is_database(storage) else FileWorkers(Path(f"{path}.workers"))
            stack.enter_context(workers.taking_part())
        yield study, workers, label


def _open(backend: optuna.storages.BaseStorage, name: str, objectives: int) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler()
    # Creating one that is there would add a line to a journal.
    if name in optuna.get_all_study_names(backend):
        return optuna.load_study(study_name=name, storage=backend, sampler=sampler)
    directions = ["minimize"] * objectives
    return optuna.create_study(
        study_name=name, storage=backend, sampler=sampler, directions=directions, load_if_exists=True
    )


def name_objectives(study: optuna.Study, objectives: list[str]) -> None:
    """Name the values of a study's trials, for Optuna's dashboard."""
    if study.metric_names is None:
        with warnings.catch_warnings():
            # For the dashboard alone an interface that may still change is good enough.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(objectives)


def _journal(path: Path) -> optuna.storages.JournalStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_journal(path)
    lock = _SystemLock(path)
    lock.acquire()
    lock.release()
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(f"The journal {path} is damaged ({error}); give another path, or delete the file.") from error


def _database(url: str) -> tuple[optuna.storages.RDBStorage, str]:
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise ValueError(
            "The URL of the search storage cannot be read; write postgresql://USER:PASSWORD@HOST/DATABASE, or the "
            "path of a file."
        ) from None
    shown = parsed.render_as_string(hide_password=True)
    # The driver of the extra; without it SQLAlchemy's own choice may still be installed.
    if parsed.drivername == "postgresql" and importlib.util.find_spec("psycopg") is not None:
        url = parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    for attempt in range(_ATTEMPTS):
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            return storage, f"The database {shown}"
        except ImportError as error:
            raise ValueError(
                f"The database {shown} needs a Python package that is missing ({error}); for PostgreSQL, install "
                "hf-nas[postgresql]."
            ) from error
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(1.0)
        except sqlalchemy.exc.SQLAlchemyError as error:
            cause = str(getattr(error, "orig", error)).strip().splitlines()
            raise ValueError(
                f"The database {shown} cannot be used ({cause[0] if cause else type(error).__name__}); start it, or "
                "give another URL."
            ) from error
    raise AssertionError("unreachable")
