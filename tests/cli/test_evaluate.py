"""The command `hf-nas evaluate`, against metrics, sizes and times worked out here by hand."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import f1_score
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from hf_nas import SubNetwork, describe, extract, save_extracted
from hf_nas.cli import evaluate, main
from tests.cli.classifiers import HIDDEN, KEPT, make_model, make_tokenizer, outputs, rows, save, write
from tests.cli.refusals import refused


DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "neutral", "contradiction")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> SimpleNamespace:
    """A dense model whose labels are in another order than the task's, a small one of it, and data of 20 texts."""
    folder = tmp_path_factory.mktemp("evaluate")
    model = make_model(("positive", "negative"))
    sub_network = SubNetwork.of(describe(model), KEPT, HIDDEN)
    small = extract(model, sub_network)
    save_extracted(small, sub_network, folder / "small", make_tokenizer())
    lines = rows(("sentence",), 20, (0, 1))
    write(folder / "data" / "validation.jsonl", lines)
    return SimpleNamespace(
        root=folder, dense=save(model, folder / "dense"), small=folder / "small", data=folder / "data",
        model=model, small_model=small, sub_network=sub_network, lines=lines,
    )  # fmt: skip


def run(*arguments: object) -> int:
    fast = ("--device", "cpu", "--batch_size", 8, "--passes", 2, "--max_length", 16)
    return main([str(each) for each in ("evaluate", *arguments[:2], *fast, *arguments[2:])])


def results(tmp_path: Path, *arguments: object) -> dict:
    assert run(*arguments, "--json", tmp_path / "found" / "results.json") == 0
    return json.loads((tmp_path / "found" / "results.json").read_text())


def count(*parts) -> int:
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def test_everything_of_an_extracted_model(folders, tmp_path, capsys) -> None:
    found = results(tmp_path, "SST-2", folders.small, "--data_dir", folders.data)
    labels = np.array([line["label"] for line in folders.lines])
    # The model's label 0 is positive, which the task calls 1.
    answers = 1 - outputs(folders.small_model, folders.lines, ("sentence",)).argmax(-1)
    assert found["metrics"] == {"validation": {"accuracy": np.mean(labels == answers)}}
    assert np.mean(labels == answers) != 0.5 and found["examples"] == {"validation": 20}

    dense, small = folders.model, folders.small_model
    layers = {"layers": count(small.bert.encoder), "all": count(small)}
    assert found["parameters"] == {
        "model": layers,
        "dense": {"layers": count(dense.bert.encoder), "all": count(dense)},
    }
    # Heads have 4 features; the skipped attention has a norm of 2 x 13, which the published code keeps.
    width = len(HIDDEN)
    weights = 2 * 4 * 4 * width + 2 * (5 + 3) * width
    full = 2 * (4 * (16 * 16 + 16) + 2 * 16 * 24 + 16 + 24)
    unused = 2 * 16
    outside = count(small.bert.pooler, small.classifier), count(dense.bert.pooler, dense.classifier)
    assert found["sparsity"] == {
        "layers": pytest.approx(1 - layers["layers"] / count(dense.bert.encoder)),
        "all": pytest.approx(1 - layers["all"] / count(dense)),
        "training": pytest.approx(1 - weights / full),
        "evaluation": pytest.approx(1 - (layers["layers"] + unused) / count(dense.bert.encoder)),
        "readme": pytest.approx(
            1 - (layers["layers"] + unused + outside[0]) / (count(dense.bert.encoder) + outside[1])
        ),
    }

    speed = found["speed"]
    assert 0 < speed["seconds_per_example"] and speed["examples"] == 20 and speed["length"] == 16
    assert speed["speed_up"] == pytest.approx(speed["dense_seconds_per_example"] / speed["seconds_per_example"])
    assert speed["machine"]["device"] == "cpu" and found["dense"] == "random weights"
    printed = capsys.readouterr().out
    for text in (
        "sst2 (20 examples of validation)", str(folders.small), f"{layers['all']:,} of {count(dense):,}",
        f"{found['sparsity']['readme']:.2%} (readme)", f"{found['metrics']['validation']['accuracy']:.4f}",
        f"{speed['seconds_per_example']:.6f}", f"{speed['speed_up']:.2f}x", "2 times in turns, float32, sdpa",
    ):  # fmt: skip
        assert text in printed


