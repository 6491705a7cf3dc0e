"""The lines of a comparison, against means worked out here."""

import pytest

from hf_nas.report import SeriesPoint
from hf_nas.report.compare.series import series_of_fronts, series_of_settings


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
