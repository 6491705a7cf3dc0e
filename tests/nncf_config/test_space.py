"""From a configuration to a search space of one model."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification, BertModel

from hf_nas import SuperNetwork, describe, get_search_space
from hf_nas.elastic.stages import Stage
from hf_nas.graph_names import graph_name
from hf_nas.nncf_config import NncfConfig, named_sub_network, nncf_space
from hf_nas.subnetwork import NORM_ONLY
from tests import zoo
from tests.nncf_config.configs import (
    EMBEDDINGS,
    attention_addition,
    attention_block,
    attention_norm,
    config,
    feed_forward_block,
    neurons,
    output_addition,
    output_norm,
    projections,
)


WIDTH = "nas__training__elasticity__width"
BLOCKS = "nas__training__elasticity__depth__skipped_blocks"
BOTH = ("width", "depth")


def space(stage: Stage | None = None, model=None, **changes):
    return nncf_space(NncfConfig.from_dict(config(**changes)), model or zoo.build("bert"), stage)


def lists(found) -> list[list[int]]:
    """Of attentions, then of feed-forwards."""
    by_name = found.to_dict()["sub_layers"]
    return [by_name[f"encoder.{index}.{kind}"] for kind in ("attention", "feed_forward") for index in range(3)]


def test_widths_become_units_and_blocks_become_zeros() -> None:
    found = space()
    assert lists(found) == [[0, 1, 2, 4], [2, 3], [0, 4], [3, 9, 17, 24], [0, 24], [5, 20]]
    smallest = named_sub_network(found, "minimal")
    assert smallest.kept == (None, 3, 2, NORM_ONLY, None, 5)


@pytest.mark.parametrize(
    "stage, expected",
    [
        (Stage(BOTH, width_indicator=-1), [[0, 1, 2, 4], [2, 3], [0, 4], [3, 9, 17, 24], [0, 24], [5, 20]]),
        (Stage(BOTH, width_indicator=2), [[0, 2, 4], [2, 3], [0, 4], [17, 24], [0, 24], [5, 20]]),
        (Stage(BOTH, width_indicator=1), [[0, 4], [3], [0, 4], [24], [0, 24], [20]]),
        (Stage(("width",), width_indicator=3), [[1, 2, 4], [2, 3], [4], [9, 17, 24], [24], [5, 20]]),
        (Stage(("depth",), width_indicator=3), [[0, 4], [4], [0, 4], [24], [0, 24], [24]]),
    ],
)
def test_what_a_stage_leaves(stage: Stage, expected: list[list[int]]) -> None:
    assert lists(space(stage)) == expected


def test_a_dimension_that_is_not_available_stays_as_it_is() -> None:
    only_width = "nas__training__elasticity__available_elasticity_dims"
    stages = {"list_stage_descriptions": [{"train_dims": ["width"]}]}
    found = space(nas__training__schedule=stages, **{only_width: ["width"]})
    assert lists(found) == [[1, 2, 4], [2, 3], [4], [3, 9, 17, 24], [24], [5, 20]]


@pytest.mark.parametrize("head", [BertForQuestionAnswering, BertModel])
def test_every_head_class_of_the_base_model(head) -> None:
    model = head(zoo.build("bert").config)
    assert lists(space(model=model)) == lists(space())


def test_names_may_start_at_the_base_model() -> None:
    def from_base(value):
        if isinstance(value, list):
            return [from_base(entry) for entry in value]
        if isinstance(value, dict):
            return {key: from_base(entry) for key, entry in value.items()}
        return (
            value.replace("BertForSequenceClassification/BertModel[bert]", "BertModel")
            if isinstance(value, str)
            else value
        )

    data = from_base(config())
    assert "BertModel/BertEncoder[encoder]" in str(data) and "[bert]" not in str(data)
    assert lists(nncf_space(NncfConfig.from_dict(data), zoo.build("bert"))) == lists(space())


def model_config(model, widths: dict[str, list[int]], blocks: list[list[str]]) -> NncfConfig:
    """A configuration with the names of this model: widths by sub-layer."""
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    structure = describe(model)
    groups = [
        [graph_name(model, f"{prefix}{structure[name].path}.{path}") for path in structure[name].layout.writers]
        for name in widths
    ]
    data = config(
        **{f"{WIDTH}__overwrite_groups": groups, f"{WIDTH}__overwrite_groups_widths": list(widths.values()),
           f"{WIDTH}__add_dynamic_inputs": None, BLOCKS: blocks}
    )  # fmt: skip
    return NncfConfig.from_dict(data)


@pytest.mark.parametrize("family", ["roberta", "electra", "distilbert", "bart", "gpt2", "t5-gated"])
def test_other_families_under_their_own_names(family: str) -> None:
    model = zoo.build(family)
    stack = describe(model).sub_layers[0].stack
    widths = {f"{stack}.1.attention": [16, 32], f"{stack}.2.feed_forward": [7, 24]}
    found = nncf_space(model_config(model, widths, []), model)
    assert found.to_dict()["sub_layers"][f"{stack}.1.attention"] == [2, 4]
    assert found.to_dict()["sub_layers"][f"{stack}.2.feed_forward"] == [7, 24]
    name = f"{stack}.0.feed_forward"
    assert found.to_dict()["sub_layers"][name] == [describe(model)[name].units]


def test_a_key_value_group_is_as_wide_as_its_query_heads() -> None:
    model = zoo.build("llama")
    found = nncf_space(model_config(model, {"decoder.1.attention": [64, 48, 16]}, []), model)
    assert found.to_dict()["sub_layers"]["decoder.1.attention"] == [1, 3, 4]
    with pytest.raises(ValueError, match="width 24, which is no whole number of heads of 16"):
        nncf_space(model_config(model, {"decoder.1.attention": [24]}, []), model)


DISTILBERT = (
    "DistilBertForSequenceClassification/DistilBertModel[distilbert]/Transformer[transformer]/ModuleList[layer]"
)
DISTILBERT_NORM = f"{DISTILBERT}/TransformerBlock[1]/NNCFLayerNorm"
LLAMA = "LlamaForCausalLM/LlamaModel[model]/ModuleList[layers]/LlamaDecoderLayer"


@pytest.mark.parametrize(
    "family, block, name, kept",
    [
        ("bert", attention_block(0), "encoder.0.attention", None),
        ("bert", attention_block(2), "encoder.2.attention", None),
        ("bert", feed_forward_block(1), "encoder.1.feed_forward", NORM_ONLY),
        # A block of one's own may end otherwise than the published ones.
        ("bert", [attention_norm(1), output_norm(1)], "encoder.1.feed_forward", None),
        (
            "bert",
            [output_norm(0), attention_addition(1)],
            "encoder.1.attention",
            NORM_ONLY,
        ),
        (
            "distilbert",
            [f"{DISTILBERT_NORM}[sa_layer_norm]/layer_norm_0", f"{DISTILBERT}/TransformerBlock[1]/__add___1"],
            "encoder.1.feed_forward",
            NORM_ONLY,
        ),
        (
            "distilbert",
            [f"{DISTILBERT_NORM}[sa_layer_norm]/layer_norm_0", f"{DISTILBERT_NORM}[output_layer_norm]/layer_norm_0"],
            "encoder.1.feed_forward",
            None,
        ),
        ("llama", [f"{LLAMA}[0]/__add___1", f"{LLAMA}[1]/__add___0"], "decoder.1.attention", None),
        ("llama", [f"{LLAMA}[1]/__add___0", f"{LLAMA}[1]/__add___1"], "decoder.1.feed_forward", None),
    ],
)
def test_the_end_of_a_block_says_whether_the_normalisation_stays(family, block, name, kept) -> None:
    model = zoo.build(family)
    first = describe(model).sub_layers[0]
    found = nncf_space(model_config(model, {first.name: [first.units * first.features]}, [block]), model)
    skipped = dict(named_sub_network(found, "minimal").items())
    assert skipped.pop(name) == kept
    assert skipped == {other: kept for other, kept in found.largest.items() if other != name}


def test_a_published_skip_computes_what_it_says() -> None:
    model = zoo.build("bert")
    found = space(**{BLOCKS: [attention_block(1), feed_forward_block(1)][::-1]}, model=model)
    sub_network = found.decode(
        tuple(
            0 if d.name in ("encoder.1.attention", "encoder.1.feed_forward") else len(d.choices) - 1
            for d in found.dimensions
        )
    )
    inputs = zoo.inputs_for(model)
    seen = []
    hook = model.bert.encoder.layer[1].register_forward_hook(
        lambda module, args, output: seen.append((args[0], output))
    )
    with SuperNetwork(model) as super_network, torch.no_grad():
        super_network.activate(sub_network)
        model(**inputs)
    hook.remove()
    hidden, output = seen[0]
    output = output[0] if isinstance(output, tuple) else output
    with torch.no_grad():
        expected = model.bert.encoder.layer[1].output.LayerNorm(hidden)
    assert torch.allclose(output, expected, atol=1e-6)


def test_fixed_blocks_are_always_skipped() -> None:
    found = space(nas__training__elasticity__depth__fixed_skipped_blocks=[feed_forward_block(0)])
    assert lists(found)[3] == [0]
    for name in ("maximal", "minimal", "heuristic"):
        assert named_sub_network(found, name)["encoder.0.feed_forward"] == NORM_ONLY
    with pytest.raises(ValueError, match="'encoder.1.feed_forward' in 'skipped_blocks' and in 'fixed_skipped_blocks'"):
        space(nas__training__elasticity__depth__fixed_skipped_blocks=[feed_forward_block(1)])


def test_blocks_that_depend_on_each_other() -> None:
    chain = {BLOCKS: [attention_block(1), feed_forward_block(1), attention_block(2)]}
    with pytest.raises(ValueError, match="'encoder.1.attention' and 'encoder.1.feed_forward' one after the other"):
        space(**chain)
    with pytest.raises(ValueError, match="such as all feed-forward blocks before the attention blocks"):
        space(Stage(BOTH, depth_indicator=2), **chain)
    # With an indicator of 1 only the last block of the chain goes, which a product of choices can say.
    found = space(Stage(BOTH, depth_indicator=1, width_indicator=-1), **chain)
    assert [choices[0] for choices in lists(found)] == [1, 2, 0, 3, 0, 5]
    apart = space(**{BLOCKS: [feed_forward_block(1), attention_block(1), attention_block(2)]})
    assert [choices[0] for choices in lists(apart)] == [1, 0, 0, 3, 0, 5]


def test_automatic_lists_hold_whole_heads(caplog) -> None:
    caplog.set_level(logging.INFO)
    automatic = {
        WIDTH: {"min_width": 4, "width_step": 4, "max_num_widths": 5},
        "nas__training__schedule": {"list_stage_descriptions": [{"train_dims": ["width", "depth"]}]},
    }
    # 32, 28, 24, 20, 16 channels are 4, 3 and 2 heads of 8.
    assert lists(space(**automatic, **{BLOCKS: []})) == [[2, 3, 4]] * 3 + [[8, 12, 16, 20, 24]] * 3
    assert "no whole number of heads" in caplog.text
    shares = {WIDTH: {"min_width": 4, "width_multipliers": [0.75, 0.3]}, BLOCKS: []}
    assert lists(space(**shares)) == [[1, 3, 4]] * 3 + [[4, 16, 24]] * 3
    grouped = {WIDTH: {"min_width": 8, "width_step": 8, "overwrite_groups": [projections(1)]}, BLOCKS: []}
    assert lists(space(**grouped)) == [[4], [1, 2, 3, 4], [4], [24], [24], [24]]


REFUSED = {
    "a width above the full one": (
        {f"{WIDTH}__overwrite_groups_widths": [[40], [8], [8], [24], [24], [24]]},
        "'encoder.0.attention' the width 40, but in this model it has 32 channels",
    ),
    "a part of a head": (
        {f"{WIDTH}__overwrite_groups_widths": [[32, 12], [8], [8], [24], [24], [24]]},
        "'encoder.0.attention' the width 12, which is no whole number of heads of 8 channels",
    ),
    "a layer that is not there": (
        {f"{WIDTH}__overwrite_groups": [*map(projections, range(3)), *map(neurons, (0, 1, 3))]},
        "'bert.encoder.layer.3.intermediate.dense', which this .* with 3 layers .* does not have",
    ),
    "a part of a group": (
        {f"{WIDTH}__overwrite_groups": [projections(0)[:2], *map(projections, (1, 2)), *map(neurons, range(3))]},
        "group 0 with 2 layers, which are not 'encoder.0.attention' as a whole",
    ),
    "tied sub-layers": (
        {
            f"{WIDTH}__overwrite_groups": [
                projections(0) + neurons(0), *map(projections, (1, 2, 0)), *map(neurons, (1, 2))
            ]
        },
        "ties the widths of 'encoder.0.attention' and 'encoder.0.feed_forward'",
    ),
    "a second group": (
        {f"{WIDTH}__overwrite_groups": [*map(projections, (0, 1, 1)), *map(neurons, range(3))]},
        "second group for 'encoder.1.attention'",
    ),
    "hidden dimensions": (
        {f"{WIDTH}__overwrite_groups": [[output_norm(0)], *map(projections, (1, 2)), *map(neurons, range(3))]},
        "'encoder.layer.0.output.LayerNorm' elastic widths, but it writes neither heads nor neurons",
    ),
    "a dynamic input that is none": (
        {f"{WIDTH}__add_dynamic_inputs": [projections(0)[0]]},
        "'encoder.layer.0.attention.self.query' in 'add_dynamic_inputs'",
    ),
    "no name of a node": ({f"{WIDTH}__add_dynamic_inputs": ["bert.encoder"]}, "no name of a node"),
    "a block that is no sub-layer's": (
        {BLOCKS: [[EMBEDDINGS, projections(0)[0]]]},
        "where no sub-layer ends",
    ),
    "a block of a whole layer": (
        {BLOCKS: [[output_norm(0), output_norm(1)]]},
        "ends with 'encoder.1.feed_forward' but starts after .* list each attention and each feed-forward",
    ),
    "a block from within": ({BLOCKS: [[output_addition(0), attention_norm(1)]]}, "ends with 'encoder.1.attention'"),
    "a first block from within": ({BLOCKS: [[output_norm(0), attention_norm(0)]]}, "ends with 'encoder.0.attention'"),
    "two blocks of one sub-layer": (
        {BLOCKS: [attention_block(1), [output_norm(0), attention_addition(1)]]},
        "two blocks for 'encoder.1.attention'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_the_model(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as refusal:
        space(**changes)
    assert "\n" not in str(refusal.value)


def test_a_configuration_without_training() -> None:
    with pytest.raises(ValueError, match="no 'bootstrapNAS.training'"):
        space(nas__training=None)


def test_another_family() -> None:
    with pytest.raises(ValueError, match="'bert.encoder.layer.*RobertaForSequenceClassification"):
        space(model=zoo.build("roberta"))


def larger(**changes) -> BertForSequenceClassification:
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig(**{**zoo.MODELS["bert"][2], **changes}))


def test_a_larger_model(caplog) -> None:
    with pytest.raises(ValueError, match="no full width in any sub-layer .* no group for .* made for a smaller model"):
        space(model=larger(num_hidden_layers=4, hidden_size=64, num_attention_heads=8, intermediate_size=48))
    # As many layers: this could be meant, so it is only said.
    found = space(model=larger(hidden_size=64, num_attention_heads=8, intermediate_size=48))
    assert found.largest.counts() == (4, 24, 3, 24, 4, 20)
    assert "no full width in any sub-layer" in caplog.text


def test_batch_normalisation_is_not_adapted() -> None:
    model = zoo.build("bert")
    model.extra = nn.BatchNorm1d(3)
    assert len(space(model=model).dimensions) == 6
    with pytest.raises(ValueError, match="BatchNorm layers, which hf-nas does not do"):
        space(model=model, nas__training__batchnorm_adaptation={"num_bn_adaptation_samples": 5})
    stage = replace(NncfConfig.from_dict(config()).training.schedule.stages[0], bn_adapt=True)
    with pytest.raises(ValueError, match="BatchNorm"):
        space(stage, model=model)
    assert len(space(stage).dimensions) == 6


def test_named_sub_networks() -> None:
    found = space()
    assert named_sub_network(found, "maximal") == found.largest
    # Of n widths, widest first, the one at (n - 1) // 2; skipping does not count.
    assert named_sub_network(found, "heuristic").kept == (2, 17, 3, 24, 4, 20)
    with pytest.raises(ValueError, match="no sub-network 'middle'; choose from 'maximal', 'minimal', 'heuristic'"):
        named_sub_network(found, "middle")


@pytest.mark.parametrize("name", ["small", "medium", "layer", "large"])
def test_named_sub_networks_of_any_space(name: str) -> None:
    found = get_search_space(name, describe(zoo.build("bert")))
    maximal, minimal = (named_sub_network(found, each) for each in ("maximal", "minimal"))
    heuristic = named_sub_network(found, "heuristic")
    assert maximal.counts() == (4, 24, 4, 24, 4, 24) and minimal.counts() == (None,) * 6
    expected = {
        "small": (3, 13, 3, 13, None, None),  # of 1, 2, 3 layers the middle one is 2
        "medium": (3, 13) * 3,
        "layer": maximal.counts(),
        "large": maximal.counts(),
    }
    assert heuristic.counts() == expected[name]


def test_a_space_can_be_drawn_from() -> None:
    found = space()
    rng = np.random.default_rng(0)
    for _ in range(20):
        encoding = found.sample(rng)
        assert found.decode(found.encode(found.decode(encoding))) == found.decode(encoding)
