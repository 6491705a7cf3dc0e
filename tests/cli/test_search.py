"""The command `hf-nas search`, on a tiny model that is right by definition: its own answers are the labels."""

import csv
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
)

from hf_nas import SizeTable, SubNetwork, describe, extract
from hf_nas.cli import main
from hf_nas.profiling import LatencyTable, Parts
from hf_nas.search import SearchResult, SuperNetworkEvaluator
from tests import zoo
from tests.cli.refusals import refused


DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
WORDS = [f"word{i}" for i in range(40)]
LABELS = ("bad", "good")


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(count)]


def answers(model, tokenizer, lines: list[str]) -> torch.Tensor:
    with torch.inference_mode():
        return model(**tokenizer(lines, padding=True, truncation=True, max_length=32, return_tensors="pt")).logits


def write(path: Path, rows: list[dict]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_folder(folder: Path, num_labels: int) -> Path:
    """A model, its tokenizer, and files with 48 and 24 texts labelled by the model."""
    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = BertTokenizerFast(vocab=vocabulary, model_max_length=32)
    names = dict(enumerate(LABELS)) if num_labels > 1 else {0: "LABEL_0"}
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=32, id2label=names, initializer_range=0.5,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.bias -= answers(model, tokenizer, texts(48, seed=1)).mean(0)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, count, seed in (("held_out", 48, 1), ("validation", 24, 2)):
        lines = texts(count, seed)
        logits = answers(model, tokenizer, lines)
        labels = [LABELS[i] for i in logits.argmax(-1)] if num_labels > 1 else logits[:, 0].tolist()
        write(folder / f"{name}.csv", [{"text": text, "label": label} for text, label in zip(lines, labels)])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("classification"), num_labels=2)


def run(folder: Path, output: Path, *arguments: object, data: str = "held_out.csv", samples: int = 8) -> int:
    common = ["--data", folder / data, "--output_dir", output, "--device", "cpu", "--num_samples", samples]
    return main([str(each) for each in ("search", folder / "model", *common, *arguments)])


@pytest.fixture(scope="module")
def output(folder, tmp_path_factory) -> Path:
    """A finished search of 10 sub-networks."""
    output = tmp_path_factory.mktemp("output")
    report = ("--report_data", folder / "validation.csv", "--published_json")
    assert run(folder, output, "--search_strategy", "random_search", *report, samples=10) == 0
    return output


def test_metrics_are_those_of_the_extracted_models(folder, output) -> None:
    model = BertForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    table, structure = SizeTable(model), describe(model)
    encoder, full = Parts.encoder(), SubNetwork.full(describe(model))
    result = SearchResult.load(output / "search" / "result.json", structure)
    assert len(result.trials) == 10 and result.objectives == ("error", "parameters")
    assert result.trials[0].sub_network == full and result.trials[0].metrics["accuracy"] == 1.0
    assert len({trial.metrics["accuracy"] for trial in result.trials}) > 3

    def accuracy(small, name: str) -> float:
        rows = list(csv.DictReader((folder / name).open()))
        found = answers(small, tokenizer, [row["text"] for row in rows]).argmax(-1)
        return float(np.mean([LABELS[i] == row["label"] for i, row in zip(found, rows)]))

    rows = {row["index"]: row for row in json.loads((output / "search" / "front.json").read_text())["rows"]}
    for index, trial in enumerate(result.trials):
        small = extract(model, trial.sub_network)
        assert trial.metrics["accuracy"] == accuracy(small, "held_out.csv")
        assert trial.costs[1] == table.parameters(trial.sub_network, encoder) / table.parameters(full, encoder)
        if index in result.pareto:
            assert rows[index]["reported"] == accuracy(small, "validation.csv")
    (chosen,) = (row for row in rows.values() if row["chosen"])
    small = AutoModelForSequenceClassification.from_pretrained(output / "extracted").eval()
    assert sum(p.numel() for p in small.parameters()) == chosen["parameters"]
    assert accuracy(small, "validation.csv") == chosen["reported"]
    assert AutoTokenizer.from_pretrained(output / "extracted").vocab_size == tokenizer.vocab_size


def test_files_of_a_search(output) -> None:
    search = output / "search"
    for name in ("journal.log", "evaluations.csv", "front.csv", "front.png", "summary.json", "progress.png"):
        assert (search / name).stat().st_size > 0
    result = SearchResult.load(search / "result.json")
    steps = list(csv.DictReader((search / "progress.csv").open()))
    assert len(steps) == 10 and float(steps[-1]["hypervolume"]) == pytest.approx(result.hypervolume)
    published = json.loads((search / "results_held_out.json").read_text())
    assert published["error"] == [trial.costs[0] for trial in result.trials]
    assert published["params"] == pytest.approx([trial.costs[1] for trial in result.trials])
    assert [i for i, on_front in enumerate(published["indices"]) if on_front] == list(result.pareto)
    assert published["dataset"] == "held_out" and set(published["config"][0]) == {
        "num_layers", "num_heads", "num_units"
    }  # fmt: skip
    assert None not in published["test_pareto"] and published["model_loading_time"] > 0


