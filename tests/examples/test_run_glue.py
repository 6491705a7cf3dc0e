"""The text-classification script from its flags to its files, in one process."""

import json
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from tests.examples.runs import (
    Script,
    assert_same_weights,
    counted_evaluations,
    counted_steps,
    evaluations,
    read,
    weights,
)
from trainer_plugins import NasArguments, SearchArguments, run_state
from trainer_plugins.scripts.checks import needed_splits


STEPS = 64
TRAINING = {
    "learning_rate": 1e-2,
    "max_steps": STEPS,
    "per_device_train_batch_size": 8,
    "save_strategy": "steps",
    "save_steps": 16,
    "logging_steps": 16,
    "seed": 7,
    "use_cpu": True,
}
SANDWICH = ("--sampling_strategy", "sandwich", "--num_random_sub_nets", "1", "--selection_split", "0.3")
SEARCH = ("--selection_split", "0.3", "--do_search", "--num_samples", "6", "--max_selection_samples", "16")


@pytest.fixture(scope="module")
def start(run_glue, glue_settings) -> Script:
    return Script(run_glue, TRAINING | glue_settings)


@pytest.fixture(scope="module")
def super_network(start, tmp_path_factory) -> Path:
    """Folder of a run that trained and searched a super-network."""
    folder = tmp_path_factory.mktemp("runs") / "super_network"
    start(folder, "--do_train", "--do_eval", *SANDWICH, *SEARCH)
    return folder


@pytest.mark.parametrize("pad", ["True", "False"])
def test_without_our_flags_it_is_plain_finetuning(start, tiny_model, tiny_files, tmp_path, pad):
    start(tmp_path / "ours", "--do_train", "--do_eval", "--pad_to_max_length", pad)

    files = {"train": tiny_files["train_file"], "validation": tiny_files["validation_file"]}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = load_dataset("csv", data_files=files, cache_dir=str(tmp_path / "cache")).map(
        lambda row: {
            **tokenizer(row["text"], max_length=12, truncation=True, padding="max_length" if pad == "True" else False),
            "labels": ["negative", "positive"].index(row["label"]),
        },
        remove_columns=["text", "label"],
    )
    arguments = TrainingArguments(output_dir=str(tmp_path / "plain"), **TRAINING)
    set_seed(arguments.seed)
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2),
        arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    results = read(tmp_path / "ours")
    assert results["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-6)
    assert results["eval_accuracy"] > 0.9
    assert results["train_samples"] == 64 and results["eval_samples"] == 24
    predicted = trainer.predict(data["validation"]).predictions.argmax(-1) == data["validation"]["labels"][:]
    assert results["eval_accuracy"] == pytest.approx(predicted.mean())
    assert_same_weights(tmp_path / "ours", tmp_path / "plain")
    pooler = weights(tmp_path / "ours")["bert.pooler.dense.weight"]
    assert not torch.equal(pooler, weights(tiny_model)["pooler.dense.weight"])
    # The example scripts of transformers leave these.
    for name in ("train_results.json", "eval_results.json", "trainer_state.json", "README.md", "tokenizer.json"):
        assert (tmp_path / "ours" / name).is_file()
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").config
    assert config.id2label == {0: "negative", 1: "positive"}


def test_json_file_instead_of_flags(start, tiny_model, tiny_files, tmp_path):
    settings = {"model_name_or_path": tiny_model, "cache_dir": str(tmp_path / "cache"), "do_eval": True}
    settings |= tiny_files | {"output_dir": str(tmp_path / "out"), "max_eval_samples": 10, "use_cpu": True}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    start.run(str(tmp_path / "run.json"))
    assert read(tmp_path / "out")["eval_samples"] == 10


def test_predictions(start, tiny_files, tmp_path):
    start(tmp_path, "--do_predict", "--test_file", tiny_files["validation_file"], "--max_predict_samples", "5")
    lines = (tmp_path / "predict_results_text-classification.txt").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 6
    assert {line.split("\t")[1] for line in lines[1:]} <= {"negative", "positive"}


def test_regression(start, run_glue, tiny_model, tmp_path):
    rows = [{"text": "good " * (1 + i % 4), "label": (i % 4) / 2} for i in range(16)]
    path = tmp_path / "scores.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = ("--train_file", str(path), "--validation_file", str(path), "--test_file", str(path))
    start(tmp_path / "out", "--do_train", "--do_eval", "--do_predict", *data)
    predictions = (tmp_path / "out" / "predict_results_text-classification.txt").read_text().splitlines()[1:]
    predictions = [float(line.split("\t")[1]) for line in predictions]
    mse = sum((value - row["label"]) ** 2 for value, row in zip(predictions, rows, strict=True)) / len(rows)
    assert read(tmp_path / "out")["eval_mse"] == pytest.approx(mse, abs=2e-3)


def test_mnli_is_evaluated_twice(start, tiny_model, tmp_path):
    for name, count in (("validation_matched", 6), ("validation_mismatched", 9)):
        rows = [{"premise": "good film", "hypothesis": "the book", "label": i % 3} for i in range(count)]
        path = tmp_path / "rows.json"
        path.write_text("\n".join(map(json.dumps, rows)))
        load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / name)).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    flags = ["--task_name", "mnli", "--data_dir", str(tmp_path), "--model_name_or_path", tiny_model, "--do_eval"]
    flags += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), "--use_cpu"]
    start.run(*flags, "--max_seq_length", "12")
    results = read(tmp_path / "out")
    # The same prediction for all rows, and each label equally often.
    assert results["eval_accuracy"] == results["eval_accuracy_mm"] == pytest.approx(1 / 3)
    assert (results["eval_samples"], results["eval_samples_mm"]) == (6, 9)


