"""The command `hf-nas quantize`, with metrics worked out here."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_nas import SubNetwork, describe, extract, save_extracted
from hf_nas.cli import main
from hf_nas.export import formats, load_exported
from tests import zoo
from tests.cli.classifiers import HIDDEN, KEPT, make_model, make_tokenizer, outputs, rows, write
from tests.cli.refusals import refused
from tests.export.packages import need


FAST = ("--batch_size", 4, "--max_length", 16, "--passes", 2, "--threads", 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> SimpleNamespace:
    """A small model whose labels are in another order than the task's, and texts."""
    root = tmp_path_factory.mktemp("quantize")
    model = make_model(("positive", "negative"))
    sub_network = SubNetwork.of(describe(model), KEPT, HIDDEN)
    small = extract(model, sub_network)
    save_extracted(small, sub_network, root / "small", make_tokenizer())
    lines = rows(("sentence",), 20, (0, 1))
    write(root / "data" / "validation.jsonl", lines)
    train = write(root / "data" / "train.jsonl", rows(("sentence",), 12, (0, 1), seed=1))
    zoo.build("llama").save_pretrained(root / "llama")
    return SimpleNamespace(root=root, small=root / "small", model=small, data=root / "data", train=train, lines=lines)


def run(*arguments: object) -> int:
    return main([str(each) for each in ("quantize", *arguments)])


def require_packages() -> None:
    need("openvino", quantization=True)


def test_int8_of_an_extracted_classifier(folders, tmp_path, capsys) -> None:
    require_packages()
    target, threads = tmp_path / "int8", torch.get_num_threads()
    arguments = ("--task", "sst2", "--calibration_data", folders.train, "--num_samples", 5, "--data_dir", folders.data)
    status = run(folders.small, "--output_dir", target, *arguments, *FAST, "--json", tmp_path / "found.json")
    assert status == 0 and torch.get_num_threads() == threads
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["quantization"] == "int8" and found["calibration_samples"] == 5
    # The model's label 0 is positive, which the task calls 1.
    labels = np.array([line["label"] for line in folders.lines])
    accuracy = np.mean(labels == 1 - outputs(folders.model, folders.lines, ("sentence",)).argmax(-1))
    metrics = found["metrics"]["validation"]
    assert metrics["pytorch"] == metrics["float32"] == {"accuracy": accuracy}
    exported, tokenizer = load_exported(target), make_tokenizer()
    given = [
        tokenizer(line["sentence"], padding="max_length", max_length=16, return_tensors="pt") for line in folders.lines
    ]
    own = torch.cat([exported(**each).logits for each in given]).numpy()
    assert metrics["int8"] == {"accuracy": np.mean(labels == 1 - own.argmax(-1))}
    expected = outputs(folders.model, folders.lines, ("sentence",))
    batches = [slice(start, start + 4) for start in range(0, 20, 4)]
    difference = max(np.abs(own - expected)[each].max() / np.abs(expected)[each].max() for each in batches)
    assert found["difference"]["int8"] == pytest.approx(difference, rel=0.05)
    assert found["difference"]["float32"] < 1e-5 < difference
    speed = found["speed"]
    assert set(speed["seconds_per_example"]) == {"pytorch", "float32", "int8"} and speed["examples"] == 20
    for name in ("pytorch", "float32"):
        seconds = speed["seconds_per_example"]
        assert speed["speed_up"][name] == pytest.approx(seconds[name] / seconds["int8"])
    captured = capsys.readouterr().out
    assert "Calibrated on:" in captured and "Speed-up over float32:" in captured and "INFO" not in captured


@pytest.mark.slow
@pytest.mark.parametrize("format_name", ["onnx", "openvino"])
def test_weights_of_a_decoder_by_default(folders, tmp_path, format_name: str) -> None:
    require_packages()
    arguments = ("--output_dir", tmp_path / "small", "--format", format_name, "--json", tmp_path / "found.json")
    assert run(folders.root / "llama", *arguments, *FAST) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["quantization"] == "int8-weights" and found["metrics"] == {}
    assert found["calibration_samples"] == 0 and found["speed"]["examples"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "nothing"), "no task 'nothing'"),
        (("--quantization", "int2"), "no --quantization 'int2'; choose from int8, "),
        (("--num_samples", 0), "--num_samples is 0; give 1 or more"),
        (("--calibration_data", __file__), "--calibration_data says nothing without the task"),
        (("--task", "sst2", "--calibration_data", "missing.json"), "'missing.json' is no file"),
        (("--split", "test"), "--split 'test' is of no folder"),
        (("--format", "torch-export"), "'torch-export' cannot be quantized"),
    ],
)
def test_arguments_are_refused_before_anything_is_loaded(tmp_path, capsys, arguments: tuple, message: str) -> None:
    refused(capsys, message, run("no model", "--output_dir", tmp_path / "out", *arguments))
    assert not (tmp_path / "out").exists()


def test_data_must_fit_the_quantization(folders, tmp_path, capsys) -> None:
    require_packages()
    target = ("--output_dir", tmp_path / "out")
    refused(capsys, "add --calibration_data and --task", run(folders.small, *target))
    given = ("--task", "sst2", "--calibration_data", folders.train)
    refused(
        capsys,
        "of no use for int8-weights",
        run(folders.small, *target, *given, "--quantization", "int8-weights"),
    )
    refused(capsys, "has 2 labels and the task 'mnli' has 3", run(folders.small, *target, "--task", "mnli"))


def test_missing_packages_are_named(folders, tmp_path, capsys, monkeypatch) -> None:
    present: list[Path] = []
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "nncf" else present)
    refused(capsys, 'pip install "hf-nas[quantization]"', run(folders.small, "--output_dir", tmp_path / "out"))
