"""Comparisons in numbers: lines, files and the table."""

import csv
import json

import pytest

from hf_nas.report import ComparedModel
from tests.report.compare.runs import compared, dsp_run, make_page


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
