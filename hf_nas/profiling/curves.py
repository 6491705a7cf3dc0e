"""What a sub-layer costs by its width."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import isotonic_regression

from hf_nas.profiling.probes import LatencyPlan, own_bias_kinds
from hf_nas.subnetwork import NORM_ONLY, SubNetwork


__all__ = ["Curve", "fit_curves"]


@dataclass(frozen=True)
class Curve:
    """What one sub-layer of a kind costs, by the number of its units.

    Args:
        counts: numbers of units that were measured, ascending.
        seconds: of each, never falling; in between the cost is linear.
        norm_only: seconds of one of which only the normalisation is left; None where there is no such thing.
        own_bias: seconds more, if it computes a relative position bias of its own.
    """

    counts: tuple[int, ...]
    seconds: tuple[float, ...]
    norm_only: float | None = None
    own_bias: float = 0.0

    def __call__(self, count: int) -> float:
        """Seconds with this many units."""
        return float(np.interp(count, self.counts, self.seconds))

    def scaled(self, factor: float) -> "Curve":
        """The same shape, every cost times `factor`."""
        norm_only = None if self.norm_only is None else self.norm_only * factor
        seconds = tuple(float(value * factor) for value in self.seconds)
        return Curve(self.counts, seconds, norm_only, self.own_bias * factor)


def fit_curves(plan: LatencyPlan, measured: Mapping[SubNetwork, float]) -> dict[str, Curve]:
    """Seconds by number of units, from networks in which all sub-layers are of one kind and equally wide."""
    constant = measured[plan.empty]
    points: dict[str, dict[int, float]] = {}
    norms: dict[str, float] = {}
    for probe in plan.probes:
        seconds = (measured[probe.sub_network] - constant) / probe.live
        if probe.kept == NORM_ONLY:
            norms[probe.kind] = max(seconds, 0.0)
        else:
            points.setdefault(probe.kind, {})[probe.kept] = seconds
    curves = {}
    for kind in {**points, **norms}:
        counts = sorted(points.get(kind, {}))
        seconds = isotonic_regression([points[kind][count] for count in counts]).x if counts else ()
        curve = Curve(tuple(counts), tuple(max(float(value), 0.0) for value in seconds), norms.get(kind))
        curves[kind] = _without_own_bias(curve, kind, plan, measured) if kind in plan.own_bias_probes else curve
    return curves


def _without_own_bias(curve: Curve, kind: str, plan: LatencyPlan, measured: Mapping[SubNetwork, float]) -> Curve:
    """The curve of attentions that share a position bias, with the cost of one for each beside it."""
    probe = plan.own_bias_probes[kind]
    head = curve(probe.units) - curve(probe.units - 1)
    own_bias = max((measured[probe.own] - measured[probe.shared] + head) / probe.live, 0.0)
    # Alone in their layers the attentions of a decoder cannot share it.
    included = {
        each.kept
        for each in plan.probes
        if each.kind == kind and kind in own_bias_kinds(plan.structure, each.sub_network)
    } - {0}
    seconds = [max(s - own_bias * (count in included), 0.0) for count, s in zip(curve.counts, curve.seconds)]
    return replace(curve, seconds=tuple(float(s) for s in isotonic_regression(seconds).x), own_bias=own_bias)
