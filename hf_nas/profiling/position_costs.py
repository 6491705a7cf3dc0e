"""Operations of attention that also scores embeddings of relative positions (He et al., DeBERTa, 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hf_nas.structures.layouts import SubLayerLayout


@dataclass(frozen=True)
class PositionCost:
    """Multiply-accumulate operations of one attention unit with a table of relative positions.

    Args:
        once: a pass, for the projections of the table.
        token: a token, for its scores with all rows of the table.
        apart: weights of projections that read the table and never a token.
    """

    once: int = 0
    token: int = 0
    apart: int = 0


def position_cost(core: nn.Module | None, layout: SubLayerLayout, weights: Sequence[int]) -> PositionCost:
    """Count them.

    Args:
        core: the attention module.
        layout: of the attention, with the writers that this model has.
        weights: of each writer, weights a unit.
    """
    if not (layout.disentangled and core.relative_attention):
        return PositionCost()
    rows = 2 * core.pos_ebd_size
    kinds = sum(kind in core.pos_att_type for kind in ("c2p", "p2c"))
    # Query, key and value come first. Shared projections read the table beside the tokens, both of them always.
    own = weights[3:]
    read = weights[:2] if core.share_att_key else own
    return PositionCost(rows * sum(read), rows * kinds * getattr(core, layout.head_size), sum(own))
