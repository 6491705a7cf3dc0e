"""What a search method is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from hf_nas.search.result import Evaluated
from hf_nas.space.base import Encoding, SearchSpace
from hf_nas.space.sampling import Sampler
from hf_nas.subnetwork import SubNetwork


__all__ = ["KnownCosts", "SearchMethod"]

# The costs of a sub-network that need no evaluation: all objectives but the first, in their order.
KnownCosts = Callable[[SubNetwork], Sequence[float]]


class SearchMethod(ABC):
    """Proposes sub-networks. A method keeps no state of its own, so that a search resumes from its trials alone.

    Args:
        space: to search.
        sampler: draws sub-networks where the method needs random ones.
    """

    # Whether proposals need `known_costs`.
    needs_known_costs = False
    # Set by `get_search_method` where the search knows them: the costs that need no evaluation, and the upper bound of
    # each objective for the hypervolume.
    known_costs: KnownCosts | None = None
    reference: tuple[float, ...] | None = None
    # Set by the search before each proposal: which sub-networks it would take. It leaves out what is evaluated
    # elsewhere, what failed and what exceeds a limit. A method that chooses among many candidates heeds it; another
    # one is asked again.
    is_candidate: Callable[[SubNetwork], bool] | None = None

    def __init__(self, space: SearchSpace, sampler: Sampler):
        self.space = space
        self.sampler = sampler

    @abstractmethod
    def propose(self, history: Sequence[Evaluated], rng: np.random.Generator) -> Encoding:
        """The next encoding to evaluate.

        It is asked again, with the same generator further on, when the proposal was evaluated before.

        Args:
            history: all evaluated sub-networks, in order of evaluation. The costs of those that were `rejected` early
                are estimates.
            rng: the only source of randomness.
        """

    def expected_costs(self, history: Sequence[Evaluated]) -> np.ndarray:
        """The costs by which to tell the best apart: as recorded, unless the method knows which of them are luck.

        Args:
            history: all evaluated sub-networks.

        Returns:
            Of shape (sub-networks, objectives).
        """
        return np.array([trial.costs for trial in history], dtype=float)
