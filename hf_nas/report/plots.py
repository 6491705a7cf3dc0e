"""Pictures of what `hf_nas.report.data` and `.progress` counted. matplotlib is needed only when one is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_nas.files import atomic_path
from hf_nas.report.data import FrontRow, FrontTable
from hf_nas.report.progress import ProgressFront, SearchProgress


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_front", "plot_progress"]

# Of the palette of Okabe and Ito, which people with any colour vision can tell apart; markers differ as well.
BLUE, VERMILION, GREY, INK = "#0072B2", "#D55E00", "#BBBBBB", "#333333"
_MARKERS = "ovs^D"
_LIGHTEST = 0.75
_RED_GREEN_BLUE = (0.0, 0x72 / 255, 0xB2 / 255)


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
    rows = [row for row in table.rows if row.metric is not None]
    if not rows:
        raise ValueError(
            f"None of the {len(table.rows)} sub-networks has a value of {table.metric_name}; evaluate one."
        )

    figure = new_figure(width=7)
    _draw(figure.add_subplot(), table, rows)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def plot_progress(progress: SearchProgress, path: str | Path) -> None:
    """Draw how a search got on, and write the picture atomically.

    On the left the hypervolume over the evaluations, with their summed time above; on the right the fronts after
    growing shares of the evaluations, the later the darker, by the first two objectives.

    Args:
        progress: the numbers.
        path: of the picture; its suffix says the format, e.g. `progress.png`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no evaluation or only one objective.
    """
    if not progress.steps or len(progress.objectives) < 2:
        raise ValueError(
            f"A search of {len(progress.steps)} evaluations and {len(progress.objectives)} objectives has no progress "
            "to draw; it needs one evaluation and two objectives."
        )
    figure = new_figure(width=10)
    left, right = figure.subplots(1, 2)
    _draw_hypervolume(left, progress)
    _draw_fronts(right, progress)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def new_figure(width: float, height: float = 4.4) -> "Figure":
    """A figure of its own, not pyplot's: it needs no display and leaves the user's backend and figures alone."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("A plot needs matplotlib, which is not installed; run `pip install matplotlib`.") from error
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_hypervolume(axes: "Axes", progress: SearchProgress) -> None:
    steps = progress.steps
    points = [(step.evaluations, step.hypervolume) for step in steps]
    axes.plot(*zip(*points), color=BLUE, linewidth=1.6, drawstyle="steps-post")
    axes.plot(*points[-1], linestyle="", marker="o", markersize=4.5, color=BLUE)
    axes.set_xlabel("evaluations")
    axes.set_ylabel("hypervolume")
    tidy(axes)
    marks = sorted({max(1, round(len(steps) * quarter / 4)) for quarter in range(1, 5)})
    top = axes.secondary_xaxis("top")
    top.set_xticks(marks, [_duration(steps[mark - 1].seconds) for mark in marks], fontsize="small", color=INK)
    top.set_xlabel("time of the evaluations", fontsize="small", color=INK)
    top.spines["top"].set_visible(False)
    top.tick_params(length=0)


def _draw_fronts(axes: "Axes", progress: SearchProgress) -> None:
    fronts = [front for front in progress.fronts if front.indices]
    # More than two objectives have no line: what is on the front need not be on that of the two.
    line = "-" if len(progress.objectives) == 2 else ""
    for place, front in enumerate(fronts):
        axes.plot(
            *zip(*((costs[1], costs[0]) for costs in front.costs)),
            color=_shade(place + 1, len(fronts)),
            linestyle=line,
            linewidth=1.4,
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4,
            label=_front_label(front),
        )
    axes.set_xlabel(progress.objectives[1])
    axes.set_ylabel(progress.objectives[0])
    tidy(axes)
    if fronts:
        axes.legend(
            frameon=False, loc="upper right", fontsize="small", title="front after evaluations", title_fontsize="small"
        )


def _front_label(front: ProgressFront) -> str:
    return f"{front.evaluations} ({100 * front.share:g} %): size {len(front.indices)}"


def _shade(place: int, count: int) -> tuple[float, float, float]:
    """The blue of the last of so many fronts, and lighter ones of those before."""
    white = _LIGHTEST * (1 - place / count)
    return tuple(part + (1 - part) * white for part in _RED_GREEN_BLUE)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.3g} h"


def tidy(axes: "Axes") -> None:
    """A light grid below the data and no frame on the far sides."""
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _position(row: FrontRow) -> tuple[float, float]:
    return 100 * row.parameters_share, row.metric


def _draw(axes: "Axes", table: FrontTable, rows: list[FrontRow]) -> None:
    axes.scatter(*zip(*map(_position, rows)), s=16, color=GREY, linewidths=0, label=f"evaluated ({len(rows)})")
    front = [_position(row) for row in table.front if row.metric is not None]
    if front:
        label = f"Pareto front ({len(front)})"
        axes.plot(*zip(*front), color=BLUE, linewidth=1.6, marker="o", markersize=4.5, label=label)
    # More parameters lie to the right and better networks above, or below where a lower metric is better.
    below = -1 if table.greater_is_better else 1
    largest, chosen = table.largest, table.chosen
    if largest is not None and largest.metric is not None:
        axes.plot(*_position(largest), linestyle="", marker="s", markersize=8, color=INK, markerfacecolor="none")
        _label(axes, largest, f"largest\n{largest.metric:.4f}", INK, (4, below * 10), "right")
    if chosen is not None and chosen.metric is not None:
        axes.plot(*_position(chosen), linestyle="", marker="*", markersize=15, color=VERMILION)
        text = f"chosen\n{100 * chosen.parameters_share:.1f}%, {chosen.metric:.4f}"
        # Nothing is smaller and better than a point of the front: that corner is free, but narrow at the left edge.
        shares = [row.parameters_share for row in rows]
        if chosen.parameters_share > min(shares) + 0.15 * (max(shares) - min(shares)):
            _label(axes, chosen, text, VERMILION, (-6, -below * 8), "right")
        else:
            _label(axes, chosen, text, VERMILION, (10, below * 10), "left")
    axes.set_xlabel("share of encoder parameters (%)")
    axes.set_ylabel(table.metric_name)
    tidy(axes)
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
