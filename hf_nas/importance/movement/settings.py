"""What movement sparsity is told: schedule, regularisation, and the grain of the scores."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from hf_nas.graph_names import graph_name
from hf_nas.importance.movement.structure import SparseStructure
from hf_nas.structures import SubLayer, describe


__all__ = ["MovementSettings", "SparseStructure"]

logger = logging.getLogger(__name__)

_ALGORITHM = "movement_sparsity"
_REQUIRED = ("warmup_start_epoch", "warmup_end_epoch", "importance_regularization_factor")
_PARAMS = (
    *_REQUIRED,
    "enable_structured_masking",
    "power",
    "init_importance_threshold",
    "final_importance_threshold",
    "steps_per_epoch",
)
_KEYS = (
    "algorithm",
    "params",
    "sparse_structure_by_scopes",
    "ignored_scopes",
    "target_scopes",
    "validate_scopes",
    "compression_lr_multiplier",
)
_STRUCTURE_KEYS = ("mode", "target_scopes", "sparse_factors", "axis")


@dataclass(frozen=True)
class MovementSettings:
    """Settings of movement sparsity, under the names of NNCF 2.x.

    Args:
        warmup_start_epoch: epoch at which the threshold and the regularisation start to rise.
        warmup_end_epoch: epoch at which they are at their final values and the scores are frozen.
        importance_regularization_factor: weight of the regularisation of the scores at the end of the warm-up.
        enable_structured_masking: whether the masks are resolved to whole heads and neurons at the end.
        power: exponent of the polynomial by which both rise; 3 is steep at first.
        init_importance_threshold: threshold at the start of the warm-up; by default a thousandth of the weights is
            below it then.
        final_importance_threshold: threshold at its end.
        steps_per_epoch: optimizer steps of one epoch; by default as many as the training tells, or as are counted in
            the first epoch, which needs a `warmup_start_epoch` of at least 1.
        sparse_structure_by_scopes: grain of the scores of groups of layers; `"fine"` where none is given.
        ignored_scopes: layers without scores.
        target_scopes: the only layers with scores; by default all linear layers.
        validate_scopes: whether a scope that means nothing in the model is an error.
        compression_lr_multiplier: multiplies the gradients of the scores.

    Raises:
        ValueError: if they contradict each other or a value is out of range.
    """

    warmup_start_epoch: float
    warmup_end_epoch: float
    importance_regularization_factor: float
    enable_structured_masking: bool = True
    power: float = 3.0
    init_importance_threshold: float | None = None
    final_importance_threshold: float = 0.0
    steps_per_epoch: int | None = None
    sparse_structure_by_scopes: tuple[SparseStructure, ...] = ()
    ignored_scopes: tuple[str, ...] = ()
    target_scopes: tuple[str, ...] | None = None
    validate_scopes: bool = True
    compression_lr_multiplier: float | None = None

    def __post_init__(self):
        optional = ("init_importance_threshold", "steps_per_epoch", "compression_lr_multiplier")
        for key in (*_REQUIRED, "power", "final_importance_threshold", *optional):
            value = getattr(self, key)
            if not (key in optional and value is None) and not _is_number(value):
                raise ValueError(f"Movement sparsity has the {key!r} {value!r}; give a finite number.")
        for key in ("enable_structured_masking", "validate_scopes"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"Movement sparsity has the {key!r} {getattr(self, key)!r}; give true or false.")
        start, end, steps = self.warmup_start_epoch, self.warmup_end_epoch, self.steps_per_epoch
        if not 0 <= start < end:
            raise ValueError(
                f"Movement sparsity warms up from epoch {start} to epoch {end}; choose a 'warmup_start_epoch' of at "
                "least 0 and a 'warmup_end_epoch' after it."
            )
        if steps is not None and (steps != int(steps) or steps < 1):
            raise ValueError(f"Movement sparsity has the 'steps_per_epoch' {steps}; give a whole number above 0.")
        if self.importance_regularization_factor < 0:
            raise ValueError(
                "Movement sparsity has the 'importance_regularization_factor' "
                f"{self.importance_regularization_factor}; give 0 or more."
            )
        if self.power <= 0:
            raise ValueError(f"Movement sparsity has the 'power' {self.power}; give a number above 0.")
        multiplier = self.compression_lr_multiplier
        if multiplier is not None and multiplier < 0:
            raise ValueError(f"Movement sparsity has the 'compression_lr_multiplier' {multiplier}; give 0 or more.")
        first = self.init_importance_threshold
        if start == 0 and first is None:
            logger.warning(
                "Movement sparsity warms up from epoch 0 on, where all scores are equal, so that it masks all weights "
                "at first; a 'warmup_start_epoch' above 0 lets the scores grow before."
            )
        if first is not None and first >= self.final_importance_threshold:
            logger.warning(
                "The 'init_importance_threshold' %s is not below the 'final_importance_threshold' %s, so the sparsity "
                "falls during the warm-up.",
                first,
                self.final_importance_threshold,
            )

    @classmethod
    def from_nncf(cls, entry: Mapping[str, Any], source: str = "The NNCF configuration") -> "MovementSettings":
        """Read the entry `"algorithm": "movement_sparsity"` of the "compression" of an NNCF configuration.

        Args:
            entry: the object.
            source: what error messages call the configuration, e.g. its file.

        Raises:
            ValueError: for an unknown key, a missing one, or a value that is not allowed.
        """
        if not isinstance(entry, Mapping) or entry.get("algorithm") != _ALGORITHM:
            found = entry.get("algorithm") if isinstance(entry, Mapping) else entry
            raise ValueError(f"{source} asks for the compression algorithm {found!r}; write {_ALGORITHM!r}.")
        _check_keys(entry, _KEYS, source, "'compression'")
        params = entry.get("params", {})
        if not isinstance(params, Mapping):
            raise ValueError(f"{source} has the 'params' {params!r}; write an object with {_list(_REQUIRED)}.")
        _check_keys(params, _PARAMS, source, "'params' of 'compression'")
        if missing := [key for key in _REQUIRED if key not in params]:
            raise ValueError(
                f"{source} lacks {missing[0]!r} in the 'params' of {_ALGORITHM!r}; give {_list(_REQUIRED)}."
            )
        structures = entry.get("sparse_structure_by_scopes", [])
        if not isinstance(structures, list | tuple):
            raise ValueError(
                f"{source} has the 'sparse_structure_by_scopes' {structures!r}; write a list of objects with 'mode' "
                "and 'target_scopes'."
            )
        targets = entry.get("target_scopes")
        try:
            return cls(
                **params,
                sparse_structure_by_scopes=tuple(_read_structure(structure) for structure in structures),
                ignored_scopes=_read_scopes(entry.get("ignored_scopes", ()), "ignored_scopes"),
                target_scopes=None if targets is None else _read_scopes(targets, "target_scopes"),
                validate_scopes=entry.get("validate_scopes", True),
                compression_lr_multiplier=entry.get("compression_lr_multiplier"),
            )
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    def to_nncf(self) -> dict[str, Any]:
        """The entry of the "compression" of an NNCF configuration, in plain JSON types."""
        entry: dict[str, Any] = {
            "algorithm": _ALGORITHM,
            "params": {key: getattr(self, key) for key in _PARAMS if getattr(self, key) is not None},
            "sparse_structure_by_scopes": [structure.to_nncf() for structure in self.sparse_structure_by_scopes],
            "ignored_scopes": list(self.ignored_scopes),
            "validate_scopes": self.validate_scopes,
        }
        if self.target_scopes is not None:
            entry["target_scopes"] = list(self.target_scopes)
        if self.compression_lr_multiplier is not None:
            entry["compression_lr_multiplier"] = self.compression_lr_multiplier
        return entry

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        warmup_start_epoch: float,
        warmup_end_epoch: float,
        importance_regularization_factor: float = 0.02,
        **others: Any,
    ) -> "MovementSettings":
        """The published scheme (EFTNAS) for a model of any known family.

        Attention projections get a score for each square block of weights, layers that write neurons one for each
        row, layers that read them one for each column; everything outside the sub-layers gets none. The side of a
        block is half the size of a head, as the published 32 is of BERT's 64, or the largest number below it that
        divides both the size of a head and that of the hidden states.

        Args:
            model: of a known family.
            warmup_start_epoch: as for the class.
            warmup_end_epoch: as for the class.
            importance_regularization_factor: as for the class; 0.02 in all published configurations.
            others: other arguments of the class.

        Raises:
            ValueError: if the family is not known, or the class refuses a value.
        """
        prefix = next(name for name, module in model.named_modules() if module is model.base_model)
        scopes: dict[SparseStructure, list[str]] = {}
        for sub_layer in describe(model):
            if not sub_layer.units:
                continue
            for structure, path in _published_structures(model, sub_layer):
                name = graph_name(model, ".".join(part for part in (prefix, sub_layer.path, path) if part))
                scopes.setdefault(structure, []).append(name)
        structures = tuple(
            SparseStructure(structure.mode, structure.sparse_factors, structure.axis, tuple(names))
            for structure, names in scopes.items()
        )
        targets = tuple(name for names in scopes.values() for name in names)
        return cls(
            warmup_start_epoch,
            warmup_end_epoch,
            importance_regularization_factor,
            **{"sparse_structure_by_scopes": structures, "target_scopes": targets, **others},
        )


def _published_structures(model: PreTrainedModel, sub_layer: SubLayer) -> list[tuple[SparseStructure, str]]:
    """The structure of each projection of a sub-layer, with the path of the projection from its layer."""
    layout = sub_layer.layout
    if not layout.is_attention:
        writes, reads = SparseStructure("per_dim", axis=0), SparseStructure("per_dim", axis=1)
    else:
        head_size = getattr(sub_layer.module(model.base_model, layout.core), layout.head_size)
        weights = [sub_layer.module(model.base_model, path).weight for path in (*layout.writers, layout.reader)]
        # Blocks never reach over the border of a head, and divide what the projections read and write. The
        # regularisation presses on a score with the square of its block's size over the size of its layer, and a head
        # stays for any one of its blocks: blocks of 32 x 32 empty most attentions of a model whose heads have 32.
        common = math.gcd(head_size, *(size for weight in weights for size in weight.shape))
        block = max(size for size in range(1, max(head_size // 2, 1) + 1) if common % size == 0)
        writes = reads = SparseStructure("block", (block, block))
    return [*((writes, path) for path in layout.writers), (reads, layout.reader)]


def _read_structure(entry: Any) -> SparseStructure:
    if not isinstance(entry, Mapping):
        raise ValueError(f"an entry of 'sparse_structure_by_scopes' is {entry!r}; write an object with 'mode'.")
    _check_keys(entry, _STRUCTURE_KEYS, "an entry", "'sparse_structure_by_scopes'")
    for key in ("mode", "target_scopes"):
        if key not in entry:
            raise ValueError(
                f"an entry of 'sparse_structure_by_scopes' lacks {key!r}; give 'mode' and 'target_scopes'."
            )
    scopes = _read_scopes(entry["target_scopes"], "target_scopes")
    return SparseStructure(entry["mode"], entry.get("sparse_factors"), entry.get("axis"), scopes)


def _read_scopes(scopes: Any, key: str) -> tuple[str, ...]:
    listed = (scopes,) if isinstance(scopes, str) else scopes
    if not isinstance(listed, Sequence) or not all(isinstance(scope, str) for scope in listed):
        raise ValueError(f"{key!r} is {scopes!r}; give a name, or a list of names, of layers.")
    return tuple(listed)


def _check_keys(given: Mapping[str, Any], allowed: Sequence[str], source: str, where: str) -> None:
    if unknown := [key for key in given if key not in allowed]:
        raise ValueError(f"{source} has the unknown key {unknown[0]!r} in {where}; choose from {_list(allowed)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