def test_a_given_dense_model_is_the_one_measured(folders, tmp_path, monkeypatch) -> None:
    measured = []
    measure = evaluate.measure_reading

    def spy(models, batches, **options):
        measured.append((list(models), len(batches), torch.get_num_threads()))
        return measure(models, batches, **options)

    monkeypatch.setattr(evaluate, "measure_reading", spy)
    threads = torch.get_num_threads()
    options = ("--data_dir", folders.data, "--dense", folders.dense, "--timed_batches", 2, "--threads", 2)
    found = results(tmp_path, "sst2", folders.small, *options)
    ((_, dense), batches, used) = measured.pop()
    assert batches == 2 and found["speed"]["examples"] == 16
    assert used == 2 and torch.get_num_threads() == threads
    weights = folders.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in dense.state_dict().items())
    rebuilt = results(tmp_path, "sst2", folders.small, "--data_dir", folders.data)
    assert found["dense"] == str(folders.dense) and found["sparsity"] == rebuilt["sparsity"]
    assert found["parameters"] == rebuilt["parameters"] and found["metrics"] == rebuilt["metrics"]


def test_a_dense_model_of_other_sizes_gives_a_speed_up_but_no_published_sparsity(folders, tmp_path, caplog) -> None:
    other = make_model(("positive", "negative"), type_vocab_size=3)
    save(other, tmp_path / "other")
    found = results(tmp_path, "sst2", folders.small, "--data_dir", folders.data, "--dense", tmp_path / "other")
    assert found["sparsity"]["training"] is None and found["speed"]["speed_up"] > 0
    assert found["sparsity"]["all"] == pytest.approx(1 - count(folders.small_model) / count(other))
    assert "was not made of" in caplog.text


def test_a_model_without_a_record_is_evaluated_alone(folders, tmp_path, capsys, caplog) -> None:
    found = results(tmp_path, "sst2", folders.dense, "--data_dir", folders.data)
    assert set(found["sparsity"].values()) == {None} and found["speed"]["speed_up"] is None
    assert found["speed"]["seconds_per_example"] > 0 and found["parameters"]["dense"] is None
    assert "no sub_network.json" in caplog.text and "Speed-up" not in capsys.readouterr().out


def test_labels_go_by_name_wherever_the_model_is(tmp_path, caplog) -> None:
    order = ("contradiction", "entailment", "neutral")
    for split, seed in (("validation_matched", 1), ("validation_mismatched", 2)):
        write(tmp_path / "data" / f"{split}.jsonl", rows(("premise", "hypothesis"), 12, (0, 1, 2), seed))
    named, unnamed = make_model(order), make_model([f"LABEL_{i}" for i in range(3)])
    unnamed.load_state_dict(named.state_dict())
    save(named, tmp_path / "named")
    save(unnamed, tmp_path / "unnamed")

    def accuracy(split: str, names: Sequence[str]) -> float:
        lines = [json.loads(line) for line in (tmp_path / "data" / f"{split}.jsonl").open()]
        answers = [names[i] for i in outputs(named, lines, ("premise", "hypothesis")).argmax(-1)]
        return np.mean([answer == ENTAILMENT[line["label"]] for answer, line in zip(answers, lines)])

    data = ("--data_dir", tmp_path / "data")
    expected = {f"validation_{name}": {"accuracy": accuracy(f"validation_{name}", order)} for name in
                ("matched", "mismatched")}  # fmt: skip
    assert results(tmp_path, "MNLI", tmp_path / "named", *data)["metrics"] == expected
    assert "does not name its labels" not in caplog.text
    wrong = results(tmp_path, "mnli", tmp_path / "unnamed", *data)["metrics"]
    assert wrong["validation_matched"] == {"accuracy": accuracy("validation_matched", ENTAILMENT)} != expected
    assert "does not name its labels, so that they are taken in the order entailment, neutral" in caplog.text
    assert wrong != expected
    given = results(tmp_path, "mnli", tmp_path / "unnamed", *data, "--labels", *order)
    assert given["metrics"] == expected
    one = results(tmp_path, "mnli", tmp_path / "named", *data, "--split", "validation_mismatched")
    assert one["metrics"] == {"validation_mismatched": expected["validation_mismatched"]}


