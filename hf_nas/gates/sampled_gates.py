"""What gates on heads and neurons that are drawn in each pass of a training have in common."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel

from hf_nas.gates.attachment import AttachedGates
from hf_nas.gates.values import GateValues
from hf_nas.structures import SubLayer
from hf_nas.subnetwork import SubNetwork


class SampledGates(AttachedGates):
    """Gates for units of some sub-layers of a model, drawn anew in each pass of a training.

    In evaluation they are deterministic. Unlike with [`UnitGates`] a sub-layer whose gates are all 0 keeps the bias of
    its output projection and its normalisation.

    Args:
        model: of a known family.
        rows: the sub-layers with gates.
        kinds: "heads", "neurons" or both.
        seed: of initial values and draws.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[SubLayer], kinds: Iterable[str], seed: int = 0):
        super().__init__(model, seed)
        self.kinds = tuple(kinds)
        self.names = tuple(row.name for row in rows)
        self.sizes = tuple(row.units for row in rows)

    @abstractmethod
    def scores(self) -> torch.Tensor:
        """What ranks the units, in float32, shape `(units,)`, differentiable."""

    @abstractmethod
    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Multipliers for one pass of a training, shape `(units,)`, differentiable."""

    @abstractmethod
    def deterministic(self) -> torch.Tensor:
        """Multipliers for evaluation, shape `(units,)`."""

    @abstractmethod
    def chosen(self) -> torch.Tensor:
        """Which units stay in the end, booleans of shape `(units,)`."""

    def _gated(self) -> tuple[set[str], set[str], bool]:
        return set(self.names), set(), False

    def clamp(self) -> None:
        """Take note that an optimizer step is over; no value is limited here."""

    @torch.no_grad()
    def values(self, binary: bool = False) -> GateValues:
        """The values in evaluation, without gradient.

        Args:
            binary: whether they are those of [`sub_network`], 1 for what stays and 0 for the rest.
        """
        return self._collect(self.chosen().float() if binary else self.deterministic())

    @torch.no_grad()
    def sub_network(self) -> SubNetwork:
        """The sub-network of the units that stay in the end.

        Raises:
            ValueError: if scores are not finite, since the training diverged.
        """
        if not bool(torch.isfinite(self.scores()).all()):
            raise ValueError("Scores of the gates are not finite, as the training diverged; lower the learning rates.")
        return self._collect(self.chosen().float()).sub_network(self.structure)

    def _collect(self, gates: torch.Tensor) -> GateValues:
        return GateValues(units=dict(zip(self.names, gates.split(self.sizes))))

    def _prepare(self, training: bool) -> GateValues:
        if not self.active:
            return self._collect(1 + 0 * self.scores())
        if not training:
            return self._collect(self.deterministic())
        return self._collect(self.sample(self._next_generator()))
