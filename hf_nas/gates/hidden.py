"""Gates of the residual stream's dimensions, in models that normalise the stream itself."""

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.structures import ModelStructure
from hf_nas.structures.hidden import residual_stream


def stream_norms(
    model: PreTrainedModel, structure: ModelStructure
) -> tuple[tuple[nn.LayerNorm, ...], tuple[nn.LayerNorm, ...]]:
    """The norms right after the embeddings, and all others of the residual stream and of a language-modelling head.

    Raises:
        ValueError: if hidden dimensions of this model cannot have gates.
    """
    if not structure.hidden_size:
        raise ValueError(
            f"Hidden dimensions of this {structure.model_type} model ({type(model).__name__}) cannot be pruned, since "
            "its family or its task head is not described for that; leave out the kind 'hidden'."
        )
    stream = residual_stream(model, structure)
    beside = tuple(model.base_model.get_submodule(path) for path in structure.family.hidden.norms)
    return beside, tuple(norm for norm in (*stream.norms, *stream.head_norms) if norm not in beside)


def masked_layer_norm(inputs: torch.Tensor, norm: nn.LayerNorm, gate: torch.Tensor) -> torch.Tensor:
    """A layer norm with statistics over the dimensions whose gate is not 0, then multiplied by the gate.

    Computed in float32 without a branch on values.

    Args:
        inputs: shape `(..., dimensions)`; what closed dimensions hold does not matter.
        norm: gives weight, bias and epsilon.
        gate: shape `(dimensions,)`.
    """
    kept = (gate != 0).float()
    count = kept.sum().clamp(min=1.0)
    values = inputs.float() * kept
    mean = values.sum(-1, keepdim=True) / count
    centred = (values - mean) * kept
    variance = centred.square().sum(-1, keepdim=True) / count
    normalised = centred * torch.rsqrt(variance + norm.eps) * norm.weight.float()
    if norm.bias is not None:
        normalised = normalised + norm.bias.float()
    return normalised * gate
