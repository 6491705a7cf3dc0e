"""Checkpoints in the layout of the published CoFi code, written here from tiny models, become models of ours."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    RobertaForSequenceClassification,
)

from hf_nas import SubNetwork, describe
from hf_nas.cli import convert_cofi
from hf_nas.extraction.cofi import read_cofi
from hf_nas.gates import GateValues
from tests.gates.masked_bert import MaskedBert, batch, build, model_logits


ZS = {
    "head_z": torch.tensor([[0.0, 0.9, 0.4, 0.7], [1.0, 1.0, 1.0, 0.3], [0.0, 0.0, 0.0, 0.0]]).reshape(3, 1, 4, 1, 1),
    "intermediate_z": torch.linspace(-0.2, 1.0, 60).clamp(min=0).reshape(3, 1, 1, 20),
    "mlp_z": torch.tensor([0.8, 0.0, 0.5]),
    "head_layer_z": torch.tensor([0.6, 0.0, 0.9]),
    "hidden_z": torch.cat([torch.zeros(2), torch.linspace(0.3, 1.0, 21), torch.zeros(1)]),
}


def values_of(gates: dict[str, torch.Tensor]) -> GateValues:
    """The same as masks of the reference, in which a sub-layer without any unit is closed."""
    units, sub_layers = {}, {}
    for layer in range(3):
        for kind, fine, coarse in (
            ("attention", "head_z", "head_layer_z"),
            ("feed_forward", "intermediate_z", "mlp_z"),
        ):
            name = f"encoder.{layer}.{kind}"
            units[name] = gates[fine][layer].flatten()
            sub_layers[name] = gates[coarse][layer] * (units[name] != 0).any()
    return GateValues(units, sub_layers, gates["hidden_z"])


def write_config(model, folder: Path, **changes) -> None:
    config = {
        **model.config.to_dict(),
        "architectures": [f"CoFi{type(model).__name__}"],
        "pruned_heads": {"0": [0]},
        "transformers_version": "4.17.0.dev0",
        "do_layer_distill": True,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_full(model, folder: Path, gates: dict[str, torch.Tensor]) -> None:
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    torch.save(gates, folder / "zs.pt")
    write_config(model, folder)


def write_small(model, folder: Path, old_names: bool = False) -> torch.Tensor:
    """Prune by hand as the published code does, with binary gates; returns the logits of the masked forward."""
    gates = {name: (gate != 0).float() for name, gate in ZS.items()}
    hidden = gates["hidden_z"].bool()
    prefix = model.base_model_prefix
    weights = {}
    for name, tensor in model.state_dict().items():
        reads = (".self.", "intermediate.dense", "pooler.dense", "qa_outputs", "classifier.dense")
        if name.startswith(f"{prefix}.embeddings.") and tensor.dim() == 2:
            tensor = tensor[:, hidden]
        elif "LayerNorm" in name or name.endswith("output.dense.bias"):
            tensor = tensor[hidden]
        elif name.endswith("output.dense.weight"):
            tensor = tensor[hidden]
        elif any(part in name for part in reads) and tensor.dim() == 2:
            tensor = tensor[:, hidden]
        weights[name] = tensor
    for layer in range(3):
        start = f"{prefix}.encoder.layer.{layer}"
        heads = gates["head_z"][layer].flatten().bool() & gates["head_layer_z"][layer].bool()
        neurons = gates["intermediate_z"][layer].flatten().bool() & gates["mlp_z"][layer].bool()
        rows = heads.repeat_interleave(6)
        writers = [f"{start}.attention.self.{part}" for part in ("query", "key", "value")]
        for names, output, kept in (
            (writers, f"{start}.attention.output", rows),
            ([f"{start}.intermediate.dense"], f"{start}.output", neurons),
        ):
            for name in names:
                for part in ("weight", "bias"):
                    weights[f"{name}.{part}"] = weights[f"{name}.{part}"][kept]
            weights[f"{output}.dense.weight"] = weights[f"{output}.dense.weight"][:, kept]
            if not kept.any():
                for name in [*names, f"{output}.dense"]:
                    del weights[f"{name}.weight"], weights[f"{name}.bias"]
                # The norm that nothing reads is saved in full size.
                weights[f"{output}.LayerNorm.weight"] = model.state_dict()[f"{output}.LayerNorm.weight"]
                weights[f"{output}.LayerNorm.bias"] = model.state_dict()[f"{output}.LayerNorm.bias"]
    if old_names:
        weights = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in weights.items()
        }
    weights["layer_transformation.weight"] = torch.eye(21)
    weights["layer_transformation.bias"] = torch.zeros(21)
    weights[f"{prefix}.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save({name: tensor.clone() for name, tensor in weights.items()}, folder / "pytorch_model.bin")
    write_config(model, folder)
    return MaskedBert(model, values_of(gates)).logits(batch())


def convert(folder: Path, output: Path, *options: str) -> None:
    """Run the command as its parser sets it up."""
    import argparse

    parser = argparse.ArgumentParser()
    convert_cofi.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["convert-cofi", str(folder), str(output), *options])
    arguments.run(arguments)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "cofi").mkdir()
    return tmp_path / "cofi"


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("model_class", [BertForSequenceClassification, RobertaForSequenceClassification])
def test_a_small_checkpoint(model_class, old_names: bool, folder, tmp_path, capsys) -> None:
    model = build(model_class, num_labels=3)
    wanted = write_small(model, folder, old_names)
    convert(folder, tmp_path / "ours")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    assert type(loaded) is model_class and loaded.config.num_hidden_layers == 2
    assert (model_logits(loaded, batch()) - wanted).abs().max() <= 1e-5
    parameters = sum(p.numel() for p in loaded.parameters())
    assert f"{model_class.__name__} with 2 layers and {parameters:,} parameters" in capsys.readouterr().out
    sub_network = SubNetwork.load(tmp_path / "ours", describe(model))
    assert sub_network.counts() == (3, 10, None, None, None, 20) and len(sub_network.hidden) == 21
    assert not list((tmp_path / "ours").glob("*.bin"))


def test_a_checkpoint_of_the_hub_is_downloaded(folder, tmp_path, monkeypatch) -> None:
    write_small(build(BertForSequenceClassification, num_labels=3), folder)
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(convert_cofi, "snapshot_download", download)
    convert("princeton-nlp/CoFi-MNLI-s95", tmp_path / "hub")
    convert(folder, tmp_path / "folder")
    assert asked == ["princeton-nlp/CoFi-MNLI-s95"]
    models = [AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("hub", "folder")]
    for ours, theirs in zip(*(model.state_dict().values() for model in models)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["nowhere", "./no such/folder/at all"])
def test_what_is_neither_a_folder_nor_on_the_hub_is_refused(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="There is no folder .* and nothing of that name can be had from the Hub"):
        convert(name, tmp_path / "out")


def test_names_of_labels(folder, tmp_path) -> None:
    model = build(BertForSequenceClassification, num_labels=3)
    write_small(model, folder)
    names = ("contradiction", "entailment", "neutral")
    convert(folder, tmp_path / "ours", "--labels", *names)
    config = AutoConfig.from_pretrained(tmp_path / "ours")
    assert config.id2label == dict(enumerate(names)) and config.label2id == {name: i for i, name in enumerate(names)}
    for wrong in (names[:2], ("neutral", "Neutral", "other")):
        with pytest.raises(ValueError, match="--labels is .*; give each of the model's 3 labels another name"):
            convert(folder, tmp_path / "others", "--labels", *wrong)
    assert not (tmp_path / "others").exists()


def test_a_small_checkpoint_for_question_answering_with_a_pooler(folder, tmp_path) -> None:
    model = build(BertForQuestionAnswering)
    wanted = write_small(model, folder)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights["bert.pooler.dense.weight"], weights["bert.pooler.dense.bias"] = torch.ones(24, 21), torch.ones(24)
    torch.save(weights, folder / "pytorch_model.bin")
    convert(folder, tmp_path / "ours")
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "ours").eval()
    assert (model_logits(loaded, batch()) - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "model_class", [BertForSequenceClassification, BertForQuestionAnswering, RobertaForSequenceClassification]
)
def test_full_weights_and_gates(model_class, folder, tmp_path) -> None:
    model = build(model_class)
    write_full(model, folder, ZS)
    wanted = MaskedBert(model, values_of(ZS)).logits(batch())
    convert(folder, tmp_path / "ours")
    loaded = model_class.from_pretrained(tmp_path / "ours").eval()
    assert (model_logits(loaded, batch()) - wanted).abs().max() <= 1e-5
    sub_network = SubNetwork.load(tmp_path / "ours", describe(model))
    assert sub_network["encoder.0.attention"] == (1, 2, 3) and sub_network.hidden == tuple(range(2, 23))


def test_some_of_the_gates(folder) -> None:
    model = build(BertForSequenceClassification)
    write_full(model, folder, {"head_z": ZS["head_z"], "mlp_z": None, "hidden_z": None})
    small, sub_network = read_cofi(folder)
    units = {f"encoder.{layer}.attention": ZS["head_z"][layer].flatten() for layer in range(3)}
    values = GateValues(units, {"encoder.2.attention": torch.zeros(())})
    wanted = MaskedBert(model, values).logits(batch())
    assert (model_logits(small, batch()) - wanted).abs().max() <= 1e-5
    assert sub_network.hidden is None and sub_network["encoder.2.attention"] is None


class Evil:
    def __reduce__(self):
        return (logging.error, ("this code ran",))


def damage(folder: Path, change) -> None:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(weights)
    torch.save(weights, folder / "pytorch_model.bin")


def test_code_in_a_file_does_not_run(folder, caplog) -> None:
    write_small(build(BertForSequenceClassification), folder)
    torch.save({"bert.x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is no file of plain tensors"):
        read_cofi(folder)
    assert "this code ran" not in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda w: w.pop("bert.encoder.layer.0.attention.self.key.bias"),
            "have no 'bert.encoder.layer.0.attention.self",
        ),
        (lambda w: w.update(extra=torch.ones(1)), "have 'extra', of which such a model has no use"),
        (lambda w: w.pop("classifier.weight"), "neither 'classifier.weight' nor 'qa_outputs.weight'"),
        (lambda w: w.update({"bert.pooler.dense.weight": torch.ones(24, 24)}), r"shape \(24, 24\), where the other"),
        (
            lambda w: w.pop("bert.encoder.layer.0.attention.output.dense.weight"),
            "have 'bert.encoder.layer.0.attention",
        ),
        (
            lambda w: w.update({"bert.encoder.layer.0.attention.output.dense.weight": torch.ones(21, 17)}),
            "encoder.0.attention have 17 features, which are not up to 4 units of 6",
        ),
        (
            lambda w: w.update({"bert.embeddings.word_embeddings.weight": torch.ones(50, 25)}),
            "hidden dimensions 0 to 23 but is to keep 25",
        ),
        (lambda w: w.update(text="no tensor"), "holds a str as 'text'"),
    ],
)
def test_checkpoints_that_do_not_fit_together_are_refused(change, message: str, folder) -> None:
    write_small(build(BertForSequenceClassification), folder)
    damage(folder, change)
    with pytest.raises(ValueError, match=message):
        read_cofi(folder)


@pytest.mark.parametrize(
    "gates, message",
    [
        ({"head_z": torch.ones(3, 5)}, "'head_z' in .* has 15 elements; 3 layers of 4 need 12"),
        ({"hidden_z": torch.ones(7)}, r"hidden dimensions has shape \(7,\)"),
        ({"heads": torch.ones(3, 4)}, "holds 'heads'; gates are called head_z"),
        ({}, "holds no gates"),
        ([torch.ones(3)], "holds a list; it must hold tensors by name"),
    ],
)
def test_gates_that_do_not_fit_are_refused(gates, message: str, folder) -> None:
    write_full(build(BertForSequenceClassification), folder, gates)
    with pytest.raises(ValueError, match=message):
        read_cofi(folder)


def test_other_files_are_refused(folder, tmp_path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        convert(tmp_path / "nowhere", tmp_path / "ours")
    with pytest.raises(ValueError, match="There is no file 'pytorch_model.bin'"):
        convert(folder, tmp_path / "ours")
    (folder / "pytorch_model.bin").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match="is no file of plain tensors"):
        convert(folder, tmp_path / "ours")
    model = build(BertForSequenceClassification)
    write_small(model, folder)
    write_config(model, folder, model_type="roberta")
    with pytest.raises(ValueError, match="describes a roberta model, but the weights beside it are of a bert model"):
        convert(folder, tmp_path / "ours")
    write_config(model, folder, hidden_size="wide")
    with pytest.raises(ValueError, match="is no configuration of a bert model"):
        convert(folder, tmp_path / "ours")
    write_config(model, folder, num_attention_heads=5)
    with pytest.raises(ValueError, match="The configuration is none of a bert model: The hidden size"):
        convert(folder, tmp_path / "ours")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as the configuration of a model"):
        convert(folder, tmp_path / "ours")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="cannot be read as the configuration of a model"):
        convert(folder, tmp_path / "ours")
    for other, message in (
        (BertModel, "have no 'bert.embeddings"),
        (BertForTokenClassification, "have no 'bert.pooler"),
    ):
        torch.save(build(other).state_dict(), folder / "pytorch_model.bin")
        write_config(build(other), folder)
        with pytest.raises(ValueError, match=message):
            convert(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "file").touch()
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        convert(folder, tmp_path / "ours")
