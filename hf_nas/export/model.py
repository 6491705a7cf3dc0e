"""Export of one forward pass, by transformers' own exporters."""

import logging
import os
import sys
import tempfile
from collections.abc import Collection
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_nas.export.check import TOLERANCE, largest_difference, reason_of
from hf_nas.export.fast_norms import speed_up_norms
from hf_nas.export.formats import load_exported, require
from hf_nas.export.inputs import dynamic_shapes, input_names, longest_input, text_inputs
from hf_nas.export.preparation import prepared


if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

__all__ = ["export_model", "save_exported"]

logger = logging.getLogger(__name__)

# No size of 1 and no two alike: tracing takes such sizes for fixed, or for one.
_ROWS, _LENGTH = 3, 10


def export_model(
    model: PreTrainedModel, format_name: str, names: Collection[str] | None = None, *, fast_norms: bool = False
) -> "ExportedModel":
    """Trace the forward pass of a model, for any number of rows and tokens.

    Of a decoder it is the pass over a whole sequence, without a cache.

    Args:
        model: on the CPU, extracted or not; it is not changed.
        format_name: onnx, openvino or torch-export.
        names: of the inputs; None: those that [`hf_nas.export.inputs.input_names`] finds without a tokenizer.
        fast_norms: whether to write the layer norms of an ONNX graph as [`speed_up_norms`] does, for CPUs.

    Returns:
        What can be called like the model, see `transformers.exporters.ExportedModel`.

    Raises:
        ValueError: if the format is not known, its packages are missing or fast norms are asked of another one, or the
            model cannot be traced.
    """
    kind = require(format_name)
    if fast_norms and format_name != "onnx":
        raise ValueError(f"Fast norms are for onnx, and the format is {format_name!r}; leave them out.")
    from transformers import exporters

    length = min(_LENGTH, longest_input(model))
    inputs = text_inputs(model, _ROWS, length, names if names is not None else input_names(model))
    exporter = getattr(exporters, kind.exporter)()
    config = getattr(exporters, kind.config)(dynamic_shapes=dynamic_shapes(inputs))
    try:
        # torch.onnx.export tells its steps on stdout, which belongs to the results of a command.
        with prepared(model), redirect_stdout(sys.stderr):
            exported = exporter.export(model, inputs, config)
    except Exception as error:  # what tracers raise has no common class
        raise ValueError(
            f"{type(model).__name__} cannot be exported to {format_name} by transformers {transformers.__version__} "
            f"({reason_of(error)}); choose another format."
        ) from error
    if fast_norms:
        logger.info("%d layer norms were rewritten.", speed_up_norms(exported.program))
    return exported


def save_exported(
    exported: "ExportedModel",
    folder: str | Path,
    model: PreTrainedModel,
    names: Collection[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    tolerance: float | None = TOLERANCE,
) -> float:
    """Save an export with all it needs to run, once the saved files were loaded and compared with the model.

    Args:
        exported: the export.
        folder: where to; files of the same names are replaced, and nothing is written if the export is refused.
        model: that was exported.
        names: of the inputs.
        tokenizer: to save beside it.
        tolerance: the largest relative difference from the model that is accepted; None: any finite one.

    Returns:
        The largest relative difference, see [`hf_nas.export.check.largest_difference`].

    Raises:
        ValueError: if it differs more, or cannot be read back or run.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as temporary:
        stage = Path(temporary)
        exported.save_pretrained(stage)
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)
        try:
            loaded = load_exported(stage)
        except Exception as error:  # what readers of graphs raise has no common class either
            raise ValueError(
                f"The {exported.export_format} export of this {type(model).__name__} cannot be read back "
                f"({reason_of(error)}); choose another format."
            ) from error
        difference = largest_difference(model, loaded, names)
        limit = float("inf") if tolerance is None else tolerance
        if not difference < limit:
            raise ValueError(
                f"The {exported.export_format} export differs from the model by {difference:.2g} relative to its "
                f"largest output, where {limit:g} is allowed; choose another format."
            )
        for path in sorted(stage.iterdir()):
            os.replace(path, folder / path.name)
    return difference
