"""Charts as inline SVG: colours come from classes, so that the page's light and dark scheme apply to them too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hf_nas.report.data import FrontRow, FrontTable
from hf_nas.report.page.data import Chart


__all__ = ["draw_chart", "draw_front", "nice_ticks"]

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 48
_SERIES_CLASSES = 6


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two bounds, at most so many and at least one.

    Args:
        low: the lower bound.
        high: the upper bound, not below it.
        most: number of them.
    """
    if not high > low:
        return [low]
    raw = (high - low) / most
    size = 10 ** math.floor(math.log10(raw))
    step = next((factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw), 10 * size)
    first = math.ceil(low / step - 1e-9)
    ticks = [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]
    return ticks or [low]


@dataclass(frozen=True)
class _Axes:
    """From numbers to places in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = _WIDTH
    height: int = _HEIGHT

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]], width: int, height: int) -> "_Axes":
        xs, ys = zip(*points)
        return cls(_padded(min(xs), max(xs)), _padded(min(ys), max(ys)), width, height)

    def place(self, x: float, y: float) -> tuple[float, float]:
        inner_width, inner_height = self.width - _LEFT - _RIGHT, self.height - _TOP - _BOTTOM
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return round(_LEFT + across * inner_width, 2), round(self.height - _BOTTOM - up * inner_height, 2)

    def draw(self, x_label: str, y_label: str) -> str:
        """Grid, ticks and labels."""
        bottom = self.height - _BOTTOM
        parts = []
        for tick in nice_ticks(*self.x):
            x, _ = self.place(tick, self.y[0])
            parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}"/>')
            parts.append(f'<text class="tick" x="{x}" y="{bottom + 16}" text-anchor="middle">{_short(tick)}</text>')
        for tick in nice_ticks(*self.y):
            _, y = self.place(self.x[0], tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{_short(tick)}</text>')
        middle = (_LEFT + self.width - _RIGHT) / 2
        parts.append(
            f'<text class="label" x="{middle}" y="{self.height - 8}" text-anchor="middle">{escape(x_label)}</text>'
        )
        half = self.height / 2
        parts.append(
            f'<text class="label" x="14" y="{half}" text-anchor="middle" transform="rotate(-90 14 {half})">'
            f"{escape(y_label)}</text>"
        )
        return "".join(parts)


def _padded(low: float, high: float) -> tuple[float, float]:
    """A little room at both ends, and some where all numbers are the same."""
    room = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def _short(number: float) -> str:
    return f"{number:g}".replace("-", "\N{MINUS SIGN}", 1) if abs(number) < 1e5 else f"{number:.3g}"


def _svg(title: str, content: str, width: int, height: int, role: str) -> str:
    # A group keeps its points reachable for a screen reader; to it an image is one thing.
    return (
        f'<svg viewBox="0 0 {width} {height}" role="{role}" aria-label="{escape(title)}" '
        f'preserveAspectRatio="xMidYMid meet">{content}</svg>'
    )


def draw_chart(chart: Chart, width: int = 420, height: int = 250) -> str:
    """Lines with a legend, where there are several.

    Args:
        chart: at least one line with a point.
        width: of the picture, in units of its own.
        height: likewise.
    """
    axes = _Axes.around([point for series in chart.series for point in series.points], width, height)
    parts = [axes.draw(chart.x, chart.title if len(chart.series) > 1 else chart.series[0].name)]
    for number, series in enumerate(chart.series):
        name = f"series s{number % _SERIES_CLASSES}"
        places = [axes.place(*point) for point in series.points]
        parts.append(f'<polyline class="{name}" points="{_line(places, chart.steps)}"/>')
        x, y = series.points[-1]
        tip = f"{series.name}: {_short(y)} at {chart.x} {_short(x)}"
        parts.append(_point(places[-1], 3.5, f"{name} dot", tip, is_stop=True))
        if len(chart.series) > 1:
            top = _TOP + 12 + 14 * number
            parts.append(f'<line class="{name}" x1="{width - 150}" x2="{width - 132}" y1="{top - 4}" y2="{top - 4}"/>')
            parts.append(f'<text class="tick" x="{width - 126}" y="{top}">{escape(series.name)}</text>')
    return _svg(chart.title, "".join(parts), width, height, "group")


def _line(places: Sequence[tuple[float, float]], steps: bool) -> str:
    points = []
    for place, (x, y) in enumerate(places):
        if steps and place:
            points.append(f"{x},{places[place - 1][1]}")
        points.append(f"{x},{y}")
    return " ".join(points)


def _point(place: tuple[float, float], radius: float, name: str, tip: str, is_stop: bool) -> str:
    x, y = place
    # Only what matters is a stop of the tabulator; the table has the rest.
    stop = ' tabindex="0"' if is_stop else ""
    text = escape(tip)
    return (
        f'<circle class="{name}" cx="{x}" cy="{y}" r="{radius:g}" role="img" aria-label="{text}" data-tip="{text}"'
        f"{stop}/>"
    )


def draw_front(table: FrontTable) -> str:
    """Every evaluated sub-network by the size of its layers and its metric; the front, the chosen and the largest one.

    Args:
        table: the numbers.

    Returns:
        The picture; an empty text if no sub-network has a metric.
    """
    rows = [row for row in table.rows if row.metric is not None]
    if not rows:
        return ""
    axes = _Axes.around([_position(row) for row in rows], _WIDTH, _HEIGHT)
    parts = [axes.draw("share of the parameters in the layers (%)", f"{table.metric_name} (selection)")]
    front = [axes.place(*_position(row)) for row in table.front if row.metric is not None]
    if len(front) > 1:
        parts.append(f'<polyline class="series s0" points="{_line(front, steps=False)}"/>')
    # What matters is drawn last, on top.
    for row in sorted(rows, key=lambda row: (row.chosen, row is table.largest, row.on_front, row.parameters_share)):
        name, radius = _look(row, table)
        is_stop = row.on_front or row.chosen or row is table.largest
        parts.append(_point(axes.place(*_position(row)), radius, name, describe_row(row, table), is_stop))
    return _svg("Metric against size of all sub-networks", "".join(parts), _WIDTH, _HEIGHT, "group")


def _position(row: FrontRow) -> tuple[float, float]:
    return 100 * row.parameters_share, row.metric


def _look(row: FrontRow, table: FrontTable) -> tuple[str, float]:
    if row.chosen:
        return "chosen", 7
    if row is table.largest:
        return "largest", 6
    return ("front", 4.5) if row.on_front else ("evaluated", 3.5)


def describe_row(row: FrontRow, table: FrontTable) -> str:
    """One sub-network in a sentence, for the one who points at it or hears it."""
    roles = [("chosen", row.chosen), ("largest", row is table.largest), ("on the front", row.on_front)]
    role = ", ".join(name for name, is_so in roles if is_so)
    text = f"Sub-network {row.index}{f' ({role})' if role else ''}: {row.parameters:,} parameters, "
    text += f"{row.parameters_share:.1%} of those in the layers, {row.macs_share:.1%} of the operations"
    if row.metric is not None:
        text += f", {table.metric_name} {row.metric:.4f} (selection)"
    if row.reported is not None:
        text += f", {row.reported:.4f} (validation)"
    return text
