"""Quantization of an export by NNCF 3: int8 on calibration data, or of the weights alone."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import torch

from hf_nas.export.formats import format_of, require


if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

__all__ = ["QUANTIZATIONS", "quantize"]

# By name, what it makes of the model.
QUANTIZATIONS = {
    "int8": "weights and activations in int8, by calibration data",
    "int8-weights": "weights in int8",
    "int4-weights": "weights in int4, and in int8 where a width cannot be divided into groups",
}


def quantize(
    exported: "ExportedModel",
    how: str,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
) -> "ExportedModel":
    """Quantize an export after training.

    Args:
        exported: an export to ONNX or OpenVINO, which is not changed.
        how: one of [`QUANTIZATIONS`].
        calibration: model inputs by name, a few rows each, all of which are read; needed for int8, and of no use
            otherwise.

    Returns:
        The quantized export.

    Raises:
        ValueError: if the way is not known, calibration data are missing or to spare, packages are missing, or NNCF
            refuses the model.
    """
    if how not in QUANTIZATIONS:
        raise ValueError(f"There is no quantization {how!r}; choose from {', '.join(QUANTIZATIONS)}.")
    if how == "int8" and not calibration:
        raise ValueError("The quantization 'int8' has no calibration data; give some, or choose int8-weights.")
    if how != "int8" and calibration:
        raise ValueError(f"The quantization {how!r} reads no calibration data; leave them out, or choose int8.")
    kind = require(format_of(exported.export_format), quantization=True)
    import nncf
    from transformers import exporters
    from transformers.exporters.base import ExportedComponent

    (name,) = exported.components
    component = exported.components[name]
    samples = [_traced(sample, component.metadata.kwargs) for sample in calibration]
    quantizer = getattr(exporters, kind.quantizer)(_options(how, len(samples), nncf, exporters), samples)
    # NNCF compresses the weights of an OpenVINO model in place.
    program = component.program.clone()
    try:
        with redirect_stdout(sys.stderr):  # NNCF's progress bars
            quantized = quantizer.quantize(program, samples[0] if samples else {}, exported.export_format)
    except Exception as error:  # what NNCF and the engines raise has no common class
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ValueError(
            f"NNCF {nncf.__version__} cannot quantize this model by {how!r} ({type(error).__name__}: {reason}); "
            "choose another quantization or format."
        ) from error
    return exporters.ExportedModel(
        {name: ExportedComponent(quantized, component.metadata)},
        exported.export_format,
        config=exported.config,
        generation_config=exported.generation_config,
    )


def _traced(sample: Mapping[str, torch.Tensor], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    missing = [name for name in kwargs if name not in sample]
    if missing:
        raise ValueError(f"Calibration data have no {missing[0]!r} but {', '.join(sample)}; add it.")
    return {name: sample[name] for name in kwargs}


def _options(how: str, samples: int, nncf: Any, exporters: Any) -> Any:
    if how == "int8":
        return exporters.NNCFQuantizationConfig(subset_size=samples)
    if how == "int8-weights":
        return exporters.NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT8_ASYM)
    # Pruned widths are often no multiple of a group.
    fallback = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    return exporters.NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT4_SYM, advanced_parameters=fallback)
