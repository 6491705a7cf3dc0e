"""Expected hypervolume improvement with a model of every objective, by Optuna."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution

from hf_nas.search.methods.base import SearchMethod
from hf_nas.search.result import Evaluated
from hf_nas.space.base import Encoding


__all__ = ["ExpectedHypervolumeImprovement"]

_MOST_DIMENSIONS = 200
# Of a dimension; with more it is continuous for Optuna, which finds the same maximum by gradients in a third of the
# time.
_MOST_STEPS = 32
# From one place and of one length.
_FEWEST_WALKS = 20


class ExpectedHypervolumeImprovement(SearchMethod):
    """Optuna's `GPSampler`: a Gaussian process an objective, and the largest expected hypervolume improvement (log).

    For costs of which none is known before the evaluation. It takes seconds a proposal; where all costs but the first
    are known, `model_based` is as good and takes a tenth of a second.

    The models know neither limits nor that a sub-network is not evaluated twice, and would propose the same again and
    again, for seconds each. So where the search does not take the proposal, one close to it is proposed.
    """

    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        """The next encoding to evaluate.

        Raises:
            ValueError: for a space with too many dimensions for this method.
        """
        names = [f"{index}" for index in range(len(self.space.dimensions))]
        distributions = {
            name: _distribution(len(dimension.choices))
            for name, dimension in zip(names, self.space.dimensions)
            if len(dimension.choices) > 1
        }
        if len(distributions) > _MOST_DIMENSIONS:
            raise ValueError(
                f"The search method ehvi models each of the {len(distributions)} dimensions of space "
                f"{self.space.name!r}, which takes too long above {_MOST_DIMENSIONS}; choose model_based."
            )
        finite = [trial for trial in history if np.isfinite(trial.costs).all()]
        if len(finite) < 2 or not distributions:
            return self.sampler.sample(rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            gaussian_process = optuna.samplers.GPSampler(seed=int(rng.integers(2**32)), n_startup_trials=2)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(directions=["minimize"] * len(finite[0].costs), sampler=gaussian_process)
            study.add_trials(
                [
                    optuna.trial.create_trial(
                        params={name: trial.encoding[int(name)] for name in distributions},
                        distributions=distributions,
                        values=trial.costs,
                    )
                    for trial in finite
                ]
            )
            chosen = study.ask(distributions).params
        finally:
            optuna.logging.set_verbosity(verbosity)
        proposal = tuple(round(chosen.get(name, 0)) for name in names)
        seen = {trial.sub_network for trial in history}
        for encoding in self._close_to(proposal, finite, rng):
            sub_network = self.space.decode(encoding)
            if sub_network not in seen and (self.is_candidate is None or self.is_candidate(sub_network)):
                return encoding
        # Without any new candidate the search itself looks for what is left.
        return self.sampler.sample(rng)

    def _close_to(
        self, proposal: Encoding, evaluated: Sequence[Evaluated], rng: np.random.Generator
    ) -> Iterator[Encoding]:
        """A proposal and encodings around it, roughly from near to far."""
        yield proposal
        yield from self._walks(proposal, 1, rng)
        # What was evaluated is within all limits, so that on the way there they are met.
        ranges = np.maximum([len(dimension.choices) - 1 for dimension in self.space.dimensions], 1)
        distances = [np.abs(np.subtract(trial.encoding, proposal) / ranges).sum() for trial in evaluated]
        target = evaluated[int(np.argmin(distances))].encoding
        encoding = list(proposal)
        for dimension in rng.permutation(len(encoding)):
            encoding[dimension] = int(target[dimension])
            yield tuple(encoding)
        steps = 2
        while steps <= ranges.sum():
            yield from self._walks(proposal, steps, rng)
            yield from self._walks(target, steps, rng)
            steps *= 2

    def _walks(self, start: Sequence[int], steps: int, rng: np.random.Generator) -> Iterator[Encoding]:
        """Encodings, each by so many random steps to a neighbouring choice."""
        last = np.array([len(dimension.choices) - 1 for dimension in self.space.dimensions])
        for _ in range(max(_FEWEST_WALKS, 2 * len(last))):
            encoding = np.array(start)
            for dimension, step in zip(rng.integers(len(last), size=steps), rng.choice((-1, 1), size=steps)):
                encoding[dimension] = min(max(encoding[dimension] + step, 0), last[dimension])
            yield tuple(encoding.tolist())


def _distribution(num_choices: int) -> IntDistribution | FloatDistribution:
    return (IntDistribution if num_choices <= _MOST_STEPS else FloatDistribution)(0, num_choices - 1)
