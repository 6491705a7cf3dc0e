"""The command `hf-nas export`."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from hf_nas import extract, save_extracted
from hf_nas.cli import main
from hf_nas.export import formats, load_exported
from tests import zoo
from tests.cli.classifiers import make_tokenizer
from tests.cli.refusals import refused
from tests.export.packages import need


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An extracted model with uneven sizes and its tokenizer."""
    model = zoo.build("bert")
    sub_network = zoo.corner_cases(model)["everything at once"]
    path = tmp_path_factory.mktemp("models") / "small"
    save_extracted(extract(model, sub_network), sub_network, path, make_tokenizer())
    return path


def run(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


def test_an_extracted_model(folder, tmp_path, capsys) -> None:
    target = tmp_path / "exported"
    assert run(folder, "--format", "torch-export", "--output_dir", target) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{target}: BertForSequenceClassification as torch-export, 0.")
    assert lines[1] == "Inputs: input_ids, attention_mask, token_type_ids"
    assert lines[2].startswith("Largest difference from PyTorch: ") and "4 x 40" in lines[2]
    assert (target / "sub_network.json").read_bytes() == (folder / "sub_network.json").read_bytes()
    assert json.loads((target / "export.json").read_text())["export_format"] == "dynamo"
    inputs = AutoTokenizer.from_pretrained(target)(["word1 word2", "word3"], padding=True, return_tensors="pt")
    model = zoo.build("bert")
    expected = zoo.logits(extract(model, zoo.corner_cases(model)["everything at once"]), dict(inputs))
    torch.testing.assert_close(load_exported(target)(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("format_name", ["onnx", "openvino"])
def test_other_formats(folder, tmp_path, capsys, format_name: str) -> None:
    need(format_name)
    assert run(folder, "--format", format_name, "--output_dir", tmp_path / "exported") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and f"as {format_name}" in lines[0]


def test_what_cannot_be_done_is_refused(folder, tmp_path, capsys, monkeypatch) -> None:
    target = tmp_path / "exported"
    refused(capsys, "no format 'tflite'", run(folder, "--format", "tflite", "--output_dir", target))
    refused(capsys, "is not an empty folder", run(folder, "--format", "torch-export", "--output_dir", folder))
    refused(capsys, "cannot be read", run(tmp_path / "missing", "--format", "torch-export", "--output_dir", target))
    refused(
        capsys,
        "--tolerance is 0.0",
        run(folder, "--format", "torch-export", "--output_dir", target, "--tolerance", 0),
    )
    refused(
        capsys,
        "--fast_norms is for --format onnx, not torch-export",
        run(folder, "--format", "torch-export", "--output_dir", target, "--fast_norms"),
    )
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "onnx" else name)
    refused(capsys, 'pip install "hf-nas[onnx]"', run(folder, "--format", "onnx", "--output_dir", target))
    assert not target.exists()
