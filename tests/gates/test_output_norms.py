"""Gates where a norm comes between a sub-layer's output projection and the stream, against the layer's formula."""

import itertools

import pytest
import torch
from torch import nn

from hf_nas import SubNetwork, SuperNetwork, describe, extract, save_extracted
from hf_nas.gates import GateValues, UnitGates, fold
from tests import zoo


KINDS = ("heads", "neurons", "attention", "feed_forward")
SUBSETS = [subset for size in (1, 2, 4) for subset in itertools.combinations(KINDS, size)]
NAMES = ("gemma2", "gemma3_text")


def build(name: str):
    """With a bias behind the heads, which the gate of an attention scales too."""
    model = zoo.build(name)
    assert model.model.layers[0].self_attn.o_proj.bias is not None
    return model


class GatedLayer(nn.Module):
    """The layer of Gemma 2 and 3 with gates in its formula; the weights are those of a stock layer.

    The stream is `x + a * norm(attention(norm(x)))`, then `x + f * norm(network(norm(x)))`.
    """

    def __init__(self, layer: nn.Module, index: int, values: GateValues):
        super().__init__()
        self.layer = layer
        names = [f"decoder.{index}.{kind}" for kind in ("attention", "feed_forward")]
        self.heads, self.neurons = (values.units.get(name, torch.ones(())) for name in names)
        self.branches = [values.sub_layers.get(name, torch.ones(())) for name in names]

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self.layer.get_submodule(name).weight
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + weight)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        projection = self.layer.self_attn.o_proj
        # Two query heads of size 8 read each of the four key-value heads.
        gated = x.unflatten(-1, (4, 16)) * self.heads.reshape(-1, 1) if self.heads.dim() else x.unflatten(-1, (4, 16))
        return gated.flatten(-2) @ projection.weight.T + projection.bias

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        taken = []
        attention, network = self.layer.self_attn, self.layer.mlp
        handle = attention.o_proj.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
        attention(hidden_states=self.norm("input_layernorm", hidden_states), **kwargs)
        handle.remove()
        branch = self.norm("post_attention_layernorm", self.project(taken[0]))
        x = hidden_states + self.branches[0] * branch
        y = self.norm("pre_feedforward_layernorm", x)
        inner = network.act_fn(y @ network.gate_proj.weight.T) * (y @ network.up_proj.weight.T)
        branch = self.norm("post_feedforward_layernorm", (inner * self.neurons) @ network.down_proj.weight.T)
        return x + self.branches[1] * branch


def reference_logits(name: str, values: GateValues, inputs: dict) -> torch.Tensor:
    model = build(name)
    for index, layer in enumerate(list(model.model.layers)):
        gated = GatedLayer(layer, index, values)
        # The model chooses mask and rotary embedding by what it reads off its layers.
        gated.attention_type = getattr(layer, "attention_type", None)
        model.model.layers[index] = gated
    return zoo.logits(model, inputs)


