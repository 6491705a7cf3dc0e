"""The baselines and schedules of benchmarks/cofi.py; its runs are the example scripts' own."""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hf_nas import extract
from tests import zoo


SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 64}
SETTINGS = {
    "model": "base", "data_root": Path("data"), "distillation": "logits", "start": "dense",
    "kinds": "structured_heads",
    "reg_learning_rate": 0.05, "threads": 1, "device": "cpu", "bf16": False,
}  # fmt: skip


@pytest.fixture
def cofi(load_benchmark) -> ModuleType:
    return load_benchmark("cofi")


def weights_of_layers(model) -> int:
    """Of attention and feed-forward networks, counted in the modules themselves."""
    return sum(p.numel() for layer in model.bert.encoder.layer for p in layer.parameters() if p.dim() == 2)


@pytest.mark.parametrize("share", [0.4, 0.1])
@pytest.mark.parametrize("way", ["layers", "magnitude"])
def test_baselines_have_the_size_they_are_given(cofi, way, share) -> None:
    model = zoo.build("bert", **SIZES)
    limit = share * weights_of_layers(model)
    kept = weights_of_layers(extract(model, cofi.MAKERS[way](model, share)))
    neurons = {"layers": 1, "magnitude": SIZES["num_hidden_layers"]}[way]  # the next step of the narrowed layers
    assert limit - neurons * 2 * SIZES["hidden_size"] < kept <= limit


def test_the_upper_layers_are_dropped(cofi) -> None:
    model = zoo.build("bert", **SIZES)
    counts = cofi.layers_dropped(model, 0.4).counts()
    assert counts[:2] == (8, 64) and 0 < counts[2] < 8 and 0 < counts[3] < 64
    assert set(counts[4:]) == {None}


def test_the_largest_magnitudes_stay_and_all_layers_lose_alike(cofi) -> None:
    model = zoo.build("bert", **SIZES)
    layer = model.bert.encoder.layer[2]
    with torch.no_grad():
        layer.intermediate.dense.weight[60:] *= 50
        layer.output.dense.weight[:, 60:] *= 50
    large = layer.intermediate.dense.weight[60:].clone()
    kept = cofi.smallest_magnitudes(model, 0.4)
    counts = kept.counts()
    assert len(set(counts[::2])) == len(set(counts[1::2])) == 1
    found = extract(model, kept).bert.encoder.layer[2].intermediate.dense.weight
    assert sorted(found[:4].flatten().tolist()) == sorted(large.flatten().tolist())  # they come first


def test_schedules(cofi, tmp_path, monkeypatch) -> None:
    started = {}

    def run_command(command: list[str], folder: Path, threads: int) -> None:
        started[folder.name] = dict(zip(command, command[1:]))
        (folder / "eval_results.json").write_text(json.dumps({"eval_accuracy": 0.5, "eval_f1": 0.25}))

    monkeypatch.setattr(sys.modules["script_runs"], "run_command", run_command)
    for start in ("dense", "pretrained"):
        output = tmp_path / start
        settings = argparse.Namespace(**SETTINGS | {"output_dir": output, "start": start})
        for task in ("sst2", "mrpc"):
            runs = cofi.Runs(settings, task, 7)
            assert runs.score(runs.dense()) == {"sst2": 50, "mrpc": 25}[task]
            assert runs.cofi(0.6) == output / f"{task}-cofi-0.6-7" / "finetuned"
        sst2, mrpc = started["sst2-cofi-0.6-7"], started["mrpc-cofi-0.6-7"]
        expected = str(output / "sst2-dense-7") if start == "dense" else "base"
        assert sst2["--model_name_or_path"] == expected and sst2["--seed"] == "7"
        assert sst2["--distillation_path"] == str(output / "sst2-dense-7")
        # A model that is fine-tuned needs no epoch without gates, and one that is not has no classifier yet.
        assert sst2["--prepruning_finetune_epochs"] == ("0" if start == "dense" else "1")
        assert mrpc["--prepruning_finetune_epochs"] == "1"
        assert float(sst2["--final_finetune_learning_rate"]) == 2e-5
        assert "--final_finetune_learning_rate" not in mrpc
        assert sst2["--max_train_samples"] == "20000" and "--max_train_samples" not in mrpc
