"""The command `hf-nas evaluate`, against metrics, sizes and times worked out here by hand."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import f1_score
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification, BertTokenizerFast

from hf_nas import SubNetwork, describe, extract, save_extracted
from hf_nas.cli import evaluate, main
from hf_nas.cli.dense import build_dense, read_sub_network
from hf_nas.cli.models import get_device
from hf_nas.cli.speed import ReadingTime, measure_reading
from tests import zoo


DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
WORDS = [f"word{i}" for i in range(40)]
KEPT = {
    "encoder.0.attention": [1, 3],
    "encoder.0.feed_forward": 5,
    "encoder.1.attention": None,
    "encoder.1.feed_forward": [0, 7, 9],
}
HIDDEN = (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15)
SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "neutral", "contradiction")


def make_tokenizer() -> BertTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    return BertTokenizerFast(vocab=vocabulary, model_max_length=32)


def make_model(labels: Sequence[str], **changes) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=45, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=32, id2label=dict(enumerate(labels)), initializer_range=0.5, **changes,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def rows(columns: Sequence[str], count: int, labels: Sequence, seed: int = 0) -> list[dict]:
    """Texts with the numbers that labels have in the task's own order, or with values."""
    rng = random.Random(seed)
    texts = [{name: " ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for name in columns} for _ in range(count)]
    return [{**text, "label": rng.choice(labels)} for text in texts]


def write(path: Path, lines: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def outputs(model, lines: list[dict], columns: Sequence[str]) -> np.ndarray:
    """Logits text by text, without padding."""
    tokenizer, cut = make_tokenizer(), {"truncation": True, "max_length": 16, "return_tensors": "pt"}
    with torch.no_grad():
        each = [model(**tokenizer(*(line[name] for name in columns), **cut)).logits for line in lines]
    return torch.cat(each).numpy()


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


def refused(capsys, message: str, status: int) -> None:
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("hf-nas: ")]
    assert status == 2 and len(lines) == 1 and message in lines[0], captured.err
    assert "Traceback" not in captured.err and captured.out == ""


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


class Timed(nn.Module):
    """A model whose passes take as long as it is told, by a clock of its own."""

    device = torch.device("cpu")

    def __init__(self, name: str, seconds: float, clock: list, log: list):
        super().__init__()
        self.name, self.seconds, self.clock, self.log = name, seconds, clock, log

    def forward(self, input_ids: torch.Tensor) -> None:
        assert not self.training and torch.is_inference_mode_enabled()
        self.log.append((self.name, len(input_ids)))
        # One pass in seven is disturbed.
        disturbed = 10 if len(self.log) % 7 == 0 else 1
        self.clock[0] += self.seconds * len(input_ids) * disturbed


def test_models_take_turns_and_medians_count() -> None:
    clock, log = [0.0], []
    models = [Timed("small", 1.0, clock, log), Timed("dense", 3.0, clock, log)]
    batches = [{"input_ids": torch.zeros(rows, 4), "token_type_ids": torch.zeros(rows, 4)} for rows in (8, 8, 2)]
    small, dense = measure_reading(models, batches, passes=9, clock=lambda: clock[0])
    assert small.seconds_per_example == 1.0 and dense.seconds_per_example == 3.0 and small.examples == 18
    assert small.speed_up_over(dense) == 3.0 and len(small.seconds) == 3
    assert small.speed_up_quartiles(dense) == (3.0, 3.0)
    one, other = ReadingTime(((1.0, 2.0, 1.0, 1.0, 1.0),), 8), ReadingTime(((4.0, 4.0, 5.0, 6.0, 7.0),), 8)
    assert one.speed_up_over(other) == 5.0 and one.speed_up_quartiles(other) == (4.0, 6.0)
    assert models[0].training
    turns = [name for name, rows in log if rows == 2]
    assert turns == ["small", "dense"] + 9 * ["small", "small", "dense", "dense"]
    with pytest.raises(ValueError, match="no batch to measure on"):
        measure_reading(models, [])


CASES = ("uniform half", "first layer gone", "nothing but norms", "all layers gone", "everything at once")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", list(zoo.MODELS))
def test_the_dense_model_comes_back_from_the_record(name, case) -> None:
    model = zoo.build(name)
    sub_network = zoo.corner_cases(model)[case]
    small = extract(model, sub_network)
    if name.startswith("gemma") and case == "first layer gone":
        with pytest.raises(ValueError, match="does not tell which types the removed layers had.*give it by --dense"):
            build_dense(small, sub_network, "small")
        return
    state = torch.random.get_rng_state()
    dense = build_dense(small, sub_network, "small")
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in dense.state_dict().items()} == shapes
    assert type(dense) is type(model) and not dense.training
    assert dense.config._attn_implementation == model.config._attn_implementation
    assert torch.equal(torch.random.get_rng_state(), state)
    assert zoo.logits(dense, zoo.inputs_for(dense)).isfinite().all()


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_pruned_hidden_dimensions_come_back_too(name, tmp_path) -> None:
    model = zoo.build(name)
    kept = dict(zoo.corner_cases(model)["everything at once"].items())
    sub_network = SubNetwork.of(describe(model), kept, tuple(range(3, 29)))
    small = extract(model, sub_network).to(torch.bfloat16)
    save_extracted(small, sub_network, tmp_path)
    assert read_sub_network(str(tmp_path)) == sub_network
    dense = build_dense(small, sub_network, "small")
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in dense.state_dict().items()} == shapes
    assert dense.dtype == torch.bfloat16


def test_a_record_that_does_not_tell_the_dense_model_is_refused() -> None:
    model = zoo.build("bert")
    structure = describe(model)
    half = SubNetwork.of(structure, {"encoder.0.attention": 2})
    small = extract(model, half)
    again = SubNetwork.of(describe(small), {"encoder.1.attention": 1})
    with pytest.raises(ValueError, match="of 'x' cannot be built .*uneven layers itself.*give it by --dense"):
        build_dense(extract(small, again), again, "x")
    with pytest.raises(ValueError, match="it belongs to another model"):
        build_dense(small, SubNetwork.of(structure, {"encoder.0.attention": 3}), "x")
    with pytest.raises(ValueError, match=r"\(.*; give it by --dense"):
        build_dense(small, SubNetwork.full(describe(zoo.build("gpt2"))), "x")
    # Of 16 and 12 hidden dimensions with heads of 4 both are stock models, and the record has only ids.
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8)
    answering = BertForQuestionAnswering(config)
    narrow = SubNetwork.of(describe(answering), {"encoder.0.attention": 3}, 12)
    with pytest.raises(ValueError, match="does not tell how many hidden dimensions"):
        build_dense(extract(answering, narrow), narrow, "x")


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


def test_the_device_by_default_and_by_name() -> None:
    assert get_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert get_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device 'meta' cannot be used here"):
        get_device("meta")


def test_the_command_convert_cofi_is_there(tmp_path, capsys) -> None:
    status = main(["convert-cofi", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    refused(capsys, "give that of a downloaded CoFi checkpoint", status)


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
