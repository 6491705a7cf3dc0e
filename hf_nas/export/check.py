"""Whether an export computes what the model does."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from hf_nas.export.inputs import longest_input, text_inputs
from hf_nas.export.preparation import prepared


if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

__all__ = ["TOLERANCE", "batch_difference", "check_shapes", "largest_difference"]

# Relative; what float32 and another order of additions explain is far less.
TOLERANCE = 1e-4
_SHAPES = ((1, 1), (1, 16), (2, 9), (5, 33), (4, 128))


def check_shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Rows and tokens of the batches that an export is compared on, none longer than the model reads."""
    limit = longest_input(model)
    return list(dict.fromkeys((rows, min(length, limit)) for rows, length in _SHAPES))


def largest_difference(
    model: PreTrainedModel,
    exported: "ExportedModel",
    names: Collection[str],
    shapes: Sequence[tuple[int, int]] | None = None,
) -> float:
    """How far an export is from its model, on batches of several sizes with padding.

    Args:
        model: that was exported.
        exported: the export, which must run.
        names: of its inputs.
        shapes: rows and tokens of each batch; None: those of [`check_shapes`].

    Returns:
        The largest difference in any output, relative to the largest absolute value of this output in the batch;
        infinity where one is finite and the other is not, or an output is missing.

    Raises:
        ValueError: if the export cannot compute a batch.
    """
    found = 0.0
    for rows, length in check_shapes(model) if shapes is None else shapes:
        found = max(found, batch_difference(model, exported, text_inputs(model, rows, length, names)))
    return found


def batch_difference(model: PreTrainedModel, exported: "ExportedModel", inputs: Mapping[str, torch.Tensor]) -> float:
    """The same on one batch.

    Args:
        model: that was exported.
        exported: the export, which must run.
        inputs: of both, by name.

    Raises:
        ValueError: if the export cannot compute the batch.
    """
    with prepared(model), torch.inference_mode():
        expected = model(**inputs)
    try:
        actual = exported(**inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        shape = " x ".join(map(str, next(iter(inputs.values())).shape))
        raise ValueError(
            f"The {exported.export_format} export cannot compute a batch of {shape} ({reason_of(error)}); choose "
            "another format."
        ) from error
    return _difference(expected, actual)


def reason_of(error: BaseException) -> str:
    """What an engine or a tracer says, in one line."""
    line = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _difference(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> float:
    found = 0.0
    for name, value in expected.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        other = actual.get(name)
        if other is None or other.shape != value.shape:
            return math.inf
        scale = value.abs().max().item() or 1.0
        distance = (value.float() - other.float()).abs().max().item() / scale
        found = max(found, distance if math.isfinite(distance) else math.inf)
    return found
