"""What a pruning leaves on the disk beside the models, and reads again when it goes on."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hf_nas.distillation import LayerDistillation
from hf_nas.files import atomic_path
from hf_nas.subnetwork import FILE_NAME, SubNetwork


logger = logging.getLogger(__name__)

REPORT_FORMAT = "hf_nas.pruning/1"
LAYER_MAPS_FILE = "layer_distillation.safetensors"


def read_sub_network(folder: Path) -> SubNetwork:
    """The sub-network beside a pruned model.

    Raises:
        ValueError: if there is none.
    """
    if not (folder / FILE_NAME).is_file():
        raise ValueError(
            f"The folder '{folder}' has no {FILE_NAME}; give the folder pruned/ of a pruning, or what hf-nas "
            "convert-cofi wrote."
        )
    return SubNetwork.load(folder)


def save_layer_maps(maps: Mapping[str, LayerDistillation], sub_network: SubNetwork, folder: Path) -> None:
    """Keep the trained maps from layers of the student to those of the teacher, without pruned dimensions."""
    tensors = {}
    for stack, distillation in maps.items():
        weight, bias = distillation.transform.weight.detach(), distillation.transform.bias.detach()
        if sub_network.hidden is not None:
            weight = weight[:, list(sub_network.hidden)]
        tensors[f"{stack}.weight"], tensors[f"{stack}.bias"] = weight.cpu().contiguous(), bias.cpu().contiguous()
    with atomic_path(folder / LAYER_MAPS_FILE) as temporary:
        save_file(tensors, temporary)


@torch.no_grad()
def load_layer_maps(maps: Mapping[str, LayerDistillation], folder: Path) -> None:
    """Go on with the maps beside a pruned model, where there are some; those of another teacher may not fit."""
    path = folder / LAYER_MAPS_FILE
    if not path.is_file():
        return
    tensors = load_file(path)
    for stack, distillation in maps.items():
        weight, bias = tensors.get(f"{stack}.weight"), tensors.get(f"{stack}.bias")
        if weight is None or weight.shape != distillation.transform.weight.shape:
            logger.warning("The map of layers in '%s' is for another teacher; the %s starts anew.", path, stack)
            continue
        distillation.transform.weight.copy_(weight)
        distillation.transform.bias.copy_(bias)


def freeze_embeddings(model: PreTrainedModel) -> None:
    """Train neither embeddings nor their normalisations; tied heads go with them."""
    words = model.get_input_embeddings()
    for name, module in model.named_modules():
        if module is words or "embed" in name or (isinstance(module, nn.Embedding) and name.endswith("wpe")):
            for parameter in module.parameters():
                parameter.requires_grad_(False)
