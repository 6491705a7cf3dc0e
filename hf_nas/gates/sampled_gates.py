"""What gates on heads and neurons that are drawn in each pass of a training have in common."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.gates.attachment import Attachment
from hf_nas.gates.values import GateValues
from hf_nas.structures import SubLayer, describe
from hf_nas.subnetwork import SubNetwork


class SampledGates(nn.Module, ABC):
    """Gates for units of some sub-layers of a model, drawn anew in each pass of a training.

    They are attached by hooks; the model keeps its class, its parameters and their names. The draws follow from `seed`
    and their number, as those of [`UnitGates`] do, so that all processes draw the same and a resumed training goes on.
    In evaluation they are deterministic. Unlike with [`UnitGates`] a sub-layer whose gates are all 0 keeps the bias of
    its output projection and its normalisation.

    Args:
        model: of a known family.
        rows: the sub-layers with gates.
        kinds: "heads", "neurons" or both.
        seed: of initial values and draws.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[SubLayer], kinds: Iterable[str], seed: int = 0):
        super().__init__()
        self.structure = describe(model)
        self.kinds = tuple(kinds)
        self.seed = int(seed)
        # Whether the gates act; while they do not, everything is multiplied by 1 and gates get gradients of 0.
        self.active = True
        self.names = tuple(row.name for row in rows)
        self.sizes = tuple(row.units for row in rows)
        self._draws = 0
        self._attachment: Attachment | None = None
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_post_hook(_take_over_counts)

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

    def attach(self, model: PreTrainedModel) -> None:
        """Act on a model from now on: the one that the gates were made for, or one with the same units.

        Raises:
            ValueError: if it has other units, or gates are attached to it already.
        """
        if self._attachment is not None:
            raise ValueError("These gates are attached to a model already; detach them first.")
        SubNetwork.full(self.structure).check(describe(model))
        self._attachment = Attachment(model, self.structure, set(self.names), set(), False, self._prepare)

    def detach(self) -> None:
        """Take all hooks off the model."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def __enter__(self) -> "SampledGates":
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    @property
    def current(self) -> GateValues | None:
        """What the last forward pass multiplied with: gradients flow through it."""
        return None if self._attachment is None else self._attachment.current

    def clamp(self) -> None:
        """Take note that an optimizer step is over; no value is limited here."""

    def parameter_group(self, learning_rate: float) -> dict[str, Any]:
        """The parameters as a group of an optimizer, without weight decay."""
        return {"params": list(self.parameters()), "lr": learning_rate, "weight_decay": 0.0}

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
        self._draws += 1
        self.draws.fill_(self._draws)
        digest = hashlib.sha256(f"{self.seed}/{self._draws}".encode()).digest()
        generator = torch.Generator(device=self.draws.device)
        generator.manual_seed(int.from_bytes(digest[:7], "big"))
        return self._collect(self.sample(generator))

    def _start(self, model: PreTrainedModel) -> None:
        self.to(next(model.base_model.parameters()).device)
        self.attach(model)

    def _take_over_counts(self) -> None:
        self._draws = int(self.draws)


def _take_over_counts(gates: SampledGates, incompatible_keys: object) -> None:
    gates._take_over_counts()
