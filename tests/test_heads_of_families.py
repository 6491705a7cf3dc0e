"""The master test with every task head that transformers has for a family, for one uneven sub-network each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import RobertaForMaskedLM, RobertaForSequenceClassification
from transformers.models.auto import modeling_auto

import hf_nas
from hf_nas import SizeTable, SubNetwork, SuperNetwork, describe, extract, save_extracted
from hf_nas.gates import Gates, binary_gates
from tests import zoo


HEADS = {
    "SequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "QuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "MultipleChoice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "MaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "CausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "Seq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "ImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}


def head_of(family: str, task: str) -> type | None:
    names = HEADS[task].get(family, ())
    name = names if isinstance(names, str) else next(iter(names), "")
    # Bart stands among the masked language models too, with the head that generates.
    return None if task == "MaskedLM" and name.endswith("ConditionalGeneration") else getattr(transformers, name, None)


CASES = [(family, task) for family in zoo.FAMILIES for task in HEADS if head_of(family, task) is not None]


def build(family: str, task: str) -> transformers.PreTrainedModel:
    changes = {"num_labels": 2} if task == "QuestionAnswering" else {}  # start and end
    if task == "CausalLM" and head_of(family, "MaskedLM") is not None:
        changes["is_decoder"] = True
    return zoo.build(family, head=head_of(family, task), **changes)


def inputs_for(model: transformers.PreTrainedModel) -> dict:
    inputs = zoo.inputs_for(model)
    # Without an encoder there is nothing that a decoder could read beside its own tokens; with one, these heads make
    # the decoder's input themselves.
    derives = "QuestionAnswering" in type(model).__name__ or not model.config.is_encoder_decoder
    return {key: value for key, value in inputs.items() if not (derives and key == "decoder_input_ids")}


def outputs_of(model: transformers.PreTrainedModel, inputs: dict) -> torch.Tensor:
    """All logits in one vector; those of padding, where they have a place each, left out."""
    with torch.no_grad():
        outputs = model(**inputs)
    mask, found = inputs.get("attention_mask"), []
    for name in ("logits", "start_logits", "end_logits"):
        if name in outputs:
            values = outputs[name]
            by_token = mask is not None and not model.config.is_encoder_decoder and values.shape[:2] == mask.shape[:2]
            found.append((values[mask.bool()] if by_token and mask.shape[1] == 9 else values).flatten())
    return torch.cat(found)


def uneven(model: transformers.PreTrainedModel) -> SubNetwork:
    return zoo.corner_cases(model)["everything at once"]


def assert_close(result: torch.Tensor, wanted: torch.Tensor) -> None:
    assert result.shape == wanted.shape
    assert (result - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_every_family_has_a_head_and_every_task_a_family() -> None:
    assert {family for family, _ in CASES} == set(hf_nas.known_families()) - {"toy"}
    assert {task for _, task in CASES} == set(HEADS)


@pytest.mark.parametrize("family, task", CASES)
def test_every_head_agrees(family: str, task: str, tmp_path) -> None:
    model = build(family, task)
    inputs, sub_network = inputs_for(model), uneven(model)
    table = SizeTable(model)
    wanted = outputs_of(zoo.dense_oracle(model, sub_network), inputs)
    assert (outputs_of(model, inputs) - wanted).abs().max() > 1e-3
    with Gates(model, binary_gates(table.structure, sub_network)):
        assert_close(outputs_of(model, inputs), wanted)
    with SuperNetwork(model) as super_network:
        super_network.activate(sub_network)
        assert_close(outputs_of(model, inputs), wanted)
        small = extract(model, sub_network)
    assert type(small) is type(model)
    assert_close(outputs_of(small, inputs), wanted)
    assert sum(p.numel() for p in small.parameters()) == table.parameters(sub_network)
    save_extracted(small, sub_network, tmp_path)
    loaded, info = type(model).from_pretrained(
        tmp_path, attn_implementation=model.config._attn_implementation, output_loading_info=True
    )
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    assert_close(outputs_of(loaded.eval(), inputs), wanted)


FRESH_PROCESS = """
import json, sys, traceback
sys.modules["hf_nas"] = None  # any import of it fails, as where it is not installed
import torch, transformers

def outputs(entry, **options):
    auto = getattr(transformers, entry["auto"])
    model = auto.from_pretrained(entry["folder"], attn_implementation=entry["attention"], **options).eval()
    with torch.no_grad():
        return model(**{key: torch.tensor(value) for key, value in entry["inputs"].items()}).logits.flatten().tolist()

def tried(entry, **options):
    try:
        return outputs(entry, **options)
    except Exception as error:
        return "".join(traceback.format_exception(error))[-1500:]

entries = json.loads(sys.stdin.read())
found = {name: {"remote code": tried(entry, trust_remote_code=True)} for name, entry in entries.items()}
for name, entry in entries.items():
    found[name]["neither"] = tried(entry)
del sys.modules["hf_nas"]
import hf_nas
for name, entry in entries.items():
    found[name]["hf-nas"] = tried(entry)
print("FOUND" + json.dumps(found))
"""


def test_every_family_loads_in_a_fresh_process(tmp_path) -> None:
    """With the loader file beside the weights and without hf-nas, with hf-nas, and with neither, which must fail."""
    entries, wanted = {}, {}
    for family in zoo.FAMILIES:
        model = zoo.build(family)
        inputs, sub_network = zoo.inputs_for(model), uneven(model)
        save_extracted(extract(model, sub_network), sub_network, tmp_path / family)
        task = next(task for task in HEADS if head_of(family, task) is type(model))
        entries[family] = {
            "folder": str(tmp_path / family),
            "auto": f"AutoModelFor{task}",
            "attention": model.config._attn_implementation,
            "inputs": {key: value.tolist() for key, value in inputs.items()},
        }
        with torch.no_grad():
            wanted[family] = zoo.dense_oracle(model, sub_network)(**inputs).logits.flatten()
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(Path(hf_nas.__file__).parents[1]),
    }
    process = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS],
        input=json.dumps(entries), env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in process.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, process.stderr[-2000:]
    for family, found in json.loads(lines[0].removeprefix("FOUND")).items():
        for route in ("remote code", "hf-nas"):
            assert isinstance(found[route], list), f"{family}, {route}: {found[route]}"
            assert_close(torch.tensor(found[route]), wanted[family])
        assert isinstance(found["neither"], str), f"{family} loaded without any help"
        loud = ("AmbiguousGlobalPerLayerAttributeError", "size mismatch", "ignore_mismatched_sizes")
        assert any(sign in found["neither"] for sign in loud), f"{family}: {found['neither']}"


@pytest.mark.parametrize("family", ["xlm-roberta", "camembert"])
@pytest.mark.parametrize(
    "task, reference", [("SequenceClassification", RobertaForSequenceClassification), ("MaskedLM", RobertaForMaskedLM)]
)
def test_hidden_dimensions_of_what_is_roberta_under_another_name(family: str, task: str, reference: type) -> None:
    """Same weights under the same names: what is tested against an oracle for RoBERTa holds for these."""
    model, roberta = build(family, task), zoo.build("roberta", head=reference)
    roberta.load_state_dict(model.state_dict())
    kept, hidden = dict(uneven(model).items()), [0, 3, 4, 9, 20, 31]
    small, other = (extract(each, SubNetwork.of(describe(each), kept, hidden)) for each in (model, roberta))
    inputs = inputs_for(model)
    assert torch.equal(outputs_of(small, inputs), outputs_of(other, inputs))
    assert {key: value.shape for key, value in small.state_dict().items()} == {
        key: value.shape for key, value in other.state_dict().items()
    }
