"""What flags of several commands mean: a device, threads, an output folder, and numbers from 1 on."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


__all__ = ["check_numbers", "check_output_dir", "get_device", "limited_threads"]


def get_device(name: str | None) -> torch.device:
    """The device that `--device` names.

    Args:
        name: e.g. cpu or cuda; None: a GPU if there is one, else the CPU.

    Raises:
        ValueError: if this machine has no such device, or it computes nothing.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cause = None
    try:
        device = torch.empty(0, device=name).device
        if device.type != "meta":  # which computes nothing
            return device
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for the device
        cause = error
    raise ValueError(f"--device {name!r} cannot be used here; give one that this machine has.") from cause


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Compute with the threads of `--threads`, or with those of PyTorch where that is None."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_numbers(arguments: argparse.Namespace, *names: str) -> None:
    """Refuse numbers below 1.

    Args:
        arguments: of the command.
        names: of its flags that are numbers; those without a value pass.

    Raises:
        ValueError: naming the flag.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; give 1 or more.")


def check_output_dir(name: str) -> Path:
    """The folder of `--output_dir`.

    Raises:
        ValueError: if it holds something, or is no folder.
    """
    folder = Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {name!r} exists and is not an empty folder; give another one.")
    return folder
