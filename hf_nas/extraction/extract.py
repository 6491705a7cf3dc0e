"""Make a small stand-alone model of a sub-network."""

import copy
import logging

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from hf_nas.elastic import plain_copy_of
from hf_nas.extraction.sizes import (
    HIDDEN_FIELD,
    STACKS_FIELD,
    TABLE_FIELD,
    record_layer_types,
    set_uneven_sizes,
    set_uneven_width,
    set_uniform_sizes,
)
from hf_nas.importance import OrderRecord
from hf_nas.resize import cut_hidden, own_position_bias, removed_layers, resize
from hf_nas.structures import ModelStructure, describe
from hf_nas.subnetwork import SubNetwork


logger = logging.getLogger(__name__)


def extract(model: PreTrainedModel, sub_network: SubNetwork) -> PreTrainedModel:
    """Make a small stand-alone model of a sub-network; the given model, elastic or not, stays as it is.

    The result has the same class, computes the same function and is smaller in memory and time. Where the stock
    configuration can state its sizes it is a plain stock model; else they are in `config.per_layer_config` and, for
    fewer hidden dimensions, `config.hf_nas_hidden_size`.

    Args:
        model: the trained model.
        sub_network: of this model.

    Raises:
        ValueError: if the sub-network belongs to another model, or leaves out hidden dimensions of a model whose task
            head hf-nas does not know.
    """
    small = plain_copy_of(model)
    structure = describe(small)
    sub_network.check(structure)
    kept = dict(sub_network.items())
    _check_layer_scaling(small, structure, kept)
    own_bias = own_position_bias(structure, kept)
    config = copy.deepcopy(small.config)
    layer_types = getattr(config, "layer_types", None)
    width = structure.hidden_size
    if sub_network.hidden is not None:
        width = len(sub_network.hidden)
        cut_hidden(small, structure, sub_network.hidden)
    resize(small, structure, kept, own_bias)
    weights = small.state_dict()
    config = _stock_config(type(model), config, structure, kept, width, weights) or _uneven_config(
        config, structure, kept, width, own_bias
    )
    record_layer_types(config, layer_types)
    if sub_network != SubNetwork.full(structure):
        OrderRecord.forget(config)
    return _assemble(small, config, weights)


def _check_layer_scaling(model: PreTrainedModel, structure: ModelStructure, kept: dict) -> None:
    removed = any(removed_layers(structure, kept).values())
    if removed and getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            f"This {model.config.model_type} model has scale_attn_by_inverse_layer_idx=True, which ties each layer's "
            "attention to its position, so whole layers cannot be removed; keep a unit in every layer."
        )


def _stock_config(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    structure: ModelStructure,
    kept: dict,
    width: int,
    weights: dict[str, torch.Tensor],
) -> PreTrainedConfig | None:
    """The stock configuration with these sizes, or None if there is none: a stock model is built to find out."""
    candidate = copy.deepcopy(config)
    candidate.per_layer_config = None
    for field in (STACKS_FIELD, TABLE_FIELD, HIDDEN_FIELD):
        if hasattr(candidate, field):
            delattr(candidate, field)
    try:
        if not set_uniform_sizes(candidate, structure, kept):
            return None
        if structure.hidden_size:
            setattr(candidate, structure.family.hidden.size, width)
        candidate = type(candidate).from_dict(candidate.to_dict())
        candidate._attn_implementation = config._attn_implementation
        with torch.device("meta"):
            stock = model_class(candidate)
    except Exception as error:  # constructors and validators refuse sizes each in their own way
        logger.debug("No stock %s has these sizes: %s", model_class.__name__, error)
        return None
    shapes = {name: tensor.shape for name, tensor in stock.state_dict().items()}
    return candidate if shapes == {name: tensor.shape for name, tensor in weights.items()} else None


def _uneven_config(
    config: PreTrainedConfig, structure: ModelStructure, kept: dict, width: int, own_bias: dict[str, bool]
) -> PreTrainedConfig:
    config.per_layer_config = None
    set_uneven_width(config, structure, width)
    set_uneven_sizes(config, structure, kept, own_bias)
    return config


def _assemble(small: PreTrainedModel, config: PreTrainedConfig, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Build the model as a loader would, so that what is handed out is what a reader of the files gets."""
    with no_init_weights():
        model = type(small)(config)
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.to(small.device)
    if small.can_generate():
        model.generation_config = copy.deepcopy(small.generation_config)
    return model.eval()
