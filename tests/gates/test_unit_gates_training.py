"""Training with gates of five kinds of units: what is drawn, what gets a gradient, several processes, compilation."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hf_nas.gates import KINDS, GateValues, UnitGates
from tests import zoo
from tests.gates.test_unit_gates import WITHOUT_HIDDEN, assert_close, set_logits
from tests.gates.two_processes import assert_same


def test_a_training_pass_draws_once_and_evaluation_is_deterministic() -> None:
    model = zoo.without_dropout(zoo.build("bart"))
    inputs = zoo.inputs_for(model)
    gates = UnitGates(model, WITHOUT_HIDDEN)
    set_logits(gates, 0)
    assert torch.equal(zoo.logits(model, inputs), zoo.logits(model, inputs))
    assert gates.draws == 0
    model.train()
    first, second = zoo.logits(model, inputs), zoo.logits(model, inputs)
    assert gates.draws == 2 and not torch.equal(first, second)
    # All rows of a batch see the same gates.
    rows = {key: value[:1].repeat(2, 1) for key, value in inputs.items()}
    result = model(**rows).logits
    assert torch.allclose(result[0], result[1], atol=1e-5)


def test_draws_depend_on_seed_and_number_alone_and_go_on_after_a_resume() -> None:
    def draws(gates: UnitGates, model, count: int) -> list[torch.Tensor]:
        found = []
        for _ in range(count):
            torch.rand(3)  # what else is drawn does not matter
            zoo.logits(model.train(), inputs)
            found.append(torch.cat([gate.detach() for gate in gates.current.units.values()]))
        return found

    model = zoo.build("bert")
    inputs = zoo.inputs_for(model)
    gates = UnitGates(model, seed=3)
    set_logits(gates, 0)
    straight = draws(gates, model, 4)
    again = UnitGates(zoo.build("bert", seed=5), seed=3)
    other_model = zoo.build("bert", seed=6)
    again.detach()
    again.attach(other_model)
    set_logits(again, 0)
    first = draws(again, other_model, 2)
    resumed_model = zoo.build("bert", seed=7)
    resumed = UnitGates(resumed_model, seed=3)
    # As part of a bigger module, as Trainer saves it.
    nn.ModuleDict({"gates": resumed}).load_state_dict(nn.ModuleDict({"gates": again}).state_dict())
    rest = draws(resumed, resumed_model, 2)
    assert all(torch.equal(a, b) for a, b in zip(straight, first + rest, strict=True))
    different_model = zoo.build("bert")
    different = UnitGates(different_model, seed=4)
    set_logits(different, 0)
    assert not torch.equal(straight[0], draws(different, different_model, 1)[0])


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "llama", "gemma2", "gpt2", "bart", "t5"])
def test_gradient_checkpointing_recomputes_with_the_same_draw(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = zoo.without_dropout(zoo.build(name)).train()
        gates = UnitGates(model, KINDS if name in ("bert", "roberta") else WITHOUT_HIDDEN)
        set_logits(gates, 2)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**zoo.inputs_for(model, labels=True), use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in (*model.named_parameters(), *gates.named_parameters())})
        assert gates.draws == 1
    plain, recomputed = gradients
    assert sum(gradient is not None and bool(gradient.any()) for gradient in plain.values()) > 10
    for parameter, gradient in plain.items():
        assert (gradient is None) == (recomputed[parameter] is None), parameter
        assert gradient is None or torch.allclose(gradient, recomputed[parameter], rtol=1e-4, atol=1e-7), parameter


def test_reentrant_checkpointing_is_refused() -> None:
    model = zoo.build("bert").train()
    UnitGates(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match='"use_reentrant": False'):
        model(**zoo.inputs_for(model))


def test_every_parameter_takes_part_in_every_pass() -> None:
    """Distributed training waits for the gradient of each, also where a sub-layer is closed or gates do not act."""
    model = zoo.without_dropout(zoo.build("bert")).train()
    gates = UnitGates(model)
    set_logits(gates, 0, spread=4.0)
    for active in (True, False):
        gates.active = active
        model(**zoo.inputs_for(model, labels=True)).loss.backward()
        if active:
            assert any(gate == 0 for gate in gates.current.sub_layers.values())
        parameters = (*model.named_parameters(), *gates.named_parameters())
        assert all(parameter.grad is not None for _, parameter in parameters)
        model.zero_grad(set_to_none=True)
        if not active:
            assert all(not bool(parameter.grad.any()) for parameter in gates.parameters())
        gates.zero_grad(set_to_none=True)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_depends_on_a_value(training: bool) -> None:
    """Tensors without values cannot be branched on, nor read on the host: no synchronisation with a device either."""
    model = zoo.build("bert", "eager").train(training)
    gates = UnitGates(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = model(inputs_embeds=torch.zeros(2, 5, 32))
    assert isinstance(result.logits, FakeTensor) and isinstance(gates.current.hidden, FakeTensor)


def attach(model: nn.Module) -> UnitGates:
    gates = UnitGates(model)
    set_logits(gates, 0)
    return gates


@pytest.mark.slow
def test_two_processes_draw_and_learn_the_same_gates(tmp_path) -> None:
    assert_same(tmp_path, attach)


def test_a_closed_sub_layer_gives_its_weights_no_gradient() -> None:
    model = zoo.without_dropout(zoo.build("bert")).train()
    gates = UnitGates(model, ("attention",))
    values = GateValues(sub_layers={"encoder.1.attention": torch.tensor(0.0)})
    gates.fix(values)
    model(**zoo.inputs_for(model, labels=True)).loss.backward()
    layer = model.bert.encoder.layer[1]
    assert not any(bool(parameter.grad.any()) for parameter in layer.attention.parameters())
    assert all(bool(parameter.grad.any()) for parameter in layer.output.parameters())


def test_logits_learn_through_the_model() -> None:
    model = zoo.without_dropout(zoo.build("bert")).train()
    gates = UnitGates(model, droprate_init=0.5)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.zero_()
    model(**zoo.inputs_for(model, labels=True)).loss.backward()
    for kind in KINDS:
        assert bool(gates.get_submodule(kind).logits.grad.any()), kind


def test_mixed_precision_keeps_the_types_of_the_model() -> None:
    model = zoo.build("bert").train()
    inputs = zoo.inputs_for(model)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(**inputs).logits.dtype
        gates = UnitGates(model)
        assert model(**inputs).logits.dtype == wanted
    assert gates.current.hidden.dtype == torch.float32
    half = zoo.build("llama").to(torch.bfloat16)
    UnitGates(half, WITHOUT_HIDDEN)
    assert half(**zoo.inputs_for(half)).logits.dtype == torch.bfloat16


@pytest.mark.slow
def test_a_compiled_model_computes_the_same() -> None:
    model = zoo.without_dropout(zoo.build("bert"))
    inputs = zoo.inputs_for(model, labels=True)
    gates = UnitGates(model)
    set_logits(gates, 0)
    wanted = zoo.logits(model, inputs)
    model.train()
    model(**inputs).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in gates.named_parameters()}
    drawn = gates.current
    gates.zero_grad()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled.eval()(**inputs).logits, wanted)
    model.train()
    gates.load_state_dict({**gates.state_dict(), "draws": torch.tensor(0)})
    compiled(**inputs).loss.backward()
    assert torch.equal(gates.current.hidden, drawn.hidden)
    for name, parameter in gates.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6), name
