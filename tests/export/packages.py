"""Which packages an export needs, told apart from the library's own check, a mistake in which must not skip a test."""

from importlib.util import find_spec

import pytest


PACKAGES = {
    "torch-export": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
}


def need(format_name: str, quantization: bool = False) -> None:
    """Skip the test unless the packages of this format are installed, and those of quantization if it is asked for."""
    needed = ("transformers.exporters", *PACKAGES[format_name], *(("nncf",) if quantization else ()))
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed (pip install hf-nas[quantization])")
