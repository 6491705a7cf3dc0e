"""Importance of heads against finite differences and the published toy, and the greedy order by it."""

import json
import math

import pytest
import torch
from torch.nn import functional

from hf_nas import SubNetwork, describe, extract
from hf_nas.files import write_json
from hf_nas.gates import Gates, head_rows
from hf_nas.importance import get_importance, gradient, head_gradient, michel, michel_order, order_heads
from hf_nas.importance.head_gradient import normalise_by_layer, normalise_globally
from tests import zoo


def rows_of(inputs: dict, rows: slice) -> dict:
    return {name: value[rows] for name, value in inputs.items()}


def flat(scores: dict) -> torch.Tensor:
    return torch.cat(list(scores.values()))


def loss_in_double(model, inputs) -> torch.Tensor:
    """Mean loss of a model of double precision; its own one is computed in single precision."""
    logits, labels = model(**inputs).logits, inputs["labels"]
    if "CausalLM" in type(model).__name__:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


# Of a finite length, since RMS norms compute in single precision whatever their input is.
def slope(model, structure, inputs, name: str, unit: int, size: float = 1e-3, at: float = 1.0) -> float:
    losses = []
    for step in (-size, size):
        gate = torch.ones(structure[name].units, dtype=torch.double)
        gate[unit] = at + step
        with torch.no_grad(), Gates(model, {name: gate}):
            losses.append(float(loss_in_double(model, inputs)))
    return (losses[1] - losses[0]) / (2 * size)


@pytest.mark.parametrize("name", ["bert", "vit", "llama", "bart", "t5", "marian"])
def test_it_is_the_absolute_gradient_of_each_batch_over_the_tokens(name) -> None:
    model = zoo.build(name).double()
    structure, inputs = describe(model), zoo.inputs_for(model, labels=True)
    batches = [rows_of(inputs, slice(0, 2)), rows_of(inputs, slice(2, 3))]
    scores = head_gradient(model, structure, batches)
    assert list(scores) == [row.name for row in head_rows(structure)]
    # Images have no mask: each is 3 x 3 patches and the token of the whole.
    tokens = 3 * 10 if name == "vit" else int(inputs["attention_mask"].sum())
    for row in head_rows(structure):
        assert scores[row.name].shape == (row.units,) and bool((scores[row.name] >= 0).all())
        unit = row.layer % row.units
        wanted = sum(abs(slope(model, structure, batch, row.name, unit)) for batch in batches) / tokens
        assert float(scores[row.name][unit]) == pytest.approx(wanted, rel=5e-3, abs=1e-7), row.name


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_per_example_it_is_the_mean_absolute_gradient_whatever_the_batches(name) -> None:
    model = zoo.build(name).double()
    structure, inputs = describe(model), zoo.inputs_for(model, labels=True)
    together = head_gradient(model, structure, [inputs], per_example=True)
    apart = head_gradient(
        model, structure, [rows_of(inputs, slice(0, 1)), rows_of(inputs, slice(1, 3))], per_example=True
    )
    assert torch.allclose(flat(together), flat(apart), rtol=1e-9)
    assert not torch.allclose(flat(together), 3 * flat(head_gradient(model, structure, [inputs])), rtol=1e-2)
    for row in head_rows(structure)[::2]:
        each = [slope(model, structure, rows_of(inputs, slice(n, n + 1)), row.name, 1) for n in range(3)]
        wanted = sum(abs(value) for value in each) / 3
        assert float(together[row.name][1]) == pytest.approx(wanted, rel=5e-3, abs=1e-7)


def test_it_agrees_with_the_importance_of_all_units_on_one_batch() -> None:
    model = zoo.build("bert").train()
    structure, inputs = describe(model), zoo.inputs_for(model, labels=True)
    scores, others = head_gradient(model, structure, [inputs]), gradient(model, structure, [inputs])
    tokens = int(inputs["attention_mask"].sum())
    for name, score in scores.items():
        assert torch.allclose(score * tokens, others[name], rtol=1e-4)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    # Without a mask all tokens count.
    unmasked = {name: value for name, value in inputs.items() if name != "attention_mask"}
    unscaled = gradient(model, structure, [unmasked])
    result = head_gradient(model, structure, [unmasked])
    assert torch.allclose(flat(result) * inputs["input_ids"].numel(), torch.cat([unscaled[n] for n in result]))


