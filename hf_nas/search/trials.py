"""The memory of a search: an Optuna study that survives a kill at any moment and that several processes share."""

import base64
import hashlib
import json
import logging
import math
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hf_nas.search.result import Evaluated, pack_encoding, unpack_encoding
from hf_nas.search.storage import is_database, name_objectives, open_optuna_study
from hf_nas.search.workers import Workers
from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.subnetwork import SubNetwork


__all__ = ["SearchStudy", "Trials", "open_study"]

logger = logging.getLogger(__name__)

_STUDY_NAME = "hf_nas"
_COMPRESSED = "zlib:"
_LONGEST_PLAIN = 4096
_LEVEL = "level:"
_EVALUATED = (TrialState.COMPLETE, TrialState.PRUNED)


def _pack_text(text: str) -> str:
    if len(text) <= _LONGEST_PLAIN:
        return text
    return _COMPRESSED + base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


def _unpack_text(text: str) -> str:
    if not text.startswith(_COMPRESSED):
        return text
    return zlib.decompress(base64.b64decode(text.removeprefix(_COMPRESSED))).decode("utf-8")


def _pack_costs(costs: Sequence[float]) -> list[float | str]:
    return [cost if math.isfinite(cost) else str(cost) for cost in costs]


@dataclass(frozen=True)
class Trials:
    """The trials of a study at one moment.

    Args:
        evaluated: fully or until they were given up, in the order in which they were begun.
        running: what living processes evaluate now.
        failed: sub-networks whose evaluation failed.
        lost: encodings of what a process that is gone was evaluating, in the order in which it was begun.
    """

    evaluated: list[Evaluated]
    running: list[SubNetwork]
    failed: list[SubNetwork]
    lost: list[Encoding]

    @property
    def seen(self) -> set[SubNetwork]:
        """What is not to be evaluated again."""
        return {trial.sub_network for trial in self.evaluated} | {*self.running, *self.failed}


