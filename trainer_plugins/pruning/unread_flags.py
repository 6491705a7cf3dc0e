"""Refuses flags that a run would accept and ignore, because they belong to another way of making a model smaller."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from trainer_plugins.arguments import NasArguments


# By what each set of flags of `NasArguments` is read.
_READ_BY = {
    "super_network": "a super-network (--sampling_strategy)",
    "search": "a search (--do_search)",
    "eftnas": "the steps of EFTNAS",
    "distillation": "a teacher (--kd_teacher_model)",
}


def given_flags(arguments: Any) -> list[str]:
    """Names of the fields of a dataclass of flags that have another value than by default."""
    defaults = type(arguments)()
    names = [each.name for each in fields(arguments)]
    return [name for name in names if getattr(arguments, name) != getattr(defaults, name)]


def check_unread_by_pruning(nas: NasArguments, method: str, read: Collection[str] = ()) -> None:
    """Refuse flags of a super-network, its search and its importance beside a pruning, and of a teacher without one.

    Args:
        nas: all flags.
        method: of the pruning, for the message.
        read: names of those that it does read.

    Raises:
        ValueError: that says which.
    """
    for part, reader in _READ_BY.items():
        if part == "distillation" and nas.distillation.kd_teacher_model is not None:
            continue
        for name in given_flags(getattr(nas, part)):
            if name not in read:
                raise ValueError(f"--{name} belongs to {reader}; with {method} nothing reads it, so leave it out.")
