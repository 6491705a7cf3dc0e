"""The search loop: propose, evaluate, record, until the budget is spent."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from optuna.trial import FrozenTrial
from tqdm.auto import tqdm

from hf_nas.search.evaluation import Rejected
from hf_nas.search.methods import SearchMethod, get_search_method
from hf_nas.search.objectives import Constraint, Objective, is_allowed
from hf_nas.search.pareto import pareto_indices
from hf_nas.search.result import Evaluated, SearchResult
from hf_nas.search.trials import SearchStudy, Trials, open_study
from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.space.sampling import Sampler, SizeStratifiedSampler
from hf_nas.subnetwork import SubNetwork


__all__ = ["EarlyStopping", "SearchFailed", "search"]

logger = logging.getLogger(__name__)

Report = Callable[[int, Mapping[str, float]], bool]
Evaluate = Callable[..., Mapping[str, float]]

# Points of the initial design. It does not depend on the budget, so that a longer search begins with a shorter one.
DESIGN_SIZE = 20
_PROPOSALS = 100
# Spaces up to this size are gone through one by one before they are called exhausted.
_ENUMERATED = 20_000
# Under constraints, designs up to so many times as large are tried until enough of their points are allowed.
_LARGEST_DESIGN = 16
# Seconds between two looks at what the other processes do, once all that is left is under way there.
_PAUSE = 0.5


class EarlyStopping(Protocol):
    """Decides which candidates are trained to the end, where an evaluation trains."""

    def stops(self, level: int, costs: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> bool:
        """Whether a candidate ends at this level.

        Args:
            level: how far it is trained, in epochs.
            costs: of it, in the order of the search's objectives.
            others: those of all other candidates that reached the level up to now.
        """


class SearchFailed(RuntimeError):
    """Two candidates in a row could not be evaluated, for the same reason."""


def search(
    space: SearchSpace,
    evaluate: Evaluate,
    objectives: Sequence[Objective],
    *,
    size: Callable[[SubNetwork], float],
    method: str = "model_based",
    method_options: Mapping[str, Any] | None = None,
    num_samples: int | None = 100,
    max_seconds: float | None = None,
    seed: int = 0,
    sampler: Sampler | None = None,
    constraints: Sequence[Constraint] = (),
    race: bool = False,
    early_stopping: EarlyStopping | None = None,
    storage: str | Path | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    reference: Sequence[float] | None = None,
) -> SearchResult:
    """Search a space for the sub-networks with the best trade-offs.

    The first evaluations are the largest and the smallest sub-network and others of evenly spread sizes; then the
    method proposes. No sub-network is evaluated twice, whatever encodings lead to it. With a storage, a search that
    was killed continues where it was when it is called again, and ends in the same result as one that was not; any
    number of processes that call it with the same storage share the work and return the same result, though which
    sub-networks they meet then depends on their speed.

    A candidate whose evaluation raises a RuntimeError (out of memory, for one) or an ArithmeticError is recorded as
    failed, does not count, and the search goes on.

    Args:
        space: the space.
        evaluate: returns the metrics of a sub-network. If it has a method `keep_near`, that is told the sub-networks
            on the front before each call.
        objectives: what to minimise, the error first.
        size: of a sub-network, in any unit, by which the first ones and the random ones are spread.
        method: name of a search method.
        method_options: arguments of that method beside space and sampler.
        num_samples: number of evaluated sub-networks in the end, with those that the storage holds already; None for
            no limit.
        max_seconds: no evaluation begins once all of them together, also those that the storage holds, took so long.
        seed: of all random choices. The n-th proposal depends on it and on the evaluations before, on nothing else.
        sampler: draws random sub-networks; by default every size equally often.
        constraints: what every evaluated sub-network keeps to, the first ones included.
        race: evaluate by `evaluate.race(sub_network, known_costs, front)`, which may return a
            [`hf_nas.search.Rejected`]; such candidates count as evaluated and are never on the front.
        early_stopping: for evaluations that train. They are then called as `evaluate(sub_network, report)`, and
            `report(level, metrics)` says whether to go on after the training reached a level with these metrics.
        storage: path of the file in which the search is recorded as it goes, an Optuna journal; or URL of a database
            such as `postgresql://user:password@host/name`, for processes on several machines.
        fingerprint: more facts, in JSON types, that must be the same when a storage is used again: model, data set.
        reference: upper bound of each objective for the hypervolume; by default 1 for the first one and 1.05 for the
            others, so that the full network counts.

    Raises:
        ValueError: for a budget below 1 or none, an unknown method, a reference that does not fit, or a journal of
            another search.
        SearchFailed: if two candidates in a row fail with the same type of error.
    """
    if num_samples is None and max_seconds is None:
        raise ValueError("A search needs an end; give num_samples, max_seconds or both.")
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"A search of {num_samples} sub-networks is none; num_samples must be 1 or more.")
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"A search of {max_seconds} seconds is none; max_seconds must be above 0.")
    if race and early_stopping is not None:
        raise ValueError("Racing gives up evaluations and early stopping gives up trainings; choose one of the two.")
    names = [objective.name for objective in objectives]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The objectives are named {names}; give one or more, each with its own name.")
    reference = (1.0,) + (1.05,) * (len(names) - 1) if reference is None else tuple(float(b) for b in reference)
    if len(reference) != len(names):
        raise ValueError(f"The reference point {reference} does not fit the objectives {names}; give one bound each.")
    if race and any(objective.needs_metrics for objective in objectives[1:]):
        raise ValueError(
            f"Racing needs all objectives but the first before the evaluation, and of {names} some others are not "
            "known then; search without race."
        )
    stratified = SizeStratifiedSampler(space, size)
    costs = _Costs(objectives)
    search_method = get_search_method(
        method,
        space,
        stratified if sampler is None else sampler,
        known_costs=costs.known if costs.are_known else None,
        reference=reference,
        **(method_options or {}),
    )
    facts = {**(fingerprint or {}), **_fingerprint(space), "objectives": names}
    facts |= {"constraints": [[each.objective.name, each.limit] for each in constraints]} if constraints else {}
    with open_study(storage, space, names, facts, (method, seed)) as study:
        proposals = _Proposals(space, search_method, stratified, sampler or stratified, constraints, seed)
        loop = _Loop(study, proposals, evaluate, costs, race, early_stopping)
        trials = loop.run(math.inf if num_samples is None else num_samples, max_seconds or math.inf)
    return SearchResult(tuple(trials), tuple(names), reference, method, space.name, seed)


def _fingerprint(space: SearchSpace) -> dict[str, str]:
    """What a space is, in a few short values."""
    largest = space.largest
    dimensions = repr([(dimension.name, tuple(dimension.choices)) for dimension in space.dimensions])
    return {
        "space": space.name,
        "space.dimensions": f"{len(space.dimensions)}, {_digest(dimensions)}",
        "space.model": f"{largest.model_type}, {_digest(repr((largest.names, largest.units)))}",
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def _spread(count: int) -> list[int]:
    """The numbers below `count` in an order in which every beginning is spread over all of them (van der Corput)."""
    bits = max(count - 1, 1).bit_length()
    reversed_bits = (int(f"{index:0{bits}b}"[::-1], 2) for index in range(2**bits))
    return [index for index in reversed_bits if index < count]


class _Costs:
    """The costs of sub-networks by the objectives of a search."""

    def __init__(self, objectives: Sequence[Objective]):
        self.objectives = objectives
        self.are_known = not any(objective.needs_metrics for objective in objectives[1:])

    def of(self, sub_network: SubNetwork, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """All of them."""
        return tuple(_cost(objective, sub_network, metrics) for objective in self.objectives)

    def known(self, sub_network: SubNetwork) -> tuple[float, ...]:
        """Those that need no evaluation: all but the first."""
        return tuple(_cost(objective, sub_network, {}) for objective in self.objectives[1:])


def _cost(objective: Objective, sub_network: SubNetwork, metrics: Mapping[str, float]) -> float:
    cost = float(objective.cost(sub_network, metrics))
    return math.inf if math.isnan(cost) else cost


class _Proposals:
    """What to evaluate next: what was lost, what is left of the initial design, then what the method proposes."""

    def __init__(
        self,
        space: SearchSpace,
        method: SearchMethod,
        stratified: SizeStratifiedSampler,
        sampler: Sampler,
        constraints: Sequence[Constraint],
        seed: int,
    ):
        self.space = space
        self.method = method
        self.stratified = stratified
        self.sampler = sampler
        self.constraints = constraints
        self.seed = seed

    def design(self) -> list[Encoding]:
        """Largest, smallest, and points of evenly spread sizes, of which the first few are spread already."""
        count = DESIGN_SIZE
        while True:
            largest, *points = (_plain(encoding) for encoding in self.stratified.design(count))
            between = points[1:]
            design = [largest, *points[:1], *(between[index] for index in _spread(len(between)))]
            allowed = [encoding for encoding in design if is_allowed(self.constraints, self.space.decode(encoding))]
            if len(allowed) >= DESIGN_SIZE or not self.constraints or count >= _LARGEST_DESIGN * DESIGN_SIZE:
                return allowed[:DESIGN_SIZE]
            count *= 2

    def next(self, trials: Trials, design: Sequence[Encoding]) -> tuple[Encoding, SubNetwork] | None:
        """The first proposal that is a new sub-network, None if the space has none."""
        seen = trials.seen

        def is_candidate(sub_network: SubNetwork) -> bool:
            return sub_network not in seen and is_allowed(self.constraints, sub_network)

        self.method.is_candidate = is_candidate
        # One generator a proposal: a resumed search goes on with the sequence of an uninterrupted one.
        rng = np.random.default_rng([self.seed, len(trials.evaluated) + len(trials.running)])
        waiting = iter([*trials.lost, *design])
        method = (_plain(self.method.propose(trials.evaluated, rng)) for _ in range(_PROPOSALS))
        random = (_plain(self.sampler.sample(rng)) for _ in range(_PROPOSALS))
        for source in (waiting, method, random, self._all(rng)):
            for encoding in source:
                sub_network = self.space.decode(encoding)
                if is_candidate(sub_network):
                    return encoding, sub_network
        return None

    def _all(self, rng: np.random.Generator) -> Iterator[Encoding]:
        """All encodings from a random place on, if the space is small enough for that."""
        shape = tuple(len(dimension.choices) for dimension in self.space.dimensions)
        count = math.prod(shape)
        if count <= _ENUMERATED:
            start = int(rng.integers(count))
            for index in range(count):
                yield _plain(np.unravel_index((start + index) % count, shape))


def _plain(encoding: Sequence[int]) -> Encoding:
    # Without numpy's integers, which JSON does not know.
    return tuple(int(index) for index in encoding)


class _Loop:
    def __init__(
        self,
        study: SearchStudy,
        proposals: _Proposals,
        evaluate: Evaluate,
        costs: _Costs,
        race: bool,
        early_stopping: EarlyStopping | None,
    ):
        self.study = study
        self.proposals = proposals
        self.evaluate = evaluate
        self.keep_near = getattr(evaluate, "keep_near", None)
        self.costs = costs
        self.race = race
        self.early_stopping = early_stopping
        # The last trial, if it failed, and by which type of error.
        self.failure: tuple[int, str] | None = None

    def run(self, num_samples: float, max_seconds: float) -> list[Evaluated]:
        trials = self.study.read()
        design = self._design(trials)
        if trials.evaluated:
            logger.info("The search continues after %d evaluations.", len(trials.evaluated))
        total = None if num_samples == math.inf else num_samples
        with tqdm(total=total, desc="Search", unit="net") as bar:
            while True:
                self._show(bar, trials.evaluated)
                spent = sum(trial.seconds for trial in trials.evaluated)
                is_enough = len(trials.evaluated) >= num_samples or spent >= max_seconds
                is_begun = is_enough or len(trials.evaluated) + len(trials.running) >= num_samples
                proposal = None if is_begun else self.proposals.next(trials, design)
                if proposal is not None:
                    trial = self.study.start(*proposal, num_samples)
                    if trial is not None:
                        self._evaluate(trial, *proposal, trials.evaluated, max_seconds - spent)
                elif trials.running and len(trials.evaluated) < num_samples:
                    # If a process dies now, what it was about is evaluated here.
                    time.sleep(_PAUSE)
                else:
                    if not is_enough:
                        logger.warning(
                            "The search space %s has no new sub-network left after %d%s evaluations; the search ends.",
                            self.proposals.space.name,
                            len(trials.evaluated),
                            "" if total is None else f" of {total}",
                        )
                    return trials.evaluated
                trials = self.study.read()

    def _design(self, trials: Trials) -> list[Encoding]:
        design = self.study.design
        if design is None and not trials.evaluated:
            design = self.proposals.design()
            self.study.design = design
        return design or []

    def _show(self, bar: tqdm, evaluated: Sequence[Evaluated]) -> None:
        if bar.n == 0:
            bar.initial = len(evaluated)
        bar.n = len(evaluated) if bar.total is None else min(len(evaluated), bar.total)
        front = _front(evaluated)
        if front:
            best = min(trial.costs[0] for trial in front)
            bar.set_postfix({"front": len(front), f"best {self.costs.objectives[0].name}": f"{best:.4f}"})

    def _evaluate(
        self,
        trial: FrozenTrial,
        encoding: Encoding,
        sub_network: SubNetwork,
        evaluated: Sequence[Evaluated],
        seconds_left: float,
    ) -> None:
        start = time.perf_counter()
        try:
            metrics, rejected = self._measure(trial, sub_network, _front(evaluated), start + seconds_left)
            costs = self.costs.of(sub_network, metrics)
        except (RuntimeError, ArithmeticError) as error:
            self._fail(trial, error)
            return
        except BaseException:
            self.study.leave(trial)
            raise
        self.failure = None
        seconds = time.perf_counter() - start
        self.study.finish(trial, Evaluated(sub_network, encoding, metrics, costs, seconds, rejected))

    def _measure(
        self, trial: FrozenTrial, sub_network: SubNetwork, front: Sequence[Evaluated], end: float
    ) -> tuple[dict[str, float], bool]:
        """The metrics of a sub-network, and whether it was rejected."""
        if self.race:
            outcome = self.evaluate.race(sub_network, self.costs.known(sub_network), front)
            if isinstance(outcome, Rejected):
                return {outcome.metric: outcome.estimate}, True
            return _numbers(outcome), False
        if self.keep_near is not None:
            self.keep_near([other.sub_network for other in front])
        if self.early_stopping is None:
            return _numbers(self.evaluate(sub_network)), False

        def report(level: int, metrics: Mapping[str, float]) -> bool:
            costs = self.costs.of(sub_network, _numbers(metrics))
            others = self.study.report(trial, level, costs)
            return time.perf_counter() < end and not self.early_stopping.stops(level, costs, others)

        return _numbers(self.evaluate(sub_network, report)), False

    def _fail(self, trial: FrozenTrial, error: Exception) -> None:
        kind = type(error).__name__
        reason = f"{kind}: {' '.join(str(error).split())}"
        self.study.fail(trial, reason)
        if self.failure is None or self.failure[1] != kind:
            logger.warning("Candidate %d could not be evaluated (%s); the search goes on.", trial.number, reason)
            self.failure = (trial.number, kind)
            return
        # The cause is hardly theirs, so they get another chance when it is removed.
        self.study.retry([self.failure[0], trial.number])
        raise SearchFailed(
            f"Two candidates in a row could not be evaluated, the last one because of {reason}; remove the cause and "
            "start the search again, which continues with these two."
        ) from error


def _front(evaluated: Sequence[Evaluated]) -> list[Evaluated]:
    whole = [trial for trial in evaluated if not trial.rejected]
    return [whole[index] for index in pareto_indices([trial.costs for trial in whole])]


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
