"""What `hf-nas search` compares on: which texts, their labels, their tokens, and the metrics of them."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from transformers import BertTokenizerFast, EvalPrediction

from hf_nas.cli.text_data import TASKS, load_splits, read_record
from hf_nas.cli.text_metrics import get_metric
from hf_nas.cli.text_rows import TextColumns, token_limit, tokenize
from tests import zoo
from tests.examples.conftest import example_modules


DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
WORDS = [f"word{i}" for i in range(40)]


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(count)]


@pytest.fixture
def tokenizer() -> BertTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    return BertTokenizerFast(vocab=vocabulary, model_max_length=32)


def make_trained(tmp_path, **arguments) -> tuple[Path, Path]:
    """The folder of a training that held 30 % of its examples out, and its data."""
    model, data = tmp_path / "run", tmp_path / "data"
    model.mkdir()
    data.mkdir()
    record = {"selection_split": 0.3, "dataset_seed": 7, "task_name": None, "max_train_samples": None}
    (model / "run.json").write_text(json.dumps({"arguments": {**record, **arguments}, "finished": True}))
    for name, count in (("train", 50), ("validation", 10)):
        Dataset.from_dict({"text": texts(count, seed=len(name)), "label": [i % 2 for i in range(count)]}).to_parquet(
            data / f"{name}.parquet"
        )
    return model, data


def test_the_selection_set_is_that_of_the_training(tmp_path) -> None:
    model, data = make_trained(tmp_path)
    with example_modules("text-classification", "run_glue") as modules:
        train = Dataset.from_parquet(str(data / "train.parquet"))
        trained, wanted = modules["data"].split_selection(train, 0.3, 7)
    for path in (model, model / "checkpoint-10"):
        path.mkdir(exist_ok=True)
        splits = load_splits(data, record=read_record(path))
        assert splits.selection["text"][:] == wanted["text"][:] and len(wanted) == 15
        assert not set(splits.selection["text"][:]) & set(trained["text"][:])
        assert list(splits.reports) == ["validation"] and len(splits.reports["validation"]) == 10
    assert load_splits(data, record=read_record(model), max_samples=4).selection["text"][:] == wanted["text"][:4]
    other = load_splits(data, "validation", record=read_record(model))
    assert len(other.selection) == 10 and other.reports == {}
    # A training file that is given as such is split as well.
    recorded = {**read_record(model), "train_file": str(data / "train.parquet")}
    assert load_splits(data / "train.parquet", record=recorded).selection["text"][:] == wanted["text"][:]
    assert len(load_splits(data / "validation.parquet", record=recorded).selection) == 10


def test_examples_of_the_training_are_refused(tmp_path) -> None:
    model, data = make_trained(tmp_path)
    record = read_record(model)
    with pytest.raises(ValueError, match="where its sub-networks cannot be compared"):
        load_splits(data, "train", record=record)
    with pytest.raises(ValueError, match="trained on the task None and the data are of 'sst2'"):
        load_splits(data, record=record, task_name="sst2")
    with pytest.raises(ValueError, match="trained on the data of --demo"):
        load_splits(data, record={**record, "demo": True})
    with pytest.raises(ValueError, match="trained on 40 examples, but of .* it would have been 35"):
        load_splits(data, record={**record, "train_samples": 40})
    load_splits(data, record={**record, "train_samples": 35})
    load_splits(data, record={**record, "train_samples": 20, "max_train_samples": 20})
    with pytest.raises(ValueError, match="Nothing says which examples of the splits train, validation"):
        load_splits(data)
    without = {key: value for key, value in record.items() if key != "selection_split"}
    with pytest.raises(ValueError, match=r"no record \(run.json\) of a selection set"):
        load_splits(data, "selection", record=without)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no .csv"):
        load_splits(tmp_path / "empty")
    (model / "run.json").write_text("[")
    with pytest.raises(ValueError, match="record .* is damaged"):
        read_record(model)
    assert read_record(tmp_path / "data") is None and read_record("some/model") is None


@pytest.mark.parametrize(
    ("values", "feature", "names", "expected"),
    [
        (["good", "BAD"], None, (), [1, 0]),
        ([0, 1], None, (), [0, 1]),
        ([0, 1], ClassLabel(names=["good", "bad"]), (), [1, 0]),
        ([0, 1], ClassLabel(names=["no", "yes"]), (), [0, 1]),
        ([0, 1], None, ("good", "bad"), [1, 0]),
        (["0", "1"], None, (), None),
        ([0, 2], None, (), None),
        ([0, -1], None, (), None),
        (["good", "ugly"], None, (), None),
        (["good", None], None, (), None),
    ],
)  # fmt: skip
def test_labels_become_the_numbers_of_the_model(tokenizer, values, feature, names, expected) -> None:
    dataset = Dataset.from_dict({"text": ["word1 word2", "word3"], "label": values})
    if feature is not None:
        dataset = dataset.cast_column("label", feature)
    config = SimpleNamespace(num_labels=2, id2label={0: "bad", 1: "good"})
    columns = TextColumns(names=names)
    if expected is None:
        with pytest.raises(ValueError, match="Row [01] of x has the label .*; the model knows"):
            tokenize(dataset, columns, config, tokenizer, 32, "x")
        return
    rows = tokenize(dataset, columns, config, tokenizer, 3, "x")
    assert [row["label"] for row in rows] == expected
    assert [row["input_ids"] for row in rows] == [[2, 6, 3], [2, 8, 3]]


def test_pairs_of_texts_and_the_limit_of_tokens(tokenizer) -> None:
    dataset = Dataset.from_dict({"id": ["a"], "sentence2": ["word2"], "sentence1": ["word1"], "label": [1]})
    config = SimpleNamespace(num_labels=2, id2label={0: "bad", 1: "good"})
    for columns, expected in ((TextColumns(), [2, 6, 3, 7, 3]), (TextColumns(("sentence2",)), [2, 7, 3])):
        (row,) = tokenize(dataset, columns, config, tokenizer, 32, "x")
        assert row["input_ids"] == expected
    tokenizer.model_max_length = 1000
    assert token_limit(128, zoo.build("bert"), tokenizer) == 40
    # The first position that is not padding's comes after it.
    roberta = zoo.build("roberta")
    limit = token_limit(128, roberta, tokenizer)
    roberta(input_ids=torch.full((1, limit), 7))
    with pytest.raises((IndexError, RuntimeError)):
        roberta(input_ids=torch.full((1, limit + 1), 7))


def test_metrics_against_their_definitions() -> None:
    # True positives 2, false positives 1, false negatives 1, true negatives 2.
    logits = np.array([[0, 1], [0, 1], [1, 0], [0, 1], [1, 0], [1, 0]], dtype=float)
    prediction = EvalPrediction(logits, np.array([1, 1, 1, 0, 0, 0]))
    expected = {"accuracy": 4 / 6, "f1": 2 / 3, "f1_macro": 2 / 3, "matthews_correlation": (2 * 2 - 1) / 9}
    for name, value in expected.items():
        assert get_metric(name, 2)(prediction) == {name: pytest.approx(value)}
    # F1 of the label 0, of two texts that are all called 0.
    same = EvalPrediction(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert get_metric("f1", 2)(same) == {"f1": 0.0}
    assert get_metric("f1", 2, positive=0)(same) == {"f1": pytest.approx(2 / 3)}
    values = EvalPrediction(np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 2.0]))
    centred = np.array([-4, -1, 5]) / 3, np.array([-1, 1, 0])
    pearson = (centred[0] @ centred[1]) / np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1]))
    for name, value in {"pearson": pearson, "spearmanr": 0.5, "mse": 5 / 3}.items():
        assert get_metric(name, 1)(values)[name] == pytest.approx(value)
    constant = EvalPrediction(np.ones((3, 1)), np.array([1.0, 3.0, 2.0]))
    assert np.isnan(get_metric("spearmanr", 1)(constant)["spearmanr"])
    with pytest.raises(ValueError, match="'f1' does not fit a model that tells 3 labels apart; choose from accuracy"):
        get_metric("f1", 3)
    with pytest.raises(ValueError, match="no metric 'bleu'; choose from accuracy"):
        get_metric("bleu", 2)


@pytest.mark.skipif(not (DATA / "mrpc").is_dir(), reason="the shared task data are not there")
def test_the_published_split_of_mrpc(tokenizer) -> None:
    record = {"task_name": "mrpc", "selection_split": 0.3, "dataset_seed": 128, "train_samples": 2567}
    splits = load_splits(DATA / "mrpc", record=record, task_name="mrpc")
    assert len(splits.selection) == 1101 and {name: len(rows) for name, rows in splits.reports.items()} == {
        "validation": 408
    }
    task = TASKS["mrpc"]
    config = SimpleNamespace(num_labels=2, id2label={0: "equivalent", 1: "not_equivalent"})
    columns = TextColumns(task.columns, names=task.labels)
    rows = tokenize(splits.reports["validation"], columns, config, tokenizer, 8, "x")
    assert [row["label"] for row in rows].count(0) == 279
