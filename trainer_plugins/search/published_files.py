"""The results of a search in the files of BootstrapNAS, under the numbers that a configuration gives to sub-layers."""

import logging
from pathlib import Path

from transformers import PreTrainedModel

from hf_nas.nncf_config import NncfConfig, Numbering
from hf_nas.report import RelativeSizes, fully_evaluated
from hf_nas.search import SearchResult, WidthGroups, write_old_files
from hf_nas.space import SearchSpace
from trainer_plugins.search.task_evaluation import SearchTask


logger = logging.getLogger(__name__)


def published_groups(config: NncfConfig, space: SearchSpace, model: PreTrainedModel) -> WidthGroups:
    """What the numbers of groups and blocks stand for in the files about a search.

    Args:
        config: gives the numbers: those of `overwrite_groups` and `skipped_blocks`, where it lists them; otherwise
            attentions come before feed-forwards.
        space: that was searched.
        model: that it belongs to.

    Raises:
        ValueError: if the numbers cannot say which sub-network of the space is meant.
    """
    structure = space.structure
    numbering = Numbering(None, (), ()) if config.training is None else Numbering.of(config, model)
    choices = {dimension.name: dimension.choices for dimension in space.dimensions}
    names = WidthGroups.of(structure).names if numbering.groups is None else numbering.groups
    widths = []
    for name in names:
        counts = [count for count in choices.get(name, ()) if count]
        widths.append([count * structure[name].features for count in counts or (structure[name].units,)])
    skippable = [name for name in structure.names if 0 in choices.get(name, ()) and len(choices[name]) > 1]
    blocks = (numbering.blocks or skippable) if skippable else None
    if blocks and (never := [name for name in blocks if name not in skippable]):
        raise ValueError(
            f"{config.source} lists the block of {never[0]!r}, which the space does not skip, so that the published "
            "numbers of sets of blocks are others; leave it out of 'skipped_blocks'."
        )
    always = numbering.always_skipped
    return WidthGroups.of(structure, names=names, widths=widths, blocks=blocks, always_skipped=always)


def write_published_files(
    folder: str | Path,
    result: SearchResult,
    config: NncfConfig,
    space: SearchSpace,
    model: PreTrainedModel,
    sizes: RelativeSizes,
    task: SearchTask,
) -> None:
    """Write the published files about a search, or say why its sub-networks have no numbers in them.

    Args:
        folder: where to; it is made.
        result: of the search.
        config: as in [`published_groups`].
        space: that was searched.
        model: that it belongs to.
        sizes: count the operations.
        task: names the metric.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        groups = published_groups(config, space, model)
        write_old_files(
            folder, fully_evaluated(result), groups, metric_name=task.metric_name, metric_scale=task.metric_scale,
            macs=sizes.macs,
        )  # fmt: skip
    except ValueError as error:
        # The published files number widths of sub-layers, which not every space consists of.
        logger.warning("The results are not written in the published format as well: %s", error)
