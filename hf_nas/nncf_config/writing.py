"""Writing configurations, and putting a search space into one under the names of NNCF 2.x."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_nas.files import write_json
from hf_nas.graph_names import graph_name
from hf_nas.nncf_config.config import NncfConfig, TrainingSettings
from hf_nas.nncf_config.describe import choices_of
from hf_nas.nncf_config.elasticity import Block
from hf_nas.nncf_config.nodes import ModelNodes
from hf_nas.space import CustomSpace
from hf_nas.structures import ModelStructure, SubLayer, describe


__all__ = ["to_nncf", "with_space", "write"]

logger = logging.getLogger(__name__)


def write(config: NncfConfig, path: str | Path) -> None:
    """Write a configuration as strict JSON, atomically; [`NncfConfig.load`] gives an equal value back."""
    write_json(path, to_nncf(config))


def to_nncf(config: NncfConfig) -> dict[str, Any]:
    """A configuration in plain JSON types, under the keys of NNCF."""
    optional = {
        "log_dir": config.log_dir,
        "movement_sparsity_total_epochs": config.movement_sparsity_total_epochs,
        "model_name_or_path": config.model_name_or_path,
        "kd_teacher_model": config.kd_teacher_model,
    }
    data: dict[str, Any] = {"input_info": [entry.to_nncf() for entry in config.input_info]}
    data |= {key: value for key, value in optional.items() if value is not None}
    data |= {"target_device": config.target_device, "kd_mode": config.kd_mode, "kd_temperature": config.kd_temperature}
    nas = {}
    if config.training is not None:
        nas["training"] = _training(config.training)
    if config.search is not None:
        nas["search"] = config.search.to_nncf()
    if nas:
        data["bootstrapNAS"] = nas
    if config.movement is not None:
        data["compression"] = [config.movement.to_nncf()]
    return data


def with_space(config: NncfConfig, space: CustomSpace, model: PreTrainedModel) -> NncfConfig:
    """A configuration with the groups, widths and blocks of a search space; all else stays.

    Attention groups come before feed-forward groups, as published. Blocks are listed so that none ends where the next
    one begins, which to NNCF would mean that they go together: those of feed-forwards before those of attentions, or
    the other way round.

    Args:
        config: with a section `bootstrapNAS.training`.
        space: of this model.
        model: gives the names; on any device.

    Raises:
        ValueError: if the configuration trains no super-network, the space is of another model, does not skip what
            the configuration always skips, or ties sub-layers or counts layers, for which NNCF has no words.
    """
    if config.training is None:
        raise ValueError(f"{config.source} has no 'bootstrapNAS.training' that could hold a search space; add it.")
    structure = describe(model)
    space.largest.check(structure)
    for key in ("shared", "num_layers"):
        if space.to_dict().get(key):
            raise ValueError(
                f"Search space {space.name!r} has {key!r}, which a configuration of NNCF cannot say; give every "
                "sub-layer its own list."
            )
    choices = {found.name: found for found in choices_of(space)}
    grouped = sorted((s for s in structure if s.name in choices), key=_kind_order)
    # A sub-layer that only ever is skipped keeps its width in NNCF.
    widths = [choices[s.name].widths or (s.units * choices[s.name].unit_width,) for s in grouped]
    names = _NodeNames(model, structure)
    blocks = {s.name: names.block(s, choices[s.name].skip == "norm") for s in grouped if choices[s.name].skip}
    fixed = [name for name in blocks if not choices[name].units]
    for block in config.training.depth.fixed_skipped_blocks:
        always, _ = ModelNodes(model, structure, config.source).block(*block)
        if always.name not in fixed:
            raise ValueError(
                f"{config.source} skips {always.name!r} always ('fixed_skipped_blocks'), but search space "
                f"{space.name!r} has units of it to choose; remove the block."
            )
    width = replace(
        config.training.width,
        overwrite_groups=tuple(names.writers(s) for s in grouped),
        overwrite_groups_widths=tuple(widths),
        add_dynamic_inputs=tuple(names.reader(s) for s in grouped if s.layout.is_attention),
    )
    depth = replace(
        config.training.depth,
        skipped_blocks=_apart({name: block for name, block in blocks.items() if name not in fixed}, structure),
        fixed_skipped_blocks=tuple(blocks[name] for name in fixed),
    )
    training = replace(config.training, width=width, depth=depth)
    _warn_of_what_is_hidden(training)
    return replace(config, training=training)


def _apart(blocks: Mapping[str, Block], structure: ModelStructure) -> tuple[Block, ...]:
    """The blocks of these sub-layers in an order in which none ends where the next one begins.

    Where the last feed-forward comes right before the first attention, the last attention is behind the first
    feed-forward.
    """
    attention_first = sorted(blocks, key=lambda name: _kind_order(structure[name]))
    feed_forward_first = sorted(blocks, key=lambda name: -_kind_order(structure[name]))
    orders = [tuple(blocks[name] for name in order) for order in (feed_forward_first, attention_first)]
    return min(orders, key=lambda order: sum(first[1] == second[0] for first, second in pairwise(order)))


def _warn_of_what_is_hidden(training: TrainingSettings) -> None:
    """Say which part of a space no stage reaches."""
    stage = training.schedule.stages[-1]
    longest = max(len(widths) for widths in training.width.overwrite_groups_widths)
    if stage.width_indicator != -1 and stage.width_indicator < longest:
        logger.warning(
            "The 'width_indicator' %d of the last stage hides the smallest widths of lists with up to %d entries; set "
            "it to %d to train and search them all.", stage.width_indicator, longest, longest,
        )  # fmt: skip
    for dimension, listed in (("width", longest > 1), ("depth", training.depth.skipped_blocks)):
        if listed and not (dimension in training.available_dims and dimension in stage.train_dims):
            logger.warning(
                "The space is elastic in %s, but no stage trains it; add %r to 'available_elasticity_dims', "
                "'progressivity_of_elasticity' and 'train_dims'.", dimension, dimension,
            )  # fmt: skip


def _kind_order(sub_layer: SubLayer) -> int:
    return ("attention", "cross_attention", "feed_forward").index(sub_layer.kind)


def _training(training: TrainingSettings) -> dict[str, Any]:
    section: dict[str, Any] = {
        "algorithm": "progressive_shrinking",
        "progressivity_of_elasticity": list(training.progressivity),
        "batchnorm_adaptation": {"num_bn_adaptation_samples": training.bn_adaptation_samples},
        "schedule": {"list_stage_descriptions": [stage.to_nncf() for stage in training.schedule.stages]},
        "elasticity": {
            "available_elasticity_dims": list(training.available_dims),
            "width": training.width.to_nncf(),
        },
    }
    if depth := training.depth.to_nncf():
        section["elasticity"]["depth"] = depth
    if (rates := training.schedule.global_learning_rate) is not None:
        section["lr_schedule"] = {"params": {key: value for key, value in asdict(rates).items() if value is not None}}
    return section


class _NodeNames:
    """NNCF's names of the nodes of a model's sub-layers."""

    def __init__(self, model: PreTrainedModel, structure: ModelStructure):
        self._model = model
        self._structure = structure
        base = model.base_model
        self._prefix = "" if base is model else f"{model.base_model_prefix}."

    def writers(self, sub_layer: SubLayer) -> tuple[str, ...]:
        return tuple(self._name(f"{sub_layer.path}.{path}") for path in sub_layer.layout.writers)

    def reader(self, sub_layer: SubLayer) -> str:
        return self._name(f"{sub_layer.path}.{sub_layer.layout.reader}")

    def block(self, sub_layer: SubLayer, keeps_norm: bool) -> Block:
        """Start and end of the block that a sub-layer is."""
        stack = self._structure.stack(sub_layer.stack)
        position = stack.index(sub_layer)
        norm_is_last = bool(sub_layer.layout.norm_only)
        if position == 0:
            start = self._before_the_layers(sub_layer)
        else:
            start = self._end(stack[position - 1], with_norm=norm_is_last)
        return start, self._end(sub_layer, with_norm=norm_is_last and not keeps_norm)

    def _end(self, sub_layer: SubLayer, with_norm: bool) -> str:
        norm = sub_layer.layout.norms[0]
        if with_norm:
            return self._name(f"{sub_layer.path}.{norm}")
        inside = norm.rpartition(".")[0]
        adding = f"{sub_layer.path}.{inside}" if inside else sub_layer.path
        shared = [
            other.name
            for other in self._structure.stack(sub_layer.stack)
            if other.layer == sub_layer.layer and other.layout.norms[0].rpartition(".")[0] == inside
        ]
        return f"{self._name(adding)}/__add___{shared.index(sub_layer.name)}"

    def _before_the_layers(self, sub_layer: SubLayer) -> str:
        layers = sub_layer.path.rpartition(".")[0]
        parent = layers.rpartition(".")[0]
        kinds = (nn.Dropout, nn.LayerNorm, nn.Embedding)
        before = []
        for path, module in self._model.base_model.named_modules():
            if path == layers:
                break
            if isinstance(module, kinds):
                before.append(path)
        beside = [path for path in before if parent and path.startswith(f"{parent}.")]
        return self._name((beside or before)[-1])

    def _name(self, path: str) -> str:
        return graph_name(self._model, self._prefix + path)
