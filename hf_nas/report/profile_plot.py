"""The picture of a profile: what models hold and how long they take, beside what their operations allow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_nas.files import atomic_path
from hf_nas.report.plots import BLUE, GREY, INK, VERMILION, new_figure, tidy


if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_profile"]

_LONGEST_NAME = 28
# From the embeddings inwards, by the definitions whose differences they are.
_PARTS = (("embeddings", GREY), ("layers", BLUE), ("pooler and head", INK))


def plot_profile(profile: Mapping[str, Any], path: str | Path) -> None:
    """Draw parameters and latency of the models of a profile, and write the picture atomically.

    On the left the parameters by part of the model; on the right the median latency with its quartiles, and for each
    model the latency that its share of the first one's operations would allow.

    Args:
        profile: what [`hf_nas.report.profile_models`] returned.
        path: of the picture; its suffix says the format, e.g. `profile.png`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    rows = profile["models"]
    figure = new_figure(width=10, height=1.8 + 0.5 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_parameters(left, rows)
    _draw_latency(right, rows)
    left.set_yticks(range(len(rows)), [_short(row["model"]) for row in rows])
    left.invert_yaxis()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _short(name: str) -> str:
    """The end of a long name, which tells folders apart; no `$`, which matplotlib reads as a formula."""
    name = name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
    return name.replace("$", r"\$")


def _draw_parameters(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    labels = set()
    for place, row in enumerate(rows):
        sizes, start = row["parameters"], 0.0
        if sizes["layers"] is None:
            parts = [("all", sizes["all"], VERMILION)]
        else:
            counts = (
                sizes["all"] - sizes["layers_and_head"], sizes["layers"], sizes["layers_and_head"] - sizes["layers"]
            )  # fmt: skip
            parts = [(name, count, color) for (name, color), count in zip(_PARTS, counts)]
        for name, count, color in parts:
            label = None if name in labels else name
            axes.barh(place, count / 1e6, left=start, height=0.55, color=color, label=label)
            labels.add(name)
            start += count / 1e6
    axes.set_xlabel("parameters (million)")
    tidy(axes)
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def _draw_latency(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    first = rows[0]["latency"]
    for place, row in enumerate(rows):
        latency = row["latency"]
        if latency is None:
            axes.text(0, place, " not measured", verticalalignment="center", fontsize="small", color=INK)
            continue
        lower, upper = (1e3 * seconds for seconds in latency["quartiles"])
        median = 1e3 * latency["median"]
        axes.barh(place, median, height=0.55, color=BLUE, alpha=0.85, label="measured" if place == 0 else None)
        axes.plot((lower, upper), (place, place), color=INK, linewidth=1.4)
        if first is not None and row["speed_up_bound"]:
            bound = 1e3 * first["median"] / row["speed_up_bound"]
            label = "what its operations allow" if place == 0 else None
            axes.plot((bound, bound), (place - 0.38, place + 0.38), color=VERMILION, linewidth=2, label=label)
    axes.set_xlabel("latency (ms)")
    tidy(axes)
    axes.grid(axis="y", visible=False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
