"""Super-networks that answer questions: trained, killed, searched and extracted by the script."""

import csv
import json
from pathlib import Path

import pytest
from transformers import AutoModelForQuestionAnswering

from tests.examples.runs import (
    QA_TRAINING,
    Script,
    assert_same_weights,
    counted_evaluations,
    counted_steps,
    evaluations,
    read,
)
from trainer_plugins import SuperNetworkTrainer


SANDWICH = ("--sampling_strategy", "sandwich", "--search_space", "small", "--selection_split", "0.25")
SEARCH = ("--selection_split", "0.25", "--do_search", "--num_samples", "4")


@pytest.fixture(scope="module")
def start(run_qa, qa_settings) -> Script:
    return Script(run_qa, QA_TRAINING | qa_settings)


@pytest.fixture(scope="module")
def super_network(start, tmp_path_factory) -> Path:
    """Folder of a run that trained and searched a super-network."""
    folder = tmp_path_factory.mktemp("runs") / "super_network"
    start(folder, "--do_train", "--do_eval", *SANDWICH, *SEARCH)
    return folder


@pytest.mark.parametrize("strategy", ["kd", "one_shot"])
def test_the_largest_teaches_start_and_end(start, tmp_path, strategy):
    start(tmp_path, "--do_train", "--sampling_strategy", strategy, "--selection_split", "0.25", max_steps=60)
    losses = [each["loss"] for each in read(tmp_path, "trainer_state.json")["log_history"] if "loss" in each]
    assert losses[-1] < losses[0] / 2


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
    start(tmp_path, "--do_eval", model_name_or_path=str(super_network / "extracted"))
    results, reported = read(tmp_path), read(super_network)
    for name in ("f1", "exact_match"):
        assert results[f"eval_{name}"] == pytest.approx(reported[f"chosen_validation_{name}"])


def test_search_of_a_saved_super_network(start, super_network, tmp_path):
    flags = ("--checkpoint_dir_model", str(super_network), *SEARCH)
    start(tmp_path, *flags, model_name_or_path=None)
    assert evaluations(tmp_path) == evaluations(super_network)
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(ValueError, match="dataset_seed 128 and is to be searched with 3"):
        start(tmp_path / "other", *flags, "--dataset_seed", "3", model_name_or_path=None)


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


def test_killed_training_continues(start, tmp_path):
    flags = ("--do_train", *SANDWICH)
    start(tmp_path / "whole", *flags)
    with pytest.raises(KeyboardInterrupt), counted_steps(SuperNetworkTrainer, killed_at=40):
        start(tmp_path / "killed", *flags)
    with counted_steps(SuperNetworkTrainer) as steps:
        start(tmp_path / "killed", *flags)
    assert steps == list(range(32, QA_TRAINING["max_steps"]))
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    # Once more, and it is done.
    with counted_steps(SuperNetworkTrainer) as steps:
        start(tmp_path / "killed", *flags)
    assert steps == []
    for name, value in (("doc_stride", 5), ("max_seq_length", 24)):
        with pytest.raises(ValueError, match=f"holds another run .{name} was"):
            start(tmp_path / "killed", *flags, **{name: value})


def test_killed_search_continues(start, super_network, tmp_path):
    flags = ("--checkpoint_dir_model", str(super_network), *SEARCH)
    with pytest.raises(KeyboardInterrupt), counted_evaluations(killed_at=2):
        start(tmp_path, *flags, model_name_or_path=None)
    counts = []
    for _ in range(2):
        with counted_evaluations() as calls:
            start(tmp_path, *flags, model_name_or_path=None)
        counts.append(len(calls))
    assert counts[0] - counts[1] == 4 - 2
    assert evaluations(tmp_path) == evaluations(super_network)
    # Other answers are another search.
    with pytest.raises(ValueError, match="journal.log"):
        start(tmp_path, *flags, "--max_answer_length", "1", model_name_or_path=None)
