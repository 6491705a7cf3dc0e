"""Memory: hand-counted tensors, and the table against what its networks really allocate."""

import pytest
import torch
from torch import nn

from hf_nas import SizeTable, SubNetwork, describe, extract
from hf_nas.profiling import LatencyPlan, MemoryTable, example_inputs, peak_activation_bytes
from hf_nas.profiling.probes import spread_widths
from tests import zoo


SUPPORTED = ("bert", "distilbert", "vit", "gpt2", "llama", "qwen3", "bart")


class Chain(nn.Module):
    """Allocates and frees tensors of 4 bytes a number."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.weight = nn.Parameter(torch.zeros(1000))
        self.register_buffer("table", torch.zeros(1000))

    def forward(self, x):
        return self.steps(self, x)


def steps_freed(self, x):
    y = x + 1  # 10 live
    y = torch.cat([y, y, y])  # 10 + 30
    y = y[:5].clone()  # 30 + 5
    return y * 2


def steps_kept(self, x):
    kept = [x * factor for factor in range(4)]  # 40
    return sum(kept)  # and two partial sums at a time


def steps_in_place_and_views(self, x):
    y = x.view(2, 5).t()  # the input's own memory
    z = torch.zeros(20)
    z.add_(1).mul_(2)
    w = self.weight.view(10, 100)[0] if self.weight is not None else None
    return z[:3], y, w, self.table[:1]


@pytest.mark.parametrize(
    "steps, numbers", [(steps_freed, 40), (steps_kept, 60), (steps_in_place_and_views, 20)],
)  # fmt: skip
def test_live_tensors_are_counted(steps, numbers: int) -> None:
    model = Chain(steps)
    assert peak_activation_bytes(model, {"x": torch.ones(10)}) == 4 * numbers
    assert peak_activation_bytes(model, {"x": torch.ones(10)}) == 4 * numbers


def test_gradients_and_modes_are_not_touched() -> None:
    model = zoo.build("bert").train()
    peak = peak_activation_bytes(model, example_inputs(model, 2, 8))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert peak == peak_activation_bytes(model.eval(), example_inputs(model, 2, 8))


@pytest.mark.parametrize("name", SUPPORTED)
def test_no_network_needs_more_and_even_ones_exactly_this(name: str) -> None:
    changes = {"bert": {"intermediate_size": 160}, "gpt2": {"n_inner": 96}, "bart": {"encoder_ffn_dim": 96}}
    model = zoo.build(name, **changes.get(name, {}))
    tokens = 10 if name == "vit" else 12
    structure, table, inputs = describe(model), MemoryTable(model, 2, tokens), example_inputs(model, 2, tokens)
    needed = {}
    for network in [*zoo.corner_cases(model).values(), *LatencyPlan.of(structure, num_networks=6, seed=1).networks]:
        needed[network] = peak_activation_bytes(extract(model, network), inputs)
        assert needed[network] <= table.activation_bytes(network)
    measured = [
        {s.name: spread_widths(s.units, 6)[index] for s in structure} for index in (0, 1, -1)
    ]  # fmt: skip
    for kept in measured:
        network = SubNetwork.of(structure, kept)
        assert peak_activation_bytes(extract(model, network), inputs) == table.activation_bytes(network)
    full = SubNetwork.full(structure)
    # In between it is close.
    halves = SubNetwork.of(structure, {s.name: s.units // 2 for s in structure})
    assert table.activation_bytes(halves) <= 1.1 * needed[halves]
    assert table.activation_bytes(full) > table.activation_bytes(SubNetwork.of(structure, measured[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_parameters(dtype: torch.dtype) -> None:
    model = zoo.build("bert").to(dtype)
    table = MemoryTable(model, 1, 4)
    for network in zoo.corner_cases(model).values():
        small = extract(model, network)
        assert table.parameter_bytes(network) == sum(p.numel() * p.element_size() for p in small.parameters())
        assert table.total_bytes(network) == table.parameter_bytes(network) + table.activation_bytes(network)


def test_the_batch_counts() -> None:
    model = zoo.build("llama")
    full = SubNetwork.full(describe(model))
    one, four = (MemoryTable(model, batch, 16).activation_bytes(full) for batch in (1, 4))
    # Masks and rotary embeddings are shared by the rows.
    assert 3 * one < four <= 4 * one
    assert SizeTable(model).parameters(full) * 4 == MemoryTable(model, 1, 4).parameter_bytes(full)


def test_refusals() -> None:
    for name in ("t5", "mpnet"):
        with pytest.raises(ValueError, match="keeps relative position biases in memory"):
            MemoryTable(zoo.build(name), 1, 4)
    with pytest.raises(ValueError, match="attention implementation 'eager'"):
        MemoryTable(zoo.build("bert", attention="eager"), 1, 4)
    mixed = zoo.build("bert")
    mixed.classifier.to(torch.float64)
    with pytest.raises(ValueError, match="torch.float32, torch.float64"):
        MemoryTable(mixed, 1, 4)
    with pytest.raises(ValueError, match="widths is 1"):
        MemoryTable(zoo.build("bert"), 1, 4, widths=1)
    with pytest.raises(ValueError, match="belongs to a llama model"):
        MemoryTable(zoo.build("bert"), 1, 4).total_bytes(SubNetwork.full(describe(zoo.build("llama"))))