def test_the_same_command_continues_and_other_data_are_refused(folder, output, capsys) -> None:
    path = output / "search" / "result.json"
    before = SearchResult.load(path)
    report = ("--report_data", folder / "validation.csv")
    assert run(folder, output, "--search_strategy", "random_search", *report, samples=10) == 0
    # Down to the seconds that the evaluations took: none is done again.
    assert SearchResult.load(path).to_dict() == before.to_dict()
    printed = capsys.readouterr().out
    assert "accuracy (validation)" in printed and f"The chosen model is in {output / 'extracted'}" in printed
    assert run(folder, output, "--search_strategy", "random_search", *report, samples=12) == 0
    assert SearchResult.load(path).trials[:10] == before.trials and len(SearchResult.load(path).trials) == 12
    capsys.readouterr()
    refused(capsys, "holds another search (model_and_data", run(folder, output, data="validation.csv"))


def test_extract_takes_what_a_search_wrote(folder, output, tmp_path, capsys) -> None:
    path = min((output / "search" / "sub_networks").glob("*.json"))
    small = tmp_path / "small"
    arguments = ["extract", folder / "model", "--sub_network", path, "--output_dir", small]
    assert main([str(argument) for argument in arguments]) == 0
    rows = {row["index"]: row for row in json.loads((output / "search" / "front.json").read_text())["rows"]}
    loaded = AutoModelForSequenceClassification.from_pretrained(small)
    assert sum(p.numel() for p in loaded.parameters()) == rows[int(path.stem)]["parameters"]


@pytest.mark.parametrize("strategy", ["model_based", "additive", "local_search"])
def test_limits_hold_for_the_whole_search(folder, tmp_path, strategy, capsys) -> None:
    objectives = ("--search_objectives", "error", "macs", "--max_params_ratio", 0.6, "--max_samples", 20)
    report = ("--report_data", folder / "validation.csv", "--published_json")
    assert run(folder, tmp_path, "--search_strategy", strategy, *objectives, *report, samples=21) == 0
    result = SearchResult.load(tmp_path / "search" / "result.json")
    rows = json.loads((tmp_path / "search" / "front.json").read_text())["rows"]
    assert len(result.trials) == 21 and result.objectives == ("error", "macs")
    shares = {row["index"]: row["parameters_share"] for row in rows}
    assert max(shares[index] for index in range(21)) <= 0.6
    # The largest one is there to compare with, beside the search.
    assert shares[21] == 1.0 and next(row for row in rows if row["index"] == 21)["metric"] == 1.0
    assert "largest" in capsys.readouterr().out
    published = json.loads((tmp_path / "search" / "results_held_out.json").read_text())
    assert len(published["error"]) == 21 and max(published["params"]) <= 0.6
    best = min(range(21), key=lambda index: result.trials[index].costs[0])
    (chosen,) = (row for row in rows if row["chosen"])
    assert result.trials[chosen["index"]].costs[0] == result.trials[best].costs[0]


def test_racing(folder, tmp_path) -> None:
    assert run(folder, tmp_path, "--race", "--search_strategy", "random_search", samples=40) == 0
    result = SearchResult.load(tmp_path / "search" / "result.json")
    rejected = [index for index, trial in enumerate(result.trials) if trial.rejected]
    rows = json.loads((tmp_path / "search" / "front.json").read_text())["rows"]
    assert rejected and not {row["index"] for row in rows} & set(rejected)


def test_latency_is_measured_once(folder, tmp_path, monkeypatch, capsys) -> None:
    measure, asked = LatencyTable.measure, []

    def quick(model, batch_size, sequence_length):
        asked.append((batch_size, sequence_length))
        return measure(model, batch_size, sequence_length, widths=2, num_networks=3, repeats=1, progress=False)

    monkeypatch.setattr(LatencyTable, "measure", quick)
    options = ("--search_objectives", "error", "latency", "memory", "--latency_batch_size", 2)
    for _ in range(2):
        assert run(folder, tmp_path, "--search_strategy", "random_search", *options, samples=4) == 0
    assert len(asked) == 1 and asked[0][0] == 2
    assert SearchResult.load(tmp_path / "search" / "result.json").objectives == ("error", "latency", "memory")
    capsys.readouterr()
    refused(capsys, "was measured with", run(folder, tmp_path, *options[:-1], 3))


def test_a_regression_by_its_correlation(tmp_path, capsys) -> None:
    folder = make_folder(tmp_path, num_labels=1)
    assert run(folder, tmp_path / "out", "--search_strategy", "random_search", samples=3) == 0
    result = SearchResult.load(tmp_path / "out" / "search" / "result.json")
    assert result.trials[0].metrics == {"spearmanr": pytest.approx(1.0)}
    capsys.readouterr()
    refused(capsys, "'accuracy' does not fit a model that is a regression", run(
        folder, tmp_path / "other", "--metric", "accuracy"))  # fmt: skip


def test_a_search_whose_evaluations_fail_ends_with_status_1(folder, tmp_path, monkeypatch, capsys) -> None:
    def fail(self, sub_network):
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr(SuperNetworkEvaluator, "__call__", fail)
    refused(capsys, "the device is on fire", run(folder, tmp_path), expected=1)


