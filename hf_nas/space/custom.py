"""Search spaces that users write down in a JSON file."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from hf_nas.files import write_json
from hf_nas.space.base import Dimension, SearchSpace, live_layers, name_prefix
from hf_nas.structures import ModelStructure, SubLayer
from hf_nas.subnetwork import NORM_ONLY, Kept, SubNetwork, kept_ids


__all__ = ["CustomSpace"]

_KEYS = ("name", "sub_layers", "shared", "skip_keeps_norm", "num_layers")
_RANGE_KEYS = ("min", "max", "step")


@dataclass(frozen=True)
class _Entry:
    """What decides about one sub-layer."""

    name: str
    units: int
    layer: int  # counted among the layers of its stack that have a sub-layer left
    width: int | None  # dimension of its number of units, None: all of them
    depth: int | None  # dimension of its stack's number of layers, None: all of them
    stack: str
    without_units: Kept  # what it is with 0 units


class CustomSpace(SearchSpace):
    """A search space with the numbers of units that a user lists.

    A specification looks like this:

    ```json
    {
      "name": "mine",
      "sub_layers": {
        "encoder.*.attention": [2, 4, 8, 12],
        "encoder.0.feed_forward": [256, 512],
        "encoder.*.feed_forward": {"min": 0, "max": 3072, "step": 768}
      },
      "shared": ["encoder.*.attention"],
      "skip_keeps_norm": ["encoder.*.feed_forward"],
      "num_layers": {"encoder": [3, 4, 5, 6]}
    }
    ```

    `sub_layers` maps patterns (of `fnmatch`) for the names of sub-layers to numbers of units; the first pattern that
    matches counts, a sub-layer without one stays full, and 0 skips it. The sub-layers of a pattern listed in `shared`
    always get the same number. Of those that match a pattern in `skip_keeps_norm`, the normalisation stays when they
    are skipped (where it comes after the rest). `num_layers` keeps the first layers of a stack. All keys are optional,
    but one of `sub_layers` and `num_layers` is needed.

    The smallest sub-network has the smallest choices, except that no stack gets empty by them: it then takes the
    smallest choices above 0.

    Args:
        specification: as above.
        structure: of the model.
        source: what error messages call the specification.

    Raises:
        ValueError: for an unknown key, a pattern that decides about nothing, a choice the model does not have, or
            choices that are not a list of different integers.
    """

    def __init__(self, specification: Mapping[str, Any], structure: ModelStructure, source: str | None = None):
        if not isinstance(specification, Mapping):
            raise ValueError(
                f"{source or 'A search space'} is {specification!r}; write an object with the keys {_list(_KEYS)}."
            )
        name = specification.get("name", "custom")
        source = source or f"Search space {name!r}"
        _check_keys(specification, _KEYS, source)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{source} has the name {name!r}; give a string.")
        if not specification.get("sub_layers") and not specification.get("num_layers"):
            raise ValueError(f"{source} chooses nothing; give it 'sub_layers' or 'num_layers'.")
        self._specification = copy.deepcopy(dict(specification))
        self._dimensions: list[Dimension] = []
        depths = self._read_depths(specification.get("num_layers", {}), structure, source)
        widths = self._read_widths(
            specification.get("sub_layers", {}), specification.get("shared", []), structure, source
        )
        keeping_norm = _read_keeping_norm(specification.get("skip_keeps_norm", []), structure, source)
        layers = live_layers(structure)
        self._entries = [
            _Entry(
                name=sub_layer.name,
                units=sub_layer.units,
                layer=layers[sub_layer.stack].index(sub_layer.layer),
                width=widths.get(sub_layer.name),
                depth=depths.get(sub_layer.stack),
                stack=sub_layer.stack,
                without_units=NORM_ONLY if sub_layer.name in keeping_norm else None,
            )
            for sub_layer in structure
            if not sub_layer.skipped
        ]
        super().__init__(name, structure, self._dimensions, self._smallest_values())

    @classmethod
    def load(cls, path: str | Path, structure: ModelStructure) -> "CustomSpace":
        """Read a specification; a space without a `name` gets that of the file.

        Args:
            path: of the JSON file.
            structure: of the model.

        Raises:
            ValueError: if the file does not exist, is no JSON, or its space does not fit the model.
        """
        path = Path(path)
        source = f"Search space file {str(path)!r}"
        if not path.is_file():
            raise ValueError(f"{source} does not exist; give the path of a JSON file.")
        try:
            specification = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
        except ValueError as error:
            raise ValueError(f"{source} is not valid JSON: {error}.") from error
        if isinstance(specification, dict):
            specification.setdefault("name", path.stem)
        return cls(specification, structure, source)

    def to_dict(self) -> dict[str, Any]:
        """The specification, in plain JSON types."""
        return {"name": self.name, **copy.deepcopy(self._specification)}

    def save(self, path: str | Path) -> None:
        """Write the specification as JSON, atomically."""
        write_json(path, self.to_dict())

    def to_kept(self, values: np.ndarray) -> Mapping[str, Kept]:
        return self._kept(values.tolist())

    def to_values(self, sub_network: SubNetwork) -> Sequence[int]:
        counts = dict(zip(sub_network.names, sub_network.counts()))
        values = [dimension.choices[0] for dimension in self.dimensions]
        for entry in self._entries:
            if entry.depth is not None and counts[entry.name] is not None and entry.layer >= values[entry.depth]:
                values[entry.depth] = _at_least(entry.layer + 1, self.dimensions[entry.depth].choices)
        # Backwards, so that the first sub-layer of those that share a number decides it.
        for entry in reversed(self._entries):
            if entry.width is not None and (entry.depth is None or entry.layer < values[entry.depth]):
                values[entry.width] = counts[entry.name] or 0
        return values

    def _kept(self, values: Sequence[int]) -> dict[str, Kept]:
        kept: dict[str, Kept] = {}
        for entry in self._entries:
            if entry.depth is not None and entry.layer >= values[entry.depth]:
                kept[entry.name] = None
            elif entry.width is not None:
                kept[entry.name] = values[entry.width] or entry.without_units
        return kept

    def _read_depths(self, num_layers: Any, structure: ModelStructure, source: str) -> dict[str, int]:
        """The dimension of each stack's number of layers."""
        if not isinstance(num_layers, Mapping):
            raise ValueError(f"{source} has the 'num_layers' {num_layers!r}; write an object from stack to choices.")
        stacks = live_layers(structure)
        depths = {}
        for stack, choices in num_layers.items():
            if stack not in stacks:
                raise ValueError(
                    f"{source} gives the number of layers of stack {stack!r}, which this {structure.model_type} model "
                    f"does not have; choose from {_list(stacks)}."
                )
            depths[stack] = len(self._dimensions)
            repeats = max(sub_layer.repeats for sub_layer in structure if sub_layer.stack == stack)
            what = f"layers (one runs {repeats} times)" if repeats > 1 else "layers"
            read = _read_choices(choices, len(stacks[stack]), f"num_layers of {stack!r}", what, source)
            self._dimensions.append(Dimension(f"{name_prefix(structure, stack)}num_layers", read))
        return depths

    def _read_widths(self, patterns: Any, shared: Any, structure: ModelStructure, source: str) -> dict[str, int]:
        """The dimension of each sub-layer's number of units."""
        if not isinstance(patterns, Mapping):
            raise ValueError(f"{source} has the 'sub_layers' {patterns!r}; write an object from pattern to choices.")
        if not isinstance(shared, list | tuple):
            raise ValueError(f"{source} has the 'shared' {shared!r}; write a list of patterns of 'sub_layers'.")
        for pattern in shared:
            if pattern not in list(patterns):
                raise ValueError(
                    f"{source} lists {pattern!r} in 'shared', which is no pattern of its 'sub_layers'; choose from "
                    f"{_list(patterns)}."
                )
        widths: dict[str, int] = {}
        for pattern, choices in patterns.items():
            decided = _decided_by(pattern, widths, structure, source)
            most = min(sub_layer.units for sub_layer in decided)
            read = _read_choices(choices, most, f"pattern {pattern!r}", "units", source)
            for names in [[s.name for s in decided]] if pattern in shared else [[s.name] for s in decided]:
                widths.update(dict.fromkeys(names, len(self._dimensions)))
                self._dimensions.append(Dimension(pattern if pattern in shared else names[0], read))
        return widths

    def _smallest_values(self) -> list[int]:
        values = [dimension.choices[0] for dimension in self._dimensions]
        for stack in {entry.stack: None for entry in self._entries}:
            entries = [entry for entry in self._entries if entry.stack == stack]
            # A layer first: where layers have a least size, that is all it takes.
            for dimensions in ({entry.depth for entry in entries}, {entry.width for entry in entries}):
                kept = self._kept(values)
                if any(kept_ids(kept.get(entry.name, entry.units)) for entry in entries):
                    break
                for dimension in dimensions - {None}:
                    choices = self._dimensions[dimension].choices
                    values[dimension] = next((choice for choice in choices if choice), 0)
        return values


