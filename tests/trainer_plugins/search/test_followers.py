"""What the first process says, all do; a failure anywhere ends in all of them."""

import json
from pathlib import Path

import pytest
import torch

from hf_nas.files import write_json
from trainer_plugins.search.followers import Followers


def test_one_process_alone_just_calls() -> None:
    followers = Followers({"add": lambda first, second: first + second})
    assert followers.lead(lambda: followers.call("add", 1, 2)) == 3
    with pytest.raises(KeyError):
        followers.lead(lambda: {}["nothing"])


def run_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    called: list = []

    def note(number: int) -> int:
        called.append(number)
        total = torch.tensor(number * (rank + 1))
        torch.distributed.all_reduce(total)  # of both, which only works if both are here
        return int(total)

    def fail_in(failing: int) -> int:
        if rank == failing:
            raise ArithmeticError(f"division in {failing}")
        return rank

    followers = Followers({"note": note, "fail_in": fail_in})

    def work() -> list:
        found: list = [followers.call("note", 1), followers.call("note", 5)]
        for failing in range(2):
            try:
                followers.call("fail_in", failing)
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")
        return [*found, followers.call("fail_in", 2), followers.call("note", 2)]

    found: dict = {"result": followers.lead(work)}

    def refuse() -> None:
        followers.call("note", 3)
        raise ValueError("the number is wrong")

    def fail() -> None:
        raise KeyError("lost")

    for name, wrong in (("refused", refuse), ("failed", fail)):
        try:
            followers.lead(wrong)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    # After all that they still understand each other.
    found["again"] = followers.lead(lambda: followers.call("note", 4))
    write_json(Path(folder) / f"{rank}.json", {**found, "called": called})
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path) -> None:
    torch.multiprocessing.spawn(run_process, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["called"] == second["called"] == [1, 5, 2, 3, 4]
    assert first["result"] == second["result"] == [
        3, 15, "ArithmeticError: division in 0",
        "RuntimeError: The evaluation failed in process 1: ArithmeticError: division in 1", 0, 6,
    ]  # fmt: skip
    assert first["refused"] == "ValueError: the number is wrong"
    assert second["refused"] == "ValueError: The first process ended with ValueError: the number is wrong"
    assert first["failed"] == "KeyError: 'lost'"
    assert second["failed"] == "RuntimeError: The first process ended with KeyError: 'lost'"
    assert first["again"] == second["again"] == 12
