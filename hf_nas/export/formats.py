"""The formats of an export: which packages they need, and how each is run."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

__all__ = ["FORMATS", "Format", "format_of", "load_exported", "require", "runner_options"]


@dataclass(frozen=True)
class Format:
    """A format of an export.

    Args:
        exporter: name of its class in `transformers.exporters`.
        config: name of the class of its options there.
        packages: modules that must be importable.
        extra: the extra of hf-nas that installs them, if any is needed.
        quantizer: name of the class in `transformers.exporters` that quantizes it, if there is one.
    """

    exporter: str
    config: str
    packages: tuple[str, ...] = ()
    extra: str | None = None
    quantizer: str | None = None


FORMATS = {
    "onnx": Format(
        "OnnxExporter", "OnnxConfig", ("onnx", "onnxscript", "onnxruntime"), "onnx", quantizer="NNCFOnnxQuantizer"
    ),
    "openvino": Format(
        "OpenVINOExporter", "OpenVINOConfig", ("openvino",), "openvino", quantizer="NNCFOpenVINOQuantizer"
    ),
    "torch-export": Format("DynamoExporter", "DynamoConfig"),
}


def require(name: str, *, quantization: bool = False) -> Format:
    """The format of this name, once what it needs is installed.

    Args:
        name: one of [`FORMATS`].
        quantization: whether it is to be quantized.

    Raises:
        ValueError: if there is no such format, a package is missing, or it cannot be quantized.
    """
    if name not in FORMATS:
        raise ValueError(f"There is no format {name!r}; choose from {', '.join(FORMATS)}.")
    found = FORMATS[name]
    if quantization and found.quantizer is None:
        able = (other for other, each in FORMATS.items() if each.quantizer is not None)
        raise ValueError(f"The format {name!r} cannot be quantized; choose from {', '.join(able)}.")
    _check_installed("transformers.exporters", f"The format {name!r}", "transformers>=5.23")
    for package in found.packages:
        _check_installed(package, f"The format {name!r}", f"hf-nas[{found.extra}]")
    if quantization:
        _check_installed("nncf", "Quantization", "hf-nas[quantization]")
    return found


def runner_options(name: str, threads: int | None = None) -> dict[str, Any]:
    """Options of [`load_exported`] by which a format computes in full float32 precision, with so many threads.

    Args:
        name: one of [`FORMATS`].
        threads: of the CPU; None: what the engine takes by itself. `torch-export` takes PyTorch's in any case.
    """
    require(name)
    if name == "onnx" and threads is not None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return {"session_options": options}
    if name == "openvino":
        # Some processors would compute in bfloat16 otherwise.
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        return {"config": config}
    return {}


def load_exported(folder: str | Path, *, threads: int | None = None) -> "ExportedModel":
    """Load an exported model on the CPU: `ExportedModel.from_pretrained`, with the options of [`runner_options`].

    Args:
        folder: that [`save_exported`] wrote.
        threads: of the CPU; None: what the engine takes by itself.

    Raises:
        ValueError: if the folder holds no export, or a package that runs it is missing.
    """
    from transformers.exporters import ExportedModel
    from transformers.exporters.base import EXPORT_MANIFEST_FILE

    folder = Path(folder)
    if not (folder / EXPORT_MANIFEST_FILE).is_file():
        raise ValueError(f"{str(folder)!r} holds no {EXPORT_MANIFEST_FILE}; give a folder that hf-nas export wrote.")
    try:
        name = format_of(json.loads((folder / EXPORT_MANIFEST_FILE).read_text(encoding="utf-8"))["export_format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The file {EXPORT_MANIFEST_FILE} in {str(folder)!r} is damaged ({error}); export the model again."
        ) from error
    return ExportedModel.from_pretrained(folder, device="cpu", **runner_options(name, threads))


def format_of(export_format: str) -> str:
    """The name in [`FORMATS`] of what transformers calls `export_format`."""
    return "torch-export" if str(export_format) == "dynamo" else str(export_format)


def _check_installed(module: str, what: str, requirement: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ValueError(f'{what} needs the package {module}, which is not installed; pip install "{requirement}".')