def test_super_network_search_and_extraction(super_network, tiny_files, tmp_path):
    results = read(super_network)
    assert results["eval_accuracy"] > 0.75  # 13 of the 24 are of one class
    assert results["train_samples"] == 44 and results["eval_samples"] == 24
    assert len(evaluations(super_network)) == 6
    for name in ("result.json", "front.csv", "front.json", "front.png"):
        assert (super_network / "search" / name).stat().st_size > 0
    small = AutoModelForSequenceClassification.from_pretrained(super_network / "extracted")
    assert small.num_parameters() == results["chosen_parameters"]
    # What the report says of the extracted model is what a user of it measures on the validation set.
    classify = pipeline("text-classification", model=str(super_network / "extracted"), device="cpu")
    rows = load_dataset("csv", data_files=tiny_files["validation_file"], split="train", cache_dir=str(tmp_path))
    right = [reply["label"] == label for reply, label in zip(classify(rows["text"][:]), rows["label"], strict=True)]
    assert sum(right) / len(right) == pytest.approx(results["chosen_validation_accuracy"])


def test_finished_training_is_not_repeated(start, run_glue, super_network, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(run_glue.SuperNetworkTrainer, "train", refuse)
    before, results = weights(super_network), read(super_network)
    start(super_network, "--do_train", "--do_eval", *SANDWICH, *SEARCH)
    after = weights(super_network)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read(super_network)["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-6)
    assert read(super_network)["chosen_parameters"] == results["chosen_parameters"]


def test_search_of_a_saved_super_network(start, super_network, tmp_path):
    flags = ("--checkpoint_dir_model", str(super_network), *SEARCH)
    start(tmp_path, *flags, model_name_or_path=None)
    assert evaluations(tmp_path) == evaluations(super_network)
    assert not (tmp_path / "model.safetensors").exists()


def test_search_on_examples_of_the_training_is_refused(start, super_network, tmp_path):
    flags = ("--checkpoint_dir_model", str(super_network / f"checkpoint-{STEPS}"), *SEARCH)
    with pytest.raises(
        ValueError, match="dataset_seed 128 and is to be searched with 3.*give --dataset_seed the same"
    ):
        start(tmp_path, *flags, "--dataset_seed", "3", model_name_or_path=None)


def test_search_of_a_model_trained_on_everything_is_refused(start, tmp_path):
    run_state.write_run(tmp_path, {"seed": 7}, finished=True)
    with pytest.raises(ValueError, match="was trained on all examples, so none are left"):
        start(tmp_path / "search", "--checkpoint_dir_model", str(tmp_path), *SEARCH, model_name_or_path=None)


def test_killed_training_continues(start, run_glue, tmp_path):
    flags = ("--do_train", *SANDWICH)
    start(tmp_path / "whole", *flags)
    with pytest.raises(KeyboardInterrupt), counted_steps(run_glue.SuperNetworkTrainer, killed_at=19):
        start(tmp_path / "killed", *flags)
    with counted_steps(run_glue.SuperNetworkTrainer) as steps:
        start(tmp_path / "killed", *flags)
    assert steps == list(range(16, STEPS))
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


def test_killed_search_continues(start, super_network, tmp_path):
    flags = ("--do_train", *SANDWICH, *SEARCH)
    with pytest.raises(KeyboardInterrupt), counted_evaluations(killed_at=4):
        start(tmp_path, *flags)
    trained = (tmp_path / "model.safetensors").stat().st_mtime_ns
    counts = []
    for _ in range(2):
        with counted_evaluations() as calls:
            start(tmp_path, *flags)
        counts.append(len(calls))
    # The last attempt has nothing left to search and only measures on the validation set what was found.
    assert counts[0] - counts[1] == 6 - 4
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == trained
    assert evaluations(tmp_path) == evaluations(super_network)
    assert read(tmp_path)["chosen_parameters"] == read(super_network)["chosen_parameters"]


STANDARD = ("--nas_type", "standard", "--search_strategy", "moasha", "--num_train_epochs", "2", "--max_steps", "-1")


def test_standard_nas(start, run_glue, tiny_files, tmp_path, monkeypatch):
    flags = ("--do_eval", *STANDARD, *SEARCH, "--num_samples", "4")
    start(tmp_path, *flags)
    results = read(tmp_path, "search_results.json")
    assert results["search_evaluations"] == 4 and not (tmp_path / "eval_results.json").exists()
    evaluated = evaluations(tmp_path)
    assert len(evaluated) == 4 and {row["metric.epochs"] for row in evaluated} <= {"1.0", "2.0"}
    assert len(list((tmp_path / "candidates").glob("*/model.safetensors"))) >= results["search_front"]
    # There is no other model than the chosen one, which is as good on the validation set as the report says.
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "run.json").exists()
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "extracted")
    assert small.num_parameters() == results["chosen_parameters"]
    classify = pipeline("text-classification", model=str(tmp_path / "extracted"), device="cpu")
    rows = load_dataset("csv", data_files=tiny_files["validation_file"], split="train", cache_dir=str(tmp_path / "c"))
    right = [reply["label"] == label for reply, label in zip(classify(rows["text"][:]), rows["label"], strict=True)]
    assert sum(right) / len(right) == pytest.approx(results["chosen_validation_accuracy"])

    # The same command once more trains nothing.
    monkeypatch.setattr(Trainer, "train", None)
    start(tmp_path, *flags)
    assert evaluations(tmp_path) == evaluated and read(tmp_path, "search_results.json") == results


