"""Dense models built again from what is recorded beside the small ones that were made of them."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForQuestionAnswering

from hf_nas import SubNetwork, describe, extract, save_extracted
from hf_nas.extraction.dense import build_dense, recorded_sub_network
from hf_nas.extraction.sizes import TYPES_FIELD
from tests import zoo


CASES = (
    "uniform half",
    "first layer gone",
    "middle layer gone",
    "nothing but norms",
    "all layers gone",
    "everything at once",
)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", list(zoo.MODELS))
def test_the_dense_model_comes_back_from_the_record(name, case) -> None:
    model = zoo.build(name)
    sub_network = zoo.corner_cases(model)[case]
    small = extract(model, sub_network)
    state = torch.random.get_rng_state()
    dense = build_dense(small, sub_network, "small")
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in dense.state_dict().items()} == shapes
    assert type(dense) is type(model) and not dense.training
    assert getattr(dense.config, "layer_types", None) == getattr(model.config, "layer_types", None)
    assert dense.config._attn_implementation == model.config._attn_implementation
    assert torch.equal(torch.random.get_rng_state(), state)
    assert zoo.logits(dense, zoo.inputs_for(dense)).isfinite().all()


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize("case", ["first layer gone", "middle layer gone", "all layers gone"])
def test_layers_that_were_removed_get_their_types_back(name, case, tmp_path) -> None:
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    model = zoo.build(name, layer_types=types)
    sub_network = zoo.corner_cases(model)[case]
    save_extracted(extract(model, sub_network), sub_network, tmp_path)
    small = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(small.config.layer_types) < 3
    dense = build_dense(small, recorded_sub_network(str(tmp_path)), "small")
    assert dense.config.layer_types == types and not hasattr(dense.config, TYPES_FIELD)
    # With the weights of the dense model, texts longer than the window come out the same.
    dense.load_state_dict(model.state_dict())
    inputs = zoo.inputs_for(model)
    assert inputs["input_ids"].shape[1] > model.config.sliding_window
    assert torch.equal(zoo.logits(dense, inputs), zoo.logits(model, inputs))
    # What is extracted of the small model remembers that one.
    again = SubNetwork.full(describe(small))
    assert not hasattr(extract(small, again).config, TYPES_FIELD)


@pytest.mark.parametrize("recorded", [None, ["sliding_attention"], "sliding_attention"])
def test_types_that_are_not_recorded_are_missed(recorded) -> None:
    model = zoo.build("gemma2")
    sub_network = zoo.corner_cases(model)["first layer gone"]
    small = extract(model, sub_network)
    setattr(small.config, TYPES_FIELD, recorded)
    message = f"{TYPES_FIELD} in its config.json is {recorded!r}, and must be the types of all 3 layers"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_dense(small, sub_network, "small")


def test_layers_of_one_type_need_no_record() -> None:
    model = zoo.build("gemma2", layer_types=["full_attention"] * 3)
    sub_network = zoo.corner_cases(model)["first layer gone"]
    small = extract(model, sub_network)
    assert not hasattr(small.config, TYPES_FIELD)
    assert build_dense(small, sub_network, "small").config.layer_types == ["full_attention"] * 3


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_pruned_hidden_dimensions_come_back_too(name, tmp_path) -> None:
    model = zoo.build(name)
    kept = dict(zoo.corner_cases(model)["everything at once"].items())
    sub_network = SubNetwork.of(describe(model), kept, tuple(range(3, 29)))
    small = extract(model, sub_network).to(torch.bfloat16)
    save_extracted(small, sub_network, tmp_path)
    assert recorded_sub_network(str(tmp_path)) == sub_network
    dense = build_dense(small, sub_network, "small")
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in dense.state_dict().items()} == shapes
    assert dense.dtype == torch.bfloat16


def test_a_record_that_does_not_tell_the_dense_model_is_refused() -> None:
    model = zoo.build("bert")
    structure = describe(model)
    half = SubNetwork.of(structure, {"encoder.0.attention": 2})
    small = extract(model, half)
    again = SubNetwork.of(describe(small), {"encoder.1.attention": 1})
    with pytest.raises(ValueError, match="of 'x' cannot be built .*uneven layers itself.*give the dense model itself"):
        build_dense(extract(small, again), again, "x")
    with pytest.raises(ValueError, match="it belongs to another model"):
        build_dense(small, SubNetwork.of(structure, {"encoder.0.attention": 3}), "x")
    with pytest.raises(ValueError, match=r"\(.*; give the dense model itself"):
        build_dense(small, SubNetwork.full(describe(zoo.build("gpt2"))), "x")
    # Of 16 and 12 hidden dimensions with heads of 4 both are stock models, and the record has only ids.
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8)
    answering = BertForQuestionAnswering(config)
    narrow = SubNetwork.of(describe(answering), {"encoder.0.attention": 3}, 12)
    with pytest.raises(ValueError, match="does not tell how many hidden dimensions"):
        build_dense(extract(answering, narrow), narrow, "x")
