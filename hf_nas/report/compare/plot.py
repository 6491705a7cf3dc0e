"""The picture of a comparison: score against heads, parameters and operations, all methods on one page."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_nas.files import atomic_path
from hf_nas.report.compare.comparison import AXES, Comparison
from hf_nas.report.compare.series import Series
from hf_nas.report.plots import INK, new_figure, tidy


if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_comparison"]

# Of the palette of Okabe and Ito, without its yellow, which is hard to see on white; markers differ as well.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_BAND, _FAINT = 0.16, 0.45
_GIGA = 1e9


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """Draw a comparison and write the picture atomically.

    Three panels with the same scores: over heads, parameters and operations, with the share of the dense model above.
    A line is the mean of the runs of a label, its band their range; the dashed line is the dense model.

    Args:
        comparison: the numbers.
        path: of the picture; its suffix says the format, e.g. `comparison.png`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure = new_figure(width=13)
    panels = figure.subplots(1, len(AXES), sharey=True)
    for axes, axis in zip(panels, AXES):
        _draw(axes, comparison, axis)
    panels[0].set_ylabel(comparison.metric_name + ("" if comparison.greater_is_better else " (smaller is better)"))
    if comparison.task is not None:
        figure.suptitle(comparison.task)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw(axes: "Axes", comparison: Comparison, axis: str) -> None:
    dense = comparison.dense
    full, (scale, title) = getattr(dense, axis), _unit(comparison, axis)
    if dense.metrics:
        runs = f" ({len(dense.metrics)} runs)" if len(dense.metrics) > 1 else ""
        axes.axhline(dense.mean, color=INK, linestyle="--", linewidth=1, label=f"dense: {dense.mean:.4g}{runs}")
        axes.axhspan(min(dense.metrics), max(dense.metrics), color=INK, alpha=_BAND / 2, linewidth=0)
    for place, series in enumerate(comparison.series(axis)):
        _draw_series(axes, series, scale, _COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)])
    axes.set_xlabel(title)
    tidy(axes)
    if full:
        top = axes.secondary_xaxis(
            "top", functions=(lambda size: 100 * size * scale / full, lambda s: s * full / scale / 100)
        )
        top.set_xlabel("share of the dense model (%)", fontsize="small")
        top.tick_params(labelsize="small", length=2)
        top.spines["top"].set_visible(False)


def _draw_series(axes: "Axes", series: Series, scale: float, color: str, marker: str) -> None:
    """One line with its band, and the single models where the line does not go through them."""
    sizes = [point.size / scale for point in series.points]
    if series.has_band or len(series.points) < len(series.models):
        models = [(size / scale, score) for size, score in series.models]
        axes.scatter(*zip(*models), s=9, color=color, alpha=_FAINT, linewidths=0)
    lowest, highest = ([getattr(point, name) for point in series.points] for name in ("lowest", "highest"))
    if len(sizes) == 1:  # which has no width to fill
        axes.vlines(sizes, lowest, highest, color=color, alpha=_FAINT, linewidth=4)
    elif series.has_band:
        axes.fill_between(sizes, lowest, highest, color=color, alpha=_BAND, linewidth=0)
    means = [point.mean for point in series.points]
    axes.plot(sizes, means, color=color, marker=marker, markersize=4.5, linewidth=1.5, label=series.label)


def _unit(comparison: Comparison, axis: str) -> tuple[float, str]:
    """By what sizes are divided, and the title of the axis."""
    dense = comparison.dense
    if axis == "heads":
        return 1, f"attention heads kept (of {dense.heads})"
    if axis == "parameters":
        return 1e6, f"parameters (millions; dense {dense.parameters / 1e6:.4g})"
    scale, word = (_GIGA, "billions") if dense.macs >= 10 * _GIGA else (1e6, "millions")
    return scale, f"MACs for {comparison.sequence_length} tokens ({word}; dense {dense.macs / scale:.4g})"
