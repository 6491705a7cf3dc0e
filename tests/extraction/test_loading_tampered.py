"""Folders of extracted models that were changed are refused in a sentence, never loaded with other weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    pipeline,
)

from hf_nas import SubNetwork, describe, extract, save_extracted
from hf_nas.cli import main
from hf_nas.extraction.sizes import STACKS_FIELD
from hf_nas.extraction.verification import HASH_FIELD
from tests import zoo


WEIGHTS, CONFIG, SUB_NETWORK, LOADER = "model.safetensors", "config.json", "sub_network.json", "modeling_hf_nas.py"


def saved(name: str, folder: Path, case: str = "everything at once") -> type:
    """Save an extracted model; returns its class."""
    model = zoo.build(name)
    sub_network = zoo.corner_cases(model)[case]
    save_extracted(extract(model, sub_network), sub_network, folder)
    return type(model)


def edit(path: Path, change: Callable) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refused(model_class: type, folder: Path, match: str, **options) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        model_class.from_pretrained(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, 10**12, 2.0, "3", True, None, [1]])
@pytest.mark.parametrize("field", ["intermediate_size", "num_attention_heads"])
def test_sizes_that_no_layer_has(field: str, value, tmp_path) -> None:
    model_class = saved("bert", tmp_path)
    edit(tmp_path / CONFIG, lambda config: config["per_layer_config"]["0"].update({field: value}))
    refused(model_class, tmp_path, f"states .*{field}.* for (encoder )?layer 0")
    refused(AutoModelForSequenceClassification, tmp_path, f"states .*{field}.* for (encoder )?layer 0")


def first_key(config: dict) -> str:
    return sorted(config["per_layer_config"])[0]


@pytest.mark.parametrize("key", ["3", "99", "-1", "one", "../0"])
def test_layers_that_do_not_exist(key: str, tmp_path) -> None:
    model_class = saved("bert", tmp_path)
    edit(tmp_path / CONFIG, lambda config: config["per_layer_config"].update({key: {"intermediate_size": 4}}))
    with pytest.raises(ValueError, match="must be integer layer indices|must state fields by index of the layer"):
        model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("entry", [7, "mlp", ["mlp"], None])
def test_entries_that_are_none(entry, tmp_path) -> None:
    model_class = saved("bert", tmp_path)
    edit(tmp_path / CONFIG, lambda config: config["per_layer_config"].update({first_key(config): entry}))
    refused(model_class, tmp_path, "must state fields by index of the layer")
    edit(tmp_path / CONFIG, lambda config: config.update(per_layer_config=entry))
    refused(model_class, tmp_path, "must state fields by index of the layer")


def test_skips_that_contradict_themselves_or_name_nothing(tmp_path) -> None:
    model_class = saved("bert", tmp_path)
    middle = "1"
    edit(tmp_path / CONFIG, lambda config: config["per_layer_config"][middle].update(num_attention_heads=2))
    refused(model_class, tmp_path, "whose attention it skips; the sizes of what is skipped are 0")
    edit(tmp_path / CONFIG, lambda config: config["per_layer_config"][middle].update(skip=["atention"]))
    refused(model_class, tmp_path, r"states skip=\('atention',\)|states skip=\['atention'\]")


def test_query_heads_that_do_not_divide_among_the_key_value_heads(tmp_path) -> None:
    model_class = saved("llama", tmp_path, "other units in every layer")
    edit(tmp_path / CONFIG, lambda config: config["per_layer_config"]["0"].update(num_attention_heads=7))
    refused(model_class, tmp_path, "which do not go together")


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda stacks: stacks.pop("decoder"), "must have the entries encoder, decoder"),
        (lambda stacks: stacks.update(encoder=3), "must have 'own_position_bias'"),
        (lambda stacks: stacks["encoder"].update(own_position_bias=1), "must have 'own_position_bias'"),
        (lambda stacks: stacks["encoder"]["layers"].update({"7": {}}), "encoder layer '7'; there are layers 0 to"),
        (lambda stacks: stacks["encoder"]["layers"].update({"0": []}), r"states \[\] for encoder layer 0"),
        (lambda stacks: stacks["decoder"]["layers"]["0"].update(d_ff=-2), "d_ff=-2 for decoder layer 0"),
        (lambda stacks: stacks["decoder"]["layers"]["0"].update(cross_attention_num_heads=9), "num_heads=9"),
    ],
)
def test_stacks_of_an_encoder_decoder(change: Callable, match: str, tmp_path) -> None:
    model_class = saved("t5", tmp_path)
    edit(tmp_path / CONFIG, lambda config: change(config[STACKS_FIELD]))
    refused(model_class, tmp_path, match)


@pytest.mark.parametrize("name, width", [("bert", 0), ("bert", -3), ("bert", 999), ("bert", "8"), ("llama", 8)])
def test_hidden_widths(name: str, width, tmp_path) -> None:
    model_class = saved(name, tmp_path)
    edit(tmp_path / CONFIG, lambda config: config.update(hf_nas_hidden_size=width))
    refused(model_class, tmp_path, f"states hf_nas_hidden_size={width!r}")


@pytest.mark.parametrize("name, field", [("bert", "intermediate_size"), ("llama", "intermediate_size")])
def test_sizes_and_tensors_that_disagree(name: str, field: str, tmp_path) -> None:
    model_class = saved(name, tmp_path)
    entry = json.loads((tmp_path / CONFIG).read_text())["per_layer_config"]["0"]
    edit(tmp_path / CONFIG, lambda config: config["per_layer_config"]["0"].update({field: entry[field] - 1}))
    refused(model_class, tmp_path, "are not those of the weights beside it")
    # Neither where whoever loads asks transformers not to mind.
    refused(model_class, tmp_path, "lack .* of its weights", ignore_mismatched_sizes=True)


@pytest.mark.parametrize("case", ["everything at once", "uniform half"])
@pytest.mark.parametrize("name", ["bert", "mpnet", "llama", "t5"])
def test_missing_weights_are_not_drawn_at_random(name: str, case: str, tmp_path) -> None:
    model_class = saved(name, tmp_path, case)
    tensors = load_file(tmp_path / WEIGHTS)
    lost = next(key for key in tensors if ".0." in key and tensors[key].numel())
    del tensors[lost]
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    refused(model_class, tmp_path, f"lack 1 of its weights, such as {lost!r}")


def test_the_head_of_another_task_may_be_new(tmp_path) -> None:
    saved("bert", tmp_path)
    for model_class in (BertForQuestionAnswering, BertForMaskedLM):
        _, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"]
    another = BertForSequenceClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert another.classifier.out_features == 7


BROKEN = [
    (lambda data: data.update(format="hf_nas.sub_network/9"), "'format' is 'hf_nas.sub_network/9'"),
    (lambda data: data.pop("format"), "'format' is None"),
    (lambda data: data.pop("kept"), "damaged or of another version"),
    (lambda data: data.pop("units"), "must have the same sub-layers"),
    (lambda data: data.pop("model_type"), "'model_type' of a sub-network is None"),
    (lambda data: data.update(model_type="gpt2"), "is of a gpt2 model but config.json of a bert model"),
    (lambda data: data["kept"].update({"encoder.0.attention": 99}), "keeps 99 of 'encoder.0.attention'"),
    (lambda data: data["kept"].update({"encoder.0.attention": [0, 99]}), r"keeps \[0, 99\] of"),
    (lambda data: data["kept"].update({"encoder.0.attention": [-1, 2]}), r"keeps \[-1, 2\] of"),
    (lambda data: data["kept"].update({"encoder.0.attention": [1, 1]}), r"keeps \[1, 1\] of"),
    (lambda data: data["kept"].update({"encoder.0.attention": [0.5]}), r"keeps \[0.5\] of"),
    (lambda data: data["kept"].update({"encoder.0.attention": "all"}), "keeps all of"),
    (lambda data: data["kept"].update({"encoder.0.attention": {}}), "keeps {} of"),
    (lambda data: data["units"].update({"encoder.0.attention": -4}), "has -4 units"),
    (lambda data: data.update(hidden=[3, 1]), "are not ids in order"),
    (lambda data: data.update(hidden=[]), "are not ids in order"),
    (lambda data: data.update(hidden=[0, 1]), "keeps 2 hidden dimensions, where the model beside it has 32"),
    (lambda data: data["kept"].update({"encoder.0.feed_forward": 1}), "is not of the model beside it"),
    (lambda data: data["kept"].update({"encoder.1.attention": 2}), "is not of the model beside it"),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_sub_networks_that_are_none_or_of_another_model(number: int, tmp_path) -> None:
    change, match = BROKEN[number]
    model_class = saved("bert", tmp_path)
    edit(tmp_path / SUB_NETWORK, change)
    refused(model_class, tmp_path, match)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\x00"])
def test_sub_networks_that_are_not_json(text: str, tmp_path) -> None:
    model_class = saved("bert", tmp_path, "uniform half")
    (tmp_path / SUB_NETWORK).write_text(text)
    refused(model_class, tmp_path, "cannot be read as JSON|damaged or of another version")


def test_a_sub_network_put_beside_the_model_of_another(tmp_path) -> None:
    """Both of the same dense model, so that nothing but the sizes tells them apart."""
    model_class = saved("bert", tmp_path / "a", "one head left")
    saved("bert", tmp_path / "b", "one neuron left")
    (tmp_path / "a" / SUB_NETWORK).write_text((tmp_path / "b" / SUB_NETWORK).read_text())
    refused(model_class, tmp_path / "a", "the encoder's layers keep .*'attention': 1.* not .*'attention': 4")


@pytest.mark.parametrize("name", [name for name in zoo.FAMILIES if name not in ("bert", "llama", "t5")])
def test_what_was_not_changed_is_not_refused(name: str, tmp_path) -> None:
    model = zoo.build(name)
    for case in ("first layer gone", "nothing but norms", "everything at once"):
        sub_network = zoo.corner_cases(model)[case]
        small = extract(model, sub_network)
        save_extracted(small, sub_network, tmp_path / case)
        loaded = type(model).from_pretrained(tmp_path / case)
        for key, tensor in small.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", 3, "gone"])
def test_an_index_that_leads_out_of_the_folder(name, tmp_path) -> None:
    model = zoo.build("bert")
    sub_network = zoo.corner_cases(model)["everything at once"]
    small = extract(model, sub_network)
    save_extracted(small, sub_network, tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).unlink()
    small.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    type(model).from_pretrained(tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    key = next(iter(json.loads(index.read_text())["weight_map"]))
    edit(index, lambda data: data["weight_map"].update({key: name}))
    refused(type(model), tmp_path / "model", "it must name files beside it|which is not there")
    index.write_text("{}")
    refused(type(model), tmp_path / "model", "is no index of sharded weights")


@pytest.mark.parametrize(
    "reference",
    ["../../evil.Model", "/tmp/evil.Model", "..evil.Model", "evil", "a/b/c--evil.Model", 3, "evil.py.Model"],
)
def test_references_to_code_elsewhere(reference, tmp_path) -> None:
    saved("bert", tmp_path)
    edit(tmp_path / CONFIG, lambda config: config["auto_map"].update(AutoModel=reference))
    for options in ({}, {"trust_remote_code": True}):
        refused(AutoModelForSequenceClassification, tmp_path, "auto_map in config.json", **options)


def test_a_changed_loader_file(tmp_path) -> None:
    model_class = saved("bert", tmp_path)
    witness = tmp_path / "witness"
    with (tmp_path / LOADER).open("a") as file:
        file.write(f"\nopen({str(witness)!r}, 'w').close()\n")
    for loader in (model_class, AutoModelForSequenceClassification, AutoConfig):
        for options in ({}, {"trust_remote_code": True}):
            refused(loader, tmp_path, "modeling_hf_nas.py in .* is not the file that was saved", **options)
    # Even with its hash put right it is not run, since hf-nas itself builds the model.
    edit(tmp_path / CONFIG, lambda config: config.pop(HASH_FIELD))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded) is model_class and not witness.exists()


def test_what_is_saved_again_names_no_loader_file(tmp_path) -> None:
    model_class = saved("bert", tmp_path)
    model_class.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / CONFIG).read_text())
    assert HASH_FIELD not in config and "auto_map" not in config and config["per_layer_config"]


def test_commands_refuse_in_one_line(tmp_path, capsys) -> None:
    saved("bert", tmp_path / "model")
    sub_network = tmp_path / "chosen.json"
    model = BertForSequenceClassification.from_pretrained(tmp_path / "model")
    SubNetwork.full(describe(model)).save(sub_network)
    entry = json.loads((tmp_path / "model" / CONFIG).read_text())["per_layer_config"]["0"]
    changes = (
        (CONFIG, lambda c: c["per_layer_config"]["0"].update(intermediate_size=-1), "intermediate_size=-1"),
        (CONFIG, lambda c: c["per_layer_config"]["0"].update(intermediate_size=entry["intermediate_size"] - 1),
         "not those of the weights"),
        (SUB_NETWORK, lambda data: data["kept"].update({"encoder.0.attention": 99}), "keeps 99"),
    )  # fmt: skip
    for name, change, match in changes:
        before = (tmp_path / "model" / name).read_text()
        edit(tmp_path / "model" / name, change)
        arguments = ["extract", str(tmp_path / "model"), "--sub_network", str(sub_network)]
        assert main([*arguments, "--output_dir", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("hf-nas: ") and match in message
        (tmp_path / "model" / name).write_text(before)


def test_a_pipeline_refuses_too(tmp_path) -> None:
    saved("bert", tmp_path)
    edit(tmp_path / SUB_NETWORK, lambda data: data["kept"].update({"encoder.0.attention": 99}))
    with pytest.raises(ValueError, match="keeps 99 of"):
        pipeline("text-classification", model=str(tmp_path))
