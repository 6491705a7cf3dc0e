"""What a profile was measured on, as a sentence."""

from collections.abc import Mapping
from typing import Any

from hf_nas.profiling.machine import machine_words


__all__ = ["describe_conditions"]


def describe_conditions(profile: Mapping[str, Any]) -> str:
    """The batch, the numbers' precision and the machine of a profile ([`hf_nas.report.profile_models`]) in words."""
    machine = profile["machine"]
    if machine is None:
        return f"{profile['sequence_length']} tokens; nothing was measured"
    tokens = f"{profile['sequence_length']} tokens"
    if profile["decoder_length"] is not None:
        tokens += f" and {profile['decoder_length']} of the decoder"
    return (
        f"Batches of {profile['batch_size']}, {tokens}, {machine['dtype']}, {machine['attention']} attention, on "
        f"{machine_words(machine)}; medians of {profile['repeats']} rounds"
    )
