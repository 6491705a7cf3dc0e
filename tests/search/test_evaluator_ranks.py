"""An evaluation split over processes gives every one of them the numbers of a single one."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_nas.elastic import SuperNetwork
from hf_nas.files import write_json
from hf_nas.search import SuperNetworkEvaluator
from hf_nas.search.evaluation import Racing, Ranks, Rejected
from hf_nas.search.result import Evaluated
from tests import zoo
from tests.search.test_evaluator import collate, make_dataset


class Together:
    """Threads that gather as processes would."""

    def __init__(self, world_size: int):
        self.barrier = threading.Barrier(world_size)
        self.shares: list = [None] * world_size

    def gather(self, rank: int):
        def function(share):
            self.shares[rank] = share
            self.barrier.wait(timeout=60)
            shares = list(self.shares)
            self.barrier.wait(timeout=60)
            return shares

        return function


def run_ranks(world_size: int, work) -> list:
    """What `work(rank, gather)` returns or raises in each of some threads."""
    together, results = Together(world_size), [None] * world_size

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank, together.gather(rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results


def sums(prediction) -> dict[str, float]:
    """Numbers that every prediction and label has a part in, in the order of the data set."""
    weights = np.arange(1, 1 + len(prediction.predictions))
    return {
        "logits": float((prediction.predictions.sum(-1) * weights).sum()),
        "labels": float((prediction.label_ids * weights).sum()),
        "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean()),
    }


def build(count: int) -> list[SuperNetwork]:
    """Equal super-networks; not to be built in threads, which share the random numbers."""
    return [SuperNetwork(zoo.build("bert")) for _ in range(count)]


def cases(super_network) -> list:
    return list(zoo.corner_cases(super_network.model).values())[::4]


@pytest.mark.parametrize("rows", [23, 3])
def test_every_rank_gets_the_numbers_of_one_process(rows):
    dataset, passes = make_dataset(rows), []
    single_network, *networks = build(4)
    single = SuperNetworkEvaluator(single_network, dataset, collate, sums, batch_size=4)
    expected = [single(sub_network) for sub_network in cases(single_network)]

    def work(rank, gather):
        def take(outputs):
            passes.append((rank, len(outputs.logits)))
            return outputs.logits

        super_network = networks[rank]
        evaluator = SuperNetworkEvaluator(
            super_network, dataset, collate, sums, batch_size=4, predictions=take, rank=rank, world_size=3,
            gather=gather,
        )  # fmt: skip
        return [evaluator(sub_network) for sub_network in cases(super_network)]

    assert run_ranks(3, work) == [expected] * 3
    assert sum(count for _, count in passes) == rows * len(expected)  # nothing is computed twice
    assert {rank for rank, _ in passes} == ({0, 1, 2} if rows == 23 else {0})


def test_ranks_agree_on_rejections():
    dataset = make_dataset(64)

    def outcomes(super_network, **options):
        evaluator = SuperNetworkEvaluator(
            super_network, dataset, collate, sums, batch_size=8, racing=Racing(error_probability=0.5), **options
        )
        rival = Evaluated(super_network.full, (), {"accuracy": 0.9}, (0.1, 0.1))
        return [evaluator.race(each, (0.5,), [rival]) for each in cases(super_network)]

    single_network, *networks = build(3)
    single = outcomes(single_network)
    assert any(isinstance(outcome, Rejected) for outcome in single)

    def work(rank, gather):
        return outcomes(networks[rank], rank=rank, world_size=2, gather=gather)

    assert run_ranks(2, work) == [single] * 2


def test_a_failure_in_one_rank_ends_all():
    networks = build(2)

    def work(rank, gather):
        def fail(outputs):
            if rank == 1:
                raise torch.OutOfMemoryError("no memory left")
            return outputs.logits

        super_network = networks[rank]
        options = {"rank": rank, "world_size": 2, "gather": gather, "predictions": fail, "prefix_cache_bytes": 0}
        return SuperNetworkEvaluator(super_network, make_dataset(9), collate, sums, batch_size=2, **options)(
            super_network.full
        )

    first, second = run_ranks(2, work)
    assert isinstance(second, torch.OutOfMemoryError)
    assert isinstance(first, RuntimeError) and "process 1: OutOfMemoryError: no memory left" in str(first)


def test_unfit_ranks_are_refused():
    for rank, world_size in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"Rank {rank} of {world_size} processes is none"):
            Ranks(rank, world_size)
    with pytest.raises(ValueError, match="no way to gather"):
        Ranks(0, 2)
    assert Ranks.of_torch().world_size == 1
    with pytest.raises(ValueError, match="choose one of the two"):
        SuperNetworkEvaluator(
            SuperNetwork(zoo.build("bert")), make_dataset(3), collate, sums, world_size=2, distributed=True
        )


def run_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    super_network = SuperNetwork(zoo.build("bert"))
    evaluator = SuperNetworkEvaluator(super_network, make_dataset(), collate, sums, batch_size=4, distributed=True)
    own = SuperNetworkEvaluator(super_network, make_dataset(), collate, sums, batch_size=4)
    numbers = {"shared": [], "alone": []}
    for sub_network in cases(super_network):
        numbers["shared"].append(evaluator(sub_network))
        numbers["alone"].append(own(sub_network))
    numbers["layers"] = [sum(evaluator.reused_layers), sum(own.reused_layers)]
    write_json(Path(folder) / f"{rank}.json", numbers)
    torch.distributed.destroy_process_group()


def test_two_processes_of_torch_distributed_agree_with_one(tmp_path):
    torch.multiprocessing.spawn(run_process, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["shared"] == first["alone"] == second["shared"] == second["alone"]
    assert first["layers"][0] == first["layers"][1] / 2  # 3 of 6 batches each
