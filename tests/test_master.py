"""The master test: a sub-network computes the same function however it is realised.

Zeroed weights in a full-size copy (the oracle, written apart from the library), gates, slices of the shared weights,
the extracted model, and that model saved and loaded again, for every family and every corner case.
"""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from hf_nas import SizeTable, SubNetwork, SuperNetwork, describe, extract, save_extracted
from hf_nas.gates import Gates, binary_gates
from tests import zoo


CASES = tuple(zoo.corner_cases(zoo.build("bert")))


def auto_class(model):
    if "ImageClassification" in type(model).__name__:
        return AutoModelForImageClassification
    if "Classification" in type(model).__name__:
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM


def assert_close(result: torch.Tensor, wanted: torch.Tensor, rounding: float = 0.0) -> None:
    # 1e-5 for logits around 1; some tiny random models have logits of a hundred.
    assert (result - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max())) + rounding


def rounding_of(oracle: PreTrainedModel, inputs: dict, wanted: torch.Tensor) -> float:
    """How far off its own float32 an oracle may be: T5's by several times 1e-5, since its scores are not scaled."""
    if oracle.config.model_type != "t5":
        return 0.0
    return float((zoo.logits(copy.deepcopy(oracle).double(), inputs) - wanted).abs().max())


@pytest.mark.parametrize("name, attention", [(name, how) for name in zoo.MODELS for how in zoo.attentions(name)])
def test_every_realisation_agrees(name: str, attention: str, tmp_path) -> None:
    model = zoo.build(name, attention)
    inputs = zoo.inputs_for(model)
    table = SizeTable(model)
    for case, sub_network in zoo.corner_cases(model).items():
        oracle = zoo.dense_oracle(model, sub_network)
        wanted = zoo.logits(oracle, inputs)
        rounding = rounding_of(oracle, inputs, wanted)
        assert rounding <= 1e-4
        with Gates(model, binary_gates(table.structure, sub_network)):
            assert_close(zoo.logits(model, inputs), wanted, rounding)
        with SuperNetwork(model) as super_network:
            super_network.activate(sub_network)
            assert_close(zoo.logits(model, inputs), wanted, rounding)
            small = extract(model, sub_network)
        assert type(small) is type(model)
        assert_close(zoo.logits(small, inputs), wanted, rounding)
        assert sum(p.numel() for p in small.parameters()) == table.parameters(sub_network), case
        folder = tmp_path / case.replace(" ", "_")
        save_extracted(small, sub_network, folder)
        loaded = auto_class(model).from_pretrained(folder, attn_implementation=attention).eval()
        assert type(loaded) is type(model)
        assert_close(zoo.logits(loaded, inputs), wanted, rounding)
        assert SubNetwork.load(folder, table.structure) == sub_network


@pytest.mark.parametrize("name", zoo.EAGER_ONLY)
def test_models_checked_with_eager_attention_alone_have_no_other(name: str) -> None:
    with pytest.raises(ValueError, match="does not support an attention implementation through torch"):
        zoo.build(name, "sdpa")


@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_oracle_notices_a_wrong_sub_network(name: str) -> None:
    """Random models in which removing a unit changed nothing would make the master test pass whatever is computed."""
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    structure = describe(model)
    full = zoo.logits(model, inputs)
    for sub_layer in structure:
        if sub_layer.layer == 0:
            less = SubNetwork.of(structure, {sub_layer.name: sub_layer.units - 1})
            assert (zoo.logits(zoo.dense_oracle(model, less), inputs) - full).abs().max() > 1e-4, sub_layer.name


@pytest.mark.parametrize("name", [name for name, entry in zoo.MODELS.items() if "Classification" not in
                                  entry[0].__name__])  # fmt: skip
@pytest.mark.parametrize("case", CASES)
def test_generation_with_a_cache_equals_generation_without(name: str, case: str) -> None:
    model = zoo.build(name)
    sub_network = zoo.corner_cases(model)[case]
    inputs = {k: v for k, v in zoo.inputs_for(model, batch=2).items() if k != "decoder_input_ids"}
    if not model.config.is_encoder_decoder:  # decoders are padded on the left
        inputs = {key: value.flip(1) for key, value in inputs.items()}
    settings = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "num_beams": 2}
    small = extract(model, sub_network)
    wanted = small.generate(**inputs, **settings, use_cache=False)
    assert torch.equal(small.generate(**inputs, **settings), wanted)
    with SuperNetwork(model) as super_network:
        super_network.activate(sub_network)
        assert torch.equal(model.generate(**inputs, **settings), wanted)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_loss_of_an_extracted_model_is_that_of_the_super_network(name: str) -> None:
    model = zoo.build(name)
    inputs = zoo.inputs_for(model, labels=True)
    sub_network = zoo.corner_cases(model)["everything at once"]
    with SuperNetwork(model) as super_network:
        super_network.activate(sub_network)
        wanted = model(**inputs).loss
        small = extract(model, sub_network)
    assert torch.isfinite(wanted)
    assert torch.allclose(small(**inputs).loss, wanted, rtol=1e-5)
