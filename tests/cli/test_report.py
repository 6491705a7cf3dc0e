"""The command `hf-nas report`, on runs of tiny models."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_nas.cli import main
from hf_nas.profiling import Latency
from hf_nas.report import PAGE_FILE, PROFILE_FILE, small_profile
from tests.report.runs import make_pruning, make_search, read_json


MACHINE = {"device": "cpu", "processor": "x86_64", "threads": 1, "dtype": "float32", "attention": "sdpa"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_search(folder / "searched", monkeypatch)
    make_pruning(folder / "pruned")
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def fake_time(monkeypatch) -> list[dict]:
    """The first model takes 8 ms, the second one 4."""
    asked = []

    def measure(models, **options):
        asked.append(options)
        lengths = options["batch_size"], options["sequence_length"], options["decoder_length"]
        return [Latency((seconds,), *lengths, MACHINE) for seconds in (0.008, 0.004)]

    monkeypatch.setattr(small_profile, "measure_latencies", measure)
    return asked


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_the_page_alone(folder, fake_time, capsys) -> None:
    run = folder / "searched"
    (run / PAGE_FILE).unlink()
    assert report(run) == 0
    assert capsys.readouterr().out.splitlines() == [str(run / PAGE_FILE)]
    assert (run / PAGE_FILE).is_file() and not (run / "extracted" / "README.md").exists() and fake_time == []


def test_a_card_measures_once(folder, fake_time, capsys) -> None:
    run = folder / "searched"
    options = ("--card", "--name", "mine", "--license", "mit", "--language", "en", "de", "--base_model", "me/base")
    assert report(run, *options, "--batch_size", 4, "--sequence_length", 16, "--repeats", 3) == 0
    assert capsys.readouterr().out.splitlines() == [str(run / "extracted" / "README.md"), str(run / PAGE_FILE)]
    assert [(each["batch_size"], each["sequence_length"], each["repeats"]) for each in fake_time] == [(4, 16, 3)]
    card = ModelCard.load(run / "extracted" / "README.md")
    assert card.data.license == "mit" and card.data.base_model == "me/base" and card.data.language == ["en", "de"]
    assert card.data.model_name == "mine" and "**2.00x**" in card.content
    assert read_json(run / PROFILE_FILE)["models"][1]["speed_up"] == 2.0
    assert "4.00 ms, dense 8.00 ms: 2.00x" in (run / PAGE_FILE).read_text(encoding="utf-8")
    # What was said once is kept.
    assert report(run / "extracted", "--card") == 0 and len(fake_time) == 1
    assert ModelCard.load(run / "extracted" / "README.md").data.to_dict() == card.data.to_dict()
    assert "<dd>me/base</dd>" in (run / PAGE_FILE).read_text(encoding="utf-8")
    assert report(run, "--measure") == 0 and len(fake_time) == 2


def test_a_pruning(folder, fake_time, capsys) -> None:
    run = folder / "pruned"
    assert report(run, "--card", "--dataset", "Some data", "--dataset_id", "me/data", "--task", "text-ranking") == 0
    data = ModelCard.load(run / "finetuned" / "README.md").data.to_dict()
    assert data["datasets"] == ["me/data"] and data["pipeline_tag"] == "text-ranking"
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == "Some data"


def test_the_models_are_measured(folder, capsys) -> None:
    run = folder / "searched"
    assert report(run, "--measure", "--repeats", 2, "--sequence_length", 8) == 0
    dense, small = read_json(run / PROFILE_FILE)["models"]
    assert dense["latency"]["median"] > 0 and len(small["latency"]["seconds"]) == 2
    assert small["speed_up"] == dense["latency"]["median"] / small["latency"]["median"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("searched", "--card", "--repeats", "0"), "--repeats is 0; give 1 or more."),
        (("searched", "--batch_size", "4"), "--batch_size is 4, but nothing is measured; add --measure."),
        (("searched", "--license", "mit"), "--license is for the model card, which is not asked for; add --card."),
        (("searched", "--card", "--base_model", "a/b/c"), "'a/b/c' cannot be the name of a model on the Hub"),
        (("searched", "--measure", "--device", "nowhere"), "--device 'nowhere' cannot be used here"),
        (("searched", "--measure", "--sequence_length", "41"), "has 40 positions"),
        (("none",), "There is no folder"),
        (("",), "holds no finished run"),
        (("trained", "--card"), "holds no small model yet"),
        (("nowhere-to-be-found.txt",), "There is no folder"),
    ],
)
def test_refusals(arguments: tuple, message: str, folder, fake_time, capsys, monkeypatch) -> None:
    (folder / "trained").mkdir()
    (folder / "trained" / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 1.0}]}))
    if "41" in arguments:
        monkeypatch.undo()
    assert report(folder / arguments[0], *arguments[1:]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("hf-nas: ")]
    assert len(lines) == 1 and message in lines[0] and captured.out == ""
    assert not (folder / "searched" / "extracted" / "README.md").exists()
