import csv
import json
import math
import sys

import pytest

from hf_nas.report import FrontTable, plot_front
from hf_nas.search import Evaluated, SearchResult
from tests.search.problems import UnitsSpace, size_of


SPACE = UnitsSpace(layers=2, units=4)


def make_result() -> SearchResult:
    trials = []
    for encoding, accuracy in [((3, 3), 0.9), ((0, 0), 0.4), ((2, 1), 0.86), ((1, 1), 0.8), ((2, 2), math.nan)]:
        sub_network = SPACE.decode(encoding)
        error = 1.0 if math.isnan(accuracy) else 1 - accuracy
        trials.append(Evaluated(sub_network, encoding, {"accuracy": accuracy}, (error, size_of(sub_network))))
    return SearchResult(tuple(trials), ("error", "size"), (1.0, 1.05))


def make_table(**options) -> FrontTable:
    return FrontTable.of(
        make_result(),
        parameters=lambda sub_network: 1000 * sum(sub_network.counts()),
        params_ratio=size_of,
        macs_ratio=lambda sub_network: size_of(sub_network) ** 2,
        metric_name="accuracy",
        **options,
    )


def test_table_of_the_front():
    assert make_table(chosen=2, reported={0: 0.91, 2: 0.85, 3: math.nan}).to_markdown() == (
        "| net | parameters | encoder |   MACs | accuracy (selection) | accuracy (validation) |         |\n"
        "| --: | ---------: | ------: | -----: | -------------------: | --------------------: | ------- |\n"
        "|   1 |      2,000 |   25.0% |   6.2% |               0.4000 |                       |         |\n"
        "|   3 |      4,000 |   50.0% |  25.0% |               0.8000 |                       |         |\n"
        "|   2 |      5,000 |   62.5% |  39.1% |               0.8600 |                0.8500 | chosen  |\n"
        "|   0 |      8,000 |  100.0% | 100.0% |               0.9000 |                0.9100 | largest |\n"
    )


def test_table_of_everything_without_reported_metrics():
    text = make_table(label="F1").to_markdown(everything=True)
    assert "F1 (selection)" in text and "validation" not in text and "chosen" not in text
    assert text.count("\n") == 2 + 5 and "|   4 |      6,000 |   75.0% |  56.2% |                |" in text


def test_rows():
    table = make_table(chosen=4)
    assert [row.index for row in table.rows] == [1, 3, 2, 4, 0]
    assert [row.index for row in table.front] == [1, 3, 2, 0]
    assert table.chosen.index == 4 and table.chosen.metric is None and table.largest.index == 0
    assert make_table().chosen is None
    with pytest.raises(ValueError, match="The chosen trial is 5, but there are 5"):
        make_table(chosen=5)


def test_files_round_trip(tmp_path):
    table = make_table(chosen=2, reported={2: 0.85})
    table.to_json(tmp_path / "front.json")
    assert FrontTable.from_dict(json.loads((tmp_path / "front.json").read_text())) == table
    table.to_csv(tmp_path / "front.csv")
    rows = list(csv.DictReader((tmp_path / "front.csv").open()))
    assert [(row["index"], row["on_front"], row["chosen"], row["reported"]) for row in rows] == [
        ("1", "1", "0", ""), ("3", "1", "0", ""), ("2", "1", "1", "0.85"), ("4", "0", "0", ""), ("0", "1", "0", ""),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="Not a table of sub-networks"):
        FrontTable.from_dict({})


def test_plot_shows_every_row_the_front_and_the_marked_ones(tmp_path):
    figure_module = pytest.importorskip("matplotlib.figure")
    from hf_nas.report.plots import _draw

    table = make_table(chosen=2)
    axes = figure_module.Figure().add_subplot()
    _draw(axes, table, [row for row in table.rows if row.metric is not None])
    assert sorted(axes.collections[0].get_offsets()[:, 0]) == [25, 50, 62.5, 100]
    front, largest, chosen = axes.lines
    assert front.get_xydata().tolist() == [[25, 0.4], [50, 0.8], [62.5, 0.86], [100, 0.9]]
    assert largest.get_xydata().tolist() == [[100, 0.9]] and chosen.get_xydata().tolist() == [[62.5, 0.86]]
    assert [text.get_text() for text in axes.texts] == ["largest\n0.9000", "chosen\n62.5%, 0.8600"]
    assert axes.get_xlabel() == "share of encoder parameters (%)" and axes.get_ylabel() == "accuracy"

    plot_front(table, tmp_path / "plots" / "front.png")
    assert (tmp_path / "plots" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["front.png"]


def test_plot_without_anything_to_plot_or_to_plot_with_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="None of the 0 sub-networks has a value of accuracy"):
        plot_front(FrontTable((), "accuracy"), tmp_path / "front.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_front(make_table(), tmp_path / "front.png")
