"""Keep some output rows or input columns of one weight-bearing module. Knows tensors, not models."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def output_size(module: nn.Module) -> int:
    """Number of output features of a `Linear`, `Conv1D` or `Embedding`, read off the weight itself."""
    weight = module.weight
    return weight.shape[0] if isinstance(module, nn.Linear) else weight.shape[1]


def input_size(module: nn.Module) -> int:
    """Number of input features of a `Linear` or `Conv1D`, read off the weight itself."""
    weight = module.weight
    return weight.shape[1] if isinstance(module, nn.Linear) else weight.shape[0]


def unit_features(units: torch.Tensor, features: int, total: int, parts: int = 1) -> torch.Tensor:
    """Expand unit ids to feature positions in a projection of `parts` fused blocks.

    Args:
        units: ids of the kept units, shape `(kept,)`.
        features: features of one unit in one block.
        total: number of units of the projection (kept or not), which fixes where the next block starts.
        parts: fused blocks one after the other, e.g. 3 for a fused query-key-value projection.

    Returns:
        Positions, shape `(parts * kept * features,)`.
    """
    within = (units[:, None] * features + torch.arange(features, device=units.device)).reshape(-1)
    starts = torch.arange(parts, device=units.device) * (total * features)
    return (starts[:, None] + within).reshape(-1)


def _take(tensor: nn.Parameter, positions: torch.Tensor, dim: int) -> nn.Parameter:
    kept = tensor.detach().index_select(dim, positions.to(tensor.device)).clone()
    return nn.Parameter(kept, requires_grad=tensor.requires_grad)


def keep_outputs(module: nn.Module, positions: torch.Tensor) -> None:
    """Keep only these output features of a `Linear`, `Conv1D` or `Embedding`, in place and in this order."""
    module.weight = _take(module.weight, positions, 0 if isinstance(module, nn.Linear) else 1)
    if getattr(module, "bias", None) is not None:
        module.bias = _take(module.bias, positions, 0)
    if isinstance(module, nn.Linear):
        module.out_features = len(positions)
    elif isinstance(module, Conv1D):
        module.nf = len(positions)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = len(positions)


def keep_inputs(module: nn.Module, positions: torch.Tensor) -> None:
    """Keep only these input features of a `Linear` or `Conv1D`, in place and in this order."""
    module.weight = _take(module.weight, positions, 1 if isinstance(module, nn.Linear) else 0)
    if isinstance(module, nn.Linear):
        module.in_features = len(positions)
    elif isinstance(module, Conv1D):
        module.nx = len(positions)
