"""Reordering keeps the function, and puts the units with the largest weights first."""

import pytest
import torch

from hf_nas import SubNetwork, SuperNetwork, describe, extract
from hf_nas.importance import get_importance, magnitude, register_importance, reorder
from tests import zoo


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_reordered_model_computes_the_same(name: str) -> None:
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    structure = describe(model)
    wanted = zoo.logits(model, inputs)
    identities = [id(parameter) for parameter in model.parameters()]
    orders = reorder(model, structure, magnitude(model, structure))
    assert any(order != sorted(order) for order in orders.values())
    assert [id(parameter) for parameter in model.parameters()] == identities
    result = zoo.logits(model, inputs)
    assert (result - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
    again = magnitude(model, structure)
    for name_, score in again.items():
        if not structure[name_].layout.position_bias:
            assert torch.all(score[:-1] >= score[1:])


@pytest.mark.parametrize("name", ["bert", "mpnet", "gpt2", "qwen3", "t5"])
def test_a_prefix_of_the_reordered_model_is_the_top_of_the_original(name: str) -> None:
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    structure = describe(model)
    original = zoo.build(name)
    orders = reorder(model, structure, magnitude(model, structure))
    prefix = SubNetwork.of(structure, {sub_layer.name: sub_layer.units // 2 for sub_layer in structure})
    top = SubNetwork.of(structure, {s.name: orders[s.name][: s.units // 2] for s in structure})
    results = []
    for each, sub_network in ((model, prefix), (original, top)):
        with SuperNetwork(each) as super_network:
            super_network.activate(sub_network)
            results.append(zoo.logits(each, inputs))
    assert (results[0] - results[1]).abs().max() <= 1e-5 * max(1.0, float(results[0].abs().max()))


@pytest.mark.parametrize("heads", [{}, {0: [0, 2], 1: [0, 1, 3]}, {0: [1, 3], 1: [0, 1], 2: [0, 3]}, {0: 0}])
@pytest.mark.parametrize("named", [(0, 1, 2), (1,), (2,)])
@pytest.mark.parametrize("name", ["mpnet", "t5"])
def test_a_shared_position_bias_follows_its_heads(name: str, named: tuple, heads: dict) -> None:
    """Also where only some of the layers that share it are sorted, or an extracted model's layers differ."""
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    chosen = {f"encoder.{layer}.attention": kept for layer, kept in heads.items()}
    model = extract(model, SubNetwork.of(describe(model), chosen))
    structure = describe(model)
    wanted = zoo.logits(model, inputs)
    sorted_layers = [structure[f"encoder.{layer}.attention"] for layer in named]
    scores = {s.name: torch.arange(s.units) for s in sorted_layers if s.units}
    orders = reorder(model, structure, scores)
    assert set(orders) >= set(scores) and all(orders[name] == sorted(orders[name], reverse=True) for name in scores)
    result = zoo.logits(model, inputs)
    assert (result - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_magnitude_is_the_norm_of_all_weights_of_a_unit() -> None:
    model = zoo.build("bert")
    structure = describe(model)
    layer = model.bert.encoder.layer[1]
    head = torch.cat(
        [
            *(getattr(layer.attention.self, name).weight[8:16].flatten() for name in ("query", "key", "value")),
            layer.attention.output.dense.weight[:, 8:16].flatten(),
        ]
    )
    neuron = torch.cat([layer.intermediate.dense.weight[5], layer.output.dense.weight[:, 5]])
    scores = magnitude(model, structure)
    assert scores["encoder.1.attention"][1].item() == pytest.approx(head.norm().item(), rel=1e-5)
    assert scores["encoder.1.feed_forward"][5].item() == pytest.approx(neuron.norm().item(), rel=1e-5)


def test_names_and_shapes_are_checked() -> None:
    model = zoo.build("bert")
    structure = describe(model)
    with pytest.raises(ValueError, match=r"'encoder.0.attention' has shape \(3,\), but the sub-layer has 4 units"):
        reorder(model, structure, {"encoder.0.attention": torch.zeros(3)})
    with pytest.raises(ValueError, match="Unknown importance 'fisher'"):
        get_importance("fisher")
    register_importance("zeros", lambda model, structure: {s.name: torch.zeros(s.units) for s in structure})
    orders = reorder(model, structure, get_importance("zeros")(model, structure))
    assert all(order == sorted(order) for order in orders.values())