def test_tasks_with_two_metrics(tmp_path) -> None:
    model = make_model(("not_equivalent", "equivalent"))
    lines = rows(SENTENCES, 24, (0, 1))
    path = write(tmp_path / "pairs.jsonl", lines)
    found = results(tmp_path, "mrpc", save(model, tmp_path / "mrpc"), "--data_dir", path)["metrics"]
    labels = [line["label"] for line in lines]
    answers = outputs(model, lines, SENTENCES).argmax(-1)
    assert found == {"pairs": {"accuracy": np.mean(labels == answers), "f1": pytest.approx(f1_score(labels, answers))}}

    # The same outputs under the other names: wrong answers become right ones, and F1 is still that of "equivalent".
    save(make_model(("equivalent", "not_equivalent")), tmp_path / "turned")
    found = results(tmp_path, "mrpc", tmp_path / "turned", "--data_dir", path)["metrics"]["pairs"]
    assert found["accuracy"] == pytest.approx(np.mean(labels != answers))
    assert found["f1"] == pytest.approx(f1_score(labels, 1 - answers))

    model = make_model(("LABEL_0",))
    lines = rows(SENTENCES, 24, (0.5, 1.25, 4.0))
    path = write(tmp_path / "values.jsonl", lines)
    found = results(tmp_path, "sts-b", save(model, tmp_path / "stsb"), "--data", path)["metrics"]["values"]
    values = outputs(model, lines, SENTENCES)[:, 0]
    assert list(found) == ["pearson", "spearmanr"]
    assert found["pearson"] == pytest.approx(pearsonr(values, [line["label"] for line in lines]).statistic, abs=1e-5)
    # What is constant correlates with nothing, and NaN is no JSON.
    path = write(tmp_path / "constant.jsonl", [{**line, "label": 1.0} for line in lines])
    found = results(tmp_path, "stsb", tmp_path / "stsb", "--data", path)["metrics"]["constant"]
    assert found == {"pearson": None, "spearmanr": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("squad", "small"), "The task 'squad' is answered in windows of texts"),
        (("translation", "small"), "There is no task 'translation'; choose from cola, imdb, mnli"),
        (("mnli", "small"), "has 2 labels and the task 'mnli' has 3 (entailment, neutral, contradiction)"),
        (("stsb", "small"), "has 2 labels and the task 'stsb' has 1 (values without names)"),
        (("rte", "small"), "has the labels positive, negative and the task 'rte' has entailment, not_entailment"),
        (
            ("rte", "small", "--labels", "entailment", "not_entailment"),
            "The split 'validation' has no column 'sentence1' but sentence, label; give data of the task 'rte'",
        ),
        (("cola", "nowhere"), "cannot be read; give a folder with a config.json"),
        (("sst2", "small", "--passes", "0"), "--passes is 0; give 1 or more"),
        (("sst2", "small", "--timed_batches", "-1"), "--timed_batches is -1; give 1 or more"),
        (("sst2", "small", "--device", "warp"), "--device 'warp' cannot be used here"),
        (("sst2", "small", "--split", "train"), "--split 'train' is not in"),
        (("sst2", "small", "--labels", "bad", "good"), "--labels is bad good; give each label of 'sst2' once"),
        (("sst2", "small", "--labels", "positive", "positive"), "give each label of 'sst2' once: negative, positive"),
        (("sst2", "small", "--dense", "data"), "cannot be read; give a folder with a config.json"),
        (("sst2", "small", "--dense", "short"), "reads at most 8 tokens"),
        (("sst2", "small", "--dense", "few"), "makes the token"),
        (("sst2", "small", "--json", "data"), "is a folder; give the path of a file"),
    ],
)
def test_bad_arguments(folders, tmp_path, capsys, monkeypatch, arguments, message) -> None:
    shutil.copytree(folders.root, tmp_path, dirs_exist_ok=True)
    save(make_model(("negative", "positive")), tmp_path / "few")
    few = BertForSequenceClassification(BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2,
                                                   intermediate_size=8, num_hidden_layers=1))  # fmt: skip
    few.save_pretrained(tmp_path / "few")
    short = BertConfig(vocab_size=45, hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1,
                       max_position_embeddings=8)  # fmt: skip
    BertForSequenceClassification(short).save_pretrained(tmp_path / "short")
    monkeypatch.chdir(tmp_path)
    refused(capsys, message, run(*arguments, "--data_dir", "data"))