def _read_keeping_norm(patterns: Any, structure: ModelStructure, source: str) -> set[str]:
    """Names of the sub-layers whose normalisation stays when they are skipped."""
    if not isinstance(patterns, list | tuple):
        raise ValueError(f"{source} has the 'skip_keeps_norm' {patterns!r}; write a list of patterns for sub-layers.")
    names: set[str] = set()
    for pattern in patterns:
        matching = {name for name in structure.names if fnmatchcase(name, pattern)}
        if not matching:
            raise ValueError(
                f"{source} has the pattern {pattern!r} in 'skip_keeps_norm', which matches no sub-layer of this "
                f"{structure.model_type} model; its sub-layers are called {structure.names[0]!r} to "
                f"{structure.names[-1]!r}."
            )
        names |= matching
    return names


def _decided_by(
    pattern: str, widths: Mapping[str, int], structure: ModelStructure, source: str
) -> tuple[SubLayer, ...]:
    """The sub-layers that this pattern decides about, after those before it."""
    matching = [sub_layer for sub_layer in structure if fnmatchcase(sub_layer.name, pattern)]
    if not matching:
        raise ValueError(
            f"{source} has the pattern {pattern!r}, which matches no sub-layer of this {structure.model_type} model; "
            f"its sub-layers are called {structure.names[0]!r} to {structure.names[-1]!r}."
        )
    there = [sub_layer for sub_layer in matching if not sub_layer.skipped]
    if not there:
        raise ValueError(
            f"{source} has the pattern {pattern!r}, but the sub-layers it matches are gone from this model already; "
            "remove the pattern."
        )
    decided = tuple(sub_layer for sub_layer in there if sub_layer.name not in widths)
    if not decided:
        raise ValueError(
            f"{source} has the pattern {pattern!r}, but patterns before it match all of its sub-layers, and the first "
            "match counts; move it up or remove it."
        )
    return decided


