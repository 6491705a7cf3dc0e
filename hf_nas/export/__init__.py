"""Export: a model, small or not, as a graph that runs without PyTorch's eager mode, and its quantization."""

from hf_nas.export.check import largest_difference
from hf_nas.export.formats import FORMATS, load_exported, require, runner_options
from hf_nas.export.inputs import text_inputs
from hf_nas.export.model import export_model, save_exported
from hf_nas.export.quantization import QUANTIZATIONS, quantize


__all__ = [
    "FORMATS",
    "QUANTIZATIONS",
    "export_model",
    "largest_difference",
    "load_exported",
    "quantize",
    "require",
    "runner_options",
    "save_exported",
    "text_inputs",
]
