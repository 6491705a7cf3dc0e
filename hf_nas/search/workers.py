"""Who of the processes that share a search is still alive."""

import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import filelock
import optuna


__all__ = ["FileWorkers", "HeartbeatWorkers", "SoleWorker", "Workers"]

logger = logging.getLogger(__name__)

_PREFIX = "worker:"
# Of heartbeats, in seconds.
INTERVAL = 10.0
GRACE = 60.0


class Workers(Protocol):
    """The processes of a search; each has a name of its own for as long as it takes part."""

    @property
    def name(self) -> str:
        """Of this process."""

    def is_alive(self, name: str | None) -> bool:
        """Whether a process still takes part; None, one that left no name, does not."""


def _new_name() -> str:
    return f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class SoleWorker:
    """The only process of a search that is kept in memory."""

    def __init__(self):
        self.name = _new_name()

    def is_alive(self, name: str | None) -> bool:
        """Whether it is this one."""
        return name == self.name


class FileWorkers:
    """Processes that see the same folder: each holds a lock of the operating system, which a kill releases at once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = _new_name()

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """This process is alive inside the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._path(self.name), timeout=0):
            yield
        self._forget(self.name)

    def is_alive(self, name: str | None) -> bool:
        """Whether the process of this name holds its lock."""
        if name is None or not self._path(name).exists():
            return False
        try:
            with filelock.FileLock(self._path(name), timeout=0):
                pass
        except filelock.Timeout:
            return True
        self._forget(name)
        return False

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def _forget(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError:
            pass  # Others take part.


class HeartbeatWorkers:
    """Processes on any machines: each counts up a number in the study every [`INTERVAL`] seconds, and one whose number
    stands still for [`GRACE`] seconds is dead.

    Nothing depends on the machines' clocks: every process watches the numbers for itself.

    Args:
        study: in a storage that all of them reach.
    """

    def __init__(self, study: optuna.Study):
        self.name = _new_name()
        self._study = study
        # The last number seen of each process, and when it was seen first.
        self._seen: dict[str, tuple[int | None, float]] = {}

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """This process is alive inside the block."""
        self._study.set_user_attr(_PREFIX + self.name, 0)
        end = threading.Event()
        thread = threading.Thread(target=self._beat, args=(end,), name="search heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(timeout=INTERVAL)

    def _beat(self, end: threading.Event) -> None:
        count = 0
        while not end.wait(INTERVAL):
            count += 1
            try:
                self._study.set_user_attr(_PREFIX + self.name, count)
            except Exception as error:  # A database that is away for a moment must not end the evaluation.
                logger.warning("The sign of life of this process could not be recorded (%s); trying again.", error)

    def is_alive(self, name: str | None) -> bool:
        """Whether the process of this name counted within the time of grace, as far as this one has watched it."""
        if name is None:
            return False
        if name == self.name:
            return True
        now = time.monotonic()
        count = self._study.user_attrs.get(_PREFIX + name)
        if name not in self._seen or self._seen[name][0] != count:
            self._seen[name] = (count, now)
        return now - self._seen[name][1] < GRACE
