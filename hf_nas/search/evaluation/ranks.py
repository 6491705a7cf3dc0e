"""An evaluation split over processes, all of which end up with all predictions."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch


__all__ = ["Gather", "Ranks"]

Share = TypeVar("Share")

# Takes what one process has and returns what all have, in the order of their ranks.
Gather = Callable[[Any], Sequence[Any]]


class Ranks:
    """The processes of an evaluation. Each must evaluate the same sub-networks in the same order.

    Args:
        rank: of this process.
        world_size: number of processes.
        gather: brings together what the processes have; `torch.distributed` does, where none is given.

    Raises:
        ValueError: for a rank that is none of them, or several processes without a way to gather.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, gather: Gather | None = None):
        if not 0 <= rank < world_size:
            raise ValueError(f"Rank {rank} of {world_size} processes is none; give 0 to {max(world_size - 1, 0)}.")
        if world_size > 1 and gather is None and not _is_initialised():
            raise ValueError(
                f"An evaluation by {world_size} processes has no way to gather their predictions; give the function "
                "gather or initialise torch.distributed."
            )
        self.rank = rank
        self.world_size = world_size
        self._gather = gather or _all_gather

    @classmethod
    def of_torch(cls) -> "Ranks":
        """The processes of `torch.distributed`; this one alone, where that is not initialised."""
        if not _is_initialised():
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def is_mine(self, number: int) -> bool:
        """Whether this process evaluates the batch with this number; they take turns, as lengths fall."""
        return number % self.world_size == self.rank

    def exchange(self, compute: Callable[[], Share]) -> list[Share]:
        """What `compute` returns in each process.

        Raises:
            RuntimeError: if it failed in another process; what it raised, if in this one. None waits for the others.
        """
        if self.world_size == 1:
            return [compute()]
        error: Exception | None = None
        share: tuple[Any, str | None]
        try:
            share = (compute(), None)
        except Exception as raised:
            error, share = raised, (None, f"{type(raised).__name__}: {raised}")
        gathered = self._gather(share)
        if error is not None:
            raise error
        for rank, (_, message) in enumerate(gathered):
            if message is not None:
                raise RuntimeError(f"The evaluation failed in process {rank}: {message}")
        return [each for each, _ in gathered]


def _is_initialised() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _all_gather(share: Any) -> list[Any]:
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, share)
    return gathered
