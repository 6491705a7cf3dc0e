"""The latency of sub-networks, predicted from measurements of a few dozen."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear
from transformers import PreTrainedModel

from hf_nas.files import write_json
from hf_nas.profiling.curves import Curve, fit_curves
from hf_nas.profiling.latency import Clock, levelled_medians, measure_latencies
from hf_nas.profiling.machine import describe_machine
from hf_nas.profiling.probes import LatencyPlan, kind_of, most_units, own_bias_kinds, shrink
from hf_nas.structures import ModelStructure, describe
from hf_nas.subnetwork import NORM_ONLY, SubNetwork


__all__ = ["LatencyError", "LatencyTable"]

logger = logging.getLogger(__name__)

_FORMAT = "hf_nas.latency_table/1"
# What is known of the correction before it is fitted, as standard deviations: how far a measurement is off; how far
# constant and curves are; how much more or less than alone a sub-layer costs beside others of its layer; and the share
# of the cheapest sub-layer that two of one layer have in common. With them a handful of networks is enough.
_NOISE = 0.03
_CONSTANT = 0.1
_CURVE = 0.03
_COMPANY = 0.05
_SHARED = 1.0
# A factor outside of this is not a correction but a measurement gone wrong; the bounds keep curves positive.
_LOWEST, _HIGHEST = -0.5, 1.0


@dataclass(frozen=True)
class LatencyError:
    """How far the table is off for one network.

    Args:
        sub_network: the network.
        predicted: seconds by the table.
        measured: seconds of its model.
        full_predicted: seconds of the full network by the table.
        full_measured: seconds of the full model, measured in turns with it.
    """

    sub_network: SubNetwork
    predicted: float
    measured: float
    full_predicted: float
    full_measured: float

    @property
    def error(self) -> float:
        """The error of the seconds as a fraction of the measured ones; it holds a change of the machine's speed."""
        return self.predicted / self.measured - 1

    @property
    def error_of_ratio(self) -> float:
        """The error of the latency relative to the full network's, which is what a search minimises."""
        return (self.predicted / self.full_predicted) / (self.measured / self.full_measured) - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "sub_network": self.sub_network.to_dict(),
            "predicted": self.predicted,
            "measured": self.measured,
            "error": self.error,
            "error_of_ratio": self.error_of_ratio,
        }


