"""Pruning by the scripts, from their flags to a small model that loads."""

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, Trainer, pipeline

from hf_nas import SubNetwork
from tests.examples.runs import PRUNING_TRAINING, Script, read, weights


SETTINGS = PRUNING_TRAINING | {"num_train_epochs": 3}
PRUNING = {
    "pruning_type": "structured_heads+structured_mlp+hidden+layer",
    "target_sparsity": 0.4,
    "prepruning_finetune_epochs": 1,
    "lagrangian_warmup_epochs": 1,
    "reg_learning_rate": 0.1,
    "final_finetune_epochs": 2,
}
DISTILLATION = ("--do_distill", "--do_layer_distill", "--layer_distill_version", "4")


@pytest.fixture(scope="module")
def glue(run_glue, glue_settings) -> Script:
    return Script(run_glue, SETTINGS | glue_settings)


@pytest.fixture(scope="module")
def teacher(glue, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    glue(folder, "--do_train", num_train_epochs=12)
    return str(folder)


def test_pruning_with_a_teacher_in_one_command(glue, teacher, tiny_model, tmp_path, monkeypatch, capsys) -> None:
    flags = ("--do_train", "--do_eval", "--do_final_finetune", *DISTILLATION)
    # The tiny model starts with random embeddings, which have to be trained here.
    settings = {**PRUNING, "num_train_epochs": 9, "final_finetune_epochs": 8, "freeze_embeddings": False}
    settings |= {"distillation_path": teacher, "distill_loss_alpha": 0.5, "distill_ce_loss_alpha": 0.5}
    glue(tmp_path, *flags, **settings)
    results, report = read(tmp_path), read(tmp_path / "pruned", "pruning.json")
    assert results["eval_accuracy"] > 0.75 and results["eval_samples"] == 24
    assert report["sparsity"] >= 0.4 and set(report["published_sparsity"]) == {"training", "evaluation", "readme"}
    assert f"by evaluation.py {report['published_sparsity']['evaluation']:.4f}" in capsys.readouterr().out
    for name in ("pruned", "finetuned"):
        small = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        assert small.num_parameters() == report["parameters"] < report["dense_parameters"]
        assert small.config.id2label == {0: "negative", 1: "positive"}
        assert SubNetwork.load(tmp_path / name)
    assert pipeline("text-classification", model=str(tmp_path / "finetuned"), device="cpu")("the good film")
    assert (tmp_path / "finetuned" / "README.md").is_file() and not (tmp_path / "model.safetensors").exists()
    log = read(tmp_path / "pruning", "trainer_state.json")["log_history"]
    assert any("expected_sparsity" in entry and "lambda_1" in entry for entry in log)
    # The same command once more trains nothing and finds the same.
    monkeypatch.setattr(Trainer, "train", None)
    glue(tmp_path, *flags, **settings)
    assert read(tmp_path)["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)


def test_fine_tuning_as_a_second_command(glue, teacher, tmp_path) -> None:
    pruning = {key: value for key, value in PRUNING.items() if key != "final_finetune_epochs"}
    glue(tmp_path / "one", "--do_train", "--do_eval", **pruning)
    assert read(tmp_path / "one")["eval_samples"] == 24 and not (tmp_path / "one" / "finetuned").exists()
    # As published, with the name of the pretrained model beside it.
    second = {"pruning_type": "None", "pretrained_pruned_model": tmp_path / "one" / "pruned", "scheduler_type": "none"}
    glue(tmp_path / "two", "--do_train", "--do_eval", *DISTILLATION, distillation_path=teacher, **second)
    before, after = weights(tmp_path / "one" / "pruned"), weights(tmp_path / "two" / "finetuned")
    assert before.keys() == after.keys()
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert read(tmp_path / "two" / "finetuned", "pruning.json") == read(tmp_path / "one" / "pruned", "pruning.json")
    glue(tmp_path / "three", "--do_eval", model_name_or_path=tmp_path / "two" / "finetuned")
    assert read(tmp_path / "three")["eval_loss"] == pytest.approx(read(tmp_path / "two")["eval_loss"], abs=1e-6)


def test_a_pruning_does_not_go_on_from_a_fine_tuning_in_its_folder(glue, tmp_path) -> None:
    glue(tmp_path / "out", "--do_train")
    with pytest.raises(ValueError, match="holds another run .*pruning was None and is 'structured_heads"):
        glue(tmp_path / "out", "--do_train", "--do_final_finetune", **PRUNING)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--do_train", "--pruning_type", "structured_mpl"), "'structured_mpl' in pruning_type"),
        (("--do_eval", "--pruning_type", "hidden"), "Pruning is a training; add --do_train"),
        (("--do_train", "--pruning_type", "heads", "--target_sparsity", "0.9"), "cannot be reached by pruning heads"),
        (("--do_train", "--pruning_type", "heads", "--do_search"), "leave out --do_search"),
        (("--do_train", "--pretrained_pruned_model", "nowhere"), "'nowhere' is no folder of a pruned model"),
        (("--do_train", "--do_final_finetune"), "--do_final_finetune belongs to a pruning"),
    ],
)
def test_refused_before_training(glue, run_glue, tmp_path, monkeypatch, flags, message) -> None:
    monkeypatch.setattr(run_glue, "tokenize", None)  # what is refused is refused before this is called
    with pytest.raises(ValueError, match=message):
        glue(tmp_path / "out", "--prepruning_finetune_epochs", "0", *flags)
    assert not (tmp_path / "out" / "run.json").exists()


def test_question_answering(run_qa, qa_settings, tmp_path) -> None:
    Script(run_qa, SETTINGS | qa_settings)(tmp_path / "teacher", "--do_train", num_train_epochs=1)
    ask = Script(run_qa, SETTINGS | PRUNING | qa_settings)
    teacher = ("--distillation_path", str(tmp_path / "teacher"), *DISTILLATION)
    ask(tmp_path / "out", "--do_train", "--do_eval", "--do_final_finetune", *teacher)
    results, report = read(tmp_path / "out"), read(tmp_path / "out" / "finetuned", "pruning.json")
    assert 0 <= results["eval_f1"] <= 100 and report["sparsity"] >= 0.4
    assert 0 <= read(tmp_path / "out" / "pruned", "eval_results.json")["eval_f1"] <= 100
    small = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "finetuned")
    assert small.num_parameters() == report["parameters"]
    assert (tmp_path / "out" / "eval_predictions.json").is_file()
