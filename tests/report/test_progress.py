import csv
import itertools
import sys

import numpy as np
import pytest

from hf_nas.report import plots
from hf_nas.report.progress import SearchProgress
from hf_nas.search import Evaluated, SearchResult
from tests.search.problems import UnitsSpace


SUB_NETWORK = UnitsSpace(layers=2, units=4).largest


def make(costs, reference, rejected=(), seconds=0.5):
    trials = tuple(
        Evaluated(SUB_NETWORK, (3, 3), {}, tuple(map(float, point)), seconds, rejected=index in rejected)
        for index, point in enumerate(costs)
    )
    return SearchResult(trials, ("error", "size", "macs")[: len(reference)], tuple(map(float, reference)))


def cells(points, reference):
    """The hypervolume of points of whole numbers, by counting the unit cells that one of them dominates."""
    return sum(
        any(all(p <= corner for p, corner in zip(point, cell)) for point in points)
        for cell in itertools.product(*(range(bound) for bound in reference))
    )


def front(points):
    """Places of the points that no other one beats; of equal ones the first."""
    return {
        i
        for i, point in enumerate(points)
        if not any(
            all(a <= b for a, b in zip(other, point)) and (tuple(other) != tuple(point) or j < i)
            for j, other in enumerate(points)
            if j != i
        )
    }


