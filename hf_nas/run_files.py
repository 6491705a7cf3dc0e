"""The files and folders that runs leave: names, and reading them so that a damaged file is refused in a sentence."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar


__all__ = [
    "CONFIG_FILE",
    "EVALUATION_FILE",
    "FINETUNED_FOLDER",
    "MOVEMENT_FOLDER",
    "PRUNED_FOLDER",
    "PRUNING_FILE",
    "PRUNING_FOLDER",
    "RUN_FILE",
    "SCORES_FILE",
    "SPACE_FILE",
    "STATE_FILE",
    "differences",
    "guarded",
    "metrics_in",
    "read_arguments",
    "read_object",
    "record_folder",
]

CONFIG_FILE, STATE_FILE, RUN_FILE, PRUNING_FILE, EVALUATION_FILE = (
    "config.json", "trainer_state.json", "run.json", "pruning.json", "eval_results.json",
)  # fmt: skip
# A pruning is trained, extracted and fine-tuned in folders of its own.
PRUNING_FOLDER, PRUNED_FOLDER, FINETUNED_FOLDER = "pruning", "pruned", "finetuned"
# Before a super-network is trained, its importance is learnt in a folder of its own, and its space generated.
MOVEMENT_FOLDER, SCORES_FILE, SPACE_FILE = "movement_sparsity", "importance.safetensors", "search_space.json"
# What Trainer adds to metrics says nothing about the model.
_NO_METRICS = ("_runtime", "_per_second", "_time", "_samples")
_OTHER_SHAPE = (KeyError, TypeError, AttributeError, IndexError)

Content = TypeVar("Content")


def guarded(path: Path, read: Callable[[], Content], *errors: type[Exception]) -> Content:
    """What reading gives.

    Args:
        path: of what is read, for the message.
        read: reads it.
        errors: that tell of damage too, beside those of data in another shape.

    Raises:
        ValueError: in one sentence, if it is damaged.
    """
    try:
        return read()
    except (*_OTHER_SHAPE, *errors) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise ValueError(f"'{path}' is damaged ({reason}); run the command again that wrote it.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file.

    Raises:
        ValueError: if the file holds something else.
    """
    if not path.is_file():
        return {}

    def read() -> dict[str, Any]:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError(f"it holds a {type(data).__name__} instead of an object")
        return data

    return guarded(path, read, ValueError, RecursionError)


def record_folder(checkpoint: str | Path) -> Path | None:
    """Where the training of a model left its files, the model's folder or the one above; None without a record."""
    if not Path(checkpoint).is_dir():
        return None
    folders = Path(checkpoint), Path(checkpoint).resolve().parent
    return next((folder for folder in folders if (folder / RUN_FILE).is_file()), None)


def read_arguments(folder: Path) -> dict[str, Any]:
    """What the training of a run depended on, as the scripts record it; empty where they did not.

    Args:
        folder: of the run, in which its steps may have folders of their own.

    Raises:
        ValueError: if a record is damaged.
    """
    for part in ("", PRUNING_FOLDER, FINETUNED_FOLDER):
        arguments = read_object(folder / part / RUN_FILE).get("arguments")
        if isinstance(arguments, dict):
            return arguments
    return {}


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What of the facts on a run has changed: by name, as a part of a sentence."""
    return {
        name: f"{name} was {earlier.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*earlier, *now})
        if earlier.get(name) != now.get(name)
    }


def metrics_in(results: Mapping[str, Any], prefix: str = "eval_") -> dict[str, float]:
    """The metrics among what an evaluation wrote, the loss with them, without the prefix of their names."""
    return {
        name.removeprefix(prefix): float(value)
        for name, value in results.items()
        if name.startswith(prefix) and not name.removesuffix("_mm").endswith(_NO_METRICS)
        if isinstance(value, int | float) and math.isfinite(value)
    }
