"""What the page of a run shows, as plain values: everything that can be wrong is decided here, without a browser."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_nas.report.base_model import public_name
from hf_nas.report.data import FrontTable
from hf_nas.report.machine import describe_conditions
from hf_nas.report.progress import SearchProgress
from hf_nas.report.run_folder import RunFolder
from hf_nas.subnetwork import NORM_ONLY, SubNetwork, kept_ids


__all__ = ["Chart", "LayerPicture", "PageData", "Series", "SubLayerPicture", "draw_structure", "learning_curves"]

_KINDS = {"attention": "heads", "cross_attention": "cross-attention heads", "feed_forward": "neurons"}
# What Trainer logs beside what is learnt.
_NO_CURVES = ("epoch", "step", "total_flos", "_runtime", "_per_second", "_time", "_samples")
_TOGETHER = {
    "loss": "loss",
    "eval_loss": "loss",
    "expected_sparsity": "sparsity",
    "target_sparsity": "sparsity",
    "lambda_1": "multipliers",
    "lambda_2": "multipliers",
}
_LAST = ("learning_rate", "grad_norm")
_MOST_POINTS = 400


@dataclass(frozen=True)
class SubLayerPicture:
    """One sub-layer, as it is drawn.

    Args:
        kind: "heads", "cross-attention heads" or "neurons".
        total: units of the dense model.
        kept: ids of those that are left.
        note: in words what cannot be seen, such as that the sub-layer is gone.
    """

    kind: str
    total: int
    kept: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class LayerPicture:
    """One layer: its name and its sub-layers."""

    name: str
    sub_layers: tuple[SubLayerPicture, ...]


@dataclass(frozen=True)
class Series:
    """One line of a chart: pairs of x and y, by x."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """Lines over the same axis.

    Args:
        title: of the chart.
        x: label of the axis.
        series: one or more lines with points.
        steps: whether a value holds until the next one.
    """

    title: str
    x: str
    series: tuple[Series, ...]
    steps: bool = False


@dataclass(frozen=True)
class PageData:
    """All that the page of a run shows.

    Args:
        title: name of the run.
        facts: pairs of label and value, the most important ones first.
        front: evaluated sub-networks, if there was a search.
        hypervolume: of the front over the evaluations, if there was a search.
        structure: what the chosen model keeps, layer by layer.
        hidden: kept and all hidden dimensions, where some are gone.
        curves: what the trainings logged.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    front: FrontTable | None = None
    hypervolume: Chart | None = None
    structure: tuple[LayerPicture, ...] = ()
    hidden: int | None = None
    curves: tuple[Chart, ...] = ()

    @classmethod
    def of(cls, run: RunFolder) -> "PageData":
        """What there is to show of a run."""
        outcome = run.outcome
        return cls(
            title=run.name,
            facts=tuple(_facts(run)),
            front=None if outcome is None else outcome.table,
            hypervolume=None if outcome is None else _hypervolume(SearchProgress.of(outcome.result)),
            structure=() if run.sub_network is None else draw_structure(run.sub_network),
            hidden=None if run.sub_network is None or run.sub_network.hidden is None else len(run.sub_network.hidden),
            curves=tuple(chart for name, log in run.logs.items() for chart in learning_curves(name, log)),
        )


def draw_structure(sub_network: SubNetwork) -> tuple[LayerPicture, ...]:
    """The layers of a sub-network as they are drawn."""
    layers: dict[str, list[SubLayerPicture]] = {}
    for name, total, kept in zip(sub_network.names, sub_network.units, sub_network.kept):
        stack, layer, kind = name.split(".")
        note = "gone" if kept is None else "only its normalisation is left" if kept == NORM_ONLY else ""
        picture = SubLayerPicture(_KINDS.get(kind, kind), total, tuple(kept_ids(kept)), note)
        layers.setdefault(f"{stack} {layer}", []).append(picture)
    return tuple(LayerPicture(name, tuple(pictures)) for name, pictures in layers.items())


