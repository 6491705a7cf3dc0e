"""benchmarks/deploy.py at a tiny size, in the engine that needs no package."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hf_nas import describe
from hf_nas.subnetwork import kept_ids
from tests import zoo


TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 50,
    "max_position_embeddings": 40,
}  # fmt: skip


@pytest.fixture
def deploy(load_benchmark, monkeypatch) -> ModuleType:
    module = load_benchmark("deploy")
    monkeypatch.setitem(module.MODELS, "tiny", TINY)
    return module


def run(deploy: ModuleType, monkeypatch, folder: Path, *batch_sizes: int) -> None:
    given = ["--model", "tiny", "--engines", "eager", "--sequence_length", "8", "--repeats", "2", "--output", folder]
    monkeypatch.setattr(sys, "argv", ["deploy.py", *map(str, given), "--batch_sizes", *map(str, batch_sizes)])
    deploy.main()


def test_finished_measurements_are_not_repeated(deploy, monkeypatch, tmp_path, capsys) -> None:
    run(deploy, monkeypatch, tmp_path, 1)
    found = json.loads((tmp_path / "deploy.json").read_text())
    assert list(found["bounds"]) == ["half", "uneven half", "95 % sparse"]
    assert 1 < found["bounds"]["half"] < found["bounds"]["95 % sparse"]
    (row,) = found["rows"]
    assert (row["engine"], row["batch"]) == ("eager", "1 x 8") and min(row["seconds"].values()) > 0

    run(deploy, monkeypatch, tmp_path, 1, 2)
    rows = json.loads((tmp_path / "deploy.json").read_text())["rows"]
    assert rows[0] == row and [each["batch"] for each in rows] == ["1 x 8", "2 x 8"]
    assert "bound" in capsys.readouterr().out


def test_table(deploy) -> None:
    rows = [{"engine": "onnx", "batch": "1 x 8", "seconds": {"dense": 0.3, "half": 0.2}}]
    lines = deploy.table(rows, {"half": 2.0}).splitlines()
    assert lines[1].split() == ["bound", "2.00x"]
    assert lines[2].split() == ["onnx", "1", "x", "8", "300.0", "1.50x", "(75%)"]


def test_sub_networks(deploy) -> None:
    structure = describe(zoo.build("bert"))
    found = deploy.sub_networks(structure)
    assert {len(kept_ids(found["half"][s.name])) / s.units for s in structure} == {0.5}
    assert len({len(kept_ids(found["uneven half"][s.name])) for s in structure if not s.layout.is_attention}) > 1
    gone = [s.name for s in structure if found["95 % sparse"][s.name] is None]
    assert gone == [s.name for s in structure if s.layout.is_attention and s.layer % 2]
