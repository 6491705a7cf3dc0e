"""From masks of weights to heads and neurons, on examples worked out by hand."""

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from hf_nas import describe
from hf_nas.importance.movement import Masks, kept_units, resolve, write_report
from tests import zoo


QUERY, KEY, VALUE = (f"encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value"))
OUTPUT = "encoder.layer.0.attention.output.dense"
INTERMEDIATE, READER = "encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"


def tiny_bert() -> BertModel:
    """One layer, two heads of size 2, three neurons."""
    return BertModel(
        BertConfig(
            vocab_size=5, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=3,
            max_position_embeddings=8,
        )
    )  # fmt: skip


def nothing(model: BertModel) -> dict[str, Masks]:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {
        name: Masks(torch.zeros(module.weight.shape, dtype=torch.bool), torch.zeros(module.out_features).bool())
        for name, module in linear.items()
    }


def worked_example() -> tuple[BertModel, dict[str, Masks]]:
    model = tiny_bert()
    masks = nothing(model)
    masks[QUERY].weight[2, 3] = True  # head 1
    masks[KEY].bias[0] = True  # head 0, but without any weight of the key
    masks[OUTPUT].weight[1, 0] = True  # head 0
    return model, masks


def test_a_head_is_kept_by_the_output_projection_alone() -> None:
    model, masks = worked_example()
    assert kept_units(masks, describe(model))["encoder.0.attention"].tolist() == [True, True]
    masks[OUTPUT].weight[1, 0] = False
    assert kept_units(masks, describe(model))["encoder.0.attention"].tolist() == [False, True]


def test_a_bias_counts_only_beside_a_weight() -> None:
    model, masks = worked_example()
    structure = describe(model)
    masks[OUTPUT].weight[1, 0] = False
    masks[KEY].weight[3, 0] = True  # now the key has a weight, in head 1
    assert kept_units(masks, structure)["encoder.0.attention"].tolist() == [True, True]
    masks[INTERMEDIATE].bias[2] = True
    assert not kept_units(masks, structure)["encoder.0.feed_forward"].any()
    masks[INTERMEDIATE].weight[0, 1] = True
    assert kept_units(masks, structure)["encoder.0.feed_forward"].tolist() == [True, False, True]


def test_kept_units_are_rewound_and_others_go() -> None:
    model, masks = worked_example()
    masks[OUTPUT].weight[1, 0] = False
    masks[READER].weight[0, 1] = True  # neuron 1
    pooler = masks["pooler.dense"].weight
    pooler[0, 0] = True
    before = {name: Masks(mask.weight.clone(), mask.bias.clone()) for name, mask in masks.items()}
    resolved = resolve(masks, describe(model))
    for path in (QUERY, KEY, VALUE):
        assert resolved[path].weight.tolist() == [[False] * 4] * 2 + [[True] * 4] * 2
        assert resolved[path].bias.tolist() == [False, False, True, True]
    assert resolved[OUTPUT].weight.tolist() == [[False, False, True, True]] * 4
    assert resolved[OUTPUT].bias.all()
    assert resolved[INTERMEDIATE].weight.tolist() == [[False] * 4, [True] * 4, [False] * 4]
    assert resolved[INTERMEDIATE].bias.tolist() == [False, True, False]
    assert resolved[READER].weight.tolist() == [[False, True, False]] * 4 and resolved[READER].bias.all()
    assert resolved["pooler.dense"] is masks["pooler.dense"]  # in no group
    for name, mask in masks.items():
        assert torch.equal(mask.weight, before[name].weight) and torch.equal(mask.bias, before[name].bias)
    again = resolve(resolved, describe(model))
    assert all(torch.equal(again[name].weight, mask.weight) for name, mask in resolved.items())


def test_nothing_kept_masks_everything_the_output_bias_too() -> None:
    model = tiny_bert()
    masks = {**nothing(model), OUTPUT: Masks(torch.zeros(4, 4).bool(), torch.ones(4).bool())}
    for path, mask in resolve(masks, describe(model)).items():
        assert not mask.weight.any() and not mask.bias.any(), path


def test_sub_layers_that_lack_a_mask_are_left_alone() -> None:
    model, masks = worked_example()
    del masks[VALUE]
    assert list(kept_units(masks, describe(model))) == ["encoder.0.feed_forward"]
    assert resolve(masks, describe(model))[QUERY] is masks[QUERY]


def test_paths_under_any_head_but_of_one_model() -> None:
    model, masks = worked_example()
    below = {f"bert.{name}": mask for name, mask in masks.items()}
    assert kept_units(below, describe(model))["encoder.0.attention"].all()
    with pytest.raises(ValueError, match=r"more than one bert model, under \['', 'bert.'\]"):
        kept_units({**masks, **below}, describe(model))


def test_a_group_of_query_heads_is_one_unit() -> None:
    config = LlamaConfig(
        vocab_size=5, hidden_size=4, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=2,
        intermediate_size=3,
    )  # fmt: skip
    structure = describe(LlamaModel(config))
    shapes = {"q": (8, 4), "k": (4, 4), "v": (4, 4), "o": (4, 8)}
    masks = {f"model.layers.0.self_attn.{name}_proj": Masks(torch.zeros(shape).bool(), None)
             for name, shape in shapes.items()}  # fmt: skip
    query = masks["model.layers.0.self_attn.q_proj"].weight
    query[6, 0] = True  # the second query head of the second group
    assert kept_units(masks, structure)["decoder.0.attention"].tolist() == [False, True]
    resolved = resolve(masks, structure)
    for name, shape in shapes.items():
        mask, bias = resolved[f"model.layers.0.self_attn.{name}_proj"]
        mask = mask.T if name == "o" else mask
        assert bias is None and mask.shape[0] in shape
        half = mask.shape[0] // 2
        assert not mask[:half].any() and mask[half:].all()


def test_the_report(tmp_path) -> None:
    model = zoo.build("llama")  # without biases
    structure = describe(model)
    kept = {sub_layer.name: torch.arange(sub_layer.units) % 2 == 0 for sub_layer in structure}
    write_report(tmp_path / "report.csv", model, structure, kept)
    lines = (tmp_path / "report.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 4 + 3 * 3
    start = '2,0,model.layers.0.self_attn.v_proj,"(32, 32)","(16, 32)",,,"[0, 2]",LlamaForCausalLM/LlamaModel[model]/'
    assert lines[3].startswith(start)
    assert lines[-1].startswith('20,5,model.layers.2.mlp.down_proj,"(32, 24)","(32, 12)",,,')
