"""The super-network leaves the stock model as it is and trains exactly the active units."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_nas import SubNetwork, SuperNetwork
from hf_nas.ops import unit_features
from tests import zoo


def snapshot(model) -> dict:
    return {
        name: (type(module), {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)})
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("name", zoo.MODELS)
def test_attaching_and_detaching_leave_no_trace(name: str) -> None:
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    modules, weights = snapshot(model), copy.deepcopy(model.state_dict())
    wanted = zoo.logits(model, inputs)
    super_network = SuperNetwork(model)
    assert list(model.state_dict()) == list(weights)
    assert torch.equal(zoo.logits(model, inputs), wanted)  # the largest is the original, bit for bit
    for sub_network in zoo.corner_cases(model).values():
        super_network.activate(sub_network)
        zoo.logits(model, inputs)
    super_network.activate(super_network.full)
    assert torch.equal(zoo.logits(model, inputs), wanted)
    super_network.activate(zoo.corner_cases(model)["everything at once"])
    super_network.detach()
    assert snapshot(model) == modules
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(zoo.logits(model, inputs), wanted)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_removed_units_get_exactly_no_gradient_and_kept_ones_that_of_the_oracle(name: str) -> None:
    model = zoo.build(name).double()
    inputs = zoo.inputs_for(model, labels=True)
    sub_network = zoo.corner_cases(model)["other units in every layer"]
    oracle = zoo.dense_oracle(model, sub_network)
    oracle(**inputs).loss.backward()
    super_network = SuperNetwork(model)
    super_network.activate(sub_network)
    model(**inputs).loss.backward()
    for sub_layer in super_network.structure:
        base, layout = model.base_model, sub_layer.layout
        kept = sub_network[sub_layer.name]
        units = torch.tensor(kept if isinstance(kept, tuple) else range(kept))
        inside = torch.zeros(sub_layer.units * sub_layer.features, dtype=torch.bool)
        inside[unit_features(units, sub_layer.features, sub_layer.units)] = True
        reader = sub_layer.module(base, layout.reader)
        gradient = reader.weight.grad if isinstance(reader, nn.Linear) else reader.weight.grad.T
        assert gradient[:, ~inside].abs().max() == 0
        reference = sub_layer.module(oracle.base_model, layout.reader)
        wanted = reference.weight.grad if isinstance(reference, nn.Linear) else reference.weight.grad.T
        assert torch.allclose(gradient[:, inside], wanted[:, inside])
        for path in layout.writers:
            writer = sub_layer.module(base, path)
            reference = sub_layer.module(oracle.base_model, path)
            rows = writer.weight.grad.T if isinstance(writer, Conv1D) else writer.weight.grad
            wanted = reference.weight.grad.T if isinstance(writer, Conv1D) else reference.weight.grad
            kept_rows = torch.zeros(rows.shape[0], dtype=torch.bool)
            kept_rows[unit_features(units, sub_layer.blocks(rows.shape[0]), sub_layer.units)] = True
            assert rows[~kept_rows].abs().max() == 0
            assert torch.allclose(rows, wanted)
    references = dict(oracle.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        if "relative_attention_bias" in parameter_name:
            assert torch.allclose(parameter.grad, references[parameter_name].grad)
            assert parameter.grad.abs().max() > 0


def test_activating_switches_states_and_collects_nothing() -> None:
    model = zoo.build("bert")
    inputs = zoo.inputs_for(model)
    super_network = SuperNetwork(model)
    cases = zoo.corner_cases(model)
    first, second = cases["one head left"], cases["everything at once"]
    super_network.activate(first)
    wanted = zoo.logits(model, inputs)
    for _ in range(3):
        super_network.activate(second)
        super_network.activate(first)
    assert torch.equal(zoo.logits(model, inputs), wanted)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with super_network.activated(second):
        assert super_network.active == second
    assert super_network.active == first


def test_the_number_of_heads_changes_the_output() -> None:
    """Guards against what transformers 5 does with `head_mask`: accept it and ignore it."""
    model = zoo.build("bert")
    inputs = zoo.inputs_for(model)
    wanted = zoo.logits(model, inputs)
    super_network = SuperNetwork(model)
    super_network.activate(SubNetwork.of(super_network.structure, {"encoder.0.attention": 3}))
    assert (zoo.logits(model, inputs) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(name: str, reentrant: bool) -> None:
    sub_network = zoo.corner_cases(zoo.build(name))["other units in every layer"]
    gradients = []
    for checkpointing in (False, True):
        model = zoo.without_dropout(zoo.build(name)).double().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        super_network = SuperNetwork(model)
        super_network.activate(sub_network)
        model(**zoo.inputs_for(model, labels=True)).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for plain, checkpointed in zip(*gradients):
        assert torch.allclose(plain, checkpointed)


@pytest.mark.parametrize("name", ["bert", "mpnet", "gpt2", "qwen3", "t5"])
def test_autocast_computes_slices_in_low_precision(name: str) -> None:
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    sub_network = zoo.corner_cases(model)["other units in every layer"]
    small = zoo.dense_oracle(model, sub_network)
    super_network = SuperNetwork(model)
    super_network.activate(sub_network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, wanted = zoo.logits(model, inputs), zoo.logits(small, inputs)
    assert result.dtype == torch.bfloat16
    assert (result - wanted).abs().max() <= 0.1 * wanted.abs().max()


def test_attaching_twice_is_refused() -> None:
    model = zoo.build("bert")
    SuperNetwork(model)
    with pytest.raises(ValueError, match="attached to this BertForSequenceClassification already; detach it first"):
        SuperNetwork(model)


def test_a_sub_network_of_another_model_is_refused() -> None:
    other = SubNetwork.full(SuperNetwork(zoo.build("bert", num_hidden_layers=2)).structure)
    with pytest.raises(ValueError, match="belongs to a bert model with 4 sub-layers"):
        SuperNetwork(zoo.build("bert")).activate(other)
