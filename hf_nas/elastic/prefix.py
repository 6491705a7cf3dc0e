"""The hidden states after leading layers, kept from one sub-network to the next that begins in the same way."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from hf_nas.elastic.supernetwork import SuperNetwork
from hf_nas.structures.base import find_layers
from hf_nas.subnetwork import Kept, SubNetwork


__all__ = ["PrefixCache"]

logger = logging.getLogger(__name__)

# The hooks that transformers leaves on a model that was once asked for hidden states; they do nothing unasked.
_CAPTURING = "transformers.utils.output_capturing"


class _Node:
    """What the first layers keep: one entry for each batch with the hidden states after them."""

    def __init__(self, parent: "_Node | None", kept: tuple[Kept, ...]):
        self.parent = parent
        self.kept = kept
        self.children: dict[tuple[Kept, ...], _Node] = {}
        self.states: dict[Hashable, torch.Tensor] = {}
        self.bytes = 0


class _Identity:
    """A tensor that equals nothing but itself."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.tensor is other.tensor


class PrefixCache:
    """Lets a sub-network start at the first layer in which it differs from those evaluated before.

    Within [`evaluating`] the leading layers of the model that keep the same as in an earlier evaluation return the
    hidden states of that time, batch by batch; embeddings, masks, rotary embeddings and position biases are computed
    by the stock model as usual, so that the outputs are bit-equal to those without the cache. The layers of an
    encoder come before those of its decoder: with the same encoder, its output and leading decoder layers are reused.

    Kept are the layers' outputs themselves, without copies, up to `max_bytes`. Sub-networks form a tree by what their
    layers keep; the leaf that was used longest ago goes first, so that a prefix is never lost before its extensions.
    [`keep_near`] says which ones are worth keeping.

    Changed weights (also in place), another attention implementation or another autocast empty the cache; only a
    change through `parameter.data` cannot be seen, call [`clear`] after one. Nothing is reused, and a log line says
    so, while layers carry hooks or patched forwards of others, are compiled, fill a key-value cache or hand on more
    than hidden states, or while the configuration asks for the hidden states or attentions of all layers.

    Args:
        super_network: whose layers are reused. They must not write into their inputs; those of all known families do
            not.
        max_bytes: bound of the memory of the kept hidden states; 0 turns reuse off.

    Raises:
        ValueError: for a negative bound.
    """

    def __init__(self, super_network: SuperNetwork, max_bytes: int):
        if max_bytes < 0:
            raise ValueError(f"A prefix cache of {max_bytes} bytes is none; give 0 (no cache) or more.")
        self.max_bytes = max_bytes
        self.bytes = 0
        # Layers of forward passes that were returned from the cache and that were computed.
        self.reused = 0
        self.computed = 0
        model = super_network.model
        self._model = model
        self._read_layers(super_network)
        self._modules = list(model.modules())
        self._inside = [module for layer in self._layers for module in layer.modules()]
        self._configs = [module.config for module in self._modules if isinstance(module, PreTrainedModel)]
        # What a layer returns: the number of values in its tuple, or None for the hidden states alone.
        self._returns: list[int | None] = [None] * len(self._layers)
        self._root = _Node(None, ())
        self._recent: OrderedDict[_Node, None] = OrderedDict()  # without the root
        self._state: tuple | None = None
        self._unfit: str | None = None
        self._told: set[str] = set()
        self._path: list[_Node] = []
        self._batch: Hashable = None
        self._start = 0
        self._next = 0

    def _read_layers(self, super_network: SuperNetwork) -> None:
        structure, base = super_network.structure, super_network.model.base_model
        self._layers: list[nn.Module] = []
        self._ends: list[int] = []  # number of layers up to the end of each layer's stack
        self._choices: list[tuple[int, ...]] = []  # positions in SubNetwork.kept
        for stack in structure.family.stacks:
            layers = list(find_layers(base, stack.path) or ())
            self._ends += [len(self._layers) + len(layers)] * len(layers)
            self._layers += layers
            for index in range(len(layers)):
                places = (i for i, s in enumerate(structure) if s.stack == stack.name and s.layer == index)
                self._choices.append(tuple(places))

    def clear(self) -> None:
        """Forget all hidden states."""
        self._root.children.clear()
        for node in self._recent:
            node.states.clear()
        self._recent.clear()
        self.bytes = 0

    def keep_near(self, sub_networks: Iterable[SubNetwork]) -> None:
        """Count the prefixes of these as used just now, the shallow ones of all of them before the deep ones.

        For the sub-networks whose neighbours come next: a search that mutates its front, and says so before each
        evaluation, needs a fraction of the memory for the same reuse.
        """
        paths = []
        for sub_network in sub_networks:
            node, path = self._root, []
            for kept in self._layer_choices(sub_network):
                if kept not in node.children:
                    break
                node = node.children[kept]
                path.append(node)
            paths.append(path)
        for depth in reversed(range(len(self._layers))):
            for path in paths:
                if depth < len(path):
                    self._recent.move_to_end(path[depth])

    @contextmanager
    def evaluating(self, sub_network: SubNetwork) -> Iterator[Callable[[Hashable], None]]:
        """Reuse within the block, in which this sub-network is active and its model in evaluation mode.

        Yields:
            A function to be called with the name of a batch before its one forward pass.
        """
        obstacle = self._unfit if self.max_bytes else "its bound is 0 bytes"
        obstacle = obstacle or self._obstacle()
        if obstacle is not None:
            if self.max_bytes and obstacle not in self._told:
                logger.info("No layers of this %s are reused: %s.", type(self._model).__name__, obstacle)
                self._told.add(obstacle)
            self.clear()
            yield lambda batch: None
            return
        state = self._current_state()
        if state != self._state:
            self.clear()
            self._state = state
        self._path = self._touch(sub_network)
        for index, layer in enumerate(self._layers):
            # An attribute of the instance goes before the method of its class; nn.Module only keeps modules apart.
            layer.__dict__["forward"] = self._stand_in(index, layer)
        try:
            yield self._begin
        finally:
            for layer in self._layers:
                del layer.__dict__["forward"]
            self._prune(self._path)
            self._path, self._batch = [], None

    def _obstacle(self) -> str | None:
        """Why the outputs could differ from those without the cache."""
        if len(set(map(id, self._layers))) < len(self._layers):
            return "one layer is used more than once"
        if any(
            getattr(c, "output_hidden_states", False) or getattr(c, "output_attentions", False) for c in self._configs
        ):
            return "its configuration asks for the hidden states or attentions of all layers"
        if any(module._compiled_call_impl is not None for module in self._modules):
            return "it is compiled"
        for module in self._inside:
            if "forward" in module.__dict__:
                return f"the forward method of a {type(module).__name__} in them is patched"
            hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            if any(getattr(hook, "__module__", None) != _CAPTURING for hook in hooks):
                return f"a {type(module).__name__} in them has hooks"
        if any(tensor.is_inference() for tensor in self._tensors()):
            return "changes of weights that were made in inference mode cannot be seen"
        return None

    def _tensors(self) -> Iterator[torch.Tensor]:
        for module in self._modules:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    yield tensor

    def _current_state(self) -> tuple:
        """What hidden states depend on beside the batch and the sub-network."""
        device = next(self._tensors()).device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        attention = tuple(config._attn_implementation for config in self._configs)
        # With the tensors themselves, so that no other one gets the identity of one that is gone.
        return (autocast, attention, *((_Identity(t), t.data_ptr(), t._version) for t in self._tensors()))

    def _layer_choices(self, sub_network: SubNetwork) -> Iterator[tuple[Kept, ...]]:
        """What each layer keeps."""
        for places in self._choices:
            yield tuple(sub_network.kept[place] for place in places)

    def _touch(self, sub_network: SubNetwork) -> list[_Node]:
        """The nodes after 1, 2, ... layers of a sub-network, now the most recent ones, the shallow before the deep."""
        path, node = [], self._root
        for kept in self._layer_choices(sub_network):
            if kept not in node.children:
                node.children[kept] = _Node(node, kept)
            node = node.children[kept]
            path.append(node)
        for node in reversed(path):
            self._recent[node] = None
            self._recent.move_to_end(node)
        return path

    def _prune(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            if node in self._recent and not node.states and not node.children:
                self._forget(node)

    def _forget(self, node: _Node) -> None:
        del self._recent[node]
        self.bytes -= node.bytes
        node.states.clear()
        node.bytes = 0
        node.parent.children.pop(node.kept, None)

    def _begin(self, batch: Hashable) -> None:
        """Find the layer at which this batch can start."""
        self._batch = batch
        self._next = self._start = 0
        for depth in range(len(self._path) - 1, 0, -1):
            # The output of an encoder counts as well as that of the last decoder layer.
            ends = {min(end, depth) for end in self._ends[:depth]}
            if all(batch in self._path[end - 1].states for end in ends):
                self._start = depth
                break

    def _stand_in(self, index: int, layer: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._batch is None:
                raise RuntimeError("A forward pass was begun without the name of its batch.")
            in_order, self._next = index == self._next, index + 1
            if index < self._start:
                self.reused += 1
                hidden_states = self._path[min(self._start, self._ends[index]) - 1].states[self._batch]
                count = self._returns[index]
                return hidden_states if count is None else (hidden_states, *[None] * (count - 1))
            outputs = type(layer).forward(layer, *args, **kwargs)
            self.computed += 1
            if not in_order:
                self._give_up("its layers are not called once each and in order")
            elif any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
                self._give_up("its layers fill a key-value cache")
            elif self._unfit is None and index + 1 < len(self._path):
                self._record(index, outputs)
            return outputs

        return forward

    def _record(self, index: int, outputs: Any) -> None:
        values = outputs if isinstance(outputs, tuple) else (outputs,)
        if not isinstance(values[0], torch.Tensor) or any(value is not None for value in values[1:]):
            self._give_up("its layers hand on more than hidden states")
            return
        self._returns[index] = len(outputs) if isinstance(outputs, tuple) else None
        node, hidden_states = self._path[index], values[0].detach()
        size = hidden_states.untyped_storage().nbytes()
        # The oldest of all is in the end the deepest of this sub-network: what does not fit is not kept.
        while node in self._recent and self.bytes + size > self.max_bytes:
            self._forget(next(iter(self._recent)))
        if node in self._recent and self._batch not in node.states:
            node.states[self._batch] = hidden_states
            node.bytes += size
            self.bytes += size

    def _give_up(self, reason: str) -> None:
        self.clear()
        self._unfit = reason