class LatencyTable:
    """Predicts the latency of every sub-network of one model, without running it.

    It adds up a constant for embeddings and head and what each sub-layer costs by its number of units, measured on
    models with sub-layers of a single kind. What such sums miss is fitted on whole networks of different depths and
    widths: every sub-layer of a layer after its first saves a few microseconds, and those that are not alone in their
    layer cost a little more or less. (Puzzle, arXiv:2411.19146, searches with such sums uncorrected.)

    Args:
        structure: of the model.
        constant: seconds of a network without layers.
        shared: seconds saved by every sub-layer of a layer after its first.
        company: what a sub-layer that is not alone in its layer costs more, as a fraction.
        curves: by kind of sub-layer, e.g. `"encoder.attention"`.
        settings: what was measured: `batch_size`, `sequence_length`, `decoder_length` and the `machine`.

    Raises:
        ValueError: if a kind has no curve.
    """

    def __init__(
        self,
        structure: ModelStructure,
        constant: float,
        shared: float,
        company: float,
        curves: Mapping[str, Curve],
        settings: Mapping[str, Any],
    ):
        self.structure = structure
        self.constant = constant
        self.shared = shared
        self.company = company
        self.curves = dict(curves)
        self.settings = dict(settings)
        self._full = SubNetwork.full(structure)
        self._kinds = [kind_of(sub_layer) for sub_layer in structure]
        self._layers = [(sub_layer.stack, sub_layer.layer) for sub_layer in structure]
        self._has_position_bias = any(sub_layer.layout.position_bias for sub_layer in structure)
        most = most_units(structure)
        if missing := set(most) - set(curves):
            raise ValueError(
                f"This latency table has no curve for {sorted(missing)[0]!r}; measure one of this "
                f"{structure.model_type} model."
            )
        # Looked up instead of interpolated, since a search predicts thousands.
        self._seconds = {
            kind: [self.curves[kind](count) for count in range(units + 1)] if self.curves[kind].counts else []
            for kind, units in most.items()
        }

    @classmethod
    def measure(
        cls,
        model: PreTrainedModel,
        batch_size: int = 1,
        sequence_length: int = 128,
        *,
        decoder_length: int | None = None,
        widths: int | Mapping[str, Sequence[int]] = 8,
        num_networks: int = 12,
        repeats: int = 10,
        seed: int = 0,
        clock: Clock = time.perf_counter,
        progress: bool = True,
    ) -> "LatencyTable":
        """Measure a model where it is.

        A few dozen cut-down models are held at once; what is not cut they share with the model.

        Args:
            model: without a super-network attached.
            batch_size: sequences of a pass.
            sequence_length: tokens of a sequence, of the encoder if there is one.
            decoder_length: tokens of the decoder of an encoder-decoder, by default the same.
            widths: how many widths of each kind of sub-layer are measured, or by kind (`"encoder.feed_forward"`)
                which: those of the search space, on a device whose time jumps between them.
            num_networks: whole networks on which the correction is fitted.
            repeats: rounds of measurements, of which the median counts.
            seed: of the choice of these networks.
            clock: see [`hf_nas.profiling.measure_latencies`].
            progress: show a bar.

        Raises:
            ValueError: if a super-network is attached, or the sizes do not fit the model.
        """
        plan = LatencyPlan.of(describe(model), widths=widths, num_networks=num_networks, seed=seed)
        latencies = measure_latencies(
            [shrink(model, sub_network) for sub_network in plan.sub_networks],
            batch_size=batch_size,
            sequence_length=sequence_length,
            decoder_length=decoder_length,
            repeats=repeats,
            clock=clock,
            description="Latency table" if progress else None,
        )
        settings = {
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "decoder_length": decoder_length,
            "machine": describe_machine(model),
        }
        table = cls.fit(plan, levelled_medians(latencies), settings)
        spread = float(np.median([latency.spread for latency in latencies]))
        logger.info("The latency table was fitted to %d networks (spread %.1f %%).", len(latencies), 100 * spread)
        return table

    @classmethod
    def fit(cls, plan: LatencyPlan, seconds: Sequence[float], settings: Mapping[str, Any]) -> "LatencyTable":
        """Make a table of measurements, by whatever engine.

        Args:
            plan: what was measured.
            seconds: of each of `plan.sub_networks`.
            settings: with what; `batch_size`, `sequence_length`, `decoder_length` and `machine`.

        Raises:
            ValueError: if there are not as many measurements as networks, or one is not positive.
        """
        seconds = [float(value) for value in seconds]
        if len(seconds) != len(plan.sub_networks):
            raise ValueError(
                f"{len(seconds)} measurements are given for {len(plan.sub_networks)} networks; give one each."
            )
        if wrong := [value for value in seconds if not 0 < value < float("inf")]:
            raise ValueError(f"A measurement is {wrong[0]} seconds; give positive, finite times.")
        measured = dict(zip(plan.sub_networks, seconds))
        constant = measured[plan.empty]
        table = cls(plan.structure, constant, 0.0, 0.0, fit_curves(plan, measured), settings)
        return table._corrected(measured)

    def _parts(self, sub_network: SubNetwork) -> tuple[dict[str, float], float, int]:
        """Seconds by kind of sub-layer, those of sub-layers that are not alone in their layer, and the number of
        sub-layers that are not the first of their layer."""
        own = own_bias_kinds(self.structure, sub_network) if self._has_position_bias else ()
        totals = dict.fromkeys(self.curves, 0.0)
        layers: dict[tuple[str, int], list[float]] = {}
        for index, kept in enumerate(sub_network.kept):
            if kept is None:
                continue
            kind = self._kinds[index]
            if kept == NORM_ONLY:
                seconds = self.curves[kind].norm_only or 0.0
            else:
                count = kept if isinstance(kept, int) else len(kept)
                seconds = self._seconds[kind][count]
                if kind in own and count:
                    seconds += self.curves[kind].own_bias
            totals[kind] += seconds
            layers.setdefault(self._layers[index], []).append(seconds)
        together = sum(sum(seconds) for seconds in layers.values() if len(seconds) > 1)
        return totals, together, sum(map(len, layers.values())) - len(layers)

    def _corrected(self, measured: Mapping[SubNetwork, float]) -> "LatencyTable":
        """This table with everything but the shapes of the curves fitted to all measurements."""
        kinds = [kind for kind, curve in self.curves.items() if curve.counts]
        cheapest = min((self.curves[kind].seconds[0] for kind in kinds), default=0.0)
        rows, missing = [], []
        for sub_network, seconds in measured.items():
            totals, together, shared = self._parts(sub_network)
            parts = [self.constant, *(totals[kind] for kind in kinds), together, -shared * cheapest]
            rows.append(np.array(parts) / seconds)
            missing.append((seconds - self.constant - sum(totals.values())) / seconds)
        scales = np.array([_CONSTANT, *[_CURVE] * len(kinds), _COMPANY, _SHARED])
        lowest, highest = np.full(len(scales), _LOWEST), np.full(len(scales), _HIGHEST)
        lowest[-1] = -np.inf  # sub-layers can also stand in each other's way
        # Relative errors, and the prior as further rows.
        matrix = np.concatenate([np.stack(rows) * scales, _NOISE * np.eye(len(scales))])
        target = np.concatenate([missing, np.zeros(len(scales))])
        found = lsq_linear(matrix, target, bounds=(lowest / scales, highest / scales), method="bvls").x * scales
        factors = dict(zip(kinds, 1 + found[1:-2]))
        curves = {kind: curve.scaled(factors.get(kind, 1.0)) for kind, curve in self.curves.items()}
        constant, shared = self.constant * (1 + found[0]), found[-1] * cheapest
        # Of the scaled costs.
        company = found[-2] / np.mean(list(factors.values())) if factors else 0.0
        return LatencyTable(self.structure, float(constant), float(shared), float(company), curves, self.settings)

    def predict(self, sub_network: SubNetwork) -> float:
        """Seconds of a forward pass of a sub-network.

        Raises:
            ValueError: if it belongs to another model or leaves out hidden dimensions.
        """
        sub_network.require_full_width("a prediction of its latency")
        if sub_network.names is not self._full.names or sub_network.units is not self._full.units:
            sub_network.check(self.structure)
        totals, together, shared = self._parts(sub_network)
        return self.constant + sum(totals.values()) + self.company * together - self.shared * shared

    def check(
        self,
        model: PreTrainedModel,
        sub_networks: Sequence[SubNetwork],
        *,
        repeats: int = 10,
        build: Callable[[PreTrainedModel, SubNetwork], PreTrainedModel] = shrink,
        clock: Clock = time.perf_counter,
        progress: bool = True,
    ) -> list[LatencyError]:
        """Compare predictions with real models, which are measured in turns with the full one.

        Args:
            model: that the table was measured of.
            sub_networks: to compare, extremes included.
            repeats: rounds of measurements.
            build: makes the model of a sub-network, e.g. [`hf_nas.extract`].
            clock: the one the table was measured with.
            progress: show a bar.
        """
        latencies = measure_latencies(
            [build(model, sub_network) for sub_network in (self._full, *sub_networks)],
            repeats=repeats,
            clock=clock,
            description="Check of the latency table" if progress else None,
            **{name: self.settings[name] for name in ("batch_size", "sequence_length", "decoder_length")},
        )
        full, *others = levelled_medians(latencies)
        full_predicted = self.predict(self._full)
        return [
            LatencyError(sub_network, self.predict(sub_network), measured, full_predicted, full)
            for sub_network, measured in zip(sub_networks, others)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of [`LatencyTable.from_dict`]."""
        return {
            "format": _FORMAT,
            "model_type": self.structure.model_type,
            "units": {sub_layer.name: sub_layer.units for sub_layer in self.structure},
            **self.settings,
            "constant": self.constant,
            "shared": self.shared,
            "company": self.company,
            "curves": {
                kind: {
                    "counts": list(curve.counts),
                    "seconds": list(curve.seconds),
                    "norm_only": curve.norm_only,
                    "own_bias": curve.own_bias,
                }
                for kind, curve in self.curves.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], structure: ModelStructure) -> "LatencyTable":
        """Read what [`LatencyTable.to_dict`] wrote.

        Args:
            data: the dictionary.
            structure: of the model it must fit.

        Raises:
            ValueError: if it is no latency table or belongs to another model.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"Not a latency table: its 'format' is {found!r}, not {_FORMAT!r}.")
        units = {sub_layer.name: sub_layer.units for sub_layer in structure}
        if data["model_type"] != structure.model_type or data["units"] != units:
            raise ValueError(
                f"This latency table belongs to another {data['model_type']} model than this {structure.model_type} "
                f"model with {len(units)} sub-layers; measure one of this model."
            )
        curves = {
            kind: Curve(tuple(c["counts"]), tuple(c["seconds"]), c["norm_only"], c["own_bias"])
            for kind, c in data["curves"].items()
        }
        settings = {name: data[name] for name in ("batch_size", "sequence_length", "decoder_length", "machine")}
        return cls(structure, data["constant"], data["shared"], data["company"], curves, settings)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path, structure: ModelStructure) -> "LatencyTable":
        """Read a JSON file.

        Args:
            path: of the file.
            structure: of the model it must fit.

        Raises:
            ValueError: if it is no latency table or belongs to another model.
        """
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")), structure)
