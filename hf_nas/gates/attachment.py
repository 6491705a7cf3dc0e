"""The hooks by which gates act on a stock model, what they currently multiply with, and what all such gates share."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hf_nas.bypass import first_argument
from hf_nas.gates.hidden import masked_layer_norm, stream_norms
from hf_nas.gates.values import GateValues
from hf_nas.structures import ModelStructure, SubLayer, describe
from hf_nas.subnetwork import SubNetwork


def resolve(values: GateValues) -> GateValues:
    """Close the sub-layers whose units are all 0, as [`GateValues.resolved`] does, differentiably and without a sync.

    Every sub-layer that has gated units gets a gate of its own by this.
    """
    sub_layers = dict(values.sub_layers)
    for name, units in values.units.items():
        alive = (units != 0).any().to(units.dtype)
        sub_layers[name] = sub_layers[name].reshape(()) * alive if name in sub_layers else alive
    return GateValues(units=values.units, sub_layers=sub_layers, hidden=values.hidden)


class _Hook:
    """A hook that does nothing in a copy of the model, which is a model without gates."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)

    def __deepcopy__(self, memo: dict) -> Callable:
        return _nothing


def _nothing(*args: object) -> None:
    return None


class Attachment:
    """Hooks on one model that multiply by `current`. A copy of that model is one without gates.

    The gate of a unit acts on what the output projection reads, that of a sub-layer on what it adds to the residual
    stream: on what the output projection writes, bias included, or, where a normalisation follows that would undo it
    (Gemma), on what that one writes. Where the gate of a sub-layer is 0 and the sum with the stream is normalised, its
    output is its input, chosen by `torch.where`: no branch on a value, so every parameter takes part in every pass.

    Args:
        model: to attach to.
        structure: of the model.
        units: names of the sub-layers with gated units.
        sub_layers: names of the sub-layers with gates of their own or by their units.
        hidden: whether the hidden dimensions have gates.
        prepare: called at the beginning of each pass with whether the model trains; returns resolved values.

    Raises:
        ValueError: if gates are attached to the model already or its hidden dimensions cannot have any.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        structure: ModelStructure,
        units: set[str],
        sub_layers: set[str],
        hidden: bool,
        prepare: Callable[[bool], GateValues],
    ):
        base = model.base_model
        if any(isinstance(hook, _Hook) for hook in base._forward_pre_hooks.values()):
            raise ValueError(f"Gates are attached to this {type(model).__name__} already; detach them first.")
        embedding_norms, norms = stream_norms(model, structure) if hidden else ((), ())
        self.current: GateValues | None = None
        self._first_layers = [base.get_submodule(s.path) for s in structure if s.layer == 0]
        self._prepare = prepare
        self._handles: list[RemovableHandle] = []
        self._before(base, self._begin)
        self._attach_to_parts(base, structure)
        for sub_layer in structure:
            if not (sub_layer.skipped or sub_layer.norm_only):
                self._attach(base, sub_layer, sub_layer.name in units, sub_layer.name in sub_layers, hidden)
        for norm in embedding_norms:
            self._after(norm, self._normalise_embeddings)
        for norm in norms:
            self._after(norm, self._normalise)
        # After the norms' hooks, which it may undo.
        for sub_layer in structure:
            if sub_layer.name in sub_layers and sub_layer.layout.norm_only:
                self._attach_identity(base, sub_layer)

    def __deepcopy__(self, memo: dict) -> None:
        return None

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.current = None

    def _before(self, module: nn.Module, function: Callable) -> None:
        self._handles.append(module.register_forward_pre_hook(_Hook(function)))

    def _after(self, module: nn.Module, function: Callable) -> None:
        self._handles.append(module.register_forward_hook(_Hook(function)))

    def _attach_to_parts(self, base: nn.Module, structure: ModelStructure) -> None:
        """In evaluation, a stack may be called without the model around it (the encoder in generation)."""
        if len(structure.family.stacks) == 1:
            return

        def begin(module: nn.Module, args: tuple) -> None:
            if not module.training:
                self._begin(module, args)

        for stack in structure.family.stacks:
            path = stack.path.rpartition(".")[0]
            if structure.stack(stack.name):
                self._before(base.get_submodule(path), begin)

    @torch.compiler.disable
    def _begin(self, module: nn.Module, args: tuple) -> None:
        # Outside of the layers, so that gradient checkpointing recomputes them with the same values.
        if module.training and any(_checkpoints_reentrantly(layer) for layer in self._first_layers):
            raise ValueError(
                "Gradient checkpointing runs with use_reentrant=True, which cannot take gradients of gates that all "
                'layers share; set gradient_checkpointing_kwargs={"use_reentrant": False}.'
            )
        self.current = self._prepare(module.training)

    def _attach(self, base: nn.Module, sub_layer: SubLayer, units: bool, whole: bool, hidden: bool) -> None:
        name, features = sub_layer.name, sub_layer.features

        def multiply_units(module: nn.Module, args: tuple) -> tuple:
            inputs = args[0]
            gate = self.current.units[name].to(inputs)
            if features > 1:
                gate = gate[:, None].expand(-1, features).reshape(-1)
            return (inputs * gate, *args[1:])

        def multiply_branch(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            if whole:
                output = output * self.current.sub_layers[name].to(output)
            return output * self.current.hidden.to(output) if hidden else output

        if units:
            self._before(sub_layer.module(base, sub_layer.layout.reader), multiply_units)
        if whole or hidden:
            self._after(sub_layer.module(base, sub_layer.layout.branch_end), multiply_branch)

    def _attach_identity(self, base: nn.Module, sub_layer: SubLayer) -> None:
        name = sub_layer.name
        for path, kind in sub_layer.layout.bypass:
            # A closed branch gives zeros already, and the first half of a feed-forward network does no harm.
            if kind.endswith("zeros") or (kind == "identity" and path not in sub_layer.layout.norms):
                continue

            def choose(module: nn.Module, args: tuple, kwargs: dict, output, kind: str = kind):
                normal = output[0] if isinstance(output, tuple) else output
                residual = args[1] if kind == "residual" else first_argument(args, kwargs)
                closed = self.current.sub_layers[name].to(normal.device) == 0
                chosen = torch.where(closed, residual.to(normal.dtype), normal)
                return (chosen, *output[1:]) if isinstance(output, tuple) else chosen

            module = sub_layer.module(base, path)
            self._handles.append(module.register_forward_hook(_Hook(choose), with_kwargs=True))

    def _normalise(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return masked_layer_norm(args[0], module, self.current.hidden.to(output.device)).to(output.dtype)

    def _normalise_embeddings(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        gate = self.current.hidden.to(output.device)
        return masked_layer_norm(args[0].float() * gate, module, gate).to(output.dtype)


def _checkpoints_reentrantly(layer: nn.Module) -> bool:
    function = getattr(layer, "_gradient_checkpointing_func", None)
    active = getattr(layer, "gradient_checkpointing", False)
    return bool(active and getattr(function, "keywords", {}).get("use_reentrant", False))


class AttachedGates(nn.Module, ABC):
    """A module of gates that acts on a stock model by hooks; the model keeps its class, parameters and their names.

    Random draws follow from `seed` and their number, so that all processes of a distributed training draw the same
    gates and a resumed one goes on with the draws it would have made; the number is part of the state dict.

    The gates are a module of their own. To be saved, and reduced in distributed training, with the model they must be
    registered with whatever the `Trainer` wraps; all of their parameters take part in every forward pass.

    Args:
        model: of a known family.
        seed: of initial values and draws.
    """

    def __init__(self, model: PreTrainedModel, seed: int = 0):
        super().__init__()
        self.structure: ModelStructure = describe(model)
        self.seed = int(seed)
        # Whether the gates act; while they do not, everything is multiplied by 1 and gates get gradients of 0.
        self.active = True
        self._draws = 0
        self._attachment: Attachment | None = None
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_post_hook(_take_over_counts)

    @abstractmethod
    def _gated(self) -> tuple[set[str], set[str], bool]:
        """The sub-layers with gated units, those that a gate closes, and whether hidden dimensions have gates."""

    @abstractmethod
    def _prepare(self, training: bool) -> GateValues:
        """What a pass multiplies with, drawn anew where the model trains."""

    def attach(self, model: PreTrainedModel) -> None:
        """Act on a model from now on: the one that the gates were made for, or one with the same units.

        Raises:
            ValueError: if it has other units, or gates are attached to it already.
        """
        if self._attachment is not None:
            raise ValueError("These gates are attached to a model already; detach them first.")
        SubNetwork.full(self.structure).check(describe(model))
        self._attachment = Attachment(model, self.structure, *self._gated(), self._prepare)

    def detach(self) -> None:
        """Take all hooks off the model."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def __enter__(self) -> "AttachedGates":
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    @property
    def current(self) -> GateValues | None:
        """What the last forward pass multiplied with: gradients flow through it; closed sub-layers are 0 in it."""
        return None if self._attachment is None else self._attachment.current

    def penalty(self) -> torch.Tensor | None:
        """What the loss of a training is to be raised by, shape `()`; None for gates that cost nothing themselves."""
        return None

    def parameter_group(self, learning_rate: float) -> dict[str, Any]:
        """All parameters as a group of an optimizer, without weight decay."""
        return {"params": list(self.parameters()), "lr": learning_rate, "weight_decay": 0.0}

    def _start(self, model: PreTrainedModel) -> None:
        """Move to the model's device and act on it; the last thing that an initialisation does."""
        self.to(next(model.base_model.parameters()).device)
        self.attach(model)

    def _next_generator(self) -> torch.Generator:
        """Of the random numbers of the next draw, which is counted."""
        self._draws += 1
        self.draws.fill_(self._draws)
        digest = hashlib.sha256(f"{self.seed}/{self._draws}".encode()).digest()
        generator = torch.Generator(device=self.draws.device)
        generator.manual_seed(int.from_bytes(digest[:7], "big"))
        return generator

    def _take_over_counts(self) -> None:
        """A state dict was loaded."""
        self._draws = int(self.draws)


def _take_over_counts(gates: AttachedGates, incompatible_keys: object) -> None:
    gates._take_over_counts()