def test_removed_heads_have_gradients_at_a_gate_of_zero() -> None:
    model = zoo.build("bert").double()
    structure, inputs = describe(model), zoo.inputs_for(model, labels=True)
    kept = SubNetwork.of(structure, {"encoder.1.attention": [0, 2, 3]})
    scores = head_gradient(model, structure, [inputs], kept=kept)
    wanted = abs(slope(model, structure, inputs, "encoder.1.attention", 1, at=0.0)) / int(
        inputs["attention_mask"].sum()
    )
    assert float(scores["encoder.1.attention"][1]) == pytest.approx(wanted, rel=1e-4)


def test_published_normalisation() -> None:
    scores = {"a": torch.tensor([3.0, 4]) / 100, "b": torch.tensor([0.0, 1]) / 100}
    by_layer = normalise_by_layer(scores)
    assert flat(by_layer).tolist() == pytest.approx([0.6, 0.8, 0, 1])
    assert flat(normalise_globally(by_layer)).tolist() == pytest.approx([0.6, 0.8, 0, 1])
    shifted = {name: 5 * score + 2 for name, score in by_layer.items()}
    assert flat(normalise_globally(shifted)).tolist() == pytest.approx([0.6, 0.8, 0, 1])
    equal = {"a": torch.ones(2), "b": torch.ones(2)}
    assert flat(normalise_globally(equal)).tolist() == [0, 0, 0, 0]
    assert flat(normalise_by_layer({"a": torch.zeros(2)})).tolist() == [0, 0]


def test_the_published_toy() -> None:
    """`y = sum(gate * c)` with the loss `(y - 1)^2 / 2`: the absolute gradient decides, not the signed one."""
    coefficients = torch.tensor([1, 2, -3, 0.5])
    structure = describe(zoo.build("bert", num_hidden_layers=1))

    def importance(left: SubNetwork) -> dict[str, torch.Tensor]:
        gates = torch.zeros(4)
        kept = left["encoder.0.attention"]
        gates[list(range(kept) if isinstance(kept, int) else kept)] = 1
        gates.requires_grad_()
        loss = ((gates * coefficients).sum() - 1) ** 2 / 2
        gradients = torch.autograd.grad(loss, gates)[0]
        if bool((gates == 1).all()):
            assert gradients.tolist() == [-0.5, -1, 1.5, -0.25]
        return {"encoder.0.attention": gradients.abs()}

    order = order_heads(structure, importance, 1)
    assert [unit + 1 for _, unit in order.removed] == [4, 1, 2, 3]
    # Exact: without head 4, y = 0 again and gradients are |c|; without 4 and 1, y = -1; and so on.
    assert [unit + 1 for _, unit in order_heads(structure, importance, 1, exact=True).removed] == [4, 1, 2, 3]


@pytest.mark.parametrize("name", ["bert", "llama", "marian"])
@pytest.mark.parametrize("heads_per_step", [1, 5, 7, 12])
def test_the_order_of_one_computation_is_that_of_its_scores(name, heads_per_step) -> None:
    model = zoo.build(name)
    structure, inputs = describe(model), zoo.inputs_for(model, labels=True)
    order = michel_order(model, structure, iter([inputs]), heads_per_step)
    scores = michel(model, structure, [inputs])
    heads = [(name, unit) for name, score in scores.items() for unit in range(len(score))]
    ranked = sorted(range(len(heads)), key=lambda head: float(flat(scores)[head]))
    assert list(order.removed) == [heads[head] for head in ranked]
    assert 0 <= float(flat(scores).min()) and float(flat(scores).max()) == 1
    networks = order.sub_networks
    assert len(networks) == math.ceil(len(heads) / heads_per_step)
    before = set(heads)
    for step, network in enumerate(networks, 1):
        kept = dict(network.items())
        now = {
            (row.name, unit)
            for row in head_rows(structure)
            for unit in (range(kept[row.name]) if isinstance(kept[row.name], int) else kept[row.name])
        }
        assert now < before and len(now) == max(len(heads) - step * heads_per_step, 0)
        before = now
    assert networks[-1] == order.keeping(0) and order.keeping(len(heads)) == SubNetwork.full(structure)
    assert extract(model, order.keeping(3))(**inputs).loss is not None


