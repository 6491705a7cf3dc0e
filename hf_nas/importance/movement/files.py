"""Files of movement scores: ours, checkpoints, and those of NNCF 2.x. Knows tensors and names, not models."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_nas.files import atomic_path
from hf_nas.run_files import MOVEMENT_FOLDER, SCORES_FILE


__all__ = ["read_scores", "write_scores"]

_FORMAT = "hf_nas.movement_scores/1"
# In a folder the first of these counts; that of a run has the scores in one of its own. EFTNAS wrote one level below
# the folder that its scripts read, and for question answering left a model without scores in that folder itself.
_CANDIDATES = (
    SCORES_FILE, f"{MOVEMENT_FOLDER}/{SCORES_FILE}", "movement_sparsity_0/pytorch_model.bin", "pytorch_model.bin",
    "model.safetensors",
)  # fmt: skip
# NNCF keeps the scores in an operation before the layer, we keep them in the layer.
_NAME = re.compile(r"^(?P<layer>.+?)(?:\.pre_ops\.\d+\.op)?\.(?P<part>weight|bias)_importance$")
_MASK = re.compile(r"^(?P<layer>.+?)\.(?:pre_ops\.\d+\.op\.weight_ctx\._binary_mask|weight_mask|weight)$")

Shape = tuple[int, int]
Scores = dict[str, torch.Tensor]


def write_scores(
    path: str | Path, weights: Mapping[str, torch.Tensor], biases: Mapping[str, torch.Tensor], shapes: Mapping
) -> Path:
    """Write scores to a `.safetensors` file, or to the file of the usual name in a folder; returns its path."""
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path / SCORES_FILE
    tensors = {f"{layer}.weight_importance": scores for layer, scores in weights.items()}
    tensors |= {f"{layer}.bias_importance": scores for layer, scores in biases.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = json.dumps({layer: list(shape) for layer, shape in shapes.items()})
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": _FORMAT, "shapes": described})
    return path


def read_scores(path: str | Path) -> tuple[Scores, Scores, dict[str, Shape], str]:
    """Read the scores of weights and of biases by layer, and the shapes of the weights as far as the file has them.

    Returns:
        The three of them, and what error messages call the file.

    Raises:
        ValueError: if there is no such file, or it is something else.
    """
    path = _find(Path(path))
    source = f"The file {str(path)!r}"
    tensors, shapes = _read_safetensors(path, source) if path.suffix == ".safetensors" else _read_torch(path, source)
    weights: Scores = {}
    biases: Scores = {}
    for name, tensor in tensors.items():
        if match := _NAME.match(name):
            found = weights if match["part"] == "weight" else biases
            found[match["layer"]] = tensor.float()
        elif (match := _MASK.match(name)) and tensor.dim() == 2:
            shapes.setdefault(match["layer"], tuple(tensor.shape))
    if not weights:
        raise ValueError(
            f"{source} holds no movement scores (tensors called '....weight_importance'); give what movement sparsity "
            "wrote."
        )
    return weights, biases, shapes, source


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"There is no file or folder {str(path)!r} with movement scores; correct the path.")
    for candidate in _CANDIDATES:
        if (path / candidate).is_file():
            return path / candidate
    raise ValueError(
        f"The folder {str(path)!r} holds no movement scores; give one with {' or '.join(map(repr, _CANDIDATES))}."
    )


def _read_safetensors(path: Path, source: str) -> tuple[Scores, dict[str, Shape]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if _NAME.match(name)}
            # Of the weights only the shapes are needed.
            shapes = {
                match["layer"]: tuple(file.get_slice(name).get_shape())
                for name in file.keys()
                if (match := _MASK.match(name)) and len(file.get_slice(name).get_shape()) == 2
            }
        described = json.loads(metadata.get("shapes", "{}")) if metadata.get("format") == _FORMAT else {}
        return tensors, {**shapes, **{layer: (int(r), int(c)) for layer, (r, c) in described.items()}}
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source} is no readable safetensors file of movement scores ({error}); give what movement sparsity "
            "wrote."
        ) from error


def _read_torch(path: Path, source: str) -> tuple[Scores, dict[str, Shape]]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes of another kind of file lead to
        raise ValueError(
            f"{source} is no file of tensors that can be read without running code in it; give what movement sparsity "
            "wrote."
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{source} is no state dict, names with tensors; give what movement sparsity wrote.")
    return {str(name): tensor for name, tensor in tensors.items()}, {}
