"""One process decides, all do: how the first process of a torchrun leads the others through a search."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from hf_nas.search.evaluation import Ranks


__all__ = ["Followers"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Call:
    """What all processes do next."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _End:
    """There is nothing more to do: what the work returned, or why it failed."""

    result: Any = None
    error: str | None = None
    is_refusal: bool = False


class Followers:
    """Functions that all processes of a run call together, when the first one says so.

    The first process does the work and calls them by [`call`]; the others wait in [`lead`] and call each at the same
    time with the same arguments. They may use collective operations. A function that fails in one process has failed
    in all of them, after which the work goes on or ends as the first process decides. Where there is one process
    alone, all of this is plain calls.

    Between two calls, the others wait no longer than the timeout of the process group (`--ddp_timeout`).

    Args:
        functions: by name; the same in every process.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]]):
        self.functions = dict(functions)
        self._ranks = Ranks.of_torch()

    def lead(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, which the first process alone does; the same in every process.

        Raises:
            ValueError: if the first process refuses something with a `ValueError`.
            RuntimeError: if it fails with any other exception. The first process raises its own.
        """
        if self._ranks.world_size == 1:
            return work()
        if self._ranks.rank > 0:
            return self._follow()
        try:
            result = work()
        except Exception as error:
            _broadcast(_End(None, f"{type(error).__name__}: {error}", isinstance(error, ValueError)))
            raise
        _broadcast(_End(result))
        return result

    def call(self, name: str, *arguments: Any) -> Any:
        """Have all processes call a function. To be used within the work that [`lead`] does.

        Args:
            name: of the function.
            arguments: of it, which travel to the other processes.

        Returns:
            What it returns in this process.

        Raises:
            RuntimeError: if it failed in another process; what it raised, if in this one.
        """
        if self._ranks.world_size == 1:
            return self.functions[name](*arguments)
        call = _Call(name, arguments)
        _broadcast(call)
        return self._do(call)

    def _do(self, call: _Call) -> Any:
        results: list[Any] = []
        # The results stay where they are; only whether there is one is exchanged.
        self._ranks.exchange(lambda: results.append(self.functions[call.name](*call.arguments)))
        return results[0]

    def _follow(self) -> Any:
        while isinstance(message := _broadcast(None), _Call):
            try:
                self._do(message)
            except Exception:
                # The first process has failed in it, too, and says whether that is the end.
                continue
        if message.is_refusal:
            raise ValueError(f"The first process ended with {message.error}")
        if message.error is not None:
            raise RuntimeError(f"The first process ended with {message.error}")
        return message.result


def _broadcast(message: _Call | _End | None) -> _Call | _End:
    """What the first process says."""
    messages = [message]
    torch.distributed.broadcast_object_list(messages, src=0)
    return messages[0]
