"""The search space that an NNCF configuration describes, for one model."""

import logging
from collections.abc import Mapping
from itertools import pairwise

from torch import nn
from transformers import PreTrainedModel

from hf_nas.elastic.stages import Stage
from hf_nas.nncf_config.config import NncfConfig, TrainingSettings
from hf_nas.nncf_config.elasticity import Block, generated_widths
from hf_nas.nncf_config.nodes import ModelNodes
from hf_nas.space import CustomSpace, SearchSpace
from hf_nas.structures import SubLayer, describe
from hf_nas.subnetwork import SubNetwork


__all__ = ["SUB_NETWORK_NAMES", "named_sub_network", "nncf_space", "unit_width"]

logger = logging.getLogger(__name__)

SUB_NETWORK_NAMES = ("maximal", "minimal", "heuristic")


def unit_width(sub_layer: SubLayer) -> int:
    """Channels of one unit in the widths of NNCF: the size of a head, or 1 for a neuron."""
    return sub_layer.features


def nncf_space(config: NncfConfig, model: PreTrainedModel, stage: Stage | None = None) -> CustomSpace:
    """The search space of a configuration.

    Choices are numbers of units; 0 skips a sub-layer whose block is listed in `skipped_blocks`, with its normalisation
    or without, as the end of the block says.

    Args:
        config: with a section `bootstrapNAS.training`.
        model: on any device, with the head it was written for or another one.
        stage: of the training, whose `train_dims`, `width_indicator` and `depth_indicator` apply; None: all widths and
            blocks of the file.

    Raises:
        ValueError: if the configuration does not fit the model, trains no super-network, or lists blocks whose
            skipping depends on each other in a way that a product of choices cannot say.
    """
    training = config.training
    if training is None:
        raise ValueError(f"{config.source} has no 'bootstrapNAS.training', which describes the search space; add it.")
    structure = describe(model)
    _check_batch_norm(config, model, stage)
    nodes = ModelNodes(model, structure, config.source)
    widths = _widths(training, nodes) if _is_elastic("width", training, stage) else {}
    if stage is not None and stage.width_indicator != -1:
        widths = {name: listed[: stage.width_indicator] for name, listed in widths.items()}
    skippable = _skippable(training, nodes, stage) if _is_elastic("depth", training, stage) else {}
    fixed = dict(nodes.block(*block) for block in training.depth.fixed_skipped_blocks)
    for sub_layer in fixed:
        if sub_layer in skippable:
            raise ValueError(
                f"{config.source} lists the block of {sub_layer.name!r} in 'skipped_blocks' and in "
                "'fixed_skipped_blocks'; list it once."
            )
    sub_layers: dict[str, list[int]] = {}
    for sub_layer in structure:
        if not sub_layer.units:
            continue
        listed = widths.get(sub_layer.name, (sub_layer.units * unit_width(sub_layer),))
        units = [width // unit_width(sub_layer) for width in reversed(listed)]
        sub_layers[sub_layer.name] = [0] if sub_layer in fixed else [0, *units] if sub_layer in skippable else units
    keeping_norm = [sub_layer.name for sub_layer, keeps_norm in {**skippable, **fixed}.items() if keeps_norm]
    specification = {"name": "nncf", "sub_layers": sub_layers, "skip_keeps_norm": keeping_norm}
    return CustomSpace(specification, structure)


def named_sub_network(space: SearchSpace, name: str) -> SubNetwork:
    """One of the sub-networks that the ecosystem of NNCF calls by name.

    Args:
        space: any search space.
        name: `"maximal"`; `"minimal"`, the smallest choice in every dimension, so that all that can be skipped is; or
            `"heuristic"`, in every dimension the choice in the middle of those above 0 (index `(n - 1) // 2` of the n
            from the largest on, as Shears and LoNAS take it), so that nothing is skipped.

    Raises:
        ValueError: for another name.
    """
    if name == "maximal":
        return space.largest
    if name == "minimal":
        return space.decode((0,) * len(space.dimensions))
    if name != "heuristic":
        raise ValueError(f"There is no sub-network {name!r}; choose from {', '.join(map(repr, SUB_NETWORK_NAMES))}.")
    encoding = []
    for dimension in space.dimensions:
        above_zero = [index for index, choice in enumerate(dimension.choices) if choice] or [0]
        encoding.append(above_zero[::-1][(len(above_zero) - 1) // 2])
    return space.decode(encoding)


def _is_elastic(dimension: str, training: TrainingSettings, stage: Stage | None) -> bool:
    return dimension in training.available_dims and (stage is None or dimension in stage.train_dims)


def _check_batch_norm(config: NncfConfig, model: PreTrainedModel, stage: Stage | None) -> None:
    adapts = config.training.bn_adaptation_samples > 0 or (stage is not None and stage.bn_adapt)
    if adapts and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ValueError(
            f"{config.source} adapts the statistics of BatchNorm layers, which hf-nas does not do and this "
            f"{type(model).__name__} has; set 'num_bn_adaptation_samples' to 0 and 'bn_adapt' to false."
        )


def _widths(training: TrainingSettings, nodes: ModelNodes) -> dict[str, tuple[int, ...]]:
    """Widths in channels by sub-layer, widest first."""
    elasticity = training.width
    for name in elasticity.add_dynamic_inputs:
        nodes.check_reader(name)
    if elasticity.overwrite_groups is None:
        return {s.name: _automatic_widths(training, s) for s in nodes.structure if s.units}
    widths: dict[str, tuple[int, ...]] = {}
    for index, group in enumerate(elasticity.overwrite_groups):
        sub_layer = _group(group, index, nodes)
        if sub_layer.name in widths:
            raise ValueError(f"{nodes.source} has a second group for {sub_layer.name!r}, group {index}; give it one.")
        if elasticity.overwrite_groups_widths is None:
            widths[sub_layer.name] = _automatic_widths(training, sub_layer)
        else:
            widths[sub_layer.name] = _checked(elasticity.overwrite_groups_widths[index], sub_layer, nodes.source)
    _check_size(widths, nodes)
    return widths


def _group(group: tuple[str, ...], index: int, nodes: ModelNodes) -> SubLayer:
    """The sub-layer whose units the layers of a group write."""
    sub_layers = [nodes.written_by(name) for name in group]
    names = sorted({sub_layer.name for sub_layer in sub_layers})
    if len(names) > 1:
        raise ValueError(
            f"{nodes.source} ties the widths of {' and '.join(map(repr, names[:2]))} in group {index}, which hf-nas "
            "does not do; give each a group of its own."
        )
    sub_layer = sub_layers[0]
    paths = {nodes.path(name) for name in group}
    missing = [path for path in sub_layer.layout.writers if f"{sub_layer.path}.{path}" not in paths]
    if missing or len(group) > len(paths):
        raise ValueError(
            f"{nodes.source} has group {index} with {len(group)} layers, which are not {sub_layer.name!r} as a whole; "
            f"list {', '.join(map(repr, sub_layer.layout.writers))} of its layer, each once."
        )
    return sub_layer


def _automatic_widths(training: TrainingSettings, sub_layer: SubLayer) -> tuple[int, ...]:
    full, unit = sub_layer.units * unit_width(sub_layer), unit_width(sub_layer)
    listed = generated_widths(full, training.width)
    whole = tuple(width for width in listed if width % unit == 0)
    if len(whole) < len(listed):
        logger.info(
            "%r: %d of the %d widths of the automatic list are no whole number of heads of %d channels, and left out.",
            sub_layer.name, len(listed) - len(whole), len(listed), unit,
        )  # fmt: skip
    return whole


def _checked(widths: tuple[int, ...], sub_layer: SubLayer, source: str) -> tuple[int, ...]:
    unit = unit_width(sub_layer)
    full = sub_layer.units * unit
    for width in widths:
        if width > full:
            raise ValueError(
                f"{source} gives {sub_layer.name!r} the width {width}, but in this model it has {full} channels; "
                "take a configuration for a model of this size."
            )
        if width % unit:
            raise ValueError(
                f"{source} gives {sub_layer.name!r} the width {width}, which is no whole number of heads of {unit} "
                f"channels; choose multiples of {unit}."
            )
    return widths


def _check_size(widths: Mapping[str, tuple[int, ...]], nodes: ModelNodes) -> None:
    """Refuse a configuration that fits only because this model is larger than the one it was made for."""
    below = all(widths[s.name][0] < s.units * unit_width(s) for s in nodes.structure if s.name in widths)
    missing = [s.name for s in nodes.structure if s.units and s.name not in widths]
    if not below:
        return
    widest = max(listed[0] for listed in widths.values())
    if missing:
        raise ValueError(
            f"{nodes.source} reaches no full width in any sub-layer (its widest is {widest} channels) and has no "
            f"group for {missing[0]!r}, so it was made for a smaller model; take one for a model of this size, or let "
            "a list begin with the full width."
        )
    logger.warning(
        "%s reaches no full width in any sub-layer of this model; its widest is %d channels.", nodes.source, widest
    )


def _skippable(training: TrainingSettings, nodes: ModelNodes, stage: Stage | None) -> dict[SubLayer, bool]:
    """The sub-layers that may be skipped, and whether their normalisation then stays."""
    chains: list[list[Block]] = []
    blocks = training.depth.skipped_blocks or ()
    for before, block in pairwise([("", ""), *blocks]):
        if chains and before[1] == block[0]:
            chains[-1].append(block)
        else:
            chains.append([block])
    skippable: dict[SubLayer, bool] = {}
    for chain in chains:
        found = [nodes.block(*block) for block in chain]
        allowed = found if stage is None else found[-stage.depth_indicator :]
        if len(allowed) > 1:
            raise ValueError(
                f"{nodes.source} lists the blocks of {allowed[0][0].name!r} and {allowed[1][0].name!r} one after the "
                "other, by which NNCF skips the first only together with the second; list them in an order in which "
                "none ends where the next one begins, such as all feed-forward blocks before the attention blocks, "
                "then each is skipped by itself."
            )
        for sub_layer, keeps_norm in allowed:
            if sub_layer in skippable:
                raise ValueError(f"{nodes.source} lists two blocks for {sub_layer.name!r}; list one.")
            skippable[sub_layer] = keeps_norm
        for sub_layer, _ in found[: -len(allowed)]:
            logger.warning(
                "%r is not skipped: its block ends where the next one in 'skipped_blocks' begins, and of blocks in a "
                "row 'depth_indicator' leaves the last %d; list them in another order to skip each by itself.",
                sub_layer.name, len(allowed),
            )  # fmt: skip
    return skippable
