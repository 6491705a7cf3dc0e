"""The gradient importance is the derivative of the loss by removing a unit."""

import pytest
import torch
from torch.nn import functional

from hf_nas import SuperNetwork, describe
from hf_nas.gates import Gates
from hf_nas.importance import gradient
from tests import zoo


def loss_in_double(model, inputs) -> float:
    """The loss of a model of double precision; its own one is computed in single precision."""
    logits, labels = model(**inputs).logits, inputs["labels"]
    if "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return float(functional.cross_entropy(logits.flatten(0, -2), labels.flatten()))


# RMS norms compute in single precision whatever their input is, which needs longer steps.
@pytest.mark.parametrize("name, size", [("bert", 1e-5), ("gpt2", 1e-5), ("llama", 1e-3), ("t5", 1e-3)])
def test_it_equals_finite_differences(name: str, size: float) -> None:
    model = zoo.build(name).double()
    structure = describe(model)
    inputs = zoo.inputs_for(model, labels=True)
    scores = gradient(model, structure, [inputs])
    assert all(scores[s.name].shape == (s.units,) for s in structure)
    generator = torch.Generator().manual_seed(0)
    for sub_layer in structure:
        unit = int(torch.randint(sub_layer.units, (1,), generator=generator))
        losses = []
        for step in (-size, size):
            gate = torch.ones(sub_layer.units, dtype=torch.double)
            gate[unit] += step
            with torch.no_grad(), Gates(model, {sub_layer.name: gate}):
                losses.append(loss_in_double(model, inputs))
        slope = abs(losses[1] - losses[0]) / (2 * size)
        assert float(scores[sub_layer.name][unit]) == pytest.approx(slope, rel=10 * size, abs=size / 10), (
            sub_layer.name
        )


def test_batches_count_alike_and_the_model_stays_as_it_was() -> None:
    model = zoo.build("bert").train()
    structure = describe(model)
    inputs = zoo.inputs_for(model, labels=True)
    batches = [{name: value[rows] for name, value in inputs.items()} for rows in (slice(0, 1), slice(1, 3))]
    each = [gradient(model, structure, [batch]) for batch in batches]
    both = gradient(model, structure, iter(batches))
    for name, score in both.items():
        assert torch.allclose(score, (each[0][name] + each[1][name]) / 2)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_it_works_on_a_super_network() -> None:
    model = zoo.build("bert")
    structure = describe(model)
    inputs = zoo.inputs_for(model, labels=True)
    wanted = gradient(model, structure, [inputs])
    with SuperNetwork(model):
        result = gradient(model, structure, [inputs])
    assert all(torch.allclose(result[name], wanted[name]) for name in wanted)


def test_no_batches_and_no_labels_are_refused() -> None:
    model = zoo.build("bert")
    with pytest.raises(ValueError, match="There is no batch"):
        gradient(model, describe(model), [])
    with pytest.raises(
        ValueError, match="BertForSequenceClassification computes no loss from .*give batches with labels"
    ):
        gradient(model, describe(model), [zoo.inputs_for(model)])
