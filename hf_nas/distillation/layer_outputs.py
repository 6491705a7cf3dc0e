"""The outputs of the layers of a stock model, by hooks, and which layers and positions of them count."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.distillation.losses import IGNORED_LABEL
from hf_nas.structures import ModelStructure, family_of
from hf_nas.structures.base import find_layers


class LayerOutputs:
    """Collects what each layer gives in the forward passes within a `with` block.

    Unlike `output_hidden_states` it takes only the stacks asked for, asks nothing of the model's signature, has the
    last layer before the final norm of its stack, and does not lose layers that are skipped from inside. A model
    costs nothing outside of the block. Hooks that change the output of a whole layer have to be on it before.

        with LayerOutputs(student) as outputs:
            loss = student(**inputs).loss
        hidden_states = outputs["encoder"]

    Several passes in one block leave the states of the last one.

    Args:
        model: of a known family; not its wrapper for data parallelism, but the forward pass may go through that.
        stacks: names of the layer lists: `"encoder"`, `"decoder"`; by default all that the model has.

    Raises:
        ValueError: if it is no such model, or has no such stack.
    """

    def __init__(self, model: PreTrainedModel, stacks: Sequence[str] | None = None):
        if not isinstance(model, PreTrainedModel):
            raise ValueError(
                f"The outputs of the layers of a {type(model).__name__} are not known; give the transformers model "
                "inside it."
            )
        found = {stack.name: find_layers(model.base_model, stack.path) for stack in family_of(model.config).stacks}
        self._layers = {name: layers for name, layers in found.items() if layers is not None}
        for name in stacks or ():
            if name not in self._layers:
                raise ValueError(
                    f"{type(model).__name__} has no layers called {name!r}; it has "
                    f"{' and '.join(map(repr, self._layers))}."
                )
        self._wanted = tuple(self._layers) if stacks is None else tuple(stacks)
        self._states: dict[str, dict[int, torch.Tensor]] = {}
        self._handles: list = []
        self._gradients = False

    def __enter__(self) -> "LayerOutputs":
        self._states = {name: {} for name in self._wanted}
        self._gradients = torch.is_grad_enabled()
        for name in self._wanted:
            for index, layer in enumerate(self._layers[name]):
                self._handles.append(layer.register_forward_hook(self._hook(name, index)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str, index: int):
        def collect(module: nn.Module, args: tuple, output: Any) -> None:
            checkpointed = module.training and getattr(module, "gradient_checkpointing", False)
            if checkpointed and self._gradients and not torch.is_grad_enabled():
                raise ValueError(
                    f"Layer {index} of the {name} runs without gradients under gradient checkpointing, so the layer "
                    "loss could not reach it; set gradient_checkpointing_kwargs to {'use_reentrant': False}."
                )
            self._states[name][index] = output[0] if isinstance(output, tuple) else output

        return collect

    def __getitem__(self, stack: str) -> tuple[torch.Tensor, ...]:
        """The output of each layer of a stack in order, each `(batch, length, width)`.

        Raises:
            ValueError: if the stack was not asked for, or not all of its layers ran.
        """
        if stack not in self._wanted:
            raise ValueError(
                f"The outputs of {stack!r} were not collected; there are those of "
                f"{' and '.join(map(repr, self._wanted))}."
            )
        states, depth = self._states.get(stack, {}), len(self._layers[stack])
        if len(states) < depth:
            raise ValueError(
                f"{len(states)} of the {depth} layers of the {stack} ran; run the model within the block, and "
                "set its layerdrop to 0."
            )
        return tuple(states[index] for index in range(depth))


def position_mask(
    inputs: Mapping[str, Any], stack: str = "encoder", is_encoder_decoder: bool = False
) -> torch.Tensor | None:
    """Which positions of a stack are no padding, as far as the inputs of the model say so.

    Args:
        inputs: of the model.
        stack: name of the stack.
        is_encoder_decoder: as in the model's configuration.

    Returns:
        Shape `(batch, length)`, 0 or False for padding. For an encoder, or a decoder without one, the attention mask.
        For the decoder of an encoder-decoder its own attention mask, else the positions with a label; where it makes
        its inputs from `input_ids` (classification), the attention mask again. None where padding is unknown.
    """
    if not is_encoder_decoder or stack != "decoder":
        return inputs.get("attention_mask")
    if (mask := inputs.get("decoder_attention_mask")) is not None:
        return mask
    if (labels := inputs.get("labels")) is not None and labels.dim() == 2:
        return labels.ne(IGNORED_LABEL)
    return None if inputs.get("decoder_input_ids") is not None else inputs.get("attention_mask")


def present_layers(structure: ModelStructure, stack: str) -> torch.Tensor:
    """Which layers of an extracted model have a unit left in any sub-layer; bools of shape `(layers,)`.

    Raises:
        ValueError: if the model has no such stack.
    """
    depths = structure.depths
    if stack not in depths:
        raise ValueError(
            f"This {structure.model_type} model has no layers called {stack!r}; it has "
            f"{' and '.join(map(repr, depths))}."
        )
    present = [False] * depths[stack]
    for sub_layer in structure.stack(stack):
        present[sub_layer.layer] |= sub_layer.units > 0
    return torch.tensor(present)
