"""The default search method: a model of the error alone, and the exact costs of everything else."""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from hf_nas.search.gaussian_process import GaussianProcess, Hyperparameters
from hf_nas.search.improvement import Improvement
from hf_nas.search.methods.base import SearchMethod
from hf_nas.search.methods.candidates import breed
from hf_nas.search.methods.evolution import NSGA2, best_first
from hf_nas.search.pareto import pareto_indices
from hf_nas.search.result import Evaluated
from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.space.sampling import Sampler
from hf_nas.subnetwork import SubNetwork


__all__ = ["ModelBasedSearch"]

logger = logging.getLogger(__name__)

_FEWEST_FITTED = 4
_GROWTH = 1.1
# Up to this many dimensions each one is a feature of the model; else each sub-layer is, or projections of them.
_MOST_FEATURES = 100
_PROJECTIONS = 64
_PARENTS = 20
_DRAWN = 16
_ROUNDS = 2
_ELITE = 10


class ModelBasedSearch(SearchMethod):
    """Bayesian optimisation of the error, with every other cost known exactly before the evaluation.

    A Gaussian process predicts the error; the other costs of a candidate are computed. The proposal is the candidate
    with the largest expected hypervolume improvement ([`hf_nas.search.improvement.Improvement`]) among some hundred
    children of the best sub-networks, random draws, and children of the most promising of these.

    The features of the model are the known costs, which tell the trend after a few evaluations, and the choices, all
    scaled to the unit interval. In a space with more than 100 dimensions, such as one of single units, the choices are
    replaced by the shares of units that each sub-layer keeps (with more than 100 sub-layers, 64 random projections of
    these): the model then tells by how much each sub-layer is cut, not which of its units stay.

    The hyper-parameters are fitted again whenever the number of evaluations has grown by a tenth, each time from those
    before. They depend on the history alone; a resumed search recomputes them in seconds.

    Args:
        space: to search.
        sampler: draws the first sub-networks and some of the candidates.
        most_evaluations: number of evaluations beyond which the method goes on as steady-state NSGA-II, since the cost
            of the model grows with the third power of it.
        candidates: number of candidates a proposal, fewer in spaces of more than 100 dimensions.

    Raises:
        ValueError: for fewer than 2 evaluations or 20 candidates, and on the first proposal, if the costs beside the
            first one are not known.
    """

    needs_known_costs = True

    def __init__(self, space: SearchSpace, sampler: Sampler, most_evaluations: int = 500, candidates: int = 700):
        super().__init__(space, sampler)
        for name, value, least in (("most_evaluations", most_evaluations, 2), ("candidates", candidates, 20)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"The {name} of model_based is {value!r}; give a whole number of {least} or more.")
        self.most_evaluations = most_evaluations
        self.candidates = candidates
        self._beyond = NSGA2(space, sampler)
        self._is_beyond = False
        # Of the smallest and the largest sub-network.
        self._known_bounds: np.ndarray | None = None
        # By number of trials: what the hyper-parameters were fitted to, and themselves.
        self._fits: dict[int, tuple[bytes, Hyperparameters]] = {}

    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        if self.known_costs is None:
            raise ValueError(
                "The search method model_based needs all costs but the first before the evaluation, and they are not "
                "known; choose ehvi or nsga2, or give get_search_method the function known_costs."
            )
        finite = [trial for trial in history if np.isfinite(trial.costs).all()]
        if sum(not trial.rejected for trial in finite) < 2 or self._num_choices().max() < 2:
            return self.sampler.sample(rng)
        if len(finite) > self.most_evaluations:
            if not self._is_beyond:
                logger.info(
                    "After %d evaluations the search goes on with nsga2, which needs no model.", self.most_evaluations
                )
                self._is_beyond = True
            return self._beyond.propose(history, rng)
        model, expected = self._smooth(finite)
        # Both by what the model makes of noisy errors: to a recorded front, lucky ones leave nothing to improve.
        whole = expected[[not trial.rejected for trial in finite]]
        improvement = Improvement(whole[pareto_indices(whole)], self._bound(whole))
        order = best_first(expected)[: max(_PARENTS, len(pareto_indices(expected)))]
        parents = np.array([finite[index].encoding for index in order])
        return self._search(parents, {trial.sub_network for trial in history}, model, improvement, rng)

    def expected_costs(self, history: Sequence[Evaluated]) -> np.ndarray:
        """The recorded costs, of which the error is replaced by what the model makes of it.

        On a small selection set the lowest errors are partly luck. A front by these costs keeps fewer lucky ones; on
        a large one, where there is no noise, the costs are the recorded ones up to a small difference.

        Args:
            history: all evaluated sub-networks; without a model (with fewer than two of finite costs, or too many) the
                costs are as recorded.

        Returns:
            Of shape (sub-networks, objectives).
        """
        costs = super().expected_costs(history)
        finite = np.flatnonzero(np.isfinite(costs).all(axis=1)) if len(costs) else np.empty(0, dtype=int)
        if self.known_costs is not None and 2 <= len(finite) <= self.most_evaluations:
            costs[finite] = self._smooth([history[index] for index in finite])[1]
        return costs

    def _smooth(self, trials: Sequence[Evaluated]) -> tuple[GaussianProcess, np.ndarray]:
        """The model of trials with finite costs, and their costs with the errors that it expects."""
        costs = np.array([trial.costs for trial in trials])
        features = self._features(
            [trial.encoding for trial in trials], [trial.sub_network for trial in trials], costs[:, 1:]
        )
        model = self._model(features, costs[:, 0])
        return model, np.column_stack([model.predict(features)[0], costs[:, 1:]])

    def _search(
        self,
        parents: np.ndarray,
        seen: set[SubNetwork],
        model: GaussianProcess,
        improvement: Improvement,
        rng: np.random.Generator,
    ) -> Encoding:
        """The new candidate of the largest expected improvement."""
        num_choices = self._num_choices()
        count = max(20, self.candidates * _MOST_FEATURES // max(len(num_choices), _MOST_FEATURES))
        if np.log(num_choices).sum() <= np.log(count):
            pool = _encodings(np.indices(num_choices).reshape(len(num_choices), -1).T)
        else:
            drawn = [self.sampler.sample(rng) for _ in range(min(_DRAWN, count // 4))]
            pool = [*drawn, *_encodings(breed(parents, num_choices, count * 4 // 7, rng))]
        # By encoding, so that none is computed twice.
        promise: dict[Encoding, float] = {}
        considered: set[SubNetwork] = set(seen)
        for round_index in range(_ROUNDS + 1):
            new = []
            for encoding in pool:
                if encoding not in promise:
                    promise[encoding] = -np.inf
                    sub_network = self.space.decode(encoding)
                    if sub_network not in considered:
                        considered.add(sub_network)
                        if self.is_candidate is None or self.is_candidate(sub_network):
                            new.append((encoding, sub_network))
            if new:
                encodings, sub_networks = zip(*new)
                known = np.array([self.known_costs(each) for each in sub_networks], dtype=float)
                finite = np.isfinite(known).all(axis=1)
                known[~finite] = 0
                gains = improvement(*model.predict(self._features(encodings, sub_networks, known)), known)
                promise.update(zip(encodings, np.where(finite, gains, -np.inf).tolist()))
            elite = sorted(promise, key=promise.__getitem__, reverse=True)[:_ELITE]
            if round_index < _ROUNDS:
                pool = _encodings(breed(np.array(elite), num_choices, count * 3 // 14, rng))
        # Without any new candidate the search itself looks for what is left.
        return elite[0] if promise[elite[0]] > -np.inf else self.sampler.sample(rng)

    def _num_choices(self) -> np.ndarray:
        return np.array([len(dimension.choices) for dimension in self.space.dimensions])

    def _model(self, features: np.ndarray, errors: np.ndarray) -> GaussianProcess:
        hyperparameters = Hyperparameters.prior(features.shape[1])
        size = _FEWEST_FITTED
        while size <= len(errors):
            data = features[:size].tobytes() + errors[:size].tobytes()
            digest = hashlib.blake2b(data, digest_size=16).digest()
            if self._fits.get(size, (b"",))[0] != digest:
                fitted = GaussianProcess.fit(features[:size], errors[:size], hyperparameters)
                self._fits[size] = digest, fitted.hyperparameters
            hyperparameters = self._fits[size][1]
            size = max(size + 1, int(size * _GROWTH))
        return GaussianProcess(features, errors, hyperparameters)

    def _features(
        self, encodings: Sequence[Encoding], sub_networks: Sequence[SubNetwork], known: np.ndarray
    ) -> np.ndarray:
        """Of shape (sub-networks, features), mostly in the unit cube."""
        if self._known_bounds is None:
            bounds = np.array([self.known_costs(each) for each in (self.space.smallest, self.space.largest)], float)
            self._known_bounds = np.where(np.isfinite(bounds), bounds, 0)
        lowest, highest = self._known_bounds
        known = (known - lowest) / np.where(highest > lowest, highest - lowest, 1)
        return np.hstack([self._choice_features(encodings, sub_networks), known])

    def _choice_features(self, encodings: Sequence[Encoding], sub_networks: Sequence[SubNetwork]) -> np.ndarray:
        num_choices = self._num_choices()
        if len(num_choices) <= _MOST_FEATURES:
            return np.array(encodings)[:, num_choices > 1] / (num_choices[num_choices > 1] - 1)
        units = np.maximum(sub_networks[0].units, 1)
        shares = np.array([[count or 0 for count in each.counts()] for each in sub_networks]) / units
        if len(units) <= _MOST_FEATURES:
            return shares
        directions = np.random.default_rng(0).normal(size=(len(units), _PROJECTIONS))
        # Of weights with absolute sum one, so that projections of the unit cube stay in it.
        return 0.5 + (shares - 0.5) @ (directions / np.abs(directions).sum(axis=0))

    def _bound(self, costs: np.ndarray) -> np.ndarray:
        """The reference of the search; where no evaluated sub-network is below it, or none is set, one of our own."""
        if self.reference is not None and (costs < np.asarray(self.reference)).all(axis=1).any():
            return np.asarray(self.reference)
        front = costs[pareto_indices(costs)]
        lowest, highest = front.min(axis=0), front.max(axis=0)
        return highest + 0.1 * np.where(highest > lowest, highest - lowest, np.maximum(np.abs(highest), 1e-9))


def _encodings(indices: np.ndarray) -> list[Encoding]:
    return [tuple(row) for row in indices.tolist()]
