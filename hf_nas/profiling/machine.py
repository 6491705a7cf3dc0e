"""The machine that something is measured on, in words that somebody with another one understands."""

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel


__all__ = ["describe_machine", "machine_words", "processor_name"]

_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine(model: PreTrainedModel) -> dict[str, Any]:
    """What the speed of a model depends on beside its sizes, in JSON types."""
    device = model.device
    on_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if on_cuda else processor_name(),
        "instructions": None if on_cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "system": platform.system(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def machine_words(machine: Mapping[str, Any]) -> str:
    """What [`describe_machine`] found, such as "cpu (AMD EPYC, 1 thread)"."""
    threads = ""
    if machine["device"] == "cpu":
        threads = f", {machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    return f"{machine['device']} ({machine['processor']}{threads})"


def processor_name(cpu_info: Path = _CPU_INFO) -> str:
    """The model of the CPU, such as "AMD EPYC 7763", or what little the platform tells.

    Args:
        cpu_info: where Linux tells it.
    """
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                return " ".join(value.split())
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.strip()
    return platform.processor() or platform.machine()
