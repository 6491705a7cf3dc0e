"""The memory of a search: an Optuna study in a journal file that survives a kill at any moment."""

import base64
import json
import logging
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from hf_nas.search.result import Evaluated, pack_encoding, unpack_encoding
from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.subnetwork import SubNetwork


__all__ = ["SearchStudy", "open_study"]

logger = logging.getLogger(__name__)

_STUDY_NAME = "hf_nas"
_FIRST_BYTES = b'{"op_code"'
_COMPRESSED = "zlib:"
_LONGEST_PLAIN = 4096


def _pack_text(text: str) -> str:
    if len(text) <= _LONGEST_PLAIN:
        return text
    return _COMPRESSED + base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


def _unpack_text(text: str) -> str:
    if not text.startswith(_COMPRESSED):
        return text
    return zlib.decompress(base64.b64decode(text.removeprefix(_COMPRESSED))).decode("utf-8")


class _AlreadyHeld(JournalFileOpenLock):
    """Stands in for Optuna's lock files, which outlive a killed process, while we hold a lock of the system's."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _check_journal(path: Path) -> None:
    """Refuse a file that is no journal and cut off a last line that a killed process left unfinished.

    Optuna appends to such a line and can then read neither.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        if not data.startswith(_FIRST_BYTES[: len(data)]):
            raise ValueError(f"{path} is not the journal of a search; give another path, or delete the file.")
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            logger.warning("The last line of %s is unfinished; what it was about to record is evaluated again.", path)
            file.truncate(whole)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


class SearchStudy:
    """The trials of one search: one Optuna trial an evaluation, in the order of the evaluations.

    The sub-network of a trial is in its user attributes (`sub_network`, `encoding`, `metrics`, `seconds`) and not in
    its parameters, of which a space of single neurons would have tens of thousands; its values are the costs. Made by
    [`open_study`].
    """

    def __init__(self, study: optuna.Study, space: SearchSpace, label: str):
        self._study = study
        self._space = space
        self._label = label

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Store what the study is of when it is new, and refuse a study of something else.

        Raises:
            ValueError: naming what differs.
        """
        wanted = json.loads(json.dumps(dict(fingerprint)))
        found = self._study.user_attrs.get("fingerprint")
        if found is None and not self._study.get_trials(deepcopy=False):
            self._study.set_user_attr("fingerprint", wanted)
            return
        found = found or {}
        different = [key for key in sorted({*wanted, *found}) if wanted.get(key) != found.get(key)]
        if different:
            details = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} here" for key in different)
            raise ValueError(
                f"{self._label} holds another search ({details}); give another path, or delete the file to start anew."
            )

    def finished(self) -> list[Evaluated]:
        """The evaluated sub-networks.

        Raises:
            ValueError: if the space no longer means the same by an encoding.
        """
        evaluated = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            attributes = trial.user_attrs
            encoding = unpack_encoding(attributes["encoding"])
            sub_network = SubNetwork.from_dict(json.loads(_unpack_text(attributes["sub_network"])))
            if self._space.decode(encoding) != sub_network:
                raise ValueError(
                    f"{self._label} holds a search in which encoding {attributes['encoding'][:80]} is another "
                    f"sub-network than in this space {self._space.name!r}; give another path, or delete the file."
                )
            metrics = {name: float(value) for name, value in attributes["metrics"].items()}
            evaluated.append(Evaluated(sub_network, encoding, metrics, tuple(trial.values), attributes["seconds"]))
        return evaluated

    def clear_stale(self) -> list[Encoding]:
        """Mark the trials that a killed process left running as failed; returns their encodings."""
        encodings = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "encoding" in trial.user_attrs:
                encodings.append(unpack_encoding(trial.user_attrs["encoding"]))
            self._study.tell(trial.number, state=TrialState.FAIL)
        return encodings

    @property
    def design(self) -> list[Encoding] | None:
        """The initial design, None as long as it is not set."""
        packed = self._study.user_attrs.get("design")
        return None if packed is None else [unpack_encoding(text) for text in packed]

    @design.setter
    def design(self, encodings: Sequence[Encoding]) -> None:
        self._study.set_user_attr("design", [pack_encoding(encoding) for encoding in encodings])

    def start(self, encoding: Encoding, sub_network: SubNetwork) -> optuna.Trial:
        """Open the trial of an evaluation that begins."""
        trial = self._study.ask()
        trial.set_user_attr("encoding", pack_encoding(encoding))
        trial.set_user_attr("sub_network", _pack_text(json.dumps(sub_network.to_dict(), separators=(",", ":"))))
        return trial

    def finish(self, trial: optuna.Trial, evaluated: Evaluated) -> None:
        """Record the outcome of an evaluation."""
        data = evaluated.to_dict()
        trial.set_user_attr("metrics", data["metrics"])
        trial.set_user_attr("seconds", data["seconds"])
        self._study.tell(trial, list(evaluated.costs))

    def fail(self, trial: optuna.Trial) -> None:
        """Record that an evaluation raised an error."""
        self._study.tell(trial, state=TrialState.FAIL)


@contextmanager
def open_study(
    path: str | Path | None, space: SearchSpace, objectives: Sequence[str], fingerprint: Mapping[str, Any]
) -> Iterator[SearchStudy]:
    """Open the study of a search, or create it; Optuna is quiet inside the block.

    Args:
        path: of the journal file, or None to keep the study in memory.
        space: that is searched.
        objectives: their names.
        fingerprint: what the study is of, in JSON types.

    Raises:
        ValueError: if another process searches with this journal, if the file is no journal, or if it is the journal
            of another search.
    """
    with ExitStack() as stack:
        stack.enter_context(_quiet_optuna())
        storage: optuna.storages.BaseStorage = optuna.storages.InMemoryStorage()
        if path is not None:
            path = Path(path).absolute()
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(filelock.FileLock(f"{path}.search.lock", timeout=0))
            except filelock.Timeout:
                raise ValueError(
                    f"Another process is searching with the journal {path}; wait for it, or give another path."
                ) from None
            _check_journal(path)
            try:
                backend = JournalFileBackend(str(path), lock_obj=_AlreadyHeld(str(path)))
                storage = optuna.storages.JournalStorage(backend)
            except (ValueError, KeyError, AssertionError) as error:
                raise ValueError(
                    f"The journal {path} is damaged ({error}); give another path, or delete the file."
                ) from error
        names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
        sampler = optuna.samplers.RandomSampler()
        if _STUDY_NAME in names:
            study = optuna.load_study(study_name=_STUDY_NAME, storage=storage, sampler=sampler)
        else:
            study = optuna.create_study(
                study_name=_STUDY_NAME, storage=storage, sampler=sampler, directions=["minimize"] * len(objectives)
            )
        search_study = SearchStudy(study, space, f"The journal {path}")
        search_study.check(fingerprint)
        with warnings.catch_warnings():
            # The names are for Optuna's dashboard alone, so an interface that may still change is good enough.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(objectives))
        yield search_study