def learning_curves(training: str, log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The charts of what one training logged: losses together, and every other quantity for itself.

    Args:
        training: its name.
        log: `log_history` of Trainer, each entry with a `step`.
    """
    lines: dict[str, dict[float, float]] = {}
    for entry in log:
        step = entry.get("step")
        if not _is_number(step):
            continue
        for key, value in entry.items():
            # One summary at the end is no curve.
            if _is_number(value) and not key.startswith("train_") and not key.endswith(_NO_CURVES):
                lines.setdefault(key, {})[float(step)] = float(value)
    charts: dict[str, list[Series]] = {}
    for key, points in lines.items():
        if len(points) > 1:
            charts.setdefault(_TOGETHER.get(key, key), []).append(Series(key, _thinned(sorted(points.items()))))
    titles = sorted(charts, key=lambda title: next((i for i, name in enumerate(_LAST) if name == title), -1))
    titles.sort(key=lambda title: title != "loss")
    return [Chart(f"{training}: {title}", "step", tuple(charts[title])) for title in titles]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _thinned(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """At most so many points that a line needs: evenly chosen, the last one among them."""
    if len(points) <= _MOST_POINTS:
        return tuple(points)
    places = (round(place * (len(points) - 1) / (_MOST_POINTS - 1)) for place in range(_MOST_POINTS))
    return tuple(points[place] for place in places)


def _hypervolume(progress: SearchProgress) -> Chart | None:
    points = [(float(step.evaluations), step.hypervolume) for step in progress.steps]
    # The first evaluations, before both ends of the front are there, would flatten all that comes after them.
    points = [point for point in points if point[1] >= points[-1][1] / 2]
    if len(points) < 2:
        return None
    return Chart(
        "hypervolume of the front, from half of its last value on",
        "evaluations",
        (Series("hypervolume", tuple(points)),),
        steps=True,
    )


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    base = run.card.get("repository") or run.arguments.get("model_name_or_path")
    if base:
        facts.append(("Base model", public_name(str(base))))
    task = run.card.get("dataset") or run.arguments.get("task_name") or run.arguments.get("dataset_name")
    if task:
        facts.append(("Task", str(task)))
    facts += _facts_of_search(run) if run.outcome is not None else _facts_of_pruning(run)
    if run.profile is not None:
        facts += _facts_of_profile(run.profile)
    return facts


def _facts_of_search(run: RunFolder) -> list[tuple[str, str]]:
    table, result = run.outcome.table, run.outcome.result
    chosen, largest = table.chosen, table.largest
    facts = []
    if chosen is not None:
        share = f"{chosen.parameters:,} parameters, {chosen.parameters_share:.1%} of those in the layers"
        facts += [("Chosen sub-network", f"{chosen.index}: {share}, {chosen.macs_share:.1%} of the operations")]
        facts += _metric_facts(table, "selection", "metric")
        facts += _metric_facts(table, "validation", "reported")
    if largest is not None:
        facts.append(("Full network", f"{largest.parameters:,} parameters"))
    rejected = sum(trial.rejected for trial in result.trials)
    early = f", {rejected} of them given up early" if rejected else ""
    facts.append(("Search", f"{len(result.trials)} evaluations by {result.method} in the space {result.space}{early}"))
    facts.append(("Front", f"{len(result.pareto)} sub-networks, hypervolume {result.hypervolume:.4f}"))
    return facts


def _metric_facts(table: FrontTable, data: str, field: str) -> list[tuple[str, str]]:
    value, full = getattr(table.chosen, field), getattr(table.largest, field)
    if value is None:
        return []
    beside = "" if full is None else f" (largest {full:.4f})"
    return [(f"{table.metric_name} ({data})", f"{value:.4f}{beside}")]


def _facts_of_pruning(run: RunFolder) -> list[tuple[str, str]]:
    facts = []
    if {"parameters", "dense_parameters"} <= set(run.pruning):
        facts.append(("Parameters", f"{run.pruning['parameters']:,} of {run.pruning['dense_parameters']:,}"))
    if {"sparsity", "target", "budget"} <= set(run.pruning):
        text = f"{run.pruning['sparsity']:.4f} in {run.pruning['budget']} (target {run.pruning['target']:g})"
        facts.append(("Sparsity", text))
    if {"heads", "dense_heads"} <= set(run.pruning):
        facts.append(("Heads", f"{run.pruning['heads']} of {run.pruning['dense_heads']}"))
    facts += [(f"{name} (evaluation)", f"{value:.4f}") for name, value in run.metrics.items()]
    return facts


def _facts_of_profile(profile: Mapping[str, Any]) -> list[tuple[str, str]]:
    dense, small = profile["models"]
    if small["latency"] is None or dense["latency"] is None:
        return []
    text = f"{1e3 * small['latency']['median']:.2f} ms, dense {1e3 * dense['latency']['median']:.2f} ms"
    bound = small["speed_up_bound"]
    reached = f"; {bound:.2f}x by its operations, {small['share_of_bound']:.0%} of it reached" if bound else ""
    speed = f"{text}: {small['speed_up']:.2f}x{reached}"
    return [("Latency", speed), ("Measured", describe_conditions(profile))]