class SearchStudy:
    """The trials of one search: one Optuna trial an evaluation, in the order in which they were begun.

    The sub-network of a trial is in its user attributes (`sub_network`, `encoding`, `metrics`, `seconds`) and not in
    its parameters, of which a space of single neurons would have tens of thousands; its values are the costs. A trial
    is created with all of this at once, so that processes can agree without a lock: of two with the same sub-network,
    or beyond the budget, the later one is withdrawn. Made by [`open_study`].
    """

    def __init__(self, study: optuna.Study, workers: Workers, space: SearchSpace, label: str):
        self._study = study
        self._workers = workers
        self._space = space
        self._label = label
        self._parsed: dict[int, Evaluated] = {}
        self._decoded: dict[int, SubNetwork] = {}

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
                f"{self._label} holds another search ({details}); give another search_storage, or delete this one."
            )

    def read(self) -> Trials:
        """The trials now, those of all processes. What dead processes left running is marked as failed.

        Raises:
            ValueError: if the space no longer means the same by an encoding.
        """
        retried = set(self._study.user_attrs.get("retried", ()))
        found = Trials([], [], [], [])
        for trial in self._study.get_trials(deepcopy=False):
            if "encoding" not in trial.user_attrs or "withdrawn" in trial.user_attrs:
                continue
            if trial.state in _EVALUATED:
                found.evaluated.append(self._evaluated(trial))
                continue
            if trial.state == TrialState.RUNNING:
                if self._workers.is_alive(trial.user_attrs.get("worker")):
                    found.running.append(self._sub_network(trial))
                    continue
                self._tell(trial.number, state=TrialState.FAIL)
            if "failure" in trial.user_attrs and trial.number not in retried:
                found.failed.append(self._sub_network(trial))
            else:
                found.lost.append(unpack_encoding(trial.user_attrs["encoding"]))
        return found

    def _evaluated(self, trial: FrozenTrial) -> Evaluated:
        if trial.number not in self._parsed:
            attributes = trial.user_attrs
            rejected = trial.state == TrialState.PRUNED
            self._parsed[trial.number] = Evaluated(
                self._sub_network(trial),
                unpack_encoding(attributes["encoding"]),
                {name: float(value) for name, value in attributes["metrics"].items()},
                tuple(float(cost) for cost in (attributes["costs"] if rejected else trial.values)),
                attributes["seconds"],
                rejected,
            )
        return self._parsed[trial.number]

    def _sub_network(self, trial: FrozenTrial) -> SubNetwork:
        if trial.number not in self._decoded:
            sub_network = SubNetwork.from_dict(json.loads(_unpack_text(trial.user_attrs["sub_network"])))
            if self._space.decode(unpack_encoding(trial.user_attrs["encoding"])) != sub_network:
                raise ValueError(
                    f"{self._label} holds a search in which encoding {trial.user_attrs['encoding'][:80]} is another "
                    f"sub-network than in this space {self._space.name!r}; give another path, or delete the file."
                )
            self._decoded[trial.number] = sub_network
        return self._decoded[trial.number]

    @property
    def design(self) -> list[Encoding] | None:
        """The initial design, None as long as it is not set."""
        packed = self._study.user_attrs.get("design")
        return None if packed is None else [unpack_encoding(text) for text in packed]

    @design.setter
    def design(self, encodings: Sequence[Encoding]) -> None:
        self._study.set_user_attr("design", [pack_encoding(encoding) for encoding in encodings])

    def start(self, encoding: Encoding, sub_network: SubNetwork, limit: float = math.inf) -> FrozenTrial | None:
        """Open the trial of an evaluation that begins.

        Args:
            encoding: of the sub-network.
            sub_network: to evaluate.
            limit: number of evaluations that the search may have in the end.

        Returns:
            The trial; None if another process was first, with this sub-network or with the last of the budget.
        """
        token = uuid.uuid4().hex
        attributes = {
            "encoding": pack_encoding(encoding),
            "sub_network": _pack_text(json.dumps(sub_network.to_dict(), separators=(",", ":"))),
            "worker": self._workers.name,
            "token": token,
        }
        self._study.add_trial(optuna.create_trial(state=TrialState.RUNNING, user_attrs=attributes))
        trials = self._study.get_trials(deepcopy=False)
        trial = next(trial for trial in reversed(trials) if trial.user_attrs.get("token") == token)
        before = [
            other
            for other in trials[: trial.number]
            if other.state in (*_EVALUATED, TrialState.RUNNING) and "withdrawn" not in other.user_attrs
        ]
        if len(before) < limit and all(
            self._sub_network(other) != sub_network for other in before if "encoding" in other.user_attrs
        ):
            return trial
        self._note(trial, "withdrawn", True)
        self._tell(trial.number, state=TrialState.FAIL)
        return None

    def finish(self, trial: FrozenTrial, evaluated: Evaluated) -> None:
        """Record the outcome of an evaluation."""
        data = evaluated.to_dict()
        self._note(trial, "metrics", data["metrics"])
        self._note(trial, "seconds", data["seconds"])
        if evaluated.rejected:
            self._note(trial, "costs", data["costs"])
            self._tell(trial.number, state=TrialState.PRUNED)
        else:
            self._tell(trial.number, values=list(evaluated.costs))

    def fail(self, trial: FrozenTrial, reason: str) -> None:
        """Record that a sub-network cannot be evaluated."""
        self._note(trial, "failure", reason)
        self._tell(trial.number, state=TrialState.FAIL)

    def leave(self, trial: FrozenTrial) -> None:
        """Record that an evaluation was broken off and is to be taken up again."""
        self._tell(trial.number, state=TrialState.FAIL)

    def retry(self, numbers: Sequence[int]) -> None:
        """Let trials that failed be evaluated again."""
        self._study.set_user_attr("retried", [*self._study.user_attrs.get("retried", ()), *numbers])

    def report(self, trial: FrozenTrial, level: int, costs: Sequence[float]) -> list[tuple[float, ...]]:
        """Record the costs of a trial at a level of its training; returns those of all others at that level."""
        self._note(trial, f"{_LEVEL}{level}", _pack_costs(costs))
        return [
            tuple(map(float, other.user_attrs[f"{_LEVEL}{level}"]))
            for other in self._study.get_trials(deepcopy=False)
            if other.number != trial.number
            and f"{_LEVEL}{level}" in other.user_attrs
            # Of a process that was killed the same sub-network comes again.
            and other.user_attrs["encoding"] != trial.user_attrs["encoding"]
        ]

    def _note(self, trial: FrozenTrial, key: str, value: Any) -> None:
        optuna.Trial(self._study, trial._trial_id).set_user_attr(key, value)

    def _tell(self, number: int, **outcome: Any) -> None:
        try:
            self._study.tell(number, **outcome)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            # Several processes may find the same dead one.
            if outcome.get("state") != TrialState.FAIL:
                raise


@contextmanager
def open_study(
    storage: str | Path | None,
    space: SearchSpace,
    objectives: Sequence[str],
    fingerprint: Mapping[str, Any],
    identity: Sequence[Any] = (),
) -> Iterator[SearchStudy]:
    """Open the study of a search, or create it; Optuna is quiet inside the block.

    Args:
        storage: None to keep the study in memory, the path of a journal file, or the URL of a database.
        space: that is searched.
        objectives: their names.
        fingerprint: what the study is of, in JSON types.
        identity: what else tells this search from others in the same database.

    Raises:
        ValueError: if the file is no journal, if it is the journal of another search, or if the database cannot be
            reached.
    """
    name = _STUDY_NAME
    if is_database(storage):
        facts = json.dumps([dict(fingerprint), *identity], sort_keys=True)
        name = f"{_STUDY_NAME}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    with open_optuna_study(storage, name, list(objectives)) as (study, workers, label):
        search_study = SearchStudy(study, workers, space, label)
        search_study.check(fingerprint)
        name_objectives(study, list(objectives))
        yield search_study
