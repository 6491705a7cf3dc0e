"""The structure tells all units of a model, and a new family is one table entry."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import hf_nas
from hf_nas import SizeTable, SubNetwork, SuperNetwork, describe, extract, register_family
from hf_nas.structures import Family, StackLayout, SubLayerLayout
from tests import zoo


@pytest.mark.parametrize("name", zoo.MODELS)
def test_units_and_features(name: str) -> None:
    model = zoo.build(name)
    structure = describe(model)
    two_stacks = model.config.is_encoder_decoder
    assert structure.depths == ({"encoder": 3, "decoder": 3} if two_stacks else {structure.sub_layers[0].stack: 3})
    assert len(structure.sub_layers) == (15 if two_stacks else 6)
    for sub_layer in structure:
        if sub_layer.kind == "feed_forward":
            assert (sub_layer.units, sub_layer.features) == (128 if name == "gpt2" else 24, 1)
        else:
            grouped = "num_key_value_heads" in zoo.MODELS[name][2]
            head_size = 4 if name == "qwen2" else 8
            assert (sub_layer.units, sub_layer.features) == (4, 2 * head_size if grouped else head_size)


def test_an_unknown_family_is_refused_with_the_known_ones_and_the_way_out() -> None:
    model = zoo.build("bert")
    model.config.model_type = "perceiver"
    with pytest.raises(ValueError, match=r"'perceiver' is not known to hf-nas; known are bart, bert.*register_family"):
        describe(model)


def test_cross_attention_outside_an_encoder_decoder_is_refused() -> None:
    model = zoo.build("bert", is_decoder=True, add_cross_attention=True)
    with pytest.raises(ValueError, match="add_cross_attention=True, which hf-nas knows only in encoder-decoder"):
        describe(model)


class ToyConfig(PreTrainedConfig):
    model_type = "toy"

    def __init__(self, width=8, depth=2, heads=2, neurons=6, **kwargs):
        self.width, self.depth, self.heads, self.neurons = width, depth, heads, neurons
        self.num_hidden_layers = depth
        super().__init__(**kwargs)


class ToyAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.size = config.width // config.heads
        self.into = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, hidden_states):
        query, key, value = self.into(hidden_states).chunk(3, dim=-1)
        split = [x.unflatten(-1, (-1, self.size)).transpose(1, 2) for x in (query, key, value)]
        result = nn.functional.scaled_dot_product_attention(*split)
        return self.out(result.transpose(1, 2).flatten(2)), None


class ToyLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.attention = ToyAttention(config)
        self.second_norm = nn.LayerNorm(config.width)
        self.up, self.down = nn.Linear(config.width, config.neurons), nn.Linear(config.neurons, config.width)

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.attention(self.norm(hidden_states))[0]
        return hidden_states + self.down(self.up(self.second_norm(hidden_states)).relu())


class ToyModel(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "toy"

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(11, config.width)
        self.blocks = nn.ModuleList(ToyLayer(config) for _ in range(config.depth))
        self.post_init()

    def forward(self, input_ids):
        hidden_states = self.embed(input_ids)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


def test_a_family_of_ones_own_works_everywhere(tmp_path) -> None:
    attention = SubLayerLayout(
        kind="attention",
        writers=("attention.into",),
        reader="attention.out",
        norms=("norm",),
        bypass=(("attention", "attention_zeros"), ("norm", "identity")),
        sizes=("heads",),
        core="attention",
        head_size="size",
        fused=3,
    )
    feed_forward = SubLayerLayout(
        kind="feed_forward",
        writers=("up",),
        reader="down",
        norms=("second_norm",),
        bypass=(("up", "identity"), ("down", "zeros"), ("second_norm", "identity")),
        sizes=("neurons",),
    )
    register_family(Family("toy", (StackLayout("encoder", "blocks", "num_hidden_layers", (attention, feed_forward)),)))
    assert "toy" in hf_nas.known_families()
    torch.manual_seed(0)
    model = ToyModel(ToyConfig()).eval()
    ids = torch.arange(10).view(2, 5)
    structure = describe(model)
    sub_network = SubNetwork.of(
        structure, {"encoder.0.attention": [1], "encoder.0.feed_forward": [0, 4], "encoder.1.attention": None}
    )
    with torch.no_grad():
        wanted = zoo.dense_oracle(model, sub_network)(ids)
        with SuperNetwork(model) as super_network:
            super_network.activate(sub_network)
            assert torch.allclose(model(ids), wanted, atol=1e-6)
        small = extract(model, sub_network)
        assert torch.allclose(small(ids), wanted, atol=1e-6)
        assert sum(p.numel() for p in small.parameters()) == SizeTable(model).parameters(sub_network)
        small.save_pretrained(tmp_path)
        assert torch.allclose(ToyModel.from_pretrained(tmp_path).eval()(ids), wanted, atol=1e-6)


def test_a_pruned_model_can_be_pruned_again(tmp_path) -> None:
    model = zoo.build("llama")
    inputs = zoo.inputs_for(model)
    first = extract(model, zoo.corner_cases(model)["everything at once"])
    structure = describe(first)
    assert structure["decoder.1.attention"].skipped
    again = SubNetwork.of(structure, {"decoder.0.feed_forward": 2, "decoder.1.feed_forward": 5})
    second = extract(first, again)
    wanted = zoo.logits(second, inputs)
    with SuperNetwork(first) as super_network:
        super_network.activate(again)
        assert torch.allclose(zoo.logits(first, inputs), wanted, atol=1e-5)
    second.save_pretrained(tmp_path)
    assert torch.allclose(zoo.logits(AutoModelForCausalLM.from_pretrained(tmp_path), inputs), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="is gone from this model already, so it can only be None"):
        SubNetwork.of(structure, {"decoder.1.attention": 1})


@pytest.mark.parametrize("first", [{0: [0, 2], 1: [0, 1, 3]}, {0: [1, 3], 1: [1, 3], 2: [1, 3]}, {0: 0, 2: [1]}])
@pytest.mark.parametrize("name", ["mpnet", "t5"])
def test_a_shared_position_bias_survives_pruning_again(name: str, first: dict, tmp_path) -> None:
    """One table serves all layers, so what a layer kept the first time decides what it reads the second time."""
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    chosen = {f"encoder.{layer}.attention": heads for layer, heads in first.items()}
    model = extract(model, SubNetwork.of(describe(model), chosen))
    table = SizeTable(model)
    units = {s.name: s.units for s in table.structure if s.kind == "attention" and s.stack == "encoder" and s.units}
    last = max(units)
    for number, kept in enumerate((
        {}, dict.fromkeys(units, 1), {name: [count - 1] for name, count in units.items()}, dict.fromkeys(units),
        dict.fromkeys(units, 0), {last: [units[last] - 1]}, {**dict.fromkeys(units), last: [units[last] - 1]},
    )):  # fmt: skip
        sub_network = SubNetwork.of(table.structure, kept)
        wanted = zoo.logits(zoo.dense_oracle(model, sub_network), inputs)
        tolerance = 1e-5 * max(1.0, float(wanted.abs().max()))
        with SuperNetwork(model) as super_network:
            super_network.activate(sub_network)
            assert (zoo.logits(model, inputs) - wanted).abs().max() <= tolerance
        small = extract(model, sub_network)
        assert (zoo.logits(small, inputs) - wanted).abs().max() <= tolerance
        assert sum(p.numel() for p in small.parameters()) == table.parameters(sub_network)
        small.save_pretrained(tmp_path / str(number))
        loaded = type(model).from_pretrained(tmp_path / str(number)).eval()
        assert (zoo.logits(loaded, inputs) - wanted).abs().max() <= tolerance
