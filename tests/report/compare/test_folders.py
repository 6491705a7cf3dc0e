"""What is read of the folders of runs, and which of them are refused."""

import json
import re

import pytest

from hf_nas import describe, extract, save_extracted
from hf_nas.files import write_json
from hf_nas.report import compare_runs, read_run
from tests import zoo
from tests.report.compare.runs import (
    compared,
    dense_run,
    dsp_run,
    heads_of,
    michel_run,
    record,
    results,
    search_run,
)


HEADS = 12  # of the tiny BERT: 3 layers of 4


def elements(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_kind_of_run_on_one_page(bert, tmp_path) -> None:
    search_run(tmp_path / "nas", bert, {"full": 0.85, "uniform half": 0.8, "no head left, bias stays": 0.6})
    page = compared(
        ("dsp", dsp_run(tmp_path / "dsp", bert, 5, f1=0.81, accuracy=0.7)),
        ("nas", tmp_path / "nas"),
        ("michel", michel_run(tmp_path / "michel", bert, {12: 0.88, 5: 0.7, 0: 0.5})),
        ("dense", dense_run(tmp_path / "dense", bert, f1=0.9, accuracy=0.8)),
    )
    assert page.metric_name == "f1" and page.task == "mrpc" and page.sequence_length == 16
    assert page.labels == ("dsp", "nas", "michel")
    found = [(row.label, row.heads, row.metric, row.is_dense) for row in page.rows]
    assert found == [
        ("dsp", 5, 0.81, False),
        ("nas", 12, 0.85, False), ("nas", 6, 0.8, False), ("nas", 0, 0.6, False),
        ("michel", 12, 0.88, False), ("michel", 5, 0.7, False), ("michel", 0, 0.5, False),
        ("dense", 12, 0.9, True),
    ]  # fmt: skip
    assert page.dense.metrics == (0.9,) and page.dense.heads == HEADS and page.dense.parameters == elements(bert)
    # Sizes are those of the extracted models; the operations of a head are counted by hand: four projections of 8
    # features, and scores and their use between all 16 tokens.
    dsp, small = page.rows[0], extract(bert, heads_of(bert, 5))
    assert dsp.parameters == elements(small) and dsp.parameters_share == elements(small) / elements(bert)
    assert page.dense.macs - dsp.macs == 7 * (16 * 4 * 32 * 8 + 2 * 16 * 16 * 8)
    assert dsp.heads_share == 5 / 12 and dsp.macs_share == dsp.macs / page.dense.macs and dsp.seed == 0
    half = next(row for row in page.rows if row.label == "nas" and row.heads == 6)
    assert half.parameters == elements(extract(bert, zoo.corner_cases(bert)["uniform half"]))


def test_operations_at_another_length(bert, tmp_path) -> None:
    run = ("dsp", dsp_run(tmp_path / "dsp", bert, 5, f1=0.8))
    short, usual = compared(run, sequence_length=8), compared(run)
    assert short.sequence_length == 8 and short.dense.macs < usual.dense.macs
    record(tmp_path / "dsp", max_seq_length=None)
    assert compared(run).sequence_length == 128


def test_a_fine_tuned_model_and_the_one_before_it(bert, tmp_path) -> None:
    folder = dsp_run(tmp_path / "run", bert, 5, finetuned=True, f1=0.8)
    page = compared(("all", folder), ("before", folder / "pruned"), ("after", folder / "finetuned"))
    assert [(row.label, row.metric) for row in page.rows] == [
        ("all", 0.8), ("before", pytest.approx(0.7)), ("after", 0.8),
    ]  # fmt: skip
    assert "finetuned" in page.rows[0].setting and "finetuned" not in page.rows[1].setting
    # Without a fine-tuning the results of the run are those of the pruned model.
    other = dsp_run(tmp_path / "other", bert, 5, f1=0.6)
    assert compared(("pruned", other / "pruned")).rows[0].metric == 0.6


def test_an_extracted_model_that_was_fine_tuned_by_itself(bert, tmp_path) -> None:
    sub_network = heads_of(bert, 3)
    small = extract(bert, sub_network)
    save_extracted(small, sub_network, tmp_path / "extracted")
    small.save_pretrained(tmp_path / "tuned")
    results(tmp_path / "tuned", f1=0.7)
    with pytest.raises(ValueError, match="was made small, but there is no sub_network.json that tells"):
        read_run("tuned", tmp_path / "tuned")
    # Where the record says what it was made of, that is found, also from where the run may have been started.
    record(tmp_path / "tuned", model_name_or_path="extracted")
    row = compared(("tuned", tmp_path / "tuned")).rows[0]
    assert (row.heads, row.parameters, row.metric) == (3, elements(small), 0.7)
    results(tmp_path / "extracted", f1=0.65)
    assert compared(("extracted", tmp_path / "extracted")).rows[0].metric == 0.65


def test_a_super_network_is_not_the_dense_model(bert, tmp_path) -> None:
    dense = ("dense", dense_run(tmp_path / "dense", bert, f1=0.9))
    full = ("full", dense_run(tmp_path / "super", bert, f1=0.8))
    record(tmp_path / "super", sampling_strategy="sandwich")
    page = compared(full, dense)
    assert page.dense.metrics == (0.9,) and [(row.label, row.is_dense) for row in page.rows] == [
        ("full", False), ("dense", True),
    ]  # fmt: skip
    record(tmp_path / "super", sampling_strategy="standard")
    with pytest.raises(ValueError, match="'full' are dense models alone; add one that made a model smaller"):
        compared(full, dense)


def test_the_dense_score_is_that_of_michel_where_there_is_no_other(bert, tmp_path) -> None:
    michel = ("michel", michel_run(tmp_path / "michel", bert, {12: 0.88, 5: 0.7}))
    assert compared(michel).dense.metrics == (0.88,)
    assert compared(("dsp", dsp_run(tmp_path / "dsp", bert, 5, f1=0.8))).dense.mean is None


def test_cross_attentions_are_heads_too(tmp_path) -> None:
    bart = zoo.build("bart")
    folder = michel_run(tmp_path / "michel", bart, {36: 0.9, 13: 0.6})
    run = read_run("michel", folder)
    names = [row.name for row in describe(bart) if row.layout.is_attention]
    assert sum(len(range(run.models[1].sub_network[name])) for name in names) == 13
    page = compare_runs([run])
    assert [row.heads for row in page.rows] == [36, 13] and page.dense.heads == 36


def test_data_without_a_task_name_are_known_by_theirs(bert, tmp_path) -> None:
    folder = dsp_run(tmp_path / "run", bert, 5, f1=0.8)

    def task(**changes) -> str | None:
        record(folder, **{"task_name": None, "data_dir": None, **changes})
        return read_run("run", folder).task

    assert task(data_dir="data/squad") == task(data_dir="/elsewhere/squad/") == "squad"
    assert task(data_dir="data/squad", version_2_with_negative=True) == "squad (version 2)"
    assert task(dataset_name="a/iwslt", dataset_config_name="x", source_lang="de", target_lang="en") == (
        "a/iwslt/x (de to en)"
    )
    assert task(train_file="x/train.csv") == "train.csv" and task(demo=True) == "demo" and task() is None


def test_folders_that_hold_too_little_are_refused(bert, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds nothing that can be compared; give the output folder of a search"):
        read_run("x", tmp_path / "empty")
    with pytest.raises(ValueError, match="There is no folder '.*nowhere' for 'x'"):
        read_run("x", tmp_path / "nowhere")
    (tmp_path / "empty" / "search").mkdir()
    with pytest.raises(ValueError, match="holds no finished search"):
        read_run("x", tmp_path / "empty")

    folder = dsp_run(tmp_path / "dsp", bert, 5, finetuned=True, f1=0.8)
    record(folder / "finetuned", finished=False)
    with pytest.raises(ValueError, match="is not finished; run its command again, which continues it"):
        read_run("x", folder)
    record(folder / "finetuned")
    (folder / "eval_results.json").unlink()
    with pytest.raises(ValueError, match="There is no eval_results.json for 'x' in .*; evaluate the model by"):
        read_run("x", folder)

    michel = michel_run(tmp_path / "michel", bert, {12: 0.88, 5: 0.7})
    front = json.loads((michel / "front.json").read_text())
    bare = [{name: value for name, value in point.items() if "eval" not in name} for point in front["points"]]
    write_json(michel / "front.json", {**front, "points": bare})
    with pytest.raises(ValueError, match="has no metrics; run its command again with --do_eval"):
        read_run("x", michel)
    write_json(michel / "front.json", {**front, "format": "other"})
    with pytest.raises(ValueError, match="is 'other', not 'hf_nas.head_front/1'"):
        read_run("x", michel)


def test_damaged_and_mixed_files_are_refused_in_a_sentence(bert, tmp_path) -> None:
    folder = dsp_run(tmp_path / "dsp", bert, 5, f1=0.8)
    damaged = r"is damaged \(.*; run the command again that wrote"
    for name, text, words in (
        ("eval_results.json", "{", damaged),
        ("eval_results.json", "[]", damaged),
        ("run.json", "{}]", damaged),
        ("pruned/sub_network.json", "{", "cannot be read as JSON"),
        ("pruned/pruning.json", "3", damaged),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{re.escape(name)}' {words}"):
            read_run("x", folder)
        (folder / name).write_text(before)
    report = json.loads((folder / "pruned" / "pruning.json").read_text())
    write_json(folder / "pruned" / "pruning.json", {**report, "parameters": 1000})
    with pytest.raises(ValueError, match="are of a model with 1,000 parameters, but by its files it has"):
        read_run("x", folder)

    michel = michel_run(tmp_path / "michel", bert, {12: 0.88, 5: 0.7})
    front = json.loads((michel / "front.json").read_text())
    write_json(michel / "front.json", {**front, "points": [{"heads": 5}]})
    with pytest.raises(ValueError, match=r"front.json' is damaged \(KeyError: 'parameters'\)"):
        read_run("x", michel)


def test_a_search_without_a_validation_set_is_refused(bert, tmp_path) -> None:
    search_run(tmp_path, bert, {"full": 0.85, "uniform half": 0.8})
    table = json.loads((tmp_path / "search" / "front.json").read_text())
    rows = [{**row, "reported": None} for row in table["rows"]]
    write_json(tmp_path / "search" / "front.json", {**table, "rows": rows})
    with pytest.raises(ValueError, match="measured its front on no data but those it compared by"):
        read_run("x", tmp_path)
