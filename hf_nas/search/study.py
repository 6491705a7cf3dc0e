"""The search loop: propose, evaluate, record, until the budget is spent."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_nas.search.journal import SearchStudy, open_study
from hf_nas.search.methods import SearchMethod, get_search_method
from hf_nas.search.objectives import Objective
from hf_nas.search.pareto import pareto_indices
from hf_nas.search.result import Evaluated, SearchResult
from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.space.sampling import Sampler, SizeStratifiedSampler
from hf_nas.subnetwork import SubNetwork


__all__ = ["search"]

logger = logging.getLogger(__name__)

Evaluate = Callable[[SubNetwork], Mapping[str, float]]

# Points of the initial design. It does not depend on the budget, so that a longer search begins with a shorter one.
DESIGN_SIZE = 20
_PROPOSALS = 100
# Spaces up to this size are gone through one by one before they are called exhausted.
_ENUMERATED = 20_000


def search(
    space: SearchSpace,
    evaluate: Evaluate,
    objectives: Sequence[Objective],
    *,
    size: Callable[[SubNetwork], float],
    method: str = "random_search",
    method_options: Mapping[str, Any] | None = None,
    num_samples: int = 100,
    seed: int = 0,
    sampler: Sampler | None = None,
    journal: str | Path | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    reference: Sequence[float] | None = None,
) -> SearchResult:
    """Search a space for the sub-networks with the best trade-offs.

    The first evaluations are the largest and the smallest sub-network and others of evenly spread sizes; then the
    method proposes. No sub-network is evaluated twice, whatever encodings lead to it. With a journal, a search that
    was killed continues where it was when it is called again, and ends in the same result as one that was not; one
    process at a time.

    Args:
        space: the space.
        evaluate: returns the metrics of a sub-network.
        objectives: what to minimise, the error first.
        size: of a sub-network, in any unit, by which the first ones and the random ones are spread.
        method: name of a search method.
        method_options: arguments of that method beside space and sampler.
        num_samples: number of evaluated sub-networks in the end, with those that a journal holds already.
        seed: of all random choices. The n-th proposal depends on it and on the evaluations before, on nothing else.
        sampler: draws random sub-networks; by default every size equally often.
        journal: path of the file in which the search is recorded as it goes, an Optuna journal.
        fingerprint: more facts, in JSON types, that must be the same when a journal is used again: model, data set.
        reference: upper bound of each objective for the hypervolume; by default 1 for the first one and 1.05 for the
            others, so that the full network counts.

    Raises:
        ValueError: for a budget below 1, an unknown method, a reference that does not fit, or a journal of another
            search.
    """
    if num_samples < 1:
        raise ValueError(f"A search of {num_samples} sub-networks is none; num_samples must be 1 or more.")
    names = [objective.name for objective in objectives]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The objectives are named {names}; give one or more, each with its own name.")
    reference = (1.0,) + (1.05,) * (len(names) - 1) if reference is None else tuple(float(b) for b in reference)
    if len(reference) != len(names):
        raise ValueError(f"The reference point {reference} does not fit the objectives {names}; give one bound each.")
    stratified = SizeStratifiedSampler(space, size)
    sampler = stratified if sampler is None else sampler
    search_method = get_search_method(method, space, sampler, **(method_options or {}))
    facts = {**(fingerprint or {}), **_fingerprint(space), "objectives": names}
    with open_study(journal, space, names, facts) as study:
        trials = _Loop(study, space, evaluate, objectives, search_method, sampler, stratified, seed).run(num_samples)
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


class _Loop:
    def __init__(
        self,
        study: SearchStudy,
        space: SearchSpace,
        evaluate: Evaluate,
        objectives: Sequence[Objective],
        method: SearchMethod,
        sampler: Sampler,
        stratified: SizeStratifiedSampler,
        seed: int,
    ):
        self.study = study
        self.space = space
        self.evaluate = evaluate
        self.objectives = objectives
        self.method = method
        self.sampler = sampler
        self.seed = seed
        self.history = study.finished()
        self.seen = {trial.sub_network for trial in self.history}
        # What was under way in a killed process comes first, then what is left of the initial design.
        self.waiting = study.clear_stale()
        design = study.design
        if design is None and not self.history:
            design = self._design(stratified)
            study.design = design
        self.waiting += design or []

    def run(self, num_samples: int) -> list[Evaluated]:
        if self.history:
            logger.info("The search continues after %d of %d evaluations.", len(self.history), num_samples)
        with tqdm(total=num_samples, initial=min(len(self.history), num_samples), desc="Search", unit="net") as bar:
            self._show(bar)
            while len(self.history) < num_samples:
                proposal = self._next()
                if proposal is None:
                    logger.warning(
                        "The search space %s has no new sub-network left after %d of %d evaluations; the search ends.",
                        self.space.name,
                        len(self.history),
                        num_samples,
                    )
                    break
                self._evaluate(*proposal)
                bar.update()
                self._show(bar)
        return self.history

    def _show(self, bar: tqdm) -> None:
        if self.history:
            front = len(pareto_indices([trial.costs for trial in self.history]))
            best = min(trial.costs[0] for trial in self.history)
            bar.set_postfix({"front": front, f"best {self.objectives[0].name}": f"{best:.4f}"})

    @staticmethod
    def _design(stratified: SizeStratifiedSampler) -> list[Encoding]:
        """Largest, smallest, and points of evenly spread sizes, of which the first few are spread already."""
        largest, *points = (_plain(encoding) for encoding in stratified.design(DESIGN_SIZE))
        between = points[1:]
        return [largest, *points[:1], *(between[index] for index in _spread(len(between)))]

    def _next(self) -> tuple[Encoding, SubNetwork] | None:
        """The first proposal that is a new sub-network, None if the space has none."""
        while self.waiting:
            encoding = self.waiting.pop(0)
            sub_network = self.space.decode(encoding)
            if sub_network not in self.seen:
                return encoding, sub_network
        # One generator a proposal: a resumed search goes on with the sequence of an uninterrupted one.
        rng = np.random.default_rng([self.seed, len(self.history)])
        for source in (lambda: self.method.propose(self.history, rng), lambda: self.sampler.sample(rng)):
            for _ in range(_PROPOSALS):
                encoding = _plain(source())
                sub_network = self.space.decode(encoding)
                if sub_network not in self.seen:
                    return encoding, sub_network
        return self._enumerate(rng)

    def _enumerate(self, rng: np.random.Generator) -> tuple[Encoding, SubNetwork] | None:
        """A new sub-network by going through the space from a random place on, if it is small enough for that."""
        shape = tuple(len(dimension.choices) for dimension in self.space.dimensions)
        count = math.prod(shape)
        if count > _ENUMERATED:
            return None
        start = int(rng.integers(count))
        for index in range(count):
            encoding = _plain(np.unravel_index((start + index) % count, shape))
            sub_network = self.space.decode(encoding)
            if sub_network not in self.seen:
                return encoding, sub_network
        return None

    def _evaluate(self, encoding: Encoding, sub_network: SubNetwork) -> None:
        trial = self.study.start(encoding, sub_network)
        try:
            start = time.perf_counter()
            metrics = {name: float(value) for name, value in self.evaluate(sub_network).items()}
            seconds = time.perf_counter() - start
            costs = tuple(_cost(objective, sub_network, metrics) for objective in self.objectives)
        except BaseException:
            self.study.fail(trial)
            raise
        evaluated = Evaluated(sub_network, encoding, metrics, costs, seconds)
        self.study.finish(trial, evaluated)
        self.history.append(evaluated)
        self.seen.add(sub_network)


def _plain(encoding: Sequence[int]) -> Encoding:
    # Without numpy's integers, which JSON does not know.
    return tuple(int(index) for index in encoding)


def _cost(objective: Objective, sub_network: SubNetwork, metrics: Mapping[str, float]) -> float:
    cost = float(objective.cost(sub_network, metrics))
    return math.inf if math.isnan(cost) else cost
