"""The command `hf-nas compare`, on folders as runs leave them."""

import csv
import json
from pathlib import Path

import pytest
from transformers import default_data_collator

from hf_nas.cli import main
from tests import zoo
from tests.cli import refusals
from tests.report.compare.runs import dense_run, dsp_run, results, search_run
from tests.trainer_plugins.pruning_world import accuracy, arguments
from tests.trainer_plugins.worlds import rows
from trainer_plugins import HeadPruningArguments, run_head_pruning


pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def bert():
    return zoo.build("bert")


def compare(folder: Path, *given: object) -> int:
    return main(["compare", *map(str, given), "--output_dir", str(folder / "page")])


def numbers(folder: Path) -> dict:
    return json.loads((folder / "page" / "comparison.json").read_text())


def refused(capsys, folder: Path, message: str, *given: object) -> None:
    capsys.readouterr()
    refusals.refused(capsys, message, compare(folder, *given))
    assert not (folder / "page").exists()


def test_a_page_of_a_search_seeds_and_the_dense_model(bert, tmp_path, capsys) -> None:
    search_run(tmp_path / "nas", bert, {"full": 0.85, "uniform half": 0.8, "no head left, bias stays": 0.6})
    for seed, score in enumerate((0.81, 0.83)):
        dsp_run(tmp_path / f"dsp-{seed}", bert, 5, seed=seed, f1=score)
    (tmp_path / "dsp-notes.txt").write_text("no folder")
    dense_run(tmp_path / "dense", bert, f1=0.9)
    given = (f"dsp={tmp_path}/dsp-*", f"nas={tmp_path}/nas", f"dense={tmp_path}/dense")
    assert compare(tmp_path, *given, "--sequence_length", 12) == 0
    printed = capsys.readouterr().out
    assert "| dsp    |     5 |" in printed and "0.8200 | 0.8100 |  0.8300 |    2 |" in printed
    assert f"The picture is {tmp_path}/page/comparison.png" in printed
    found = numbers(tmp_path)
    assert [(row["label"], row["seed"]) for row in found["rows"]] == [
        ("dsp", 0), ("dsp", 1), ("nas", 0), ("nas", 0), ("nas", 0), ("dense", 0),
    ]  # fmt: skip
    assert found["sequence_length"] == 12 and found["dense"]["metrics"] == [0.9] and found["dense"]["heads"] == 12
    assert found["dense"]["parameters"] == sum(parameter.numel() for parameter in bert.parameters())
    with open(tmp_path / "page" / "comparison.csv", encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [row["label"] for row in found["rows"]]
    assert (tmp_path / "page" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_pruning_of_heads_leaves_is_read(tmp_path) -> None:
    """Whole runs, so that a change of their files shows here."""
    data = rows()[:16]
    for method, flags in (
        ("dsp", {"annealing": True, "joint_pruning": True}),
        ("michel", {"heads_per_step": 4}),
    ):
        outcome = run_head_pruning(
            zoo.build("bert"),
            arguments(tmp_path / method, num_train_epochs=1, do_train=True, do_eval=True),
            HeadPruningArguments(pruning_method=method, num_of_heads=5, **flags),
            sequence_length=8,
            record={"task_name": "toy", "max_seq_length": 8, "seed": 0},
            train_dataset=data,
            eval_dataset=data,
            data_collator=default_data_collator,
            compute_metrics=accuracy,
        )
        results(tmp_path / method, examples=16, accuracy=outcome.trainer.evaluate()["eval_accuracy"])
    assert compare(tmp_path, *(f"{method}={tmp_path / method}" for method in ("dsp", "michel"))) == 0
    found = numbers(tmp_path)
    heads = [(row["label"], row["heads"]) for row in found["rows"]]
    assert heads == [("dsp", 5), *(("michel", number) for number in (12, 8, 5, 4, 0))]
    assert found["task"] == "toy" and found["metric"] == "accuracy" and found["sequence_length"] == 8
    report = json.loads((tmp_path / "dsp" / "pruned" / "pruning.json").read_text())
    points = json.loads((tmp_path / "michel" / "front.json").read_text())["points"]
    for row, written in zip(found["rows"], [report, *points]):
        assert (row["parameters"], row["macs"]) == (written["parameters"], written["macs"])
    assert [row["metric"] for row in found["rows"][1:]] == [point["eval_accuracy"] for point in points]
    assert (found["dense"]["macs"], found["dense"]["heads"]) == (report["dense_macs"], report["dense_heads"])
    assert found["dense"]["metrics"] == [points[0]["eval_accuracy"]]


def test_bad_arguments_are_refused(bert, tmp_path, capsys) -> None:
    run = dsp_run(tmp_path / "dsp", bert, 5, f1=0.8)
    refused(capsys, tmp_path, f"'{run}' is no LABEL=FOLDER; give for example dsp=runs/dsp", run)
    refused(capsys, tmp_path, "'=x' is no LABEL=FOLDER", "=x")
    refused(capsys, tmp_path, "There is no folder 'nowhere*' for 'dsp'; give the output folder", "dsp=nowhere*")
    refused(capsys, tmp_path, "--sequence_length is 0; give 1 or more", f"dsp={run}", "--sequence_length", 0)
    refused(capsys, tmp_path, "no metric 'bleu' of 'dsp'", f"dsp={run}", "--metric", "bleu")
    refused(capsys, tmp_path, "is given 2 times", f"dsp={run}", f"michel={run}")
    (run / "pruned" / "config.json").unlink()
    refused(capsys, tmp_path, "has no config.json, so that nothing is known of the sizes of 'dsp'", f"dsp={run}")
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    assert main(["compare", f"dsp={run}", "--output_dir", str(tmp_path / "file")]) == 2
    assert "is a file; give the name of a folder" in capsys.readouterr().err


def test_a_model_whose_dense_one_is_not_known_is_refused(bert, tmp_path, capsys) -> None:
    run = dsp_run(tmp_path / "dsp", bert, 5, f1=0.8)
    path = run / "pruned" / "sub_network.json"
    data = json.loads(path.read_text())
    data["kept"]["encoder.0.attention"] = 3
    path.write_text(json.dumps(data))
    refused(capsys, tmp_path, "cannot be built from its sub_network.json", f"dsp={run}")
