"""The front of a pruning by importance is that of the evaluation that was asked for last."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Seq2SeqTrainingArguments

from tests import zoo
from tests.trainer_plugins.head_pruning.test_run import MICHEL, prune, read_front
from tests.trainer_plugins.pruning_world import accuracy, arguments
from tests.trainer_plugins.worlds import rows
from trainer_plugins.head_pruning import front as head_front
from trainer_plugins.head_pruning import run as head_pruning
from trainer_plugins.head_pruning.front import evaluation_facts
from trainer_plugins.tasks.translation import TranslationRows


def losses(folder: Path) -> list[float]:
    with open(folder / "front.csv", encoding="utf-8", newline="") as file:
        written = [float(row["eval_loss"]) for row in csv.DictReader(file)]
    assert written == [point["eval_loss"] for point in read_front(folder)["points"]]
    return written


def test_another_evaluation_in_the_same_folder_is_measured_again(tmp_path, monkeypatch, caplog) -> None:
    prune(tmp_path / "whole", MICHEL, do_train=False, do_eval=True, evaluated=9)
    prune(tmp_path / "out", MICHEL, do_train=False, do_eval=True)
    before = losses(tmp_path / "out")
    assert read_front(tmp_path / "out")["evaluation"]["rows"] == 16
    monkeypatch.setattr(head_front, "michel_order", None)  # its order is known
    with caplog.at_level("INFO"):
        prune(tmp_path / "out", MICHEL, do_train=False, do_eval=True, evaluated=9)
    assert "is measured again: digest was" in caplog.text and "rows was 16 and is 9" in caplog.text
    after = losses(tmp_path / "out")
    assert after == pytest.approx(losses(tmp_path / "whole")) and after != pytest.approx(before)
    # The same once more, or nothing to be measured: it stays.
    with monkeypatch.context() as patch:
        patch.setattr(head_pruning, "write_front", None)
        prune(tmp_path / "out", MICHEL, do_train=False, do_eval=True, evaluated=9)
        prune(tmp_path / "out", MICHEL, do_train=False, do_eval=False, evaluated=4)
    assert losses(tmp_path / "out") == after
    # Of a front that does not say how it was measured nobody knows.
    front = read_front(tmp_path / "out")
    del front["evaluation"]
    (tmp_path / "out" / "front.json").write_text(json.dumps(front))
    prune(tmp_path / "out", MICHEL, do_train=False, do_eval=True)
    assert losses(tmp_path / "out") == pytest.approx(before)


def facts(tmp_path: Path, settings: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    given = {"do_eval": True, "use_cpu": True, "predict_with_generate": True, "generation_num_beams": 2}
    training = Seq2SeqTrainingArguments(str(tmp_path), **{**given, **(settings or {})})
    data = [{"input_ids": [3, 4], "labels": [5, 6]}, {"input_ids": [7], "labels": [8]}]
    defaults = {"eval_dataset": TranslationRows(data, ["a", "b"]), "compute_metrics": accuracy}
    return evaluation_facts(zoo.build("bart"), training, {**defaults, **options})


class Examples:
    def __init__(self, digest: str):
        self.digest = digest


def test_what_metrics_depend_on(tmp_path) -> None:
    same = facts(tmp_path)
    assert same == json.loads(json.dumps(same)) == facts(tmp_path, {"per_device_eval_batch_size": 2})
    assert same["rows"] == 2 and same["generation_num_beams"] == 2 and same["compute_metrics"] == "accuracy"
    data = [{"input_ids": [3, 4], "labels": [5, 6]}, {"input_ids": [7], "labels": [8]}]
    others = [
        facts(tmp_path, {"generation_num_beams": 1}),
        facts(tmp_path, {"generation_max_length": 7}),
        facts(tmp_path, {"predict_with_generate": False}),
        facts(tmp_path, compute_metrics=None),
        facts(tmp_path, compute_metrics=lambda prediction: {}),
        facts(tmp_path, eval_dataset=TranslationRows(data, ["a", "c"])),
        facts(tmp_path, eval_dataset=TranslationRows(data[::-1], ["a", "b"])),
        facts(tmp_path, eval_dataset=TranslationRows([data[0], {**data[1], "labels": [9]}], ["a", "b"])),
        facts(tmp_path, eval_examples=Examples("other answers")),
    ]
    found = [json.dumps(each) for each in (same, *others)]
    assert len(set(found)) == len(found)
    assert facts(tmp_path, {"do_eval": False}) is None and facts(tmp_path, eval_dataset=None) is None
    # Several data sets, and arrays.
    parts = {"one": rows()[:3], "two": [{**row, "input_ids": np.array(row["input_ids"])} for row in rows()[3:7]]}
    one = evaluation_facts(zoo.build("bert"), arguments(tmp_path, do_eval=True), {"eval_dataset": parts})
    assert one["rows"] == 7 and "predict_with_generate" not in one
