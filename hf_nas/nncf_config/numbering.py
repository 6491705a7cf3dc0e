"""The numbers by which the ecosystem of NNCF 2.x calls the groups and blocks of a configuration."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from hf_nas.nncf_config.config import NncfConfig
from hf_nas.nncf_config.nodes import ModelNodes
from hf_nas.structures import describe


__all__ = ["Numbering"]


@dataclass(frozen=True)
class Numbering:
    """The names of the sub-layers behind the numbers, each at its number.

    Args:
        groups: of `overwrite_groups`; None where the configuration lists none.
        blocks: of `skipped_blocks`.
        always_skipped: of `fixed_skipped_blocks`, which have no numbers.
    """

    groups: tuple[str, ...] | None
    blocks: tuple[str, ...]
    always_skipped: tuple[str, ...]

    @classmethod
    def of(cls, config: NncfConfig, model: PreTrainedModel) -> "Numbering":
        """The numbers of a configuration.

        Args:
            config: with a section `bootstrapNAS.training`, whose space [`nncf_space`] can read.
            model: that it is for, on any device.

        Raises:
            ValueError: if a group or block is none of the model.
        """
        nodes = ModelNodes(model, describe(model), config.source)
        width, depth = config.training.width, config.training.depth
        groups = width.overwrite_groups
        return cls(
            None if groups is None else tuple(nodes.written_by(group[0]).name for group in groups),
            tuple(nodes.block(*block)[0].name for block in depth.skipped_blocks or ()),
            tuple(nodes.block(*block)[0].name for block in depth.fixed_skipped_blocks),
        )