def test_other_run_in_the_output_folder_is_refused(start, super_network, tmp_path):
    with pytest.raises(ValueError, match="holds another run .learning_rate was 0.01 and is 0.1.; choose another"):
        start(super_network, "--do_train", *SANDWICH, "--do_search", "--learning_rate", "0.1")
    (tmp_path / "all_results.json").write_text("{}")
    with pytest.raises(
        ValueError, match="holds another run .all_results.json.; choose another --output_dir or delete"
    ):
        start(tmp_path, "--do_train")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "There is nothing to do"),
        (("--do_search",), "needs a trained super-network; add --checkpoint_dir_model"),
        (("--do_eval", "--checkpoint_dir_model", "x"), "--checkpoint_dir_model 'x' names a trained super-network"),
        (("--do_train", "--do_search", "--checkpoint_dir_model", "x"), "leave out either of them"),
        (("--do_search", "--checkpoint_dir_model", "nowhere"), "'nowhere' is no folder"),
        (("--do_train", "--sampling_strategy", "sandwhich"), "sandwhich"),
        (("--do_train", "--search_space", "tiny", *SANDWICH), "tiny"),
        (("--do_train", "--do_search", "--search_strategy", "grid"), "grid"),
        (("--do_train", "--do_search", "--num_samples", "0"), "num_samples"),
        (("--do_train", "--do_search", "--selection_split", "1.5"), "selection_split"),
        (("--do_train", "--do_search", "--nas_type", "zero_shot"), "nas_type is 'zero_shot'; choose one of"),
        (("--do_train", "--do_search", *STANDARD), "every candidate is trained in the search; leave out --do_train"),
        (("--do_search", *STANDARD, *SANDWICH), "there is no super-network; leave out --sampling_strategy"),
        (("--do_search", *STANDARD, "--checkpoint_dir_model", "x"), "leave out --checkpoint_dir_model"),
        (("--do_search", *STANDARD, "--do_predict"), "only after the search, in extracted/; leave out --do_predict"),
        (("--do_search", *STANDARD, "--importance", "movement"), "learnt; leave out --importance movement"),
        (("--do_search", *STANDARD, "--search_space", "generated"), "leave out --search_space generated"),
    ],
)
def test_refused_before_training(start, run_glue, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(run_glue, "tokenize", None)  # what is refused is refused before this is called
    with pytest.raises(ValueError, match=message):
        start(tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "run.json").exists()


def test_standard_nas_is_refused_by_scripts_that_have_none(tmp_path):
    nas = NasArguments(search=SearchArguments(do_search=True, nas_type="standard"))
    with pytest.raises(ValueError, match="--nas_type standard is not for this task; choose weight_sharing"):
        needed_splits(TrainingArguments(str(tmp_path)), nas)
    assert needed_splits(TrainingArguments(str(tmp_path)), nas, ("standard",)) == ["train", "validation"]


def test_model_of_other_data(start, tiny_model, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=5).save_pretrained(tmp_path / "five")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "five")
    with pytest.raises(ValueError, match="has a head for 5 labels and the data have 2; give the model of these data"):
        start(
            tmp_path / "out", "--do_search", "--checkpoint_dir_model", str(tmp_path / "five"), model_name_or_path=None
        )
    with pytest.raises(ValueError, match="has a head for 5 labels and the data have 2"):
        start(tmp_path / "out", "--do_train", model_name_or_path=str(tmp_path / "five"))
    start(tmp_path / "out", "--do_eval", "--ignore_mismatched_sizes", model_name_or_path=str(tmp_path / "five"))


def test_missing_model(start, tmp_path):
    with pytest.raises(ValueError, match="No model is given; add --model_name_or_path"):
        start(tmp_path, "--do_eval", model_name_or_path=None)


def test_finished_run_record(tmp_path):
    assert run_state.prepare_output_folder(tmp_path / "new", {"seed": 1}) == (False, None)
    run_state.write_run(tmp_path, {"seed": 1}, finished=False)
    (tmp_path / "model.safetensors").touch()  # died between saving the model and recording the end
    assert run_state.prepare_output_folder(tmp_path, {"seed": 1}) == (False, None)
    (tmp_path / "checkpoint-4").mkdir()
    assert run_state.prepare_output_folder(tmp_path, {"seed": 1}) == (False, None)  # died while it wrote that
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-4" / "rng_state.pth").touch()
    assert run_state.prepare_output_folder(tmp_path, {"seed": 1}) == (False, str(tmp_path / "checkpoint-4"))
    run_state.write_run(tmp_path, {"seed": 1}, finished=True)
    assert run_state.prepare_output_folder(tmp_path, {"seed": 1}) == (True, None)
    with pytest.raises(ValueError, match="seed was 1 and is 2"):
        run_state.prepare_output_folder(tmp_path, {"seed": 2})