def assert_close(result: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (result - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def set_logits(gates: UnitGates, seed: int, closed: str | None = None) -> None:
    """Soft, some closed, and one sub-layer of each kind of them closed as a whole."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for kind in gates.kinds:
            logits = gates.get_submodule(kind).logits
            logits.copy_(torch.randn(logits.shape, generator=generator) * 1.5 - 0.5)
            if kind in ("attention", "feed_forward"):
                logits.clamp_(min=-1.0)
                logits[1 if kind == "attention" else 2] = -4.0


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_the_stock_model_where_nothing_is_gated(name: str) -> None:
    inputs = zoo.inputs_for(build(name))
    assert_close(reference_logits(name, GateValues(), inputs), zoo.logits(build(name), inputs))


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
@pytest.mark.parametrize("name", NAMES)
def test_gates_compute_the_formula_and_fold_and_extract_to_it(name: str, kinds, tmp_path) -> None:
    model = build(name)
    structure, inputs = describe(model), zoo.inputs_for(model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    gates = UnitGates(model, kinds)
    set_logits(gates, len(kinds))
    gated = zoo.logits(model, inputs)
    assert torch.equal(zoo.logits(model, inputs), gated) and gates.draws == 0
    values, sub_network = gates.values(), gates.sub_network()
    gates.detach()
    whole = [value for value in values.sub_layers.values() if 0 < value < 1]
    assert bool(whole) == bool({"attention", "feed_forward"} & {*kinds})
    assert ("attention" in kinds) == (sub_network["decoder.1.attention"] is None)
    assert ("feed_forward" in kinds) == (sub_network["decoder.2.feed_forward"] is None)
    assert_close(gated, reference_logits(name, values, inputs))
    folded = fold(model, values)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    small = extract(folded, sub_network)
    assert_close(zoo.logits(small, inputs), gated)
    with SuperNetwork(folded) as super_network:
        super_network.activate(sub_network)
        assert_close(zoo.logits(folded, inputs), gated)
    save_extracted(small, sub_network, tmp_path)
    assert_close(zoo.logits(type(model).from_pretrained(tmp_path).eval(), inputs), gated)
    assert sub_network != SubNetwork.full(structure)
    assert (gated - zoo.logits(model, inputs)).abs().max() > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_behind_the_gate_would_undo_it(name: str) -> None:
    """Scaling what the output projection writes is not the same, which is why the gate stands where it does."""
    model = build(name)
    inputs = zoo.inputs_for(model)
    plain = zoo.logits(model, inputs)
    with UnitGates(model, ("attention",)) as gates:
        gates.fix(GateValues(sub_layers={"decoder.1.attention": torch.tensor(0.5)}))
        gated = zoo.logits(model, inputs)
    handle = model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda module, args, output: output * 0.5)
    before_the_norm = zoo.logits(model, inputs)
    handle.remove()
    assert (gated - plain).abs().max() > 20 * (before_the_norm - plain).abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_gates_of_whole_sub_layers(name: str) -> None:
    """Each is the derivative of the loss by the value of the gate, by finite differences."""
    model = build(name)
    inputs = zoo.inputs_for(model, labels=True)
    values = {each: torch.tensor(0.6, requires_grad=True) for each in describe(model).names}
    # The norms compute in single precision, whatever the model does, so that small steps drown in rounding.
    step = 0.02
    with UnitGates(model, ("attention", "feed_forward")) as gates:
        gates.fix(GateValues(sub_layers=values))
        model(**inputs).loss.backward()
        for each, value in values.items():
            losses = []
            for end in (0.6 + step, 0.6 - step):
                gates.fix(GateValues(sub_layers={**values, each: torch.tensor(end)}))
                losses.append(float(model(**inputs).loss.detach()))
            slope = (losses[0] - losses[1]) / (2 * step)
            assert float(value.grad) == pytest.approx(slope, rel=0.02, abs=2e-4), each
            assert abs(slope) > 2e-3, each


@pytest.mark.parametrize("name", NAMES)
def test_logits_learn_through_the_model(name: str) -> None:
    model = zoo.without_dropout(build(name)).train()
    gates = UnitGates(model, KINDS)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.zero_()
    model(**zoo.inputs_for(model, labels=True), use_cache=False).loss.backward()
    assert gates.draws == 1
    for kind in KINDS:
        assert bool(gates.get_submodule(kind).logits.grad.any()), kind
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_generation_is_that_of_the_extracted_model(name: str) -> None:
    model = build(name)
    prompt = {"input_ids": zoo.inputs_for(model)["input_ids"][:1]}
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    gates = UnitGates(model, KINDS)
    set_logits(gates, 3)
    generated = model.generate(**prompt, **settings)
    values, sub_network = gates.values(), gates.sub_network()
    gates.detach()
    assert torch.equal(generated, extract(fold(model, values), sub_network).generate(**prompt, **settings))