def test_bad_data_and_records(folders, tmp_path, capsys, monkeypatch) -> None:
    refused(capsys, "'sst2' cannot be read from the Hub", run("sst2", folders.small))
    refused(capsys, "--split 'validation' is of no folder", run("sst2", folders.small, "--split", "validation"))
    refused(capsys, "does not exist", run("sst2", folders.small, "--data_dir", tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    refused(capsys, "holds no .csv", run("sst2", folders.small, "--data_dir", tmp_path / "empty"))
    write(tmp_path / "other" / "train.jsonl", folders.lines)
    refused(capsys, "'validation' is not in", run("sst2", folders.small, "--data_dir", tmp_path / "other"))

    shutil.copytree(folders.small, tmp_path / "small")
    record = json.loads((tmp_path / "small" / "sub_network.json").read_text())
    for content in ("{", "[]", json.dumps({**record, "units": {}}), json.dumps({**record, "kept": 3})):
        (tmp_path / "small" / "sub_network.json").write_text(content)
        status = run("sst2", tmp_path / "small", "--data_dir", folders.data)
        refused(capsys, "The sub_network.json of", status)
    units = {name: 7 if "attention" in name else count for name, count in record["units"].items()}
    changed = {**record, "units": units}
    (tmp_path / "small" / "sub_network.json").write_text(json.dumps(changed))
    status = run("sst2", tmp_path / "small", "--data_dir", folders.data)
    refused(capsys, "cannot be built from its sub_network.json", status)

    (tmp_path / "answers").mkdir()
    BertForQuestionAnswering(folders.model.config).save_pretrained(tmp_path / "answers")
    status = run("sst2", tmp_path / "answers", "--data_dir", folders.data)
    refused(capsys, "is a BertForQuestionAnswering, and this command takes models ForSequenceClassification", status)

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 TiB")

    monkeypatch.setattr(BertForSequenceClassification, "forward", out_of_memory)
    status = run("sst2", folders.dense, "--data_dir", folders.data)
    refused(capsys, "cannot compute a batch of 8 x 16 tokens (out of memory", status)


@pytest.mark.skipif(not (DATA / "mrpc").is_dir(), reason="the shared task data are not there")
def test_the_files_of_mrpc(tmp_path) -> None:
    model = make_model(("equivalent", "not_equivalent"))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    options = ("--data_dir", DATA / "mrpc", "--timed_batches", 1)
    found = results(tmp_path, "mrpc", save(model, tmp_path / "mrpc"), *options)
    # Everything is called equivalent, which 279 of the 408 pairs are.
    assert found["metrics"]["validation"] == {"accuracy": 279 / 408, "f1": pytest.approx(2 * 279 / (279 + 408))}
