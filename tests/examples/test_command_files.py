"""The command files of the examples run from the first step to the last, and again without doing anything twice."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from tests.examples.conftest import EXAMPLES, WORDS, questions


QUICK = (
    # Which is not the length of the importance training.
    "--num_train_epochs", "1", "--movement_warmup_start_epoch", "0.5", "--movement_warmup_end_epoch", "1",
    "--num_samples", "4", "--max_selection_samples", "8", "--use_cpu",
    "--space_tolerance", "0.25", "--space_smallest", "0.5", "--space_count", "3", "--max_macs_ratio", "1.0",
    "--selection_split", "0.25", "--report_to", "none",
)  # fmt: skip


def run(file: str, model: str, data: Path, output: Path, *flags: str) -> str:
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLES.parent), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    process = subprocess.run(
        ["bash", str(EXAMPLES / file), model, str(data), str(output), *QUICK, *flags],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def pairs(count: int, seed: int) -> list[dict]:
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        first, second = ([generator.choice(WORDS) for _ in range(4)] for _ in range(2))
        label = generator.randrange(2)
        rows.append({"sentence1": " ".join(first), "sentence2": " ".join(first if label else second), "label": label,
                     "idx": index})  # fmt: skip
    return rows


def test_mrpc(tiny_model: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, count in (("train", 48), ("validation", 16)):
        Dataset.from_list(pairs(count, seed=count)).to_parquet(data / f"{name}.parquet")
    flags = ("--max_seq_length", "12")
    printed = run("text-classification/eftnas_mrpc.sh", tiny_model, data, tmp_path / "out", *flags)
    assert "super_network/extracted" in printed.splitlines()[-1]
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "super_network" / "extracted")
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors") if "extracted" not in str(path)}
    assert len(files) >= 3
    run("text-classification/eftnas_mrpc.sh", tiny_model, data, tmp_path / "out", *flags)
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.parametrize("name", ["squad"])
def test_squad(name: str, tiny_qa_model: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split, count in (("train", 48), ("validation", 16)):
        Dataset.from_list(questions(count, seed=count)).to_parquet(data / f"{split}.parquet")
    flags = ("--max_seq_length", "22", "--doc_stride", "6")
    run(f"question-answering/eftnas_{name}.sh", tiny_qa_model, data, tmp_path / "out", *flags)
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "super_network" / "extracted")
