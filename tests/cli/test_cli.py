"""The command `hf-nas`: what it prints and writes, and how it refuses."""

import json
import runpy
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForQuestionAnswering,
    BertTokenizer,
)

from hf_nas import SubNetwork, SuperNetwork, describe
from hf_nas.cli import main
from hf_nas.importance.movement import MovementScores
from hf_nas.nncf_config import NncfConfig, describe_config, named_sub_network, nncf_space
from hf_nas.space.generated import generate_space
from tests import zoo
from tests.cli import refusals
from tests.nncf_config.configs import config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A trained model with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    zoo.build("bert").save_pretrained(folder)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad")
    BertTokenizer({word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Configurations: of NNCF, with comments, and a space of lists."""
    files = tmp_path_factory.mktemp("files")
    (files / "nncf.json").write_text("// mine\n" + json.dumps(config()))
    (files / "space.json").write_text(json.dumps({"sub_layers": {"encoder.*.feed_forward": [0, 6, 24]}}))
    return files


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def refused(capsys, message: str, *arguments: object) -> None:
    capsys.readouterr()
    refusals.refused(capsys, message, run(*arguments))


@pytest.fixture(scope="module")
def without_weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("configuration")
    model = zoo.build("bert")
    model.config.architectures = ["BertForMaskedLM"]  # as the published pretrained models have it
    model.config.save_pretrained(folder)
    return folder


def test_describe_a_configuration(files, without_weights, capsys) -> None:
    assert run("space", "describe", files / "nncf.json", "--model_name_or_path", without_weights, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    # The class is the one the configuration names, not the one that was pretrained.
    assert found == describe_config(NncfConfig.load(files / "nncf.json"), zoo.build("bert")).to_dict()
    assert run(
        "space", "describe", files / "nncf.json", "--model_name_or_path", without_weights, "--json",
        "--sequence_length", 8, "--ignore_width_indicator",
    ) == 0  # fmt: skip
    other = json.loads(capsys.readouterr().out)
    assert other["sequence_length"] == 8
    assert other["sub_layers"]["encoder.0.feed_forward"]["units"] == [24, 17, 9, 3]


def test_the_class_that_is_counted(files, without_weights, tmp_path, capsys, caplog) -> None:
    """A configuration that names no node leaves open which head its operations are counted with."""
    elasticity = {"available_elasticity_dims": ["width", "depth"], "depth": {"skipped_blocks": []}}
    bare = config(nas__training__elasticity=elasticity)
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    describe_it = ("space", "describe", tmp_path / "bare.json", "--model_name_or_path", without_weights, "--json")
    assert run(*describe_it) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "BertForMaskedLM" and "with the head of the pretraining" in caplog.text
    caplog.clear()
    assert run(*describe_it, "--model_class", "BertForSequenceClassification") == 0
    smaller = json.loads(capsys.readouterr().out)
    assert smaller["model"] == "BertForSequenceClassification" and not caplog.text
    assert smaller["largest"]["mmacs"] < found["largest"]["mmacs"]
    for name in ("RobertaForSequenceClassification", "BertForEverything"):
        refused(capsys, f"--model_class is '{name}', which transformers has not for the bert model", *describe_it,
                "--model_class", name)  # fmt: skip


def test_describe_as_a_table(files, without_weights, capsys) -> None:
    assert run("space", "describe", files / "nncf.json", "--model_name_or_path", without_weights) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Search space 'nncf' of BertForSequenceClassification, 16 tokens: 10^2.3 choices")
    assert "10^2.5" in lines[0]
    assert lines[3].split() == ["encoder.0.attention", "4", "2", "1", "32", "16", "8", "yes"]
    assert lines[6].endswith("yes, its normalisation stays")
    found = describe_config(NncfConfig.load(files / "nncf.json"), zoo.build("bert"))
    assert any(
        line.split() == ["largest", f"{found.largest.macs / 1e6:.1f}", f"{found.largest.weights:,}"] for line in lines
    )
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("name", ["small", "layer", "space.json"])
def test_describe_other_spaces(name: str, files, folder, capsys) -> None:
    space = files / name if name.endswith(".json") else name
    length = ("--sequence_length", 16)
    assert run("space", "describe", space, "--model_name_or_path", folder, *length, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == Path(name).stem and len(found["sub_layers"]) == 6
    assert run("space", "describe", space, "--model_name_or_path", folder, *length) == 0
    assert "largest" in capsys.readouterr().out


def test_long_lists_are_shown_as_ranges(folder, capsys) -> None:
    assert run("space", "describe", "medium", "--model_name_or_path", folder, "--sequence_length", 16) == 0
    assert "24 to 1  " in capsys.readouterr().out


def test_refusals_of_describe(files, folder, tmp_path, capsys) -> None:
    model = ("--model_name_or_path", folder)
    refused(capsys, "--sequence_length is missing", "space", "describe", "small", *model)
    refused(capsys, "--sequence_length is 0", "space", "describe", "small", *model, "--sequence_length", 0)
    refused(capsys, "no search space 'tiny'", "space", "describe", "tiny", *model, "--sequence_length", 4)
    refused(capsys, "does not exist", "space", "describe", tmp_path / "no.json", *model)
    refused(
        capsys, "--ignore_width_indicator is for NNCF", "space", "describe", files / "space.json", *model,
        "--sequence_length", 4, "--ignore_width_indicator",
    )  # fmt: skip
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(capsys, "cannot be read", "space", "describe", files / "nncf.json", "--model_name_or_path", empty)
    (tmp_path / "bad.json").write_text(json.dumps(config(kd_mode="self_attention_distillation")))
    refused(capsys, "bad.json': 'kd_mode'", "space", "describe", tmp_path / "bad.json", *model)
    roberta = tmp_path / "roberta"
    zoo.build("roberta").config.save_pretrained(roberta)
    refused(
        capsys,
        "made for a model of this kind",
        "space",
        "describe",
        files / "nncf.json",
        "--model_name_or_path",
        roberta,
    )


def test_wrong_flags_end_with_status_2(capsys) -> None:
    for arguments in ([], ["space"], ["extract", "x"], ["space", "describe", "small", "--model", "x", "--no"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "usage: hf-nas" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["maximal", "minimal", "heuristic"])
def test_extract_by_name(which: str, files, folder, tmp_path, capsys) -> None:
    output = tmp_path / "small"
    command = ("extract", folder, "--space", files / "nncf.json", "--sub_network", which, "--output_dir", output)
    assert run(*command) == 0
    model = zoo.build("bert")
    stage = NncfConfig.load(files / "nncf.json").training.schedule.stages[-1]
    chosen = named_sub_network(nncf_space(NncfConfig.load(files / "nncf.json"), model, stage), which)
    small = AutoModelForSequenceClassification.from_pretrained(output).eval()
    inputs = zoo.inputs_for(model)
    with SuperNetwork(model) as super_network, super_network.activated(chosen):
        expected = zoo.logits(model, inputs)
    assert (zoo.logits(small, inputs) - expected).abs().max() <= 1e-5
    assert SubNetwork.load(output, describe(model)) == chosen
    assert AutoTokenizer.from_pretrained(output).get_vocab()["good"] == 5
    printed = capsys.readouterr().out
    assert f"{sum(p.numel() for p in small.parameters()):,} of" in printed
    refused(capsys, "exists and is not an empty folder", *command)


def test_extract_a_file(files, folder, tmp_path, capsys) -> None:
    chosen = SubNetwork.of(describe(zoo.build("bert")), {"encoder.1.feed_forward": 6})
    chosen.save(tmp_path / "chosen.json")
    file = ("--sub_network", tmp_path / "chosen.json", "--output_dir")
    assert run("extract", folder, *file, tmp_path / "first") == 0
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    assert describe(small)["encoder.1.feed_forward"].units == 6
    assert run("extract", folder, "--space", files / "space.json", *file, tmp_path / "second") == 0
    refused(capsys, "does not contain", "extract", folder, "--space", "layer", *file, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_refusals_of_extract(files, folder, without_weights, tmp_path, capsys) -> None:
    output = ("--output_dir", tmp_path / "new")
    space = ("--space", files / "nncf.json")
    refused(capsys, "--space is missing", "extract", folder, "--sub_network", "minimal", *output)
    refused(capsys, "no sub-network 'middle'", "extract", folder, *space, "--sub_network", "middle", *output)
    refused(capsys, "does not exist", "extract", folder, "--sub_network", tmp_path / "no.json", *output)
    refused(capsys, "weights", "extract", without_weights, *space, "--sub_network", "minimal", *output)
    (tmp_path / "other.json").write_text("{}")
    refused(capsys, "Not a sub-network", "extract", folder, "--sub_network", tmp_path / "other.json", *output)
    headless = tmp_path / "headless"
    zoo.build("bert").bert.save_pretrained(headless)
    data = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps({**data, "architectures": ["BertForSequenceClassification"]}))
    refused(capsys, "no weights for 'classifier", "extract", headless, *space, "--sub_network", "minimal", *output)
    (tmp_path / "file").write_text("here")
    refused(
        capsys, "exists and is not an empty folder", "extract", folder, *space, "--sub_network", "minimal",
        "--output_dir", tmp_path / "file",
    )  # fmt: skip
    assert not (tmp_path / "new").exists()


def scores_of(model) -> MovementScores:
    """Scores of single rows and columns, made up."""
    torch.manual_seed(3)
    base = f"{model.base_model_prefix}."
    weights, biases, shapes = {}, {}, {}
    for sub_layer in describe(model):
        for path in (*sub_layer.layout.writers, sub_layer.layout.reader):
            name = f"{base}{sub_layer.path}.{path}"
            shapes[name] = tuple(model.get_submodule(name).weight.shape)
            weights[name] = torch.randn(shapes[name])
            biases[name] = torch.randn(shapes[name][0]) * 0.1
    return MovementScores(weights, biases, shapes)


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForQuestionAnswering"])
def test_generate(head: str, tmp_path, capsys) -> None:
    model = zoo.build("bert")
    if head == "BertForQuestionAnswering":
        model = BertForQuestionAnswering(model.config)
    model.config.save_pretrained(tmp_path / "model")
    scores = scores_of(model)
    scores.save(tmp_path / "scores")
    source = tmp_path / "source.json"
    source.write_text(json.dumps(config()).replace("BertForSequenceClassification", head))
    command = (
        "space", "generate", "--source_config", source, "--model_name_or_path", tmp_path / "model",
        "--importance_weight_dir", tmp_path / "scores", "--target_config", tmp_path / "target.json",
        "--smallest", 0.5, "--count", 3, "--width_multiple", 2, "--tolerance", 0.1,
    )  # fmt: skip
    assert run(*command) == 0
    generated = generate_space(scores, model, 16, smallest=0.5, count=3, width_multiple=2, tolerance=0.1)
    target = NncfConfig.load(tmp_path / "target.json")
    assert target.model_class == head
    back = nncf_space(target, model)
    lists = generated.space.to_dict()["sub_layers"]
    assert back.to_dict()["sub_layers"] == lists
    assert any(len(units) > 1 for units in lists.values())
    assert target.search == NncfConfig.load(source).search
    printed = capsys.readouterr().out
    assert f"3 sub-networks:\n  {generated.networks[0].macs / 1e6:.1f} MMACs" in printed
    assert "encoder.2.feed_forward" in printed


def test_sizes_in_millions_and_refusals_of_generate(folder, files, tmp_path, capsys) -> None:
    model = zoo.build("bert")
    scores_of(model).save(tmp_path / "scores")
    command = [
        "space", "generate", "--source_config", files / "nncf.json", "--model_name_or_path", folder,
        "--importance_weight_dir", tmp_path / "scores", "--target_config", tmp_path / "target.json", "--count", 2,
    ]  # fmt: skip
    # At so many tokens the model has millions of operations.
    long = ("--sequence_length", 512, "--tolerance", 0.1)
    assert run(*command, *long, "--smallest", 30, "--largest", 50) == 0
    printed = capsys.readouterr().out
    assert "(wanted 30.0)" in printed and "(wanted 50.0)" in printed
    refused(capsys, "No threshold leaves", *command, *long[:2], "--smallest", 0.5, "--tolerance", 0)
    refused(capsys, "'smallest'", *command, "--smallest", 2.0, "--largest", 1.0)
    refused(capsys, "sequence_length", *command, "--sequence_length", 0)
    refused(capsys, "is a folder; give the path of the file to write", *command[:9], tmp_path, *command[10:])
    command[7] = tmp_path / "none"
    refused(capsys, "movement scores", *command)
    command[9] = files / "nncf.json"
    refused(capsys, "is the source", *command)
    command[3] = files / "space.json"
    refused(capsys, "sub_layers' is no key of NNCF", *command)


def test_as_a_module(files, without_weights, monkeypatch, capsys) -> None:
    command = ["hf-nas", "space", "describe", str(files / "nncf.json"), "--model_name_or_path"]
    for model, status in ((without_weights, 0), (files, 2)):
        monkeypatch.setattr(sys, "argv", [*command, str(model)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("hf_nas.cli", run_name="__main__")
        assert ended.value.code == status
    captured = capsys.readouterr()
    assert captured.out.startswith("Search space 'nncf'") and captured.err.count("hf-nas: ") == 1


def test_describe_a_model_that_was_extracted(files, folder, tmp_path, capsys) -> None:
    assert (
        run("extract", folder, "--space", "small", "--sub_network", "heuristic", "--output_dir", tmp_path / "a") == 0
    )
    chosen = SubNetwork.of(describe(zoo.build("bert")), {"encoder.1.feed_forward": 6, "encoder.0.attention": None})
    chosen.save(tmp_path / "chosen.json")
    assert run("extract", folder, "--sub_network", tmp_path / "chosen.json", "--output_dir", tmp_path / "b") == 0
    capsys.readouterr()
    for name, feed_forward in (("a", 13), ("b", 6)):
        command = ("space", "describe", "medium", "--model_name_or_path", tmp_path / name, "--sequence_length", 8)
        assert run(*command, "--json") == 0
        sub_layers = json.loads(capsys.readouterr().out)["sub_layers"]
        assert sub_layers["encoder.1.feed_forward"]["units"][0] == feed_forward
    assert "encoder.0.attention" not in sub_layers
    refused(capsys, "nncf.json", "space", "describe", files / "nncf.json", "--model_name_or_path", tmp_path / "b")


def test_families(capsys) -> None:
    assert main(["families"]) == 0
    table = capsys.readouterr().out
    assert "| `bert` | encoder | heads | plain |" in table
    assert all(f"\n| `{zoo.build(name).config.model_type}`" in table for name in zoo.FAMILIES)


def test_the_entry_point() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.scripts]\nhf-nas = "hf_nas.cli:main"\n' in text
    assert EntryPoint("hf-nas", "hf_nas.cli:main", "console_scripts").load() is main


def test_the_command_convert_cofi_is_there(tmp_path, capsys) -> None:
    message = "give the folder of a CoFi checkpoint or a name such as princeton-nlp/CoFi-MNLI-s95"
    refused(capsys, message, "convert-cofi", tmp_path / "nowhere", tmp_path / "out")
