"""Cached logits against those that the teacher gives at once."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from hf_nas.distillation import TeacherLogits, cache_teacher_logits, logits_of
from hf_nas.distillation import teacher_cache as module
from hf_nas.distillation.fingerprints import fingerprint_of_model, fingerprint_of_rows
from tests import zoo


CONFIG = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "intermediate_size": 8, "max_position_embeddings": 40}  # fmt: skip


def rows(count: int = 11) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        length = 3 + number * 5 % 7
        ids = torch.randint(3, 50, (length,), generator=generator).tolist()
        found.append({"input_ids": ids, "attention_mask": [1] * length, "labels": number % 3, "text": "a"})
    return found


def collate(examples: list[dict], left: bool = False, extra: int = 0) -> dict[str, torch.Tensor]:
    longest = max(len(example["input_ids"]) for example in examples) + extra
    batch = {}
    for name in ("input_ids", "attention_mask"):
        padded = []
        for example in examples:
            padding = [0] * (longest - len(example[name]))
            padded.append(padding + example[name] if left else example[name] + padding)
        batch[name] = torch.tensor(padded)
    return batch


def answers(teacher, examples: list[dict]) -> list[tuple[torch.Tensor, ...]]:
    """Of each row alone, without any padding."""
    with torch.no_grad():
        return [tuple(each[0] for each in logits_of(teacher(**collate([example])))) for example in examples]


def of_questions() -> BertForQuestionAnswering:
    torch.manual_seed(1)
    return BertForQuestionAnswering(BertConfig(**CONFIG)).eval()


def of_tokens() -> BertForTokenClassification:
    torch.manual_seed(1)
    return BertForTokenClassification(BertConfig(**CONFIG, num_labels=4)).eval()


@pytest.mark.parametrize("kind", ["list", "datasets"])
def test_classification(tmp_path: Path, kind: str) -> None:
    teacher, data = zoo.build("bert"), rows()
    dataset = Dataset.from_list(data) if kind == "datasets" else data
    cache = cache_teacher_logits(teacher, dataset, tmp_path, collate, batch_size=3, rows_per_file=4)
    assert len(cache) == 11 and not cache.per_position
    files = sorted(path.name for path in cache.folder.iterdir())
    assert files == ["index.json", *(f"logits-{number:05d}.safetensors" for number in range(3))]
    wanted = answers(teacher, data)
    shuffled = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    attached = cache.attach(dataset)
    numbers = torch.tensor([attached[int(index)]["teacher_row"] for index in shuffled])
    assert torch.equal(numbers, shuffled)
    assert attached[4]["input_ids"] == data[4]["input_ids"] and len(attached) == 11
    (logits,) = cache.lookup(numbers)
    assert logits.shape == (11, 3) and logits.dtype == torch.float32 and not logits.requires_grad
    assert torch.allclose(logits, torch.stack([wanted[index][0] for index in shuffled]), atol=1e-5)
    # In another process there is only the folder.
    assert torch.equal(TeacherLogits(cache.folder).lookup(numbers)[0], logits)


def test_rows_keep_their_numbers_in_a_shuffled_and_selected_data_set(tmp_path: Path) -> None:
    teacher, data = zoo.build("bert"), rows()
    cache = cache_teacher_logits(teacher, Dataset.from_list(data), tmp_path, collate)
    subset = cache.attach(Dataset.from_list(data)).shuffle(seed=1).select([7, 2, 5])
    wanted = torch.stack([each[0] for each in answers(teacher, list(subset))])
    assert torch.allclose(cache.lookup(torch.tensor(subset["teacher_row"]))[0], wanted, atol=1e-5)


@pytest.mark.parametrize("build", [of_questions, of_tokens])
@pytest.mark.parametrize("left", [False, True])
def test_logits_of_positions_find_their_places(tmp_path: Path, build, left: bool) -> None:
    teacher, data = build(), rows()
    cache = cache_teacher_logits(teacher, data, tmp_path, collate, batch_size=4, rows_per_file=5)
    assert cache.per_position
    chosen = [9, 0, 4, 10]
    wanted = answers(teacher, data)
    mask = collate([data[row] for row in chosen], left, extra=2)["attention_mask"]
    found = cache.lookup(torch.tensor(chosen), mask)
    assert len(found) == len(wanted[0])
    for output, logits in enumerate(found):
        assert logits.shape[:2] == mask.shape
        assert (logits[mask == 0] == 0).all()
        for place, row in enumerate(chosen):
            assert torch.allclose(logits[place][mask[place] == 1], wanted[row][output], atol=1e-5)


def test_it_is_written_once_for_each_teacher_and_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, data = zoo.build("bert"), rows()
    calls = []
    original = module.logits_of
    monkeypatch.setattr(module, "logits_of", lambda outputs: calls.append(1) or original(outputs))

    def make(teacher=teacher, data=data, **changes):
        calls.clear()
        return cache_teacher_logits(teacher, data, tmp_path, collate, **{"rows_per_file": 4, **changes})

    folders = {make().folder}
    assert len(calls) == 3
    assert make().folder in folders and not calls
    assert make(data=[{**row, "labels": 0, "text": "b"} for row in data]).folder in folders and not calls
    assert make(teacher=zoo.build("bert", attention="eager")).folder in folders and not calls
    changed = [*data[:-1], {**data[-1], "input_ids": [*data[-1]["input_ids"][:-1], 1]}]
    for other in (
        make(teacher=zoo.build("bert", seed=1)),
        make(data=changed),
        make(data=data[:-1]),
        make(data=data[::-1]),
    ):
        assert other.folder not in folders
        folders.add(other.folder)
    assert len(folders) == 5 == len(list(tmp_path.iterdir()))


def test_a_killed_run_goes_on_after_its_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, data = zoo.build("bert"), rows()
    whole = cache_teacher_logits(teacher, data, tmp_path / "whole", collate, rows_per_file=4)
    calls, original = [], module.logits_of

    def fail_at_last(outputs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(outputs)

    monkeypatch.setattr(module, "logits_of", fail_at_last)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher_logits(teacher, data, tmp_path / "killed", collate, rows_per_file=4)
    (folder,) = (tmp_path / "killed").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["logits-00000.safetensors", "logits-00001.safetensors"]
    with pytest.raises(ValueError, match="holds no complete cache of teacher logits"):
        TeacherLogits(folder)
    resumed = cache_teacher_logits(teacher, data, tmp_path / "killed", collate, rows_per_file=4)
    assert len(calls) == 4 and resumed.folder == folder
    for path in whole.folder.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_the_teacher_answers_in_evaluation_mode_and_is_left_as_it_was(tmp_path: Path) -> None:
    teacher, data = zoo.build("bert").train(), rows()
    before = fingerprint_of_model(teacher)
    cache = cache_teacher_logits(teacher, data, tmp_path, collate)
    assert teacher.training and fingerprint_of_model(teacher) == before
    assert all(parameter.grad is None for parameter in teacher.parameters())
    wanted = torch.stack([each[0] for each in answers(teacher.eval(), data)])
    assert torch.allclose(cache.lookup(torch.arange(11))[0], wanted, atol=1e-5)


def test_files_are_read_by_mapping_them(tmp_path: Path) -> None:
    cache = cache_teacher_logits(zoo.build("bert"), rows(), tmp_path, collate, rows_per_file=6)
    cache.lookup(torch.tensor([7]))
    assert list(cache._files) == [1]  # the first file was not opened
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not list what is mapped")
    assert str(cache.folder / "logits-00001.safetensors") in maps.read_text()


def test_fingerprints() -> None:
    data, columns = rows(), ["input_ids", "attention_mask"]
    wanted = fingerprint_of_rows(data, columns)
    tensors = [{name: torch.tensor(row[name], dtype=torch.int32) for name in columns} for row in data]
    assert (
        fingerprint_of_rows(tensors, columns[::-1]) == wanted == fingerprint_of_rows(Dataset.from_list(data), columns)
    )
    # The same numbers, in other rows.
    joined = [{"a": [1, 2]}, {"a": [3]}], [{"a": [1]}, {"a": [2, 3]}]
    assert fingerprint_of_rows(joined[0], ["a"]) != fingerprint_of_rows(joined[1], ["a"])
    assert fingerprint_of_rows(data, columns, [0, 1]) != fingerprint_of_rows(data, columns, [1, 0])
    model = zoo.build("bert")
    prints = {fingerprint_of_model(model)}
    model.config._name_or_path = "elsewhere"
    assert fingerprint_of_model(model) in prints
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6
    prints.add(fingerprint_of_model(model))
    prints.add(fingerprint_of_model(model.bfloat16()))
    model.config.hidden_act = "relu"
    prints.add(fingerprint_of_model(model))
    assert len(prints) == 4


def test_bad_data_sets_are_refused(tmp_path: Path) -> None:
    teacher, data = zoo.build("bert"), rows()
    for dataset, message in (
        (iter(data), "by row number, which a list_iterator of this kind"),
        ([], "which a list of this kind or size"),
        ([{"text": "a"}], "rows of the data set hold nothing that BertForSequenceClassification reads; tokenize"),
        ([{"labels": 1}], "hold nothing that BertForSequenceClassification reads"),
        ([{"input_ids": "words"}], "column 'input_ids' of row 0 holds no numbers"),
        ([{"input_ids": [[1, 2], [3]]}], "column 'input_ids' of row 0 holds no numbers"),
        ([data[0], {"input_ids": [1]}], "Row 1 of the data set has no column 'attention_mask'"),
    ):
        with pytest.raises(ValueError, match=message):
            cache_teacher_logits(teacher, dataset, tmp_path, collate)
    for name in ("batch_size", "rows_per_file"):
        with pytest.raises(ValueError, match=f"{name} is 0; give at least 1"):
            cache_teacher_logits(teacher, data, tmp_path, collate, **{name: 0})


def test_logits_without_known_positions_are_refused(tmp_path: Path) -> None:
    def without_mask(examples: list[dict]) -> dict[str, torch.Tensor]:
        return {"input_ids": collate(examples)["input_ids"]}

    with pytest.raises(ValueError, match=r"BertForQuestionAnswering gives logits of shape \(11, 9\), whose positions"):
        cache_teacher_logits(of_questions(), rows(), tmp_path, without_mask)
    decoded = zoo.build("bart")
    with pytest.raises(ValueError, match="BartForConditionalGeneration gives logits of shape .* answer during train"):
        cache_teacher_logits(decoded, rows(), tmp_path, collate)


def test_a_full_disk_is_noticed_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=100))
    with pytest.raises(ValueError, match="take about 0.0 GB more and .* 0.0 GB left; give a folder with more"):
        cache_teacher_logits(zoo.build("bert"), rows(), tmp_path, collate)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_bad_lookups_are_refused(tmp_path: Path) -> None:
    data = rows()
    cache = cache_teacher_logits(of_questions(), data, tmp_path, collate)
    batch = collate(data[:2])["attention_mask"]
    for row in (-1, 11):
        with pytest.raises(ValueError, match=f"Row {row} is not in the cache .* of 11 rows"):
            cache.lookup(torch.tensor([row]), batch[:1])
    with pytest.raises(ValueError, match="give the attention mask of the batch"):
        cache.lookup(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"has \[3, 8\] unpadded positions in its rows and the cache \[8, 3\]"):
        cache.lookup(torch.tensor([1, 0]), batch)
    with pytest.raises(ValueError, match="The data set has 10 rows and the cache .* 11"):
        cache.attach(data[:-1])
    with pytest.raises(ValueError, match="not those, or not in the order of those"):
        cache.attach(data[::-1])
    with pytest.raises(ValueError, match="has a column 'teacher_row' already"):
        cache.attach(cache.attach(data))


def test_damaged_caches_are_refused(tmp_path: Path) -> None:
    teacher, data = zoo.build("bert"), rows()
    cache = cache_teacher_logits(teacher, data, tmp_path / "one", collate)
    other = cache_teacher_logits(zoo.build("bert", seed=1), data, tmp_path / "two", collate)
    file = cache.folder / "logits-00000.safetensors"
    file.write_bytes((other.folder / file.name).read_bytes())
    with pytest.raises(ValueError, match="holds no logits of this cache .it belongs to another teacher"):
        TeacherLogits(cache.folder).lookup(torch.tensor([0]))
    file.write_bytes(b"nothing")
    (cache.folder / "index.json").unlink()
    with pytest.raises(ValueError, match="holds no logits of this cache .* delete the folder"):
        cache_teacher_logits(teacher, data, tmp_path / "one", collate)
    index = other.folder / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": "other/1"}))
    with pytest.raises(ValueError, match="its format is 'other/1', not 'hf_nas.teacher_logits/1'"):
        TeacherLogits(other.folder)
    with pytest.raises(ValueError, match="holds no complete cache of teacher logits"):
        TeacherLogits(tmp_path / "nowhere")