def test_exact_pruning_computes_importance_anew_without_the_removed_heads() -> None:
    model = zoo.build("bert")
    structure, inputs = describe(model), zoo.inputs_for(model, labels=True)
    batches = [rows_of(inputs, slice(0, 2)), rows_of(inputs, slice(2, 3))]
    order = michel_order(model, structure, batches, 4, exact=True)
    # The published loop, written apart: importance at the current mask, infinite where masked, the smallest go.
    removed: list[tuple[str, int]] = []
    for _ in range(3):
        mask = {row.name: torch.ones(row.units) for row in head_rows(structure)}
        for name, unit in removed:
            mask[name][unit] = 0
        for gate in mask.values():
            gate.requires_grad_()
        total = {name: torch.zeros_like(gate) for name, gate in mask.items()}
        with Gates(model, mask):
            for batch in batches:
                for gate, derivative in zip(
                    total.values(), torch.autograd.grad(model(**batch).loss, [*mask.values()])
                ):
                    gate += derivative.abs()
        matrix = torch.stack(list(total.values()))
        matrix = matrix / matrix.norm(dim=1, keepdim=True)
        gone = torch.stack([gate.detach() for gate in mask.values()]) == 0
        matrix[gone] = math.inf
        heads = [(name, unit) for name in mask for unit in range(4)]
        removed += [heads[head] for head in matrix.flatten().argsort()[:4].tolist()]
    assert list(order.removed) == removed
    assert len(set(order.removed)) == 12
    assert order.removed != michel_order(model, structure, batches, 4).removed


def test_it_is_an_importance_by_name_and_orders_heads_alone() -> None:
    model = zoo.build("bart")
    structure = describe(model)
    scores = get_importance("michel")(model, structure, [zoo.inputs_for(model, labels=True)])
    assert set(scores) == {s.name for s in structure if s.layout.is_attention}


def run_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = zoo.build("bert")
    inputs = zoo.inputs_for(model, labels=True)
    # The second process has one batch less.
    batches = [rows_of(inputs, slice(rank, rank + 1))] + ([rows_of(inputs, slice(2, 3))] if rank == 0 else [])
    structure = describe(model)
    found = {}
    for per_example in (False, True):
        scores = head_gradient(model, structure, batches, per_example=per_example, distributed=True)
        found[str(per_example)] = flat(scores).tolist()
    order = michel_order(model, structure, batches, 4, exact=True, distributed=True)
    write_json(f"{folder}/{rank}.json", {**found, "order": order.removed})
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_importance_of_two_processes_is_that_of_one_with_all_batches(tmp_path) -> None:
    torch.multiprocessing.spawn(run_process, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    model = zoo.build("bert")
    structure, inputs = describe(model), zoo.inputs_for(model, labels=True)
    batches = [rows_of(inputs, slice(row, row + 1)) for row in range(3)]
    for per_example in (False, True):
        wanted = flat(head_gradient(model, structure, batches, per_example=per_example)).tolist()
        assert first[str(per_example)] == pytest.approx(wanted, rel=1e-6)
    assert [tuple(head) for head in first["order"]] == list(
        michel_order(model, structure, batches, 4, exact=True).removed
    )


def test_what_cannot_be_computed_is_refused() -> None:
    model = zoo.build("bert")
    structure, inputs = describe(model), zoo.inputs_for(model, labels=True)
    with pytest.raises(ValueError, match="There is no batch"):
        head_gradient(model, structure, [])
    with pytest.raises(ValueError, match="computes no loss from .*give batches with labels"):
        head_gradient(model, structure, [zoo.inputs_for(model)])
    with pytest.raises(ValueError, match="there are none; start them with torchrun"):
        head_gradient(model, structure, [inputs], distributed=True)
    with pytest.raises(ValueError, match="cannot be split into examples"):
        head_gradient(model, structure, [{**inputs, "position_ids": torch.arange(9)[None]}], per_example=True)
    with pytest.raises(ValueError, match="cannot be counted"):
        embedded = {"inputs_embeds": torch.zeros(3, 5, 32), "labels": inputs["labels"]}
        head_gradient(model, structure, [embedded])
    with pytest.raises(ValueError, match="can be read only once"):
        michel_order(model, structure, iter([inputs]), 4, exact=True)
    for step in (0, 13, 2.0, True):
        with pytest.raises(ValueError, match="give a whole number from 1 to the 12 heads"):
            michel_order(model, structure, [inputs], step)
    order = michel_order(model, structure, [inputs], 4)
    for heads in (-1, 13, 1.5):
        with pytest.raises(ValueError, match="give a whole number from 0 to 12"):
            order.keeping(heads)
    with pytest.raises(ValueError, match="importance of heads is not finite"):
        nan = {row.name: torch.full((row.units,), math.nan) for row in head_rows(structure)}
        order_heads(structure, lambda left: nan, 4)
