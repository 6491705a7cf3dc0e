"""What a latency was measured on, in words that somebody with another machine understands."""

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


__all__ = ["describe_conditions", "processor_name"]

_CPU_INFO = Path("/proc/cpuinfo")


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


def describe_conditions(profile: Mapping[str, Any]) -> str:
    """The batch, the numbers' precision and the machine of a profile ([`hf_nas.report.profile_models`]) in words."""
    machine = profile["machine"]
    if machine is None:
        return f"{profile['sequence_length']} tokens; nothing was measured"
    tokens = f"{profile['sequence_length']} tokens"
    if profile["decoder_length"] is not None:
        tokens += f" and {profile['decoder_length']} of the decoder"
    threads = ""
    if machine["device"] == "cpu":
        threads = f", {machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    return (
        f"Batches of {profile['batch_size']}, {tokens}, {machine['dtype']}, {machine['attention']} attention, on "
        f"{machine['device']} ({machine['processor']}{threads}); medians of {profile['repeats']} rounds"
    )