def test_an_interrupted_search_says_how_to_continue(folder, tmp_path, monkeypatch, capsys) -> None:
    def interrupt(self, sub_network):
        raise KeyboardInterrupt

    monkeypatch.setattr(SuperNetworkEvaluator, "__call__", interrupt)
    refused(capsys, "continues with the same command", run(folder, tmp_path), expected=130)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num_samples", 0), "--num_samples is 0; give 1 or more"),
        (("--max_seconds", "nan"), "--max_seconds is nan; give a number above 0"),
        (("--max_params_ratio", -1), "--max_params_ratio is -1.0"),
        (("--max_params_ratio", 0.001), "The limit of parameters is 0.001, but the smallest"),
        (("--seed", -1), "--seed is -1"),
        (("--search_strategy", "best"), "Unknown search method 'best'"),
        (("--search_strategy", "moasha"), "--nas_type standard"),
        (("--search_objectives", "error"), "The objectives are ['error']"),
        (("--search_objectives", "error", "joules"), "There is no objective 'joules'"),
        (("--search_space", "huge"), "There is no search space 'huge'"),
        (("--device", "warp"), "--device 'warp' cannot be used here"),
        (("--metric", "pearson"), "'pearson' does not fit a model that tells 2 labels apart"),
        (("--metric", "f1", "--race"), "'f1' is not known to be one"),
        (("--text_columns", "sentence"), "has no column 'sentence'; it has text, label"),
        (("--text_columns", "a", "b", "c"), "--text_columns are a, b, c"),
        (("--label_column", "answer"), "has no column 'answer'"),
        (("--label_column", "text"), "the model knows 0 to 1 and the names bad, good"),
        (("--split", "selection"), "has no record (run.json)"),
        (("--split", "test"), "--split 'test' is not in"),
        (("--report_data", "nowhere.csv"), "'nowhere.csv' does not exist"),
        (("--data", "nowhere"), "--data 'nowhere' does not exist"),
        (("--task_name", "mrpc"), "has no column 'sentence1'"),
        (("--search_storage", "nonsense://"), "The database nonsense:// cannot be used"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(folder, tmp_path, arguments, message, capsys) -> None:
    refused(capsys, message, run(folder, tmp_path / "out", *arguments))


def test_models_and_files_that_do_not_fit_are_refused(folder, tmp_path, capsys) -> None:
    common = ["--data", str(folder / "held_out.csv"), "--device", "cpu"]
    zoo.build("bert").save_pretrained(tmp_path / "untokenised")
    refused(capsys, "is without a tokenizer", main(["search", str(tmp_path / "untokenised"), *common]))
    zoo.build("gpt2").save_pretrained(tmp_path / "language_model")
    refused(capsys, "is a GPT2LMHeadModel", main(["search", str(tmp_path / "language_model"), *common]))
    refused(capsys, "--output_dir is missing", main(["search", "nobody/nothing", *common]))
    for name, content, message in (
        ("empty.csv", "text,label\n", "has no rows"),
        ("broken.json", '{"text": [', "is no readable json file"),
        ("broken.parquet", "PAR1", "is no readable parquet file"),
        ("texts.txt", "word1", "is none of .csv"),
        ("missing.jsonl", '{"text": "a", "label": "bad"}\n{"text": null, "label": "good"}\n', "'text' of the data"),
        ("lists.jsonl", '{"text": "word1", "label": [1]}\n', "Row 0 of the data to compare on has the label"),
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
        status = main(["search", str(folder / "model"), "--data", str(tmp_path / name), "--device", "cpu"])
        refused(capsys, message, status)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path, capsys) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    more = [f"more{i}" for i in range(60)]
    BertTokenizerFast(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *more, *WORDS])}
    ).save_pretrained(tmp_path / "model")
    shutil.copy(folder / "held_out.csv", tmp_path)
    refused(capsys, "makes the token 104, and the model has 45", run(tmp_path, tmp_path / "out"))


def test_the_space_of_the_training_is_searched(folder, tmp_path, capsys) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    record = {"sampling_strategy": "sandwich", "search_space": "medium", "task_name": None, "nncf_config": None}
    (tmp_path / "model" / "run.json").write_text(json.dumps({"arguments": record}))
    shutil.copy(folder / "held_out.csv", tmp_path)
    assert run(tmp_path, tmp_path / "out", samples=2) == 0
    assert SearchResult.load(tmp_path / "out" / "search" / "result.json").space == "medium"
    record["search_space"] = "generated"
    (tmp_path / "model" / "run.json").write_text(json.dumps({"arguments": record}))
    capsys.readouterr()
    refused(capsys, "search_space.json' does not exist; give the file", run(tmp_path, tmp_path / "other"))
    space = {"name": "generated", "sub_layers": {"encoder.0.attention": [1, 2], "encoder.1.feed_forward": [0, 4]}}
    (tmp_path / "model" / "search_space.json").write_text(json.dumps(space))
    assert run(tmp_path, tmp_path / "other", samples=2) == 0
    assert SearchResult.load(tmp_path / "other" / "search" / "result.json").space == "generated"
