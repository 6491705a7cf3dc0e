"""At which grain the scores of a layer are learnt, and which layers that holds for."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_nas.graph_names import graph_name


__all__ = ["SparseStructure", "layers_with_structures", "match_scopes"]

_MODES = ("fine", "block", "per_dim")
_REGULAR_EXPRESSION = "{re}"


@dataclass(frozen=True)
class SparseStructure:
    """Which weights of a layer share one score (section "sparse_structure_by_scopes" of NNCF).

    Args:
        mode: `"fine"` (a score for each weight), `"block"` (for each block of weights) or `"per_dim"` (for each row or
            column).
        sparse_factors: rows and columns of a block; only in the mode `"block"`, or (1, 1) in `"fine"`.
        axis: 0 for a score a row, 1 for a score a column; only in the mode `"per_dim"`.
        target_scopes: names of nodes in the manner of NNCF 2.x, or regular expressions to search for after `{re}`.

    Raises:
        ValueError: if mode, factors and axis do not go together.
    """

    mode: str = "fine"
    sparse_factors: tuple[int, int] | None = None
    axis: int | None = None
    target_scopes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.mode not in _MODES:
            raise ValueError(f"The sparse structure mode {self.mode!r} is not known; choose from {', '.join(_MODES)}.")
        if self.sparse_factors is not None:
            object.__setattr__(self, "sparse_factors", _checked_factors(self.sparse_factors))
        if self.mode == "block" and self.sparse_factors is None:
            raise ValueError("The sparse structure mode 'block' has no 'sparse_factors'; give them, e.g. [32, 32].")
        if self.mode == "fine" and self.sparse_factors not in (None, (1, 1)):
            raise ValueError(
                f"The sparse structure mode 'fine' is given the 'sparse_factors' {list(self.sparse_factors)}; leave "
                "them out, or choose the mode 'block'."
            )
        if self.mode == "per_dim":
            if self.sparse_factors is not None:
                raise ValueError(
                    f"The sparse structure mode 'per_dim' is given the 'sparse_factors' {list(self.sparse_factors)}; "
                    "leave them out and give an 'axis', or choose the mode 'block'."
                )
            if isinstance(self.axis, bool) or self.axis not in (0, 1):
                raise ValueError(
                    f"The sparse structure mode 'per_dim' has the 'axis' {self.axis!r}; give 0 for a score a row or 1 "
                    "for a score a column."
                )
        elif self.axis is not None:
            raise ValueError(
                f"The sparse structure mode {self.mode!r} is given the 'axis' {self.axis!r}; leave it out, or choose "
                "the mode 'per_dim'."
            )

    def factors(self, shape: Sequence[int], name: str = "This layer") -> tuple[int, int]:
        """Rows and columns of a weight of this shape that share one score.

        Args:
            shape: of the weight, (outputs, inputs).
            name: of the layer, for the error.

        Raises:
            ValueError: if the blocks do not divide the weight.
        """
        rows, columns = shape
        if self.mode == "per_dim":
            return (1, columns) if self.axis == 0 else (rows, 1)
        factors = self.sparse_factors or (1, 1)
        if rows % factors[0] or columns % factors[1]:
            raise ValueError(
                f"{name} has a weight of {rows} x {columns}, which the 'sparse_factors' {list(factors)} do not "
                "divide; choose factors that divide both numbers."
            )
        return factors

    def to_nncf(self) -> dict[str, Any]:
        """The entry of "sparse_structure_by_scopes"."""
        entry: dict[str, Any] = {"mode": self.mode}
        if self.sparse_factors is not None:
            entry["sparse_factors"] = list(self.sparse_factors)
        if self.axis is not None:
            entry["axis"] = self.axis
        return {**entry, "target_scopes": list(self.target_scopes)}


def _checked_factors(factors: Any) -> tuple[int, int]:
    is_pair = isinstance(factors, list | tuple) and len(factors) == 2
    if not is_pair or any(isinstance(f, bool) or not isinstance(f, int) or f < 1 for f in factors):
        raise ValueError(
            f"The 'sparse_factors' of a sparse structure are {factors!r}; give two whole numbers above 0, e.g. "
            "[32, 32]."
        )
    return tuple(factors)


def match_scopes(names: Iterable[str], scopes: Sequence[str]) -> dict[str, list[str]]:
    """The names that each scope means.

    Args:
        names: of nodes in the manner of NNCF 2.x.
        scopes: each either equal to a name, or a regular expression to *search* for in the names after `{re}`.

    Raises:
        ValueError: for a regular expression that is none.
    """
    names = list(names)
    known = set(names)
    matched = {}
    for scope in scopes:
        if not scope.startswith(_REGULAR_EXPRESSION):
            matched[scope] = [scope] if scope in known else []
            continue
        try:
            pattern = re.compile(scope.removeprefix(_REGULAR_EXPRESSION))
        except re.error as error:
            raise ValueError(
                f"The scope {scope!r} is no regular expression ({error}); correct what follows {_REGULAR_EXPRESSION}, "
                "or give the full name of a node without it."
            ) from error
        matched[scope] = [name for name in names if pattern.search(name)]
    return matched


def layers_with_structures(
    model: nn.Module,
    structures: Sequence[SparseStructure],
    ignored_scopes: Sequence[str] = (),
    target_scopes: Sequence[str] | None = None,
    validate_scopes: bool = True,
) -> dict[str, SparseStructure]:
    """The linear layers of a model that get scores, and at which grain.

    Args:
        model: the whole model.
        structures: with their scopes; layers that none of them means are `"fine"`.
        ignored_scopes: layers that get no scores.
        target_scopes: if given, only these layers get scores.
        validate_scopes: whether a scope that means no node of the model is an error.

    Returns:
        By path from the model, in the order of its modules.

    Raises:
        ValueError: if two structures mean one layer, a scope means nothing, or no layer is left.
    """
    paths = {graph_name(model, path): path for path, _ in model.named_modules() if path}
    scopes = {
        "ignored_scopes": ignored_scopes,
        "target_scopes": target_scopes or (),
        "sparse_structure_by_scopes": [scope for structure in structures for scope in structure.target_scopes],
    }
    matched = {key: match_scopes(paths, value) for key, value in scopes.items()}
    if validate_scopes:
        _check_all_match(matched, type(model).__name__)
    ignored = {name for names in matched["ignored_scopes"].values() for name in names}
    targets = (
        set(paths) if target_scopes is None else {n for names in matched["target_scopes"].values() for n in names}
    )
    by_name: dict[str, SparseStructure] = {}
    meant = matched["sparse_structure_by_scopes"]
    layers = {
        name: path
        for name, path in paths.items()
        if name in targets and name not in ignored and _has_weights(model.get_submodule(path))
    }
    for structure in structures:
        for name in dict.fromkeys(name for scope in structure.target_scopes for name in meant[scope]):
            if name in by_name and name in layers:
                raise ValueError(
                    f"The layer {name!r} is meant by two entries of 'sparse_structure_by_scopes', "
                    f"{list(by_name[name].target_scopes)} and {list(structure.target_scopes)}; leave one."
                )
            by_name[name] = structure
    if not layers:
        raise ValueError(
            f"No linear layer of this {type(model).__name__} is left to learn scores for; change 'ignored_scopes' or "
            "'target_scopes'."
        )
    return {path: by_name.get(name, SparseStructure()) for name, path in layers.items()}


def _has_weights(module: nn.Module) -> bool:
    # A sub-layer of an extracted model may have lost all its units.
    return isinstance(module, nn.Linear) and module.weight.numel() > 0


def _check_all_match(matched: Mapping[str, Mapping[str, list[str]]], model: str) -> None:
    for key, by_scope in matched.items():
        for scope, names in by_scope.items():
            if not names:
                raise ValueError(
                    f"The scope {scope!r} in {key!r} means nothing in this {model}; remove or correct it, or set "
                    "'validate_scopes' to false."
                )