@pytest.mark.parametrize("reference", [(8, 8), (5, 5, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_against_counting_cells(reference, seed):
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, max(reference) + 2, size=(30, len(reference))).tolist()
    rejected = set(rng.choice(30, 6, replace=False).tolist())
    progress = SearchProgress.of(make(costs, reference, rejected), shares=(0.1, 0.5, 1.0), sizes=(2, 4))
    assert len(progress.steps) == 30
    for count, step in enumerate(progress.steps, start=1):
        full = [i for i in range(count) if i not in rejected]
        points = [costs[i] for i in full]
        assert step.evaluations == count and step.seconds == pytest.approx(0.5 * count)
        assert step.hypervolume == cells(points, reference)
        assert step.front == len(front(points))
        assert step.best_errors == tuple(min((p[0] for p in points if p[1] <= size), default=None) for size in (2, 4))
    for kept, count in zip(progress.fronts, (3, 15, 30), strict=True):
        full = [i for i in range(count) if i not in rejected]
        assert kept.evaluations == count
        assert set(kept.indices) == {full[place] for place in front([costs[i] for i in full])}
        assert [list(point) for point in kept.costs] == [costs[i] for i in kept.indices]
        assert [point[0] for point in kept.costs] == sorted((point[0] for point in kept.costs), reverse=True)


def test_the_published_vector():
    costs = [(0.10, 1.0), (0.12, 0.7), (0.12, 0.7), (0.20, 0.5), (0.25, 0.6), (0.50, 0.2), (0.10, 1.1)]
    result = make(costs, (1, 1.2))
    progress = SearchProgress.of(result)
    assert progress.steps[-1].hypervolume == pytest.approx(0.754) == result.hypervolume
    assert progress.fronts[-1].indices == (5, 3, 1, 0)
    assert progress.steps[-1].best_errors == (0.5, 0.5, 0.2, 0.2, 0.12, 0.12, 0.12)
    assert progress.steps[0].best_errors == (None,) * 7


def test_a_rejected_trial_that_looks_better_than_all_changes_nothing():
    progress = SearchProgress.of(make([(0.5, 0.5), (0.0, 0.0), (0.4, 0.6)], (1, 1), rejected=(1,)), sizes=(0.7,))
    volumes = [step.hypervolume for step in progress.steps]
    assert volumes == pytest.approx([0.25, 0.25, 0.25 + 0.1 * 0.4])
    assert [step.best_errors for step in progress.steps] == [(0.5,), (0.5,), (0.4,)]
    assert progress.fronts[-1].indices == (0, 2)


def test_short_and_empty_searches_and_undefined_costs():
    progress = SearchProgress.of(make([(0.5, 0.5)], (1, 1)))
    assert [(kept.share, kept.evaluations) for kept in progress.fronts] == [(1.0, 1)]
    assert SearchProgress.of(make([], (1, 1))).steps == ()
    undefined = SearchProgress.of(make([(np.inf, 0.5)], (1, 1)), sizes=(0.6,))
    assert undefined.steps[0].hypervolume == 0 and undefined.steps[0].best_errors == (None,)
    assert undefined.fronts[0].indices == ()
    single = SearchProgress.of(make([(0.5,), (0.25,)], (1,)))
    assert [step.hypervolume for step in single.steps] == [0.5, 0.75] and single.sizes == ()


def test_bad_options():
    with pytest.raises(ValueError, match="after 1.5 of the evaluations"):
        SearchProgress.of(make([(0.5, 0.5)], (1, 1)), shares=(0.5, 1.5))
    with pytest.raises(ValueError, match="sizes hold nan"):
        SearchProgress.of(make([(0.5, 0.5)], (1, 1)), sizes=(float("nan"),))


def test_csv(tmp_path):
    result = make([(0.5, 0.5), (0.4, 0.2)], (1, 1))
    SearchProgress.of(result, sizes=(0.3, 0.5)).to_csv(tmp_path / "deep" / "progress.csv")
    rows = list(csv.reader((tmp_path / "deep" / "progress.csv").open()))
    assert rows[0] == [
        "evaluations", "seconds", "hypervolume", "front", "best_error_at_0.3", "best_error_at_0.5"
    ]  # fmt: skip
    assert rows[1] == ["1", "0.5", "0.25", "1", "", "0.5"]
    assert (
        rows[2][:2] == ["2", "1.0"] and float(rows[2][2]) == pytest.approx(0.48) and rows[2][3:] == ["1", "0.4", "0.4"]
    )


def test_plot(tmp_path):
    figure_module = pytest.importorskip("matplotlib.figure")
    costs = [(0.1, 1.0), (0.9, 0.1), (0.5, 0.5), (0.4, 0.4)]
    progress = SearchProgress.of(make(costs, (1, 1.05), seconds=45))
    left, right = figure_module.Figure().subplots(1, 2)
    plots._draw_hypervolume(left, progress)
    plots._draw_fronts(right, progress)
    curve = left.lines[0].get_xydata()
    assert curve[:, 0].tolist() == [1, 2, 3, 4] and curve[:, 1].tolist() == [s.hypervolume for s in progress.steps]
    labels = [text.get_text() for text in left.child_axes[0].get_xticklabels()]
    assert labels == ["45 s", "1.5 min", "2.25 min", "3 min"]
    # 10 and 25 percent of four evaluations are the same one.
    assert [line.get_label() for line in right.lines] == [
        "1 (25 %): size 1", "2 (50 %): size 2", "4 (100 %): size 3",
    ]  # fmt: skip
    assert right.lines[-1].get_xydata().tolist() == [[0.1, 0.9], [0.4, 0.4], [1.0, 0.1]]
    assert (right.get_xlabel(), right.get_ylabel()) == ("size", "error")

    plots.plot_progress(progress, tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]
    three = SearchProgress.of(make([(1, 1, 1), (0, 2, 2)], (3, 3, 3)))
    axes = figure_module.Figure().subplots()
    plots._draw_fronts(axes, three)
    assert axes.lines[-1].get_linestyle() == "None"


def test_nothing_to_plot_or_to_plot_with_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="A search of 0 evaluations"):
        plots.plot_progress(SearchProgress.of(make([], (1, 1))), tmp_path / "progress.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plots.plot_progress(SearchProgress.of(make([(0.5, 0.5)], (1, 1))), tmp_path / "progress.png")
    assert not list(tmp_path.iterdir())
