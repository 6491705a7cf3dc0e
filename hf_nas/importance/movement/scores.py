"""What movement sparsity has learnt, as a value: its file, old files, and the importance of units."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_nas.importance.movement.files import read_scores, write_scores
from hf_nas.importance.movement.masking import Masks, expand, mask_of
from hf_nas.importance.movement.resolution import Group, groups_of
from hf_nas.structures import ModelStructure, describe


__all__ = ["MovementScores", "keep_thresholds", "unit_scores"]

_RANKINGS = ("published", "all", "kept")


@dataclass(frozen=True)
class MovementScores:
    """Scores of weights and biases, by path of the layer from the whole model.

    Args:
        weights: scores of the weights, `(rows, columns)` of scores; each is shared by a block of weights.
        biases: scores of the biases, `(rows,)`; layers without bias are not named.
        shapes: (outputs, inputs) of the weights.

    Raises:
        ValueError: if scores do not fit the shapes.
    """

    weights: Mapping[str, torch.Tensor]
    biases: Mapping[str, torch.Tensor]
    shapes: Mapping[str, tuple[int, int]]

    def __post_init__(self):
        if not self.weights:
            raise ValueError("Movement scores without any layer; give the scores of at least one.")
        if unknown := set(self.biases) - set(self.weights) or set(self.weights) ^ set(self.shapes):
            raise ValueError(
                f"The movement scores of {sorted(unknown)[0]!r} are incomplete; a layer needs scores of its weights "
                "and the shape of its weight, and may have scores of its biases."
            )
        for path, scores in self.weights.items():
            rows, columns = self.shapes[path]
            is_matrix = scores.dim() == 2 and scores.numel() > 0
            if not is_matrix or rows % scores.shape[0] or columns % scores.shape[1]:
                raise ValueError(
                    f"The movement scores of {path!r} have the shape {tuple(scores.shape)}, which does not divide "
                    f"that of its weight, {(rows, columns)}; take the scores of a model of this size."
                )
            bias = self.biases.get(path)
            if bias is not None and bias.shape != scores.shape[:1]:
                raise ValueError(
                    f"The movement scores of the biases of {path!r} have the shape {tuple(bias.shape)}, those of its "
                    f"weights {tuple(scores.shape)}; both need equally many rows."
                )
            for values in (scores, bias):
                if values is not None and not torch.isfinite(values).all():
                    raise ValueError(
                        f"The movement scores of {path!r} contain values that are not finite, so the training that "
                        "made them diverged; repeat it with a lower learning rate."
                    )

    def save(self, path: str | Path) -> Path:
        """Write as one safetensors file, atomically.

        Args:
            path: of a file that ends in `.safetensors`, or of a folder, in which it is called
                `importance.safetensors`.

        Returns:
            The path of the file.
        """
        return write_scores(path, self.weights, self.biases, self.shapes)

    @classmethod
    def load(cls, path: str | Path, model: PreTrainedModel | None = None) -> "MovementScores":
        """Read scores from a file or folder.

        Understands what [`save`] writes, `pytorch_model.bin` as NNCF 2.x with EFTNAS wrote it (in the folder itself or
        in `movement_sparsity_0` below it), and checkpoints of a model to which movement sparsity was attached.

        Args:
            path: of the file or folder.
            model: that the scores are for. Files of scores alone, without the weights, need it for the shapes of the
                weights; the others are checked against it.

        Raises:
            ValueError: if there is no such file, it is something else, or it does not fit the model.
        """
        weights, biases, shapes, source = read_scores(path)
        if model is not None:
            shapes = _check_model(set(weights), shapes, model, source)
            # Scores of a pooler or task head that this model does not have.
            weights = {path: scores for path, scores in weights.items() if path in shapes}
            biases = {path: scores for path, scores in biases.items() if path in shapes}
        elif missing := sorted(set(weights) - set(shapes)):
            raise ValueError(
                f"{source} holds scores but not the shape of the weights of {missing[0]!r}; give the model that they "
                "are for."
            )
        return cls(weights=weights, biases=biases, shapes={path: shapes[path] for path in weights})

    def factors(self, path: str) -> tuple[int, int]:
        """Rows and columns of the weight of a layer that share one score."""
        (rows, columns), scores = self.shapes[path], self.weights[path]
        return rows // scores.shape[0], columns // scores.shape[1]

    def masks(self, threshold: float, quantile: float = 1.0) -> dict[str, Masks]:
        """The masks at a threshold, as training with it would make them."""
        masks = {}
        for path, scores in self.weights.items():
            shape, bias = self.shapes[path], self.biases.get(path)
            bias_mask = None if bias is None else mask_of(bias, shape[:1], threshold, quantile)
            masks[path] = Masks(mask_of(scores, shape, threshold, quantile), bias_mask)
        return masks

    def groups(self, structure: ModelStructure) -> list[Group]:
        """The layers of each sub-layer of a model.

        Raises:
            ValueError: if a layer has no scores, or they do not fit the structure.
        """
        groups = []
        for group, missing in groups_of(self.weights, structure):
            name = group.sub_layer.name
            if missing:
                raise ValueError(
                    f"There are no movement scores of {missing[0]!r}, which belongs to the sub-layer {name!r}; learn "
                    "the scores of all projections, or take those of another model."
                )
            units, features = group.sub_layer.units, group.sub_layer.features
            rows = [self.shapes[path][0] for path in group.writers]
            if self.shapes[group.reader][1] != units * features or any(r % units for r in rows):
                raise ValueError(
                    f"The movement scores of the sub-layer {name!r} are for {self.shapes[group.reader][1]} inputs of "
                    f"{group.reader!r}, but this model has {units * features}; take the scores of a model of this "
                    "size."
                )
            groups.append(group)
        return groups


def unit_scores(
    scores: MovementScores, structure: ModelStructure, ranking: str = "published"
) -> dict[str, torch.Tensor]:
    """The importance of units, from the scores of their weights.

    Args:
        scores: of the weights and biases.
        structure: of the model.
        ranking: `"published"` (EFTNAS) adds up the rows of the layers that write a unit; `"all"` also the columns of
            the layer that reads it, and the biases; `"kept"` takes the threshold from which on a unit is gone (see
            [`keep_thresholds`]), so that the first units of a reordered model are those that a generated space keeps.

    Returns:
        By name of the sub-layer, in double precision, shape `(units,)`, ready for `hf_nas.importance.reorder`.

    Raises:
        ValueError: for another ranking, or scores of another model.
    """
    if ranking not in _RANKINGS:
        raise ValueError(f"The ranking {ranking!r} is not known; choose from {', '.join(map(repr, _RANKINGS))}.")
    if ranking == "kept":
        return {name: thresholds.double() for name, thresholds in keep_thresholds(scores, structure).items()}
    totals = {}
    for group in scores.groups(structure):
        total = torch.zeros(group.sub_layer.units, dtype=torch.float64)
        for path in group.writers:
            rows, columns = scores.shapes[path]
            _, shared = scores.factors(path)
            sums = expand(scores.weights[path].double().sum(dim=1) * shared, (rows,))
            if ranking == "all" and path in scores.biases:
                sums = sums + expand(scores.biases[path].double(), (rows,))
            total += group.by_writer_unit(sums).sum(dim=1)
        if ranking == "all":
            shared, _ = scores.factors(group.reader)
            sums = scores.weights[group.reader].double().sum(dim=0) * shared
            total += group.by_reader_unit(expand(sums, scores.shapes[group.reader][1:])).sum(dim=1)
        totals[group.sub_layer.name] = total
    return totals


def keep_thresholds(scores: MovementScores, structure: ModelStructure) -> dict[str, torch.Tensor]:
    """The threshold from which on each unit is gone.

    A unit stays at threshold t exactly if t is below this value; this is the rule of
    [`hf_nas.importance.movement.resolution.kept_units`] for the masks at t, solved for t.

    Args:
        scores: of the weights and biases.
        structure: of the model.

    Returns:
        By name of the sub-layer, shape `(units,)`.

    Raises:
        ValueError: for scores of another model.
    """
    thresholds = {}
    for group in scores.groups(structure):
        columns = expand(scores.weights[group.reader].amax(dim=0), scores.shapes[group.reader][1:])
        highest = group.by_reader_unit(columns).amax(dim=1)
        for path in group.writers:
            weights = scores.weights[path]
            rows = expand(weights.amax(dim=1), scores.shapes[path][:1])
            if path in scores.biases:
                rows = torch.maximum(rows, expand(scores.biases[path], scores.shapes[path][:1]))
            # A bias saves a unit only as long as the layer has some weight left.
            by_unit = group.by_writer_unit(rows).amax(dim=1).clamp(max=weights.max())
            highest = torch.maximum(highest, by_unit)
        thresholds[group.sub_layer.name] = highest
    return thresholds


def _check_model(
    paths: set[str], shapes: Mapping[str, tuple[int, int]], model: PreTrainedModel, source: str
) -> dict[str, tuple[int, int]]:
    """The shapes of the weights of a model, after a look at whether these layers are its."""
    kind = type(model).__name__
    found = {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    structure = describe(model)
    base = next(name for name, module in model.named_modules() if module is model.base_model)
    stacks = tuple(f"{base}.{stack.path}.".removeprefix(".") for stack in structure.family.stacks)
    if unknown := sorted(path for path in paths - set(found) if path.startswith(stacks)):
        raise ValueError(
            f"{source} has scores of {unknown[0]!r}, which is no linear layer of this {kind}; give the model that "
            "they are for."
        )
    for group, missing in groups_of(found, structure):
        if lacking := [path for path in group.members if path not in paths and path not in missing]:
            raise ValueError(
                f"{source} has no scores of {lacking[0]!r}, which belongs to the sub-layer {group.sub_layer.name!r} "
                f"of this {kind}; learn the scores of all projections, or give the model that they are for."
            )
    for path, shape in shapes.items():
        if path in paths and found.get(path, shape) != shape:
            raise ValueError(
                f"{source} has scores of {path!r} for a weight of shape {shape}, but that of this {kind} has "
                f"{found[path]}; give the model that they are for."
            )
    return found
