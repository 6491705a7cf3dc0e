"""The command `hf-nas profile`, with time that only passes as it is told to."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AlbertConfig, AlbertForSequenceClassification

from hf_nas import SizeTable, SubNetwork, describe, extract, save_extracted
from hf_nas.cli import main, profile
from hf_nas.profiling import Latency
from tests import zoo


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A model, a sub-network of it with uneven sizes, an encoder-decoder, and a model of no known family."""
    folder = tmp_path_factory.mktemp("models")
    model = zoo.build("bert")
    model.save_pretrained(folder / "bert")
    sub_network = zoo.corner_cases(model)["everything at once"]
    save_extracted(extract(model, sub_network), sub_network, folder / "small")
    zoo.build("t5").save_pretrained(folder / "t5")
    torch.manual_seed(0)
    albert = AlbertConfig(
        vocab_size=50,
        embedding_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
    )
    AlbertForSequenceClassification(albert).save_pretrained(folder / "albert")
    return {name: folder / name for name in ("bert", "small", "t5", "albert")}


@pytest.fixture
def fake_time(monkeypatch) -> list[dict]:
    """Let the first model take 8 ms and every further one half of that before it."""
    asked = []

    def measure(models, **options):
        asked.append({**options, "threads": torch.get_num_threads()})
        lengths = options["batch_size"], options["sequence_length"], options["decoder_length"]
        machine = {"device": "cpu", "processor": "x", "threads": 1, "dtype": "float32", "attention": "sdpa"}
        return [Latency((0.004 / 2**i, 0.008 / 2**i, 0.016 / 2**i), *lengths, machine) for i in range(len(models))]

    monkeypatch.setattr(profile, "measure_latencies", measure)
    return asked


def run(*arguments: object) -> int:
    return main(["profile", *map(str, arguments)])


def test_json(folders, fake_time, capsys) -> None:
    options = ("--batch_size", 4, "--sequence_length", 16, "--repeats", 3, "--threads", 2, "--json")
    before = torch.get_num_threads()
    assert run(folders["bert"], folders["small"], *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert [asked["batch_size"] for asked in fake_time] == [4] and fake_time[0]["repeats"] == 3
    assert fake_time[0]["threads"] == 2 and torch.get_num_threads() == before
    first, second = found["models"]
    assert first["model"] == str(folders["bert"]) and first["class"] == "BertForSequenceClassification"
    model = zoo.build("bert")
    table, sub_network = SizeTable(model), zoo.corner_cases(model)["everything at once"]
    full = SubNetwork.full(describe(model))
    assert (first["macs"], second["macs"]) == (table.macs(full, 16), table.macs(sub_network, 16))
    for row, network in ((first, full), (second, sub_network)):
        assert row["parameters"]["all"] == table.parameters(network)
        assert row["parameters"] == {
            name: table.parameters(network, parts) for name, parts in profile._DEFINITIONS.items()
        }
    assert len(set(second["parameters"].values())) == 4
    assert first["latency"]["median"] == 0.008 and first["speed_up"] == first["speed_up_bound"] == 1.0
    assert second["speed_up"] == 2.0
    assert second["speed_up_bound"] == table.macs(full, 16) / table.macs(sub_network, 16)
    assert second["share_of_bound"] == 2.0 / second["speed_up_bound"]
    assert (found["batch_size"], found["sequence_length"], found["repeats"]) == (4, 16, 3)


def test_table(folders, fake_time, capsys) -> None:
    assert run(folders["bert"], folders["small"], folders["bert"], "--sequence_length", 16) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "Batches of 1, 16 tokens, float32, sdpa attention, on cpu (x, 1 threads); medians of 10 rounds"
    )
    first, small, again = (line.split() for line in lines[3:6])
    assert first[0] == str(folders["bert"]) and first[-5:] == ["8.00", "38%", "1.00x", "1.00x", "100%"]
    assert small[-5:-2] == ["4.00", "38%", "2.00x"] and again[-3:] == ["4.00x", "1.00x", "400%"]
    assert len({len(line) for line in lines[2:6]}) == 1
    full = SizeTable(zoo.build("bert")).parameters(SubNetwork.full(describe(zoo.build("bert"))))
    assert first[1] == f"{full:,}"


def test_an_encoder_decoder(folders, fake_time, capsys) -> None:
    lengths = ("--sequence_length", 12, "--decoder_length", 5)
    assert run(folders["t5"], *lengths, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    model = zoo.build("t5")
    assert found["models"][0]["macs"] == SizeTable(model).macs(SubNetwork.full(describe(model)), 12, 5)
    assert run(folders["t5"], *lengths) == 0
    assert "12 tokens and 5 of the decoder" in capsys.readouterr().out


def test_a_family_that_is_not_known(folders, fake_time, capsys) -> None:
    assert run(folders["bert"], folders["albert"], "--sequence_length", 8, "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["models"][1]
    expected = sum(p.numel() for p in AlbertForSequenceClassification.from_pretrained(folders["albert"]).parameters())
    assert found["parameters"] == {
        "all": expected, "layers": None, "layers_without_norms": None, "layers_and_head": None
    }  # fmt: skip
    assert found["macs"] is found["speed_up_bound"] is found["share_of_bound"] is None and found["speed_up"] == 2.0
    assert run(folders["albert"], folders["bert"], "--sequence_length", 8) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(str(folders["albert"])))
    assert line.split()[2:6] == ["-"] * 4 and line.split()[-2:] == ["-", "-"]


def test_real_models_are_measured(folders, capsys) -> None:
    options = ("--sequence_length", 8, "--repeats", 2, "--json")
    assert run(folders["bert"], folders["small"], folders["t5"], folders["albert"], *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(row["latency"]["median"] > 0 and len(row["latency"]["seconds"]) == 2 for row in found["models"])
    assert found["models"][0]["speed_up"] == 1.0 and found["machine"]["device"] == "cpu"


@pytest.mark.parametrize(
    "options, message",
    [
        (("--batch_size", 0), "--batch_size is 0; give 1 or more."),
        (("--repeats", -1), "--repeats is -1"),
        (("--threads", 0), "--threads is 0"),
        (("--sequence_length", 41), "BertForSequenceClassification has 40 positions"),
        (("--decoder_length", 4), "has no decoder input of a length of its own"),
        (("--device", "meta"), "--device 'meta' cannot be used here"),
        (("--device", "nowhere"), "--device 'nowhere' cannot be used here"),
    ],
)
def test_refusals(options: tuple, message: str, folders, capsys) -> None:
    assert run(folders["bert"], "--sequence_length", 8, *options) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("hf-nas: ")]
    assert len(lines) == 1 and message in lines[0] and captured.out == ""


def test_a_model_that_does_not_exist(tmp_path, capsys) -> None:
    assert run(tmp_path / "none") == 2
    assert "cannot be read" in capsys.readouterr().err
