"""The command `hf-nas profile`, with time that only passes as it is told to."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    ResNetConfig,
    ResNetModel,
)

from hf_nas import SizeTable, SubNetwork, describe, extract, save_extracted
from hf_nas.cli import main, profile
from hf_nas.profiling import Latency
from hf_nas.report import DEFINITIONS, profile_plot
from hf_nas.report.plots import new_figure
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
    fnet = FNetConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, intermediate_size=24)
    FNetForSequenceClassification(fnet).save_pretrained(folder / "fnet")
    return {name: folder / name for name in ("bert", "small", "t5", "fnet")}


@pytest.fixture
def fake_time(monkeypatch) -> list[dict]:
    """Let the first model take 8 ms and every further one half of that before it."""
    asked = []

    def measure(models, **options):
        asked.append({**options, "threads": torch.get_num_threads()})
        lengths = options["batch_size"], options["sequence_length"], options["decoder_length"]
        machine = {"device": "cpu", "processor": "Some CPU", "threads": 1, "dtype": "float32", "attention": "sdpa"}
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
        assert row["parameters"] == {name: table.parameters(network, parts) for name, parts in DEFINITIONS.items()}
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
        "Batches of 1, 16 tokens, float32, sdpa attention, on cpu (Some CPU, 1 thread); medians of 10 rounds"
    )
    first, small, again = (line.split() for line in lines[3:6])
    assert first[0] == str(folders["bert"]) and first[-5:] == ["8.00", "38%", "1.00x", "1.00x", "100%"]
    assert small[-5:-2] == ["4.00", "38%", "2.00x"] and again[-3:] == ["4.00x", "1.00x", "400%"]
    assert len({len(line) for line in lines[2:6]}) == 1
    full = SizeTable(zoo.build("bert")).parameters(SubNetwork.full(describe(zoo.build("bert"))))
    assert first[1] == f"{full:,}"


def test_per_layer(folders, fake_time, capsys) -> None:
    assert run(folders["bert"], folders["small"], folders["fnet"], "--sequence_length", 16, "--per_layer") == 0
    out = capsys.readouterr().out
    dense, small, fnet = (part.splitlines() for part in out.split("\n\n")[3:])
    assert dense[0] == str(folders["bert"]) and small[0] == str(folders["small"])
    assert dense[1].split() == ["layer", "heads", "neurons", "parameters", "MMACs"]
    assert [line.split()[:4] for line in dense[2:]] == [["encoder", str(i), "4", "24"] for i in range(3)]
    assert fnet == [str(folders["fnet"]), "Its layers are not known."]
    # The numbers are those of the modules, and those of all layers are those of the model.
    run(folders["small"], "--sequence_length", 16, "--json")
    row = json.loads(capsys.readouterr().out)["models"][0]
    model = AutoModelForSequenceClassification.from_pretrained(folders["small"])
    layers = model.bert.encoder.layer
    assert [layer["parameters"] for layer in row["layers"]] == [
        sum(p.numel() for p in layer.parameters()) for layer in layers
    ]
    assert sum(layer["parameters"] for layer in row["layers"]) == row["parameters"]["layers"]
    heads = sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight") and (
        "pooler" in name or "classifier" in name
    ))  # fmt: skip
    assert sum(layer["macs"] for layer in row["layers"]) == row["macs"] - heads
    assert [line.split()[2:4] for line in small[2:]] == [
        ["gone" if count is None else str(count) for count in layer["units"].values()] for layer in row["layers"]
    ]
    assert any(count is None for layer in row["layers"] for count in layer["units"].values())


def test_layers_of_an_encoder_decoder(folders, fake_time, capsys) -> None:
    assert run(folders["t5"], "--sequence_length", 8, "--per_layer") == 0
    lines = capsys.readouterr().out.split("\n\n")[3].splitlines()
    assert lines[1].split()[:6] == ["layer", "heads", "neurons", "cross", "heads", "parameters"]
    encoder, decoder = (next(line for line in lines if line.startswith(stack)) for stack in ("encoder", "decoder"))
    assert len(decoder.split()) == len(encoder.split()) + 1


def test_plot(folders, fake_time, tmp_path, capsys) -> None:
    path = tmp_path / "picture.png"
    assert run(folders["bert"], folders["small"], folders["fnet"], "--sequence_length", 8, "--plot", path) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert run(folders["bert"], "--plot", tmp_path / "picture.txt") == 2
    assert "'.png" not in capsys.readouterr().out and not (tmp_path / "picture.txt").exists()


def test_a_plot_shows_the_numbers(folders, fake_time, tmp_path, capsys, monkeypatch) -> None:
    run(folders["bert"], folders["small"], folders["fnet"], "--sequence_length", 8, "--json")
    rows = json.loads(capsys.readouterr().out)["models"]
    figure = new_figure(10)
    left, right = figure.subplots(1, 2)
    profile_plot._draw_parameters(left, rows)
    profile_plot._draw_latency(right, rows)
    ends = [
        max(bar.get_x() + bar.get_width() for bar in left.patches if round(bar.get_y() + 0.275) == i) for i in range(3)
    ]
    assert ends == pytest.approx([row["parameters"]["all"] / 1e6 for row in rows])
    assert [bar.get_width() for bar in right.patches] == pytest.approx([8.0, 4.0, 2.0])
    bounds = [line.get_xdata()[0] for line in right.lines if line.get_linewidth() == 2]
    assert bounds == pytest.approx([8.0, 8.0 / rows[1]["speed_up_bound"]])
    assert profile_plot._short("$x$" + "a" * 40).count("$") == 0 and len(profile_plot._short("b" * 40)) == 28


def test_a_model_that_reads_no_tokens(folders, fake_time, tmp_path, capsys) -> None:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
    ResNetModel(config).save_pretrained(tmp_path)
    assert run(tmp_path, folders["bert"], "--sequence_length", 8, "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["models"]
    assert first["latency"] is None and first["parameters"]["all"] > 0 and second["latency"]["median"] == 0.008
    assert second["speed_up"] is None
    assert run(tmp_path) == 0
    assert "nothing was measured" in capsys.readouterr().out


def test_a_model_that_reads_images(fake_time, tmp_path, capsys, caplog) -> None:
    vit = zoo.build("vit")
    vit.save_pretrained(tmp_path)
    assert run(tmp_path, "--json") == 0
    tokens = (vit.config.image_size // vit.config.patch_size) ** 2 + 1
    (asked,) = fake_time
    assert asked["sequence_length"] == tokens
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["macs"] == SizeTable(vit).macs(SubNetwork.full(describe(vit)), tokens)
    assert row["latency"]["median"] == 0.008 and not caplog.records
    assert run(tmp_path, "--sequence_length", 128) == 2
    assert f"give the sequence_length {tokens}" in capsys.readouterr().err


def test_an_encoder_decoder(folders, fake_time, capsys) -> None:
    lengths = ("--sequence_length", 12, "--decoder_length", 5)
    assert run(folders["t5"], *lengths, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    model = zoo.build("t5")
    assert found["models"][0]["macs"] == SizeTable(model).macs(SubNetwork.full(describe(model)), 12, 5)
    assert run(folders["t5"], *lengths) == 0
    assert "12 tokens and 5 of the decoder" in capsys.readouterr().out


def test_a_family_that_is_not_known(folders, fake_time, capsys) -> None:
    assert run(folders["bert"], folders["fnet"], "--sequence_length", 8, "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["models"][1]
    expected = sum(p.numel() for p in FNetForSequenceClassification.from_pretrained(folders["fnet"]).parameters())
    assert found["parameters"] == {
        "all": expected, "layers": None, "layers_without_norms": None, "layers_and_head": None
    }  # fmt: skip
    assert found["macs"] is found["speed_up_bound"] is found["share_of_bound"] is None and found["speed_up"] == 2.0
    assert run(folders["fnet"], folders["bert"], "--sequence_length", 8) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(str(folders["fnet"])))
    assert line.split()[2:6] == ["-"] * 4 and line.split()[-2:] == ["-", "-"]


def test_real_models_are_measured(folders, capsys) -> None:
    options = ("--sequence_length", 8, "--repeats", 2, "--json")
    assert run(folders["bert"], folders["small"], folders["t5"], folders["fnet"], *options) == 0
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
        (("--plot", "front"), "--plot 'front' is no picture; give a file that ends in .png, .svg, .pdf."),
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
