"""What a search hands over: every evaluated sub-network, the Pareto front among them, and their files."""

import base64
import csv
import io
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_nas.files import write_text
from hf_nas.search.pareto import hypervolume, pareto_indices
from hf_nas.space.base import Encoding
from hf_nas.structures import ModelStructure
from hf_nas.subnetwork import SubNetwork


__all__ = ["Evaluated", "SearchResult", "pack_encoding", "unpack_encoding"]

_FORMAT = "hf_nas.search_result/1"
_COMPRESSED = "zlib:"
_LONGEST_PLAIN = 256


def pack_encoding(encoding: Sequence[int]) -> str:
    """An encoding as text: its numbers, or for spaces of thousands of dimensions their compressed bytes."""
    if len(encoding) <= _LONGEST_PLAIN:
        return ",".join(str(int(index)) for index in encoding)
    data = np.asarray(encoding, dtype="<u4").tobytes()
    return _COMPRESSED + base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def unpack_encoding(text: str) -> Encoding:
    """The inverse of [`pack_encoding`]."""
    if text.startswith(_COMPRESSED):
        data = zlib.decompress(base64.b64decode(text.removeprefix(_COMPRESSED)))
        return tuple(np.frombuffer(data, dtype="<u4").tolist())
    return tuple(int(index) for index in text.split(",")) if text else ()


def _to_json(value: float) -> float | str:
    # JSON has no NaN and no infinity; float() reads these words back.
    return value if math.isfinite(value) else str(value)


@dataclass(frozen=True)
class Evaluated:
    """One evaluated sub-network.

    Args:
        sub_network: what was evaluated.
        encoding: its place in the search space.
        metrics: what the evaluation returned.
        costs: one value an objective, in the order of the search's objectives; infinity where undefined.
        seconds: wall time of the evaluation.
        rejected: whether it was given up as hardly able to reach the front; metrics and costs are then estimates.
    """

    sub_network: SubNetwork
    encoding: Encoding
    metrics: Mapping[str, float]
    costs: tuple[float, ...]
    seconds: float = 0.0
    rejected: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of [`Evaluated.from_dict`]."""
        return {
            "encoding": pack_encoding(self.encoding),
            "sub_network": self.sub_network.to_dict(),
            "metrics": {name: _to_json(value) for name, value in self.metrics.items()},
            "costs": [_to_json(cost) for cost in self.costs],
            "seconds": self.seconds,
            **({"rejected": True} if self.rejected else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], structure: ModelStructure | None = None) -> "Evaluated":
        """Read what [`Evaluated.to_dict`] wrote."""
        return cls(
            sub_network=SubNetwork.from_dict(data["sub_network"], structure),
            encoding=unpack_encoding(data["encoding"]),
            metrics={name: float(value) for name, value in data["metrics"].items()},
            costs=tuple(float(cost) for cost in data["costs"]),
            seconds=float(data["seconds"]),
            rejected=bool(data.get("rejected", False)),
        )


@dataclass(frozen=True)
class SearchResult:
    """All evaluated sub-networks of a search, in the order in which their evaluations began.

    Args:
        trials: the evaluated sub-networks.
        objectives: names of the objectives.
        reference: upper bound of each objective for the hypervolume.
        method: name of the search method.
        space: name of the search space.
        seed: of the search.
    """

    trials: tuple[Evaluated, ...]
    objectives: tuple[str, ...]
    reference: tuple[float, ...]
    method: str = ""
    space: str = ""
    seed: int = 0

    @cached_property
    def pareto(self) -> tuple[int, ...]:
        """Indices of the trials on the Pareto front, ascending; of those alone that were evaluated fully."""
        evaluated = [index for index, trial in enumerate(self.trials) if not trial.rejected]
        return tuple(evaluated[index] for index in pareto_indices([self.trials[index].costs for index in evaluated]))

    @cached_property
    def hypervolume(self) -> float:
        """Volume that the front dominates, up to `reference`; independent of any other run."""
        return hypervolume([self.trials[index].costs for index in self.pareto], self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of [`SearchResult.from_dict`]."""
        return {
            "format": _FORMAT,
            "method": self.method,
            "space": self.space,
            "seed": self.seed,
            "objectives": list(self.objectives),
            "reference": list(self.reference),
            "hypervolume": self.hypervolume,
            "pareto": list(self.pareto),
            "trials": [trial.to_dict() for trial in self.trials],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], structure: ModelStructure | None = None) -> "SearchResult":
        """Read what [`SearchResult.to_dict`] wrote.

        Args:
            data: the dictionary.
            structure: of the model that the sub-networks must fit, if that is at hand.

        Raises:
            ValueError: if it is no search result or of another model.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(
                f"Not a search result: its 'format' is {found!r}, not {_FORMAT!r}; give a file that "
                "SearchResult.save_json wrote."
            )
        return cls(
            trials=tuple(Evaluated.from_dict(trial, structure) for trial in data["trials"]),
            objectives=tuple(data["objectives"]),
            reference=tuple(float(bound) for bound in data["reference"]),
            method=data["method"],
            space=data["space"],
            seed=data["seed"],
        )

    def save_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically, one trial a line."""
        data = self.to_dict()
        lines = [json.dumps(trial, allow_nan=False) for trial in data.pop("trials")]
        head = json.dumps(data, allow_nan=False, indent=2).removesuffix("\n}")
        write_text(path, f'{head},\n  "trials": [\n' + ",\n".join(lines) + "\n  ]\n}\n")

    @classmethod
    def load(cls, path: str | Path, structure: ModelStructure | None = None) -> "SearchResult":
        """Read a file that [`SearchResult.save_json`] wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")), structure)

    def save_csv(self, path: str | Path) -> None:
        """Write the numbers as CSV, atomically: one row a trial, without the sub-networks themselves.

        Columns: `index` (as in the JSON file), `pareto` (1 on the front), `rejected` (1 if given up early),
        `cost.<objective>`, `metric.<name>`, `seconds`.
        """
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.metrics))
        front = set(self.pareto)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        costs = [f"cost.{name}" for name in self.objectives]
        writer.writerow(["index", "pareto", "rejected", *costs, *(f"metric.{name}" for name in names), "seconds"])
        for index, trial in enumerate(self.trials):
            metrics = [trial.metrics.get(name, "") for name in names]
            flags = (int(index in front), int(trial.rejected))
            writer.writerow([index, *flags, *trial.costs, *metrics, trial.seconds])
        write_text(path, buffer.getvalue())
