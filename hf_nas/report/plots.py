"""Pictures of what `hf_nas.report.data` counted. matplotlib is needed only when one is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_nas.files import atomic_path
from hf_nas.report.data import FrontRow, FrontTable


if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_front"]

# Of the palette of Okabe and Ito, which people with any colour vision can tell apart; markers differ as well.
_BLUE, _VERMILION, _GREY, _INK = "#0072B2", "#D55E00", "#BBBBBB", "#333333"


def plot_front(table: FrontTable, path: str | Path) -> None:
    """Draw the evaluated sub-networks and their Pareto front, and write the picture atomically.

    Every evaluated sub-network is a light dot; the front a line with markers; the chosen and the largest one are
    marked and labelled.

    Args:
        table: the numbers.
        path: of the picture; its suffix says the format, e.g. `front.png`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if no sub-network has a metric.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("A plot needs matplotlib, which is not installed; run `pip install matplotlib`.") from error
    rows = [row for row in table.rows if row.metric is not None]
    if not rows:
        raise ValueError(
            f"None of the {len(table.rows)} sub-networks has a value of {table.metric_name}; evaluate one."
        )

    # A figure of its own, not pyplot's: it needs no display and leaves the user's backend and figures alone.
    figure = Figure(figsize=(7, 4.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, table, rows)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _position(row: FrontRow) -> tuple[float, float]:
    return 100 * row.parameters_share, row.metric


def _draw(axes: "Axes", table: FrontTable, rows: list[FrontRow]) -> None:
    axes.scatter(*zip(*map(_position, rows)), s=16, color=_GREY, linewidths=0, label=f"evaluated ({len(rows)})")
    front = [_position(row) for row in table.front if row.metric is not None]
    if front:
        label = f"Pareto front ({len(front)})"
        axes.plot(*zip(*front), color=_BLUE, linewidth=1.6, marker="o", markersize=4.5, label=label)
    # More parameters lie to the right and better networks above, or below where a lower metric is better.
    below = -1 if table.greater_is_better else 1
    largest, chosen = table.largest, table.chosen
    if largest is not None and largest.metric is not None:
        axes.plot(*_position(largest), linestyle="", marker="s", markersize=8, color=_INK, markerfacecolor="none")
        _label(axes, largest, f"largest\n{largest.metric:.4f}", _INK, (4, below * 10), "right")
    if chosen is not None and chosen.metric is not None:
        axes.plot(*_position(chosen), linestyle="", marker="*", markersize=15, color=_VERMILION)
        text = f"chosen\n{100 * chosen.parameters_share:.1f}%, {chosen.metric:.4f}"
        # Nothing is smaller and better than a point of the front: that corner is free, but narrow at the left edge.
        shares = [row.parameters_share for row in rows]
        if chosen.parameters_share > min(shares) + 0.15 * (max(shares) - min(shares)):
            _label(axes, chosen, text, _VERMILION, (-6, -below * 8), "right")
        else:
            _label(axes, chosen, text, _VERMILION, (10, below * 10), "left")
    axes.set_xlabel("share of encoder parameters (%)")
    axes.set_ylabel(table.metric_name)
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right" if table.greater_is_better else "upper right", fontsize="small")


def _label(axes: "Axes", row: FrontRow, text: str, color: str, offset: tuple[int, int], side: str) -> None:
    from matplotlib.patheffects import withStroke

    axes.annotate(
        text,
        _position(row),
        xytext=offset,
        textcoords="offset points",
        color=color,
        fontsize="small",
        horizontalalignment=side,
        verticalalignment="top" if offset[1] < 0 else "bottom",
        # A white rim keeps it readable where it covers dots.
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )
