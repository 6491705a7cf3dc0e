"""The picture of a comparison has the numbers of it."""

import pytest

from hf_nas.report import ComparedModel, DenseModel, Series, plot_comparison
from tests.report.compare.runs import make_page


figures = pytest.importorskip("matplotlib.figure")


def test_the_picture_has_the_numbers(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, path: drawn.append(figure))
    plot_comparison(make_page(), tmp_path / "page.png")
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
    plot_comparison(make_page(task=None, greater_is_better=False), tmp_path / "plots" / "page.png")
    assert (tmp_path / "plots" / "page.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["page.png"]


def test_lines_without_a_common_size_and_without_a_dense_model_are_drawn(tmp_path) -> None:
    rows = tuple(
        ComparedModel(**{**vars(row), "setting": None, "folder": str(place)})
        for place, row in enumerate(make_page().rows[:3])
    )
    page = make_page(rows=rows, dense=DenseModel(10, 2_000_000, 20_000_000_000, ()))
    assert page.series("heads") == (Series("dsp", (), ((8, 0.8), (8, 0.7), (4, 0.6))),)
    plot_comparison(page, tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 0
    assert "dense" not in page.to_markdown()
