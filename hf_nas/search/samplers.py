"""The search methods as samplers of any Optuna study."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hf_nas.search.methods import get_search_method
from hf_nas.search.result import Evaluated
from hf_nas.space.base import Dimension, Encoding, SearchSpace
from hf_nas.space.sampling import PublishedSampler
from hf_nas.structures.base import Family, ModelStructure, StackLayout, SubLayer, SubLayerLayout
from hf_nas.subnetwork import Kept, SubNetwork


__all__ = ["ParameterSpace", "SearchMethodSampler"]

Values = float | Sequence[float]

_LAYOUT = SubLayerLayout("feed_forward", (), "", (), (), ())
_FAMILY = Family("parameters", (StackLayout("parameters", "", "", (_LAYOUT,)),))
# Proposals that are known already, until one that is evaluated again.
_PROPOSALS = 20


class ParameterSpace(SearchSpace):
    """A search space of plain parameters, without any model.

    Its sub-networks stand for combinations of parameters: each parameter is a sub-layer of which as many units are
    kept as the index of its choice says.

    Args:
        choices: of each parameter, in their order if they have one.

    Raises:
        ValueError: for a parameter without choices.
    """

    def __init__(self, choices: Mapping[str, Sequence[Any]]):
        self.choices = {name: tuple(values) for name, values in choices.items()}
        sub_layers = [
            SubLayer(name, "parameters", index, "", max(len(values) - 1, 0), 1, False, False, _LAYOUT)
            for index, (name, values) in enumerate(self.choices.items())
        ]
        dimensions = [Dimension(name, tuple(range(len(values)))) for name, values in self.choices.items()]
        super().__init__("parameters", ModelStructure(_FAMILY, tuple(sub_layers)), dimensions)

    def to_kept(self, values: np.ndarray) -> Mapping[str, Kept]:
        return dict(zip(self.choices, values.tolist()))

    def to_values(self, sub_network: SubNetwork) -> Sequence[int]:
        return [count or 0 for count in sub_network.counts()]

    def parameters(self, sub_network: SubNetwork) -> dict[str, Any]:
        """The values of the parameters that a sub-network stands for."""
        return {
            name: values[index] for (name, values), index in zip(self.choices.items(), self.to_values(sub_network))
        }


class SearchMethodSampler(optuna.samplers.BaseSampler):
    """Makes a search method of hf-nas the sampler of an Optuna study, of whatever it optimises.

    The study may have any number of objectives, each to minimise or maximise; its parameters are integers or
    categories (in a meaningful order, if there is one: they are taken as ordered). Trials that failed or were pruned
    tell the method nothing but are not repeated. Parameters that only some trials have are drawn at random.

    Args:
        method: name of a search method.
        known_costs: of a dictionary of all parameters in `search_space`, the values of all objectives but the first,
            which then must be those that the trials return; needed by `model_based`.
        search_space: distributions of the parameters; by default those that all finished trials have.
        reference: worst value of each objective that counts for the hypervolume.
        n_startup_trials: number of finished trials before the method is asked; the first ones are drawn at random.
            Better ones, such as the extremes, can be given with `study.enqueue_trial`.
        seed: of all random choices; the proposal depends on it, the number of the trial and the trials finished.
        method_options: further arguments of the method.

    Raises:
        ValueError: for an unknown method or option, or parameters of another kind.
    """

    def __init__(
        self,
        method: str = "model_based",
        *,
        known_costs: Callable[[dict[str, Any]], Values] | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        reference: Sequence[float] | None = None,
        n_startup_trials: int = 10,
        seed: int | None = None,
        method_options: Mapping[str, Any] | None = None,
    ):
        get_search_method(method, None, None, **(method_options or {}))
        self._method_name = method
        self._method_options = dict(method_options or {})
        self._known_costs = known_costs
        self._search_space = None if search_space is None else dict(search_space)
        for name, distribution in (self._search_space or {}).items():
            _choices(name, distribution)
        self._reference = reference
        self._n_startup_trials = n_startup_trials
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._intersection = IntersectionSearchSpace()
        self._random = optuna.samplers.RandomSampler(seed=self._seed)
        # Of the parameters that it was made for; methods keep costly intermediate results.
        self._built: tuple[Any, Any] | None = None

    def reseed_rng(self) -> None:
        """Let a copy of the sampler in another thread or process draw other numbers."""
        self._seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._random.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The distributions of the parameters that the method proposes together."""
        found = self._intersection.calculate(study) if self._search_space is None else self._search_space
        return {name: distribution for name, distribution in found.items() if not distribution.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters that the method proposes; none as long as too few trials are finished."""
        if not search_space:
            return {}
        choices = {name: _choices(name, distribution) for name, distribution in search_space.items()}
        signs = [1 if direction == StudyDirection.MINIMIZE else -1 for direction in study.directions]
        key = (choices, signs)
        if self._built is None or self._built[0] != key:
            self._built = (key, self._build(choices, signs, self._fixed(search_space)))
        space, method = self._built[1]
        history = self._history(study, space, signs)
        if len(history) < self._n_startup_trials:
            return {}
        # Whatever became of them, and what other workers are at.
        others = (
            _encoding(space, other.params)
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number
        )
        seen = {space.decode(encoding) for encoding in others if encoding is not None}
        method.is_candidate = lambda sub_network: sub_network not in seen
        rng = np.random.default_rng([self._seed, trial.number])
        for _ in range(_PROPOSALS):
            sub_network = space.decode(method.propose(history, rng))
            if sub_network not in seen:
                break
        return space.parameters(sub_network)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for the first trials and for parameters that not all trials have."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _fixed(self, search_space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """The only value of each parameter that has one."""
        given = self._search_space or {}
        return {name: _choices(name, given[name])[0] for name in given if name not in search_space}

    def _build(
        self, choices: Mapping[str, Sequence[Any]], signs: Sequence[int], fixed: Mapping[str, Any]
    ) -> tuple[ParameterSpace, Any]:
        space = ParameterSpace(choices)

        def known_costs(sub_network: SubNetwork) -> tuple[float, ...]:
            values = np.atleast_1d(self._known_costs({**fixed, **space.parameters(sub_network)}))
            if len(values) != len(signs) - 1:
                raise ValueError(
                    f"known_costs returned {len(values)} values for a study of {len(signs)} objectives; return one "
                    "for each objective but the first."
                )
            return tuple(float(value) * sign for value, sign in zip(values, signs[1:]))

        reference = self._reference
        if reference is not None:
            if len(reference) != len(signs):
                raise ValueError(
                    f"The reference {list(reference)} does not fit {len(signs)} objectives; give one each."
                )
            reference = [bound * sign for bound, sign in zip(reference, signs)]
        method = get_search_method(
            self._method_name,
            space,
            PublishedSampler(space),
            known_costs=None if self._known_costs is None else known_costs,
            reference=reference,
            **self._method_options,
        )
        return space, method

    @staticmethod
    def _history(study: optuna.Study, space: ParameterSpace, signs: Sequence[int]) -> list[Evaluated]:
        history = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            encoding = _encoding(space, trial.params)
            if encoding is not None:
                costs = tuple(value * sign for value, sign in zip(trial.values, signs))
                history.append(Evaluated(space.decode(encoding), encoding, {}, costs))
        return history


def _choices(name: str, distribution: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return tuple(range(distribution.low, distribution.high + 1, distribution.step))
    raise ValueError(
        f"Parameter {name!r} has a {type(distribution).__name__}, but search methods choose among integers or "
        "categories; suggest it as one of these."
    )


def _encoding(space: ParameterSpace, parameters: Mapping[str, Any]) -> Encoding | None:
    """The encoding of a trial, None for one with parameters or values of its own (enqueued by hand)."""
    try:
        return tuple(values.index(parameters[name]) for name, values in space.choices.items())
    except (KeyError, ValueError):
        return None
