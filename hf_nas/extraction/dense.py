"""The dense model that a small one was made of, built anew from what the small one's folder records."""

import copy
import logging
from collections import Counter
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from hf_nas.extraction.sizes import HIDDEN_FIELD, STACKS_FIELD, TABLE_FIELD, TYPES_FIELD, set_uniform_sizes
from hf_nas.extraction.verification import read_sub_network
from hf_nas.profiling import SizeTable
from hf_nas.structures import ModelStructure, describe, family_of
from hf_nas.subnetwork import FILE_NAME, SubNetwork


__all__ = ["build_dense", "is_made_of", "recorded_sub_network"]

logger = logging.getLogger(__name__)


def recorded_sub_network(name_or_path: str) -> SubNetwork | None:
    """The sub-network that an extracted model was made from, or None if none is recorded beside it.

    Args:
        name_or_path: folder or Hub name of the model.

    Raises:
        ValueError: if the record is damaged.
    """
    path = cached_file(
        name_or_path,
        FILE_NAME,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else read_sub_network(Path(path))


def is_made_of(model: PreTrainedModel, sub_network: SubNetwork, dense: PreTrainedModel) -> bool:
    """Whether a model has the sizes of this sub-network of a dense one."""
    try:
        table = SizeTable(dense)
        sub_network.check(table.structure)
    except ValueError as error:
        logger.debug("It is not made of %s: %s", type(dense).__name__, error)
        return False
    return table.parameters(sub_network) == sum(parameter.numel() for parameter in model.parameters())


def build_dense(model: PreTrainedModel, sub_network: SubNetwork, source: str) -> PreTrainedModel:
    """The dense model of the recorded sizes with random weights, which is as fast as the real one.

    Args:
        model: the small model.
        sub_network: that it was made from.
        source: folder or name of the small model, for messages.

    Returns:
        A model in evaluation mode, on the same device and in the same precision as the small one.

    Raises:
        ValueError: if the record does not tell all sizes, or belongs to another model.
    """
    missing = None
    try:
        config = _dense_config(model, sub_network)
        config._attn_implementation = model.config._attn_implementation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # Initialised, since numbers that happen to be in memory (denormal ones) may slow a CPU down.
            dense = type(model)(config)
    except Exception as error:  # constructors and validators refuse sizes each in their own way
        missing = error
    if missing is None and is_made_of(model, sub_network, dense):
        return dense.to(model.device, model.dtype).eval()
    reason = "it belongs to another model" if missing is None else " ".join(str(missing).split()).rstrip(".")
    raise ValueError(
        f"The dense model of {source!r} cannot be built from its {FILE_NAME} ({reason}); give the dense model itself, "
        "as by --dense of hf-nas evaluate."
    ) from missing


def _dense_config(model: PreTrainedModel, sub_network: SubNetwork) -> PreTrainedConfig:
    """The stock configuration of the model that the sub-network was taken of."""
    family = family_of(model.config)
    if sub_network.hidden is not None and not hasattr(model.config, HIDDEN_FIELD):
        raise ValueError("it does not tell how many hidden dimensions there were")
    config = copy.deepcopy(model.config)
    config.per_layer_config = None
    for field in (STACKS_FIELD, TABLE_FIELD, HIDDEN_FIELD):
        if hasattr(config, field):
            delattr(config, field)
    layers = {tuple(name.split(".")[:2]) for name in sub_network.names}
    depths = Counter(stack for stack, _ in layers)
    for stack in family.stacks:
        if stack.name in depths:
            setattr(config, stack.depth, depths[stack.name])
    _set_layer_types(config, depths.total())
    structure = _structure(type(model), config)
    units = dict(zip(sub_network.names, sub_network.units))
    if structure.names != sub_network.names or not set_uniform_sizes(config, structure, units):
        raise ValueError("the model it was made of had uneven layers itself")
    return type(config).from_dict(config.to_dict())


def _set_layer_types(config: PreTrainedConfig, depth: int) -> None:
    """Give the layers that were removed their types back, where a configuration names one a layer."""
    types = getattr(config, "layer_types", None)
    recorded = getattr(config, TYPES_FIELD, None)
    if hasattr(config, TYPES_FIELD):
        delattr(config, TYPES_FIELD)
    if types is None or len(types) == depth:
        return
    if recorded is None and len(set(types)) == 1:
        # Of layers of one type nothing needs to be recorded.
        recorded = types[:1] * depth
    if not isinstance(recorded, list) or len(recorded) != depth:
        raise ValueError(
            f"{TYPES_FIELD} in its config.json is {recorded!r}, and must be the types of all {depth} layers that the "
            "dense model had"
        )
    config.layer_types = recorded


def _structure(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> ModelStructure:
    with torch.device("meta"):
        return describe(model_class(copy.deepcopy(config)))
