"""The small model of a run in numbers, beside the dense one that it was made of."""

from pathlib import Path
from typing import Any

import torch

from hf_nas.extraction.dense import build_dense, recorded_sub_network
from hf_nas.extraction.stored_models import load_model
from hf_nas.files import write_json
from hf_nas.profiling import measure_latencies
from hf_nas.report.profile import profile_models
from hf_nas.report.run_folder import PROFILE_FILE, RunFolder


__all__ = ["add_profile", "profile_small"]


def add_profile(run: RunFolder, **options: object) -> RunFolder:
    """Profile the small model of a run beside the dense one, and keep that in the folder of the run.

    Args:
        run: with its small model.
        options: of [`profile_small`].

    Returns:
        The run with its profile.

    Raises:
        ValueError: if the model cannot be read, or its record does not tell the dense sizes.
    """
    write_json(Path(run.folder) / PROFILE_FILE, profile_small(run.small, **options))
    return RunFolder.read(run.folder)


def profile_small(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    sequence_length: int | None = None,
    repeats: int = 10,
    measured: bool = True,
) -> dict[str, Any]:
    """Profile an extracted model beside the dense one it was made of, in one measurement.

    The dense one is built from what `sub_network.json` records, with random weights, on which its speed does not
    depend.

    Args:
        folder: of the extracted model.
        device: where to measure.
        batch_size: sequences of a pass.
        sequence_length: tokens of a sequence; by default 128, or what the model reads.
        repeats: rounds, in which the two take turns.
        measured: whether to measure; otherwise there are sizes alone.

    Returns:
        What [`hf_nas.report.profile_models`] returns, of the models "dense" and "small", and under `sub_network` what
        the small one keeps.

    Raises:
        ValueError: if the model cannot be read, or its record is missing or does not tell the dense sizes.
    """
    source = str(folder)
    small = load_model(source).to(device)
    sub_network = recorded_sub_network(source)
    if sub_network is None:
        raise ValueError(f"{source!r} has no sub_network.json, which tells of what it was made; extract it again.")
    dense = build_dense(small, sub_network, source)
    found = profile_models(
        [("dense", dense), ("small", small)],
        batch_size=batch_size,
        sequence_length=sequence_length,
        repeats=repeats,
        measure=measure_latencies if measured else None,
    )
    return {**found, "sub_network": sub_network.to_dict()}
