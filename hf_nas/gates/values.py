"""The values of all gates of a model at one moment, and the sub-network that they say."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hf_nas.structures import ModelStructure
from hf_nas.subnetwork import SubNetwork


@dataclass(frozen=True, eq=False)
class GateValues:
    """Multipliers of the units, sub-layers and hidden dimensions of one model; what is not named is multiplied by 1.

    A zero removes. The multiplier of a unit acts on what its sub-layer's output projection reads, that of a sub-layer
    on what its branch adds to the residual stream, the bias of the output projection included, and that of a hidden
    dimension on the residual stream wherever it is written: after the embeddings, on each branch, and, in a model that
    normalises the stream itself, after each normalisation, which takes its statistics over the kept dimensions alone.

    Args:
        units: by sub-layer name, a tensor of shape `(units,)`.
        sub_layers: by sub-layer name, a tensor of one element, best of shape `()`.
        hidden: a tensor of shape `(hidden_size,)`, or None.
    """

    units: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sub_layers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    hidden: torch.Tensor | None = None

    def check(self, structure: ModelStructure) -> None:
        """Raise a `ValueError` unless these are values for a model with this structure."""
        for name in (*self.units, *self.sub_layers):
            if name not in structure.names:
                raise ValueError(
                    f"These gates name the sub-layer {name!r}, which this {structure.model_type} model does not have; "
                    f"it has {structure.names[0]!r} to {structure.names[-1]!r}."
                )
        for name, gate in self.units.items():
            _check_tensor(f"units of {name}", gate, (structure[name].units,))
        for name, gate in self.sub_layers.items():
            if gate.numel() != 1:
                raise ValueError(f"The gate of {name} has {gate.numel()} elements; a sub-layer has one.")
            _check_tensor(name, gate, tuple(gate.shape))
        if self.hidden is not None:
            if not structure.hidden_size:
                raise ValueError(
                    f"The hidden dimensions of this {structure.model_type} model cannot be gated, since its family or "
                    "its task head is not described for that; leave hidden None."
                )
            _check_tensor("hidden dimensions", self.hidden, (structure.hidden_size,))

    def resolved(self) -> "GateValues":
        """The same, where a sub-layer whose units are all 0 is closed too, so that it is skipped and not left a bias.

        CoFi (Xia et al., 2022) means such sub-layers to be gone.
        """
        closed = {
            name: torch.zeros((), dtype=gate.dtype, device=gate.device)
            for name, gate in self.units.items()
            if not bool((gate != 0).any())
        }
        return replace(self, sub_layers={**self.sub_layers, **closed})

    def sub_network(self, structure: ModelStructure) -> SubNetwork:
        """The sub-network that keeps every unit whose value is not 0.

        A sub-layer whose own value is 0 is skipped, with its normalisation. One whose units are all 0 keeps the bias
        of its output projection and its normalisation; see [`GateValues.resolved`].

        Raises:
            ValueError: if these values do not fit the structure.
        """
        self.check(structure)
        kept: dict[str, Any] = {name: _open(gate) for name, gate in self.units.items()}
        kept.update({name: None for name, gate in self.sub_layers.items() if not bool(gate != 0)})
        hidden = None if self.hidden is None else _open(self.hidden)
        return SubNetwork.of(structure, kept, hidden)


def _open(gate: torch.Tensor) -> tuple[int, ...]:
    return tuple(gate.detach().flatten().nonzero().flatten().tolist())


def _check_tensor(what: str, gate: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(gate.shape) != shape:
        raise ValueError(f"The gate of the {what} has shape {tuple(gate.shape)}; give one of shape {shape}.")
    if not bool(torch.isfinite(gate).all()):
        raise ValueError(f"The gate of the {what} holds a value that is not finite; give finite multipliers.")