def _read_choices(choices: Any, most: int, where: str, what: str, source: str) -> tuple[int, ...]:
    """The choices, ascending; `most` is the largest one possible."""
    if isinstance(choices, Mapping):
        choices = _read_range(choices, where, source)
    if not isinstance(choices, list | tuple | range) or not choices:
        raise ValueError(
            f"{source} gives {where} the choices {choices!r}; give a list of integers or an object with 'min' and "
            "'max'."
        )
    # Ranges are looked at by their ends, so that a slip of many zeros is refused instead of written out.
    for choice in (choices[0], choices[-1]) if isinstance(choices, range) else choices:
        if not _is_integer(choice):
            raise ValueError(f"{source} gives {where} the choice {choice!r}; choices are integers.")
        if choice > most:
            raise ValueError(
                f"{source} gives {where} the choice {choice}, but there are only {most} {what}; choose 0 to {most}."
            )
        if choice < 0:
            raise ValueError(f"{source} gives {where} the choice {choice}; choose 0 to {most}.")
    if len(set(choices)) < len(choices):
        twice = next(choice for choice in choices if list(choices).count(choice) > 1)
        raise ValueError(f"{source} gives {where} the choice {twice} more than once; give each choice once.")
    return tuple(sorted(choices))


def _read_range(choices: Mapping[str, Any], where: str, source: str) -> range:
    _check_keys(choices, _RANGE_KEYS, f"{source}, {where},")
    for key in ("min", "max"):
        if key not in choices:
            raise ValueError(f"{source} gives {where} a range without {key!r}; give 'min' and 'max'.")
    first, last, step = choices["min"], choices["max"], choices.get("step", 1)
    for key, value in zip(_RANGE_KEYS, (first, last, step)):
        if not _is_integer(value):
            raise ValueError(f"{source} gives {where} a range with the {key} {value!r}; give an integer.")
    if step < 1 or first > last or (last - first) % step:
        raise ValueError(
            f"{source} gives {where} a range from {first} to {last} in steps of {step}, which does not end at its "
            "'max'; choose a 'step' above 0 that divides 'max' - 'min'."
        )
    return range(first, last + 1, step)


def _check_keys(given: Mapping[str, Any], allowed: Sequence[str], source: str) -> None:
    if unknown := [key for key in given if key not in allowed]:
        raise ValueError(f"{source} has the unknown key {unknown[0]!r}; choose from {_list(allowed)}.")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file, in which of equal keys all but the last would be lost without a word."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return dict(pairs)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _at_least(value: int, choices: Sequence[int]) -> int:
    return next((choice for choice in choices if choice >= value), choices[-1])


def _list(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
