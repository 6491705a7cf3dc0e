"""Comparisons of several methods on one task: numbers and lines, checked without a picture."""

import csv
import json
import logging
import re
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from hf_nas import SubNetwork, describe, extract, save_extracted
from hf_nas.files import write_json
from hf_nas.report import ComparedModel, Comparison, DenseModel, Series, SeriesPoint, compare_runs, read_run
from hf_nas.report.compare_series import series_of_fronts, series_of_settings
from tests import zoo
from tests.report.compared import dense_run, dsp_run, heads_of, michel_run, record, results, search_run


HEADS = 12  # of the tiny BERT: 3 layers of 4


def build_dense(folder: Path, sub_network: SubNetwork | None):
    """The tiny BERT that all runs here are of, or the model itself."""
    return AutoModelForSequenceClassification.from_pretrained(folder) if sub_network is None else zoo.build("bert")


def read(label: str, folder: Path):
    return read_run(label, folder, build_dense)


def compared(*runs: tuple[str, Path], **options) -> Comparison:
    return compare_runs([read(*run) for run in runs], **options)


def elements(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def bert():
    return zoo.build("bert")


# What folders hold.


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
        read("tuned", tmp_path / "tuned")
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
    run = read_run("michel", folder, lambda folder, sub_network: bart)
    names = [row.name for row in describe(bart) if row.layout.is_attention]
    assert sum(len(range(run.models[1].sub_network[name])) for name in names) == 13
    page = compare_runs([run])
    assert [row.heads for row in page.rows] == [36, 13] and page.dense.heads == 36


# Metrics.


def test_another_metric_is_that_of_the_chosen_one_alone(bert, tmp_path, caplog) -> None:
    outcome = search_run(tmp_path / "nas", bert, {"full": 0.85, "uniform half": 0.8, "one head left": 0.6})
    with caplog.at_level(logging.WARNING):
        page = compared(("nas", tmp_path / "nas"), metric_name="accuracy")
    assert [row.metric for row in page.rows] == [0.7]
    assert page.rows[0].parameters == outcome.table.chosen.parameters
    assert "2 of the 3 models of" in caplog.text and "have no accuracy and are left out" in caplog.text


def test_the_main_metric_is_one_that_all_have(bert, tmp_path) -> None:
    one = ("one", dsp_run(tmp_path / "one", bert, 5, accuracy=0.7, f1=0.8, loss=0.3))
    two = ("two", dsp_run(tmp_path / "two", bert, 5, accuracy=0.6, loss=0.3))
    assert compared(one).metric_name == "f1" and compared(one, two).metric_name == "accuracy"
    assert not compared(one, two, metric_name="loss").greater_is_better
    three = ("three", dsp_run(tmp_path / "three", bert, 5, bleu=30.0, loss=0.3))
    with pytest.raises(ValueError, match="no metric in common: 'one' has accuracy, f1, loss; 'three' has bleu, loss"):
        compared(one, three)
    with pytest.raises(ValueError, match=r"no metric 'f1' of 'two' in .*two', which has accuracy, loss; choose ano"):
        compared(one, two, metric_name="f1")
    regression = compared(("r", dsp_run(tmp_path / "r", bert, 5, mse=1.5)))
    assert regression.metric_name == "mse" and not regression.greater_is_better


# What is refused.


def test_other_tasks_examples_and_models_are_refused(bert, tmp_path) -> None:
    one = ("one", dsp_run(tmp_path / "one", bert, 5, f1=0.8))
    other = tmp_path / "other"

    def second(message: str, **changes) -> None:
        record(other, **changes)
        with pytest.raises(ValueError, match=message):
            compared(one, ("other", other))

    dsp_run(other, bert, 4, f1=0.7)
    second("'one' in .* are on the task mrpc, those of 'other' in .* sst2; compare runs on one task", task_name="sst2")
    second("were made of the model some/base, .* other/base; compare runs that start", model_name_or_path="other/base")
    # Data may lie anywhere, and a pipelined run starts from what was made of the same model.
    dense_run(tmp_path / "dense", bert, f1=0.9)
    for model in ("dense", str(tmp_path / "dense"), "some/base"):
        record(other, data_dir="/elsewhere/mrpc", model_name_or_path=model)
        assert compared(one, ("other", other)).labels == ("one", "other")
    results(other, examples=7, f1=0.7)
    second("evaluated on so many examples: 40, those of 'other' .* 7; evaluate all of them on the same")
    results(other, examples=None, f1=0.7)
    assert compared(one, ("other", other)).rows[1].metric == 0.7
    wide = zoo.build("bert", intermediate_size=30)
    dense_run(tmp_path / "wide", wide, f1=0.9)
    with pytest.raises(ValueError, match="bert model of 3 layers, 12 heads and .* parameters; compare runs"):
        compared(one, ("wide", tmp_path / "wide"))


def test_data_without_a_task_name_are_known_by_theirs(bert, tmp_path) -> None:
    folder = dsp_run(tmp_path / "run", bert, 5, f1=0.8)

    def task(**changes) -> str | None:
        record(folder, **{"task_name": None, "data_dir": None, **changes})
        return read("run", folder).task

    assert task(data_dir="data/squad") == task(data_dir="/elsewhere/squad/") == "squad"
    assert task(data_dir="data/squad", version_2_with_negative=True) == "squad (version 2)"
    assert task(dataset_name="a/iwslt", dataset_config_name="x", source_lang="de", target_lang="en") == (
        "a/iwslt/x (de to en)"
    )
    assert task(train_file="x/train.csv") == "train.csv" and task(demo=True) == "demo" and task() is None


def test_runs_that_would_count_twice_are_refused(bert, tmp_path) -> None:
    one = dsp_run(tmp_path / "one", bert, 5, seed=1, f1=0.8)
    dsp_run(tmp_path / "two", bert, 5, seed=1, f1=0.7)
    with pytest.raises(ValueError, match="'.*one' is given 2 times; give it once"):
        compared(("a", one), ("b", one.parent / "." / "one"))
    with pytest.raises(ValueError, match="'.*one' and '.*two' are both 'dsp' with seed 1 and method=dsp num_of"):
        compared(("dsp", one), ("dsp", tmp_path / "two"))
    assert len(compared(("a", one), ("b", tmp_path / "two")).rows) == 2
    with pytest.raises(ValueError, match="There are no runs to compare"):
        compare_runs([])


def test_folders_that_hold_too_little_are_refused(bert, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds nothing that can be compared; give the output folder of a search"):
        read("x", tmp_path / "empty")
    with pytest.raises(ValueError, match="There is no folder '.*nowhere' for 'x'"):
        read("x", tmp_path / "nowhere")
    (tmp_path / "empty" / "search").mkdir()
    with pytest.raises(ValueError, match="holds no finished search"):
        read("x", tmp_path / "empty")

    folder = dsp_run(tmp_path / "dsp", bert, 5, finetuned=True, f1=0.8)
    record(folder / "finetuned", finished=False)
    with pytest.raises(ValueError, match="is not finished; run its command again, which continues it"):
        read("x", folder)
    record(folder / "finetuned")
    (folder / "eval_results.json").unlink()
    with pytest.raises(ValueError, match="There is no eval_results.json for 'x' in .*; evaluate the model by"):
        read("x", folder)

    michel = michel_run(tmp_path / "michel", bert, {12: 0.88, 5: 0.7})
    front = json.loads((michel / "front.json").read_text())
    bare = [{name: value for name, value in point.items() if "eval" not in name} for point in front["points"]]
    write_json(michel / "front.json", {**front, "points": bare})
    with pytest.raises(ValueError, match="has no metrics; run its command again with --do_eval"):
        read("x", michel)
    write_json(michel / "front.json", {**front, "format": "other"})
    with pytest.raises(ValueError, match="is 'other', not 'hf_nas.head_front/1'"):
        read("x", michel)


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
            read("x", folder)
        (folder / name).write_text(before)
    report = json.loads((folder / "pruned" / "pruning.json").read_text())
    write_json(folder / "pruned" / "pruning.json", {**report, "parameters": 1000})
    with pytest.raises(ValueError, match="are of a model with 1,000 parameters, but by its files it has"):
        read("x", folder)

    michel = michel_run(tmp_path / "michel", bert, {12: 0.88, 5: 0.7})
    front = json.loads((michel / "front.json").read_text())
    write_json(michel / "front.json", {**front, "points": [{"heads": 5}]})
    with pytest.raises(ValueError, match=r"front.json' is damaged \(KeyError: 'parameters'\)"):
        read("x", michel)


def test_a_search_without_a_validation_set_is_refused(bert, tmp_path) -> None:
    search_run(tmp_path, bert, {"full": 0.85, "uniform half": 0.8})
    table = json.loads((tmp_path / "search" / "front.json").read_text())
    rows = [{**row, "reported": None} for row in table["rows"]]
    write_json(tmp_path / "search" / "front.json", {**table, "rows": rows})
    with pytest.raises(ValueError, match="measured its front on no data but those it compared by"):
        read("x", tmp_path)


# Lines.


def test_runs_with_the_same_label_and_setting_are_seeds(bert, tmp_path) -> None:
    scores = {5: (0.8, 0.7, 0.75), 9: (0.84, 0.86)}
    runs = [
        ("dsp", dsp_run(tmp_path / f"{heads}-{seed}", bert, heads, seed=seed, f1=score))
        for heads, group in scores.items()
        for seed, score in enumerate(group)
    ]
    page = compared(*runs)
    (line,) = page.series("heads")
    assert [(point.size, point.lowest, point.highest, point.runs) for point in line.points] == [
        (5, 0.7, 0.8, 3), (9, 0.84, 0.86, 2),
    ]  # fmt: skip
    assert [point.mean for point in line.points] == pytest.approx([0.75, 0.85]) and line.has_band
    assert [point.size for point in page.series("parameters")[0].points] == sorted(
        {row.parameters for row in page.rows}
    )
    cells = [cell.strip() for cell in page.to_markdown().splitlines()[2].split("|")]
    assert cells[1:3] + cells[5:9] == ["dsp", "9", "0.8500", "0.8400", "0.8600", "2"]


def test_seeds_of_slightly_different_sizes_are_one_point() -> None:
    line = series_of_settings("cofi", [(10.0, 0.5), (20.0, 0.9), (12.0, 0.7)], ["half", "more", "half"])
    assert line.points == (
        SeriesPoint(11.0, pytest.approx(0.6), 0.5, 0.7, 2), SeriesPoint(20.0, 0.9, 0.9, 0.9, 1),
    )  # fmt: skip


def test_fronts_are_averaged_where_all_of_them_are() -> None:
    models = [(0.0, 0.0), (4.0, 4.0), (8.0, 4.0), (2.0, 3.0), (10.0, 3.0)]
    line = series_of_fronts("nas", models, ["a", "a", "a", "b", "b"])
    # From 2 to 8, at the sizes of the models of both: the first line rises to 4, the second is flat.
    assert [(p.size, p.mean, p.lowest, p.highest, p.runs) for p in line.points] == [
        (2.0, 2.5, 2.0, 3.0, 2), (4.0, 3.5, 3.0, 4.0, 2), (8.0, 3.5, 3.0, 4.0, 2),
    ]  # fmt: skip
    alone = series_of_fronts("nas", models[:3] + [(8.0, 2.0)], ["a"] * 4)
    assert [(point.size, point.mean) for point in alone.points] == [(0.0, 0.0), (4.0, 4.0), (8.0, 3.0)]
    assert not alone.has_band and len(alone.models) == 4
    apart = series_of_fronts("nas", [(1.0, 1.0), (2.0, 2.0)], ["a", "b"])
    assert apart.points == () and not apart.has_band and len(apart.models) == 2


# Files and pictures.


def make_page(**changes) -> Comparison:
    """Two methods, one with two seeds, by hand."""

    def row(label: str, seed: int, heads: int, metric: float, is_dense: bool = False) -> ComparedModel:
        parameters, macs = 1_000_000 + 100_000 * heads, 10_000_000 * heads
        shares = heads / 10, parameters / 2_000_000, macs / 100_000_000
        return ComparedModel(
            label, seed, heads, shares[0], parameters, shares[1], macs, shares[2], metric, f"{heads} heads",
            f"runs/{label}-{heads}-{seed}", is_dense,
        )  # fmt: skip

    rows = (
        row("dsp", 0, 8, 0.8), row("dsp", 1, 8, 0.7), row("dsp", 0, 4, 0.6), row("voita", 0, 4, 0.5),
        row("dense", 0, 10, 0.9, True), row("dense", 1, 10, 0.8, True),
    )  # fmt: skip
    values = {
        "rows": rows, "dense": DenseModel(10, 2_000_000, 100_000_000, (0.9, 0.8)), "metric_name": "f1",
        "greater_is_better": True, "sequence_length": 128, "task": "mrpc", **changes,
    }  # fmt: skip
    return Comparison(**values)


def test_files_have_one_row_a_model(tmp_path) -> None:
    page = make_page()
    page.to_json(tmp_path / "page.json")
    page.to_csv(tmp_path / "page.csv")
    data = json.loads((tmp_path / "page.json").read_text())
    assert [ComparedModel(**row) for row in data["rows"]] == list(page.rows)
    assert data["metric"] == "f1" and data["dense"]["metrics"] == [0.9, 0.8] and data["sequence_length"] == 128
    rows = list(csv.DictReader((tmp_path / "page.csv").open()))
    assert [(row["label"], int(row["heads"]), float(row["metric"]), row["is_dense"]) for row in rows] == [
        (row.label, row.heads, row.metric, str(int(row.is_dense))) for row in page.rows
    ]
    assert page.to_markdown() == (
        "| method | heads |     parameters |            MACs |     f1 | lowest | highest | runs |\n"
        "| ------ | ----: | -------------: | --------------: | -----: | -----: | ------: | ---: |\n"
        "| dense  |    10 | 2.00M (100.0%) | 100.0M (100.0%) | 0.8500 | 0.8000 |  0.9000 |    2 |\n"
        "| dsp    |     8 |  1.80M (90.0%) |   80.0M (80.0%) | 0.7500 | 0.7000 |  0.8000 |    2 |\n"
        "| dsp    |     4 |  1.40M (70.0%) |   40.0M (40.0%) | 0.6000 | 0.6000 |  0.6000 |    1 |\n"
        "| voita  |     4 |  1.40M (70.0%) |   40.0M (40.0%) | 0.5000 | 0.5000 |  0.5000 |    1 |\n"
    )


def test_the_picture_has_the_numbers(tmp_path, monkeypatch) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    from hf_nas.report import compare_plot

    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, path: drawn.append(figure))
    compare_plot.plot_comparison(make_page(), tmp_path / "page.png")
    heads, parameters, macs = drawn[0].axes
    assert heads.get_xlabel() == "attention heads kept (of 10)"
    assert parameters.get_xlabel() == "parameters (millions; dense 2)"
    assert macs.get_xlabel() == "MACs for 128 tokens (millions; dense 100)" and heads.get_ylabel() == "f1"
    for axes, sizes in ((heads, [4, 8]), (parameters, [1.4, 1.8]), (macs, [40, 80])):
        dense, dsp, voita = axes.lines
        assert list(dense.get_ydata()) == [pytest.approx(0.85)] * 2
        assert dsp.get_xdata().tolist() == pytest.approx(sizes) and dsp.get_ydata().tolist() == pytest.approx(
            [0.6, 0.75]
        )
        assert voita.get_xydata().tolist() == [[pytest.approx(sizes[0]), 0.5]]
        assert dsp.get_color() != voita.get_color() and dsp.get_marker() != voita.get_marker()
        (band,) = (each for each in axes.collections if each.get_paths() and type(each).__name__.startswith("Fill"))
        corners = band.get_paths()[0].vertices
        assert corners[:, 1].min() == 0.6 and corners[:, 1].max() == 0.8
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["dense: 0.85 (2 runs)", "dsp", "voita"]

    monkeypatch.undo()
    compare_plot.plot_comparison(make_page(task=None, greater_is_better=False), tmp_path / "plots" / "page.png")
    assert (tmp_path / "plots" / "page.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["page.png"]


def test_lines_without_a_common_size_and_without_a_dense_model_are_drawn(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    from hf_nas.report import compare_plot

    rows = tuple(
        ComparedModel(**{**vars(row), "setting": None, "folder": str(place)})
        for place, row in enumerate(make_page().rows[:3])
    )
    page = make_page(rows=rows, dense=DenseModel(10, 2_000_000, 20_000_000_000, ()))
    assert page.series("heads") == (Series("dsp", (), ((8, 0.8), (8, 0.7), (4, 0.6))),)
    compare_plot.plot_comparison(page, tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 0
    assert "dense" not in page.to_markdown()
