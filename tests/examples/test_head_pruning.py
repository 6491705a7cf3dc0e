"""Pruning of heads by the scripts, from their flags to a small model that loads."""

import csv

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, Trainer, pipeline

from hf_nas import SubNetwork
from tests.examples.runs import PRUNING_TRAINING, Script, read
from trainer_plugins import PruningTrainer


SETTINGS = PRUNING_TRAINING | {"num_train_epochs": 2}
DSP = ("--do_train", "--do_eval", "--pruning_method", "dsp", "--annealing", "--num_of_heads", "3")


@pytest.fixture(scope="module")
def glue(run_glue, glue_settings) -> Script:
    return Script(run_glue, SETTINGS | glue_settings)


@pytest.fixture(scope="module")
def fine_tuned(glue, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("fine_tuned")
    glue(folder, "--do_train", num_train_epochs=8)
    return str(folder)


def test_joint_pruning_in_one_command(glue, tmp_path, monkeypatch, capsys) -> None:
    flags = (*DSP, "--joint_pruning", "--do_final_finetune", "--final_finetune_epochs", "6")
    glue(tmp_path, *flags, num_train_epochs=8)
    results, report = read(tmp_path), read(tmp_path / "pruned", "pruning.json")
    assert results["eval_accuracy"] > 0.75 and results["eval_samples"] == 24
    assert (report["method"], report["heads"], report["dense_heads"]) == ("dsp", 3, 8)
    assert "3 of 8 heads are left (--pruning_method dsp)" in capsys.readouterr().out
    for name in ("pruned", "finetuned"):
        small = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        assert small.num_parameters() == report["parameters"] < report["dense_parameters"]
        assert SubNetwork.load(tmp_path / name)
    assert pipeline("text-classification", model=str(tmp_path / "finetuned"), device="cpu")("the good film")
    assert (tmp_path / "finetuned" / "README.md").is_file() and not (tmp_path / "model.safetensors").exists()
    # The same command once more trains nothing and finds the same.
    monkeypatch.setattr(Trainer, "train", None)
    glue(tmp_path, *flags, num_train_epochs=8)
    assert read(tmp_path)["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)


def test_pipelined_and_then_fine_tuned_as_a_second_command(glue, fine_tuned, tmp_path) -> None:
    glue(tmp_path / "one", *DSP, model_name_or_path=fine_tuned)
    assert read(tmp_path / "one")["eval_samples"] == 24 and not (tmp_path / "one" / "finetuned").exists()
    glue(tmp_path / "two", "--do_train", "--do_eval", pretrained_pruned_model=tmp_path / "one" / "pruned")
    assert read(tmp_path / "two" / "finetuned", "pruning.json") == read(tmp_path / "one" / "pruned", "pruning.json")
    assert read(tmp_path / "two")["eval_loss"] < read(tmp_path / "one")["eval_loss"]


def test_importance_of_a_fine_tuned_model(glue, fine_tuned, tmp_path) -> None:
    flags = ("--pruning_method", "michel", "--num_of_heads", "4", "--heads_per_step", "2")
    glue(tmp_path, *flags, "--do_eval", model_name_or_path=fine_tuned)
    points = read(tmp_path, "front.json")["points"]
    assert [point["heads"] for point in points] == [8, 6, 4, 2, 0]
    assert points[0]["eval_accuracy"] > 0.75
    assert points[2]["eval_loss"] == pytest.approx(read(tmp_path)["eval_loss"], abs=1e-5)
    with open(tmp_path / "front.csv", encoding="utf-8", newline="") as file:
        assert [int(row["heads"]) for row in csv.DictReader(file)] == [8, 6, 4, 2, 0]
    assert not (tmp_path / "dense").exists()


def test_what_importance_leaves_of_a_fine_tuned_model_learns_from_a_teacher(
    glue, fine_tuned, tmp_path, monkeypatch
) -> None:
    teachers, train = [], PruningTrainer.train
    monkeypatch.setattr(
        PruningTrainer, "train", lambda self, **options: teachers.append(self.teacher) or train(self, **options)
    )
    flags = (
        "--pruning_method",
        "michel",
        "--num_of_heads",
        "4",
        "--do_final_finetune",
        "--final_finetune_epochs",
        "1",
    )
    settings = {"model_name_or_path": fine_tuned, "kd_teacher_model": fine_tuned, "kd_task_weight": 0.0}
    glue(tmp_path, *flags, **settings)
    (teacher,) = teachers
    saved = AutoModelForSequenceClassification.from_pretrained(fine_tuned)
    assert torch.equal(teacher.classifier.weight, saved.classifier.weight)
    with pytest.raises(ValueError, match="names a teacher that nothing is learnt from"):
        glue(tmp_path / "refused", *flags[:4], "--do_eval", **settings)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*DSP[:3], "dsp", "--num_of_heads", "3"), "Without --annealing .* add --annealing, or --use_ste"),
        ((*DSP, "--pruning_type", "heads"), "dsp and --pruning_type are two ways to shrink a model"),
        ((*DSP, "--sampling_strategy", "random"), "dsp and --sampling_strategy are two ways"),
        (
            (*DSP, "--search_space", "medium"),
            "--search_space belongs to a super-network .* dsp nothing reads it, so le",
        ),
        (DSP[1:], "dsp trains gates; add --do_train"),
        (DSP, "dsp takes the weights as they are, but the model .* is not fine-tuned"),
        ((*DSP[:-1], "9", "--joint_pruning"), "9 heads .* the model has 8"),
        (("--do_train", "--num_of_heads", "3"), "--num_of_heads belongs to a pruning of heads"),
    ],
)
def test_refused_before_training(glue, run_glue, tmp_path, monkeypatch, flags, message) -> None:
    monkeypatch.setattr(run_glue, "tokenize", None)  # what is refused is refused before this is called
    with pytest.raises(ValueError, match=message):
        glue(tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "run.json").exists()


def test_importance_of_a_model_that_is_not_fine_tuned_is_refused(glue, tmp_path) -> None:
    with pytest.raises(
        ValueError, match="is not fine-tuned, since its head .* or add --do_train, which does it first"
    ):
        glue(tmp_path / "out", "--pruning_method", "michel", "--num_of_heads", "3")


def test_question_answering(run_qa, qa_settings, tmp_path) -> None:
    flags = ("--do_train", "--do_eval", "--pruning_method", "michel", "--num_of_heads", "3", "--heads_per_step", "4")
    Script(run_qa, SETTINGS | qa_settings)(tmp_path / "out", *flags)
    points = read(tmp_path / "out", "front.json")["points"]
    assert [point["heads"] for point in points] == [8, 4, 3, 0]
    assert points[2]["eval_f1"] == pytest.approx(read(tmp_path / "out")["eval_f1"])
    small = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "pruned")
    assert small.num_parameters() == points[2]["parameters"]
