"""What is checked of the folder of an extracted model before and after it is loaded.

Files are passed around, edited and put together wrongly. A folder whose parts contradict each other is refused in a
sentence, where a loader would stop somewhere inside torch, read a file outside the folder, or draw weights at random.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedModel

from hf_nas.extraction.sizes import HIDDEN_FIELD, MODULE_NAME, STACKS_FIELD
from hf_nas.extraction.stated import field_names, is_count
from hf_nas.structures import describe, family_of, known_families
from hf_nas.subnetwork import FILE_NAME, NORM_ONLY, SubNetwork, kept_ids


# In config.json: the SHA-256 of the loader file beside it.
HASH_FIELD = "hf_nas_loader_sha256"
_REFERENCE = re.compile(r"([\w.-]+(/[\w.-]+)?--)?[A-Za-z_]\w*\.[A-Za-z_]\w*")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def extracted_folder(name_or_path: Any, subfolder: str | None = None) -> Path | None:
    """The folder that `from_pretrained` is asked to load, if it is local and of an extracted model; else None."""
    if not isinstance(name_or_path, str | os.PathLike):
        return None
    folder = Path(name_or_path) / (subfolder or "")
    if not (folder / "config.json").is_file():
        return None
    fields = _read_config(folder)
    ours = (folder / FILE_NAME).is_file() or any(field in fields for field in (STACKS_FIELD, HIDDEN_FIELD, HASH_FIELD))
    return folder if ours else None


def _read_config(folder: Path) -> dict[str, Any]:
    """The fields of config.json; none where transformers itself will refuse the file."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def check_files(folder: Path) -> None:
    """Refuse the folder of an extracted model whose files do not belong together or name files elsewhere.

    Args:
        folder: of the model.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    fields = _read_config(folder)
    if (folder / FILE_NAME).is_file():
        sub_network = read_sub_network(folder / FILE_NAME)
        if fields.get("model_type", sub_network.model_type) != sub_network.model_type:
            raise ValueError(
                f"{FILE_NAME} in {str(folder)!r} is of a {sub_network.model_type} model but config.json of a "
                f"{fields['model_type']} model; restore both from one extraction."
            )
    _check_per_layer_config(folder, fields.get("per_layer_config", {}), fields.get("model_type"))
    _check_references(folder, fields.get("auto_map", {}))
    recorded, loader = fields.get(HASH_FIELD), folder / f"{MODULE_NAME}.py"
    if recorded is not None and loader.is_file() and file_hash(loader) != recorded:
        raise ValueError(
            f"{loader.name} in {str(folder)!r} is not the file that was saved with the model, going by its SHA-256 in "
            "config.json; read what was changed in it, and restore or delete it."
        )
    for index in folder.glob("*.index.json"):
        _check_index(index)


def _check_per_layer_config(folder: Path, stated: Any, model_type: Any) -> None:
    """Refuse what transformers would stop at in the middle of reading the configuration."""
    sizes = _size_fields(model_type)
    where = f"per_layer_config in config.json in {str(folder)!r}"
    if not isinstance(stated, Mapping):
        raise ValueError(f"{where} is {stated!r}; it must state fields by index of the layer.")
    for index, entry in stated.items():
        if not index.isdecimal() or not isinstance(entry, Mapping):
            raise ValueError(
                f"{where} states {str(entry)[:80]!r} for layer {index!r}; it must state fields by index of the layer."
            )
        for field in sizes & set(entry):
            if not is_count(entry[field]):
                raise ValueError(
                    f"{where} states {field}={entry[field]!r} for layer {int(index)}; it must be a whole number that "
                    "is not negative."
                )


def _size_fields(model_type: Any) -> set[str]:
    if not isinstance(model_type, str) or model_type not in known_families():
        return set()
    layouts = (layout for stack in family_of(CONFIG_MAPPING[model_type]()).stacks for layout in stack.sub_layers)
    return {field for layout in layouts for field in field_names(layout)}


def _check_references(folder: Path, auto_map: Any) -> None:
    if not isinstance(auto_map, Mapping):
        raise ValueError(f"auto_map in config.json in {str(folder)!r} is {auto_map!r}; it must name classes.")
    for name, given in auto_map.items():
        for reference in given if isinstance(given, list) else [given]:
            fits = isinstance(reference, str) and _REFERENCE.fullmatch(reference) and ".." not in reference
            if reference is not None and not fits:
                raise ValueError(
                    f"auto_map in config.json in {str(folder)!r} names {reference!r} for {name}; it must name a file "
                    "of the folder and a class in it, as in 'file.Class'."
                )


def _check_index(path: Path) -> None:
    """Refuse an index of sharded weights that leads out of the folder, where loading would follow it."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        files = set(index["weight_map"].values())
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is no index of sharded weights ({type(error).__name__}: {error}); restore the file."
        ) from error
    for name in files:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ValueError(f"{str(path)!r} names the file {name!r}; it must name files beside it.")
        if not (path.parent / name).is_file():
            raise ValueError(f"{str(path)!r} names the file {name!r}, which is not there; restore it.")


def read_sub_network(path: Path) -> SubNetwork:
    """Read the sub-network of an extracted model, where its dense one is not at hand to hold it against.

    Args:
        path: of the file.

    Raises:
        ValueError: naming the file and the value that no sub-network has.
    """
    try:
        return SubNetwork.load(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The {path.name} of {str(path.parent)!r} is damaged or of another version: {error}"
        ) from error


def check_model(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a loaded model that is not the one of the sub-network recorded beside it.

    Args:
        model: as loaded.
        folder: it was loaded from.

    Raises:
        ValueError: naming a layer.
    """
    if not (folder / FILE_NAME).is_file() or model.config.model_type not in known_families():
        return
    structure = describe(model)
    sub_network = read_sub_network(folder / FILE_NAME)
    found = _by_layer({s.name: None if s.skipped else NORM_ONLY if s.norm_only else s.units for s in structure})
    wanted = _by_layer({k: v if v is None or v == NORM_ONLY else len(kept_ids(v)) for k, v in sub_network.items()})
    for stack in structure.depths:
        layers = found.get(stack, []), wanted.get(stack, [])
        if layers[0] != layers[1]:
            raise ValueError(
                f"{FILE_NAME} in {str(folder)!r} is not of the model beside it: the {stack}'s layers keep "
                f"{_differing(*layers)}; restore both from one extraction."
            )
    if sub_network.hidden is not None and structure.hidden_size not in (0, len(sub_network.hidden)):
        raise ValueError(
            f"{FILE_NAME} in {str(folder)!r} keeps {len(sub_network.hidden)} hidden dimensions, where the model "
            f"beside it has {structure.hidden_size}; restore both from one extraction."
        )


def _by_layer(kept: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What is kept of the layers of each stack, without layers of which nothing is: they may have left the list."""
    layers: dict[str, dict[str, dict[str, Any]]] = {}
    for name, choice in kept.items():
        stack, layer, kind = name.split(".")
        layers.setdefault(stack, {}).setdefault(layer, {})[kind] = choice
    return {
        stack: [entry for entry in entries.values() if any(choice is not None for choice in entry.values())]
        for stack, entries in layers.items()
    }


def _differing(found: list, recorded: list) -> str:
    if len(found) != len(recorded):
        return f"something in {len(found)} layers, not in {len(recorded)}"
    return next(f"{a}, not {b}" for a, b in zip(found, recorded) if a != b)
