"""Keep some output rows or input columns of one weight-bearing module. Knows tensors, not models."""

from collections.abc import Sequence

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


def unit_features(units: torch.Tensor, features: int | Sequence[int], total: int) -> torch.Tensor:
    """Expand unit ids to feature positions in a projection, which may be several fused into one.

    Args:
        units: ids of the kept units, shape `(kept,)`.
        features: features of one unit; of a fused projection those in each of its blocks, which lie one after the
            other: `(8, 8, 8)` for query, key and value of heads of size 8.
        total: number of units of the projection (kept or not), which fixes where the next block starts.

    Returns:
        Positions, shape `(kept * sum of features,)`.
    """
    blocks, start = [], 0
    for size in (features,) if isinstance(features, int) else features:
        blocks.append((start + units[:, None] * size + torch.arange(size, device=units.device)).reshape(-1))
        start += total * size
    return torch.cat(blocks)


def by_unit(values: torch.Tensor, features: Sequence[int], total: int) -> torch.Tensor:
    """Group what a fused projection has for each of its outputs by unit.

    Args:
        values: shape `(outputs,)`.
        features: features of one unit in each block, as for [`unit_features`].
        total: number of units.

    Returns:
        Shape `(total, features of one unit in all blocks)`.
    """
    blocks = values.split([total * size for size in features])
    return torch.cat([block.view(total, size) for block, size in zip(blocks, features)], dim=1)


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
