"""The sub-network: which units of a model are kept. An immutable, hashable value that every method ends in."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_nas.files import write_json
from hf_nas.structures import NORM_ONLY, ModelStructure, SubLayer


__all__ = ["NORM_ONLY", "Kept", "SubNetwork", "kept_ids"]

FILE_NAME = "sub_network.json"
_FORMAT = "hf_nas.sub_network/1"

# What a sub-network keeps of a sub-layer: the first k units or these units (with 0 or none of them the bias of its
# output projection and its normalisation stay), NORM_ONLY (nothing but its normalisation), or None (it is skipped).
Kept = int | tuple[int, ...] | str | None


def kept_ids(kept: Kept) -> Sequence[int]:
    """Ids of the kept units; none for a sub-layer that is skipped or of which only the normalisation stays."""
    if kept is None or kept == NORM_ONLY:
        return ()
    return range(kept) if isinstance(kept, int) else kept


def _canonical(sub_layer: SubLayer, kept: Any) -> Kept:
    units, name = sub_layer.units, sub_layer.name
    if kept is None:
        return None
    if kept == NORM_ONLY:
        # Where the normalisation comes first, nothing reads it once the rest is gone.
        return NORM_ONLY if sub_layer.layout.norm_only and not sub_layer.skipped else None
    if isinstance(kept, bool) or not isinstance(kept, int | Iterable) or isinstance(kept, str):
        raise ValueError(
            f"Sub-layer {name!r} is given {kept!r}; give a number of units, a list of unit ids, "
            f"None to skip it, or {NORM_ONLY!r} to keep only its normalisation."
        )
    if sub_layer.skipped:
        raise ValueError(f"Sub-layer {name!r} is gone from this model already, so it can only be None; got {kept!r}.")
    if sub_layer.norm_only and kept in (0, (), []):
        return NORM_ONLY
    if isinstance(kept, int):
        if not 0 <= kept <= units:
            raise ValueError(f"Sub-layer {name!r} has {units} units but {kept} are asked for; choose 0 to {units}.")
        return kept
    ids = tuple(sorted(int(unit) for unit in kept))
    if len(set(ids)) < len(ids) or (ids and not 0 <= ids[0] <= ids[-1] < units):
        raise ValueError(
            f"Sub-layer {name!r} has units 0 to {units - 1} but is given the ids {list(ids)[:8]}...; "
            "give each kept unit once."
        )
    return len(ids) if not ids or ids[-1] == len(ids) - 1 else ids


def _canonical_hidden(structure: ModelStructure, hidden: int | Iterable[int] | None) -> tuple[int, ...] | None:
    size = structure.hidden_size
    if hidden is None:
        return None
    if isinstance(hidden, bool | str) or not isinstance(hidden, int | Iterable):
        raise ValueError(
            f"The hidden dimensions are given as {hidden!r}; give a number, a list of ids, or None for all."
        )
    if not size:
        raise ValueError(
            f"The hidden dimensions of this {structure.model_type} model cannot be pruned, since its family or its "
            "task head is not described for that; keep all of them."
        )
    ids = tuple(range(hidden)) if isinstance(hidden, int) else tuple(sorted(int(unit) for unit in hidden))
    if not ids or len(set(ids)) < len(ids) or not 0 <= ids[0] <= ids[-1] < size:
        given = hidden if isinstance(hidden, int) else f"{list(ids)[:8]}..."
        raise ValueError(
            f"This model has the hidden dimensions 0 to {size - 1} but is to keep {given}; give each kept one once, "
            "and at least one."
        )
    return None if len(ids) == size else ids


def _check_fields(data: Mapping[str, Any]) -> None:
    """Refuse a record with values that no sub-network of any model has."""
    units, kept, hidden = data.get("units"), data.get("kept"), data.get("hidden")
    if not isinstance(units, dict) or not isinstance(kept, dict) or list(units) != list(kept) or not units:
        raise ValueError("The 'units' and 'kept' of a sub-network must have the same sub-layers as entries.")
    if not isinstance(data.get("model_type"), str):
        raise ValueError(f"The 'model_type' of a sub-network is {data.get('model_type')!r}; it must be a name.")
    for name, choice in kept.items():
        if len(parts := name.rsplit(".", 2)) < 3 or not parts[1].isdecimal() or not _are_ids([units[name]]):
            raise ValueError(f"A sub-network has {units[name]!r} units of {name!r}, as no sub-layer of a model.")
        if choice is None or choice == NORM_ONLY:
            continue
        fits = _are_ids(choice, units[name]) if isinstance(choice, list) else _are_ids([choice], units[name] + 1)
        if not fits:
            raise ValueError(
                f"A sub-network keeps {str(choice)[:60]} of {name!r}, which has {units[name]} units; give a number of "
                "them, or ids from 0 in rising order."
            )
    if hidden is not None and not (isinstance(hidden, list) and hidden and _are_ids(hidden)):
        raise ValueError(f"A sub-network keeps the hidden dimensions {str(hidden)[:60]}, which are not ids in order.")


def _are_ids(ids: list[Any], units: int | None = None) -> bool:
    """Whether these are ids of units, in order and each once."""
    in_order = all(type(unit) is int and unit >= 0 for unit in ids) and all(a < b for a, b in zip(ids, ids[1:]))
    return in_order and (units is None or not ids or ids[-1] < units)


@dataclass(frozen=True)
class SubNetwork:
    """A choice of units: one entry for each sub-layer of a model's structure, and its hidden dimensions.

    Build one with [`SubNetwork.full`], [`SubNetwork.of`] or [`SubNetwork.from_dict`]; these bring it into canonical
    form, in which equal choices are equal values.

    Args:
        model_type: family of the model.
        units: number of units of each sub-layer of that model, by which a sub-network is matched with its model.
        kept: what is kept of each: a number k (the first k units), a tuple of ids, [`NORM_ONLY`] or None (skipped).
        hidden: ids of the hidden dimensions that are kept, None: all of them.
    """

    model_type: str
    names: tuple[str, ...]
    units: tuple[int, ...]
    kept: tuple[Kept, ...]
    hidden: tuple[int, ...] | None = None

    @classmethod
    def full(cls, structure: ModelStructure) -> "SubNetwork":
        """The sub-network that keeps everything the model has."""
        return cls.of(structure, {})

    @classmethod
    def of(
        cls, structure: ModelStructure, kept: Mapping[str, Any], hidden: int | Iterable[int] | None = None
    ) -> "SubNetwork":
        """The sub-network that keeps `kept`, by sub-layer name, and everything of the sub-layers not named.

        Args:
            structure: of the model.
            kept: what is kept of sub-layers.
            hidden: the hidden dimensions that are kept, as a number k (the first k) or as ids; None: all of them.

        Raises:
            ValueError: for an unknown name, too many units, a repeated id or a value of another kind.
        """
        if unknown := set(kept) - set(structure.names):
            repeats = structure.sub_layers[0].repeats
            shared = f" (which stand for all {repeats} layers, since these share their weights)" if repeats > 1 else ""
            raise ValueError(
                f"This {structure.model_type} model has no sub-layer {sorted(unknown)[0]!r}; it has "
                f"{structure.names[0]!r} to {structure.names[-1]!r}{shared}."
            )
        choices = []
        for sub_layer in structure:
            default = None if sub_layer.skipped else NORM_ONLY if sub_layer.norm_only else sub_layer.units
            choices.append(_canonical(sub_layer, kept.get(sub_layer.name, default)))
        return cls(
            model_type=structure.model_type,
            names=structure.names,
            units=tuple(sub_layer.units for sub_layer in structure),
            kept=tuple(choices),
            hidden=_canonical_hidden(structure, hidden),
        )

    def __getitem__(self, name: str) -> Kept:
        return self.kept[self.names.index(name)]

    def items(self) -> Iterable[tuple[str, Kept]]:
        """Pairs of sub-layer name and what is kept of it."""
        return zip(self.names, self.kept)

    def counts(self) -> tuple[int | None, ...]:
        """Number of units kept of each sub-layer, None where it is skipped."""
        return tuple(None if k is None else len(kept_ids(k)) for k in self.kept)

    def check(self, structure: ModelStructure) -> None:
        """Raise a `ValueError` unless this is a sub-network of a model with this structure."""
        units = tuple(sub_layer.units for sub_layer in structure)
        if self.model_type != structure.model_type or self.names != structure.names or self.units != units:
            raise ValueError(
                f"This sub-network belongs to a {self.model_type} model with {len(self.names)} sub-layers of up to "
                f"{max(self.units, default=0)} units, not to this {structure.model_type} model with "
                f"{len(structure.names)} sub-layers of up to {max(units, default=0)} units; take the model it was "
                "made from."
            )
        if self.hidden is not None:
            _canonical_hidden(structure, self.hidden)

    def require_full_width(self, purpose: str) -> None:
        """Raise a `ValueError` unless all hidden dimensions are kept.

        Args:
            purpose: what cannot be done with fewer, such as "elastic execution".
        """
        if self.hidden is not None:
            raise ValueError(
                f"This sub-network keeps only {len(self.hidden)} of the hidden dimensions, with which {purpose} is "
                "not possible; keep all of them here, or extract a model of it."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the inverse of [`SubNetwork.from_dict`]."""
        data = {
            "format": _FORMAT,
            "model_type": self.model_type,
            "units": dict(zip(self.names, self.units)),
            "kept": {name: list(kept) if isinstance(kept, tuple) else kept for name, kept in self.items()},
        }
        # Only where it says something, so that files and their digests from before it existed stay as they are.
        return data if self.hidden is None else {**data, "hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], structure: ModelStructure | None = None) -> "SubNetwork":
        """Read what [`SubNetwork.to_dict`] wrote.

        Args:
            data: the dictionary.
            structure: of the model it must fit, if that is at hand.

        Raises:
            ValueError: if it is no sub-network or belongs to another model.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"Not a sub-network: its 'format' is {found!r}, not {_FORMAT!r}.")
        _check_fields(data)
        units, kept, hidden = data["units"], data["kept"], data.get("hidden")
        read = cls(
            model_type=data["model_type"],
            names=tuple(kept),
            units=tuple(units[name] for name in kept),
            kept=tuple(tuple(k) if isinstance(k, list) else k for k in kept.values()),
            hidden=None if hidden is None else tuple(hidden),
        )
        if structure is None:
            return read
        read.check(structure)
        return cls.of(structure, kept, hidden)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path, structure: ModelStructure | None = None) -> "SubNetwork":
        """Read a JSON file, or the one in a folder of an extracted model.

        Raises:
            OSError: if there is no such file.
            ValueError: if it is no sub-network or belongs to another model.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'{path}' cannot be read as JSON ({error}); give an intact file.") from error
        return cls.from_dict(data, structure)
