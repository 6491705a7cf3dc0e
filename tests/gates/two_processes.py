"""Gates trained by two processes, which must draw and learn the same."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from hf_nas.files import write_json
from tests import zoo


def learn(rank: int, folder: str, attach: Callable[[nn.Module], nn.Module]) -> None:
    """One of the processes: its own seed and labels, the gates that `attach` makes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = zoo.without_dropout(zoo.build("bert"))
    gates = model.unit_gates = attach(model)
    wrapped = nn.parallel.DistributedDataParallel(model).train()
    optimizer = torch.optim.SGD([gates.parameter_group(1.0)])
    drawn = []
    for _ in range(3):
        inputs = zoo.inputs_for(model, labels=True)
        inputs["labels"] = (inputs["labels"] + rank) % 3
        wrapped(**inputs).loss.backward()
        drawn.append(torch.cat(list(gates.current.units.values())).tolist())
        optimizer.step()
        gates.clamp()
    state = {name: tensor.tolist() for name, tensor in gates.state_dict().items()}
    write_json(f"{folder}/{rank}.json", {"drawn": drawn, "state": state})
    torch.distributed.destroy_process_group()


def assert_same(folder: Path, attach: Callable[[nn.Module], nn.Module]) -> None:
    """Both processes end with the same gates, which changed from draw to draw."""
    torch.multiprocessing.spawn(learn, args=(str(folder), attach), nprocs=2)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["drawn"][0] != first["drawn"][1]
