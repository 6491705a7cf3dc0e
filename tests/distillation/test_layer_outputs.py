"""Outputs of layers against those that transformers returns itself, and what of them counts."""

import pytest
import torch

from hf_nas.distillation import LayerDistillation, LayerOutputs, position_mask, present_layers
from hf_nas.elastic import SuperNetwork
from hf_nas.extraction import extract
from hf_nas.gates import Gates, binary_gates
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork
from tests import zoo


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "mpnet", "llama", "gpt2", "bart", "t5"])
def test_they_are_those_of_transformers(name: str) -> None:
    model = zoo.build(name)
    inputs = zoo.inputs_for(model)
    with torch.no_grad(), LayerOutputs(model) as outputs:
        assert hooks_of(model) == sum(describe(model).depths.values())
        model(**inputs)
    assert hooks_of(model) == 0
    with torch.no_grad():  # transformers collects its own by hooks that stay
        returned = model(**inputs, output_hidden_states=True, return_dict=True)
    if model.config.is_encoder_decoder:
        wanted = {"encoder": returned.encoder_hidden_states, "decoder": returned.decoder_hidden_states}
    else:
        (stack,) = describe(model).depths
        wanted = {stack: returned.hidden_states}
    normed = name in ("llama", "gpt2", "t5")  # there the last of transformers is after the final norm
    for stack, states in wanted.items():
        assert len(outputs[stack]) == 3
        for ours, theirs in list(zip(outputs[stack], states[1:]))[: 2 if normed else 3]:
            assert torch.equal(ours, theirs)
        assert torch.equal(outputs[stack][2], states[3]) != normed


def test_one_stack_of_two() -> None:
    model = zoo.build("bart")
    with LayerOutputs(model, ("decoder",)) as outputs:
        model(**zoo.inputs_for(model))
    assert [tuple(each.shape) for each in outputs["decoder"]] == [(3, 7, 32)] * 3
    with pytest.raises(ValueError, match="outputs of 'encoder' were not collected; there are those of 'decoder'"):
        outputs["encoder"]


def test_a_layer_whose_content_is_skipped_is_still_there() -> None:
    model = zoo.build("bert")
    structure = describe(model)
    gone = SubNetwork.of(structure, {s.name: None for s in structure if s.layer == 1})
    inputs = zoo.inputs_for(model)

    def outputs_of(model):
        with torch.no_grad(), LayerOutputs(model) as outputs:
            model(**inputs)
        return outputs["encoder"]

    with Gates(model, binary_gates(structure, gone)):
        gated = outputs_of(model)
    oracle = outputs_of(zoo.dense_oracle(model, gone))
    extracted = outputs_of(extract(model, gone))
    with SuperNetwork(model) as network:
        network.activate(gone)
        elastic = outputs_of(model)
    for states in (gated, elastic):
        assert len(states) == 3 and torch.equal(states[1], states[0])
        assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(states, oracle))
    # Extraction leaves such a layer out, and the next one moves up.
    assert len(extracted) == 2
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(extracted, oracle[::2]))
    assert not torch.equal(outputs_of(model)[1], outputs_of(model)[0])


def test_a_hook_on_the_whole_layer_that_was_there_before_is_seen() -> None:
    model = zoo.build("bert")
    layers = model.base_model.encoder.layer
    handle = layers[1].register_forward_hook(lambda module, args, output: args[0])
    with LayerOutputs(model) as outputs:
        model(**zoo.inputs_for(model))
    handle.remove()
    assert torch.equal(outputs["encoder"][1], outputs["encoder"][0])


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradients_reach_the_student_also_under_checkpointing(reentrant: bool | None) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = zoo.without_dropout(zoo.build("bert")).train()
        inputs = zoo.inputs_for(model)
        if checkpointing:
            chosen = None if reentrant is None else {"use_reentrant": reentrant}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=chosen)
            model.enable_input_require_grads()
        with LayerOutputs(model) as outputs:
            model(**inputs)
        teacher = [torch.zeros_like(each) for each in outputs["encoder"]]
        LayerDistillation(32, 32)(outputs["encoder"], teacher, inputs["attention_mask"]).loss.backward()
        gradients.append(model.base_model.encoder.layer[0].intermediate.dense.weight.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients, atol=1e-6)


def test_layers_without_gradients_under_checkpointing_are_refused() -> None:
    # What older releases of transformers do with reentrant checkpointing: hooks run inside, where nothing is recorded.
    model = zoo.build("bert").train()
    model.gradient_checkpointing_enable()
    before = hooks_of(model)
    with pytest.raises(ValueError, match="Layer 0 of the encoder runs without gradients .*'use_reentrant': False"):
        with LayerOutputs(model):
            with torch.no_grad():
                model(**zoo.inputs_for(model))
    assert hooks_of(model) == before
    with torch.no_grad(), LayerOutputs(model) as outputs:  # nobody expects gradients here
        model(**zoo.inputs_for(model))
    assert len(outputs["encoder"]) == 3


def test_a_new_block_starts_anew_and_the_last_pass_counts() -> None:
    model = zoo.build("bert")
    inputs = zoo.inputs_for(model)
    collector = LayerOutputs(model)
    with torch.no_grad():
        with collector as outputs:
            model(**zoo.inputs_for(model, batch=1))
            model(**inputs)
        assert outputs["encoder"][0].shape[0] == 3
        with collector as outputs:
            with pytest.raises(ValueError, match="0 of the 3 layers of the encoder ran; run the model within"):
                outputs["encoder"]


def test_bad_models_and_stacks_are_refused() -> None:
    with pytest.raises(ValueError, match="layers of a Linear are not known; give the transformers model"):
        LayerOutputs(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="BertForSequenceClassification has no layers called 'decoder'; .*'encoder'"):
        LayerOutputs(zoo.build("bert"), ("decoder",))
    with pytest.raises(ValueError, match="This bert model has no layers called 'decoder'; it has 'encoder'"):
        present_layers(describe(zoo.build("bert")), "decoder")


def test_layers_present_in_an_extracted_model() -> None:
    model = zoo.build("bart")
    structure = describe(model)
    kept = {s.name: 0 for s in structure if s.stack == "decoder" and s.layer == 1}  # its biases stay
    kept |= {"decoder.0.attention": None, "decoder.2.feed_forward": None, "decoder.2.attention": None}
    small = describe(extract(model, SubNetwork.of(structure, kept)))
    assert present_layers(structure, "decoder").tolist() == [True, True, True]
    assert present_layers(small, "encoder").tolist() == [True, True, True]
    assert present_layers(small, "decoder").tolist() == [True, False, True]  # cross-attention is left in the last


def test_masks_of_positions() -> None:
    attention, decoder = torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0]])
    labels = torch.tensor([[5, 6, -100]])
    inputs = {"attention_mask": attention, "input_ids": torch.zeros(1, 3), "labels": labels}
    assert position_mask(inputs) is attention
    assert position_mask(inputs, "decoder") is attention  # a decoder alone: prompts have no label, but count
    assert position_mask({"input_ids": labels}) is None
    assert position_mask(inputs, "encoder", True) is attention
    assert position_mask(inputs, "decoder", True).tolist() == [[True, True, False]]
    assert position_mask({**inputs, "decoder_attention_mask": decoder}, "decoder", True) is decoder
    unlabelled = {"attention_mask": attention, "decoder_input_ids": labels}
    assert position_mask(unlabelled, "decoder", True) is None
    assert position_mask({"attention_mask": attention, "labels": torch.tensor([1])}, "decoder", True) is attention
