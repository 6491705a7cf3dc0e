"""The structure tells all units of a model, and a new family is one table entry."""

import copy

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

import hf_nas
from hf_nas import SizeTable, SubNetwork, SuperNetwork, describe, extract, register_family
from hf_nas.ops import by_unit, unit_features
from hf_nas.space import CustomSpace
from hf_nas.structures import Family, StackLayout, SubLayerLayout
from tests import zoo


@pytest.mark.parametrize("name", zoo.MODELS)
def test_units_and_features(name: str) -> None:
    model = zoo.build(name)
    structure = describe(model)
    two_stacks, shared = model.config.is_encoder_decoder, name == "albert"
    depth = 1 if shared else 3
    assert structure.depths == ({"encoder": 3, "decoder": 3} if two_stacks else {structure.sub_layers[0].stack: depth})
    assert len(structure.sub_layers) == (15 if two_stacks else 2 * depth)
    assert {sub_layer.repeats for sub_layer in structure} == {3 if shared else 1}
    for sub_layer in structure:
        if sub_layer.kind == "feed_forward":
            assert (sub_layer.units, sub_layer.features) == (128 if name == "gpt2" else 24, 1)
        else:
            grouped = "num_key_value_heads" in zoo.MODELS[name][2]
            head_size = 4 if name in ("qwen2", "phi3") else 8
            assert (sub_layer.units, sub_layer.features) == (4, 2 * head_size if grouped else head_size)


def test_an_unknown_family_is_refused_with_the_known_ones_and_the_way_out() -> None:
    model = zoo.build("bert")
    model.config.model_type = "perceiver"
    with pytest.raises(
        ValueError, match=r"'perceiver' is not known to hf-nas; known are albert, bart.*register_family"
    ):
        describe(model)


@pytest.mark.parametrize("field", ["num_hidden_groups", "inner_group_num"])
def test_albert_with_more_than_one_shared_layer_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=3, but hf-nas knows this family only with {field}=1; use such"):
        describe(zoo.build("albert", **{field: 3}))


def test_widths_and_depth_of_layers_that_share_their_weights_are_refused() -> None:
    model = zoo.build("albert")
    with pytest.raises(ValueError, match="which stand for all 3 layers, since these share their weights"):
        SubNetwork.of(describe(model), {"encoder.1.attention": 2})
    with pytest.raises(ValueError, match="choice 2, but there are only 1 layers"):
        CustomSpace({"num_layers": {"encoder": [1, 2]}}, describe(model))
    small = extract(model, SubNetwork.of(describe(model), {"encoder.0.attention": 2}))
    assert [layer.num_attention_heads for layer in small.config.per_layer_config] == [2, 2, 2]
    config = copy.deepcopy(small.config)
    config.per_layer_config = {0: {"num_attention_heads": 2}, 2: {"num_attention_heads": 2}}
    with pytest.raises(ValueError, match="albert model share their weights, but per_layer_config states .* layer 1"):
        type(model)(config)


def test_a_part_of_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match="T5Stack has no layers at 'encoder.block' or 'decoder.block', where hf-nas"):
        describe(zoo.build("t5").encoder)


@pytest.mark.parametrize("name", ["modernbert", "deberta-v2-shared"])
def test_a_layer_that_is_pinned_to_its_place_stays_and_costs_nothing(name: str) -> None:
    model = zoo.build(name)
    structure = describe(model)
    assert [s.pinned for s in structure] == [s.layer == 0 for s in structure]
    without = SubNetwork.of(structure, {s.name: None for s in structure if s.layer < 2})
    small = extract(model, without)
    left = describe(small)
    assert left.depths == {"encoder": 2} and {s.name for s in left if s.skipped} == {
        "encoder.0.attention", "encoder.0.feed_forward",
    }  # fmt: skip
    again = extract(small, SubNetwork.full(left))
    inputs = zoo.inputs_for(model)
    assert torch.equal(zoo.logits(again, inputs), zoo.logits(small, inputs))
    assert not any(s.pinned for s in describe(zoo.build("deberta-v2")))


def test_a_fused_projection_of_grouped_queries_has_blocks_of_two_sizes() -> None:
    """Phi-3: two query heads of size 4 for each key and value; the rows of the third unit, counted by hand."""
    sub_layer = describe(zoo.build("phi3"))["decoder.0.attention"]
    assert sub_layer.blocks(64) == (8, 4, 4)
    rows = unit_features(torch.tensor([2]), sub_layer.blocks(64), sub_layer.units).tolist()
    assert rows == [*range(16, 24), *range(40, 44), *range(56, 60)]
    assert by_unit(torch.arange(64), sub_layer.blocks(64), 4)[2].tolist() == rows


def test_phi3_layers_read_their_own_number_of_heads_and_leave_no_trace() -> None:
    model = zoo.build("phi3")
    attention = model.model.layers[0].self_attn
    stock = type(attention)
    with SuperNetwork(model) as super_network:
        super_network.activate(SubNetwork.of(super_network.structure, {"decoder.0.attention": [1, 3]}))
        assert attention.config.num_attention_heads == 4 and model.config.num_attention_heads == 8
        assert attention.config.rms_norm_eps == model.config.rms_norm_eps
        small = extract(model, super_network.active)
    assert type(attention) is stock and attention.config is model.config
    heads = [layer.self_attn.config.num_attention_heads for layer in copy.deepcopy(small).model.layers]
    assert heads == [4, 8, 8]
    with pytest.raises(AttributeError, match="no_such_field"):
        small.model.layers[0].self_attn.config.no_such_field  # noqa: B018


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


@pytest.mark.parametrize("name", ["llama", "phi3", "modernbert", "deberta-v2"])
def test_a_pruned_model_can_be_pruned_again(name: str, tmp_path) -> None:
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    first = extract(model, zoo.corner_cases(model)["everything at once"])
    structure = describe(first)
    stack = structure.sub_layers[0].stack
    assert structure[f"{stack}.1.attention"].skipped
    kept = {f"{stack}.0.feed_forward": 2, f"{stack}.1.feed_forward": 5, f"{stack}.2.attention": [1]}
    again = SubNetwork.of(structure, kept)
    second = extract(first, again)
    wanted = zoo.logits(second, inputs)
    tolerance = 1e-5 * max(1.0, float(wanted.abs().max()))
    before = zoo.logits(first, inputs)
    with SuperNetwork(first) as super_network:
        super_network.activate(again)
        assert (zoo.logits(first, inputs) - wanted).abs().max() <= tolerance
    assert torch.equal(zoo.logits(first, inputs), before)
    assert (before - wanted).abs().max() > 10 * tolerance
    second.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation=model.config._attn_implementation).eval()
    assert (zoo.logits(loaded, inputs) - wanted).abs().max() <= tolerance
    with pytest.raises(ValueError, match="is gone from this model already, so it can only be None"):
        SubNetwork.of(structure, {f"{stack}.1.attention": 1})


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
