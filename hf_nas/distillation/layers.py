"""Layer-wise distillation with dynamic matching of layers, as in CoFi (Xia et al., 2022).

The rules of matching go by the numbers of the published code, as its authors meant them: by a layer's own index where
that code mixed up index and rank, over unpruned layers only, and without an index out of range where none is left.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


__all__ = ["VERSIONS", "LayerDistillation", "LayerLoss", "match_layers", "teacher_layers"]

VERSIONS = (2, 3, 4, 5, 6)
_SAMPLED = (5, 6)
_ORDERED = (4, 5, 6)
# The published teacher has 12 layers, of which the last of each quarter teaches.
_QUARTERS = 4
NO_MATCH = -1


class LayerLoss(NamedTuple):
    """What [`LayerDistillation`] gives.

    Args:
        loss: scalar; the sum over the teacher layers that found a student layer.
        teacher_layers: indices of the layers that teach, ascending (those of version 2 may repeat).
        matches: shape `(len(teacher_layers),)`: the student layer of each, -1 where it found none.
    """

    loss: torch.Tensor
    teacher_layers: tuple[int, ...]
    matches: torch.Tensor


def teacher_layers(
    version: int, teachers: int, students: int, generator: torch.Generator | None = None
) -> tuple[int, ...]:
    """The layers of the teacher that teach, ascending.

    Version 2: for each student layer the one at its fraction of depth. 3 and 4: the last of each quarter of the depth.
    5: as many, drawn uniformly without replacement. 6: one drawn from each quarter. In 5 and 6 the first is raised to
    at least the last layer of the first quarter, as published; where that makes two of them equal, only one stays.

    Args:
        version: 2 to 6.
        teachers: number of layers of the teacher. With less than four, fewer layers teach.
        students: number of layers of the student; only version 2 depends on it.
        generator: to draw with, in versions 5 and 6.

    Raises:
        ValueError: for another version, no layers, or no generator where one is needed.
    """
    _check_version(version)
    if teachers < 1 or students < 1:
        raise ValueError(
            f"The teacher has {teachers} layers and the student {students}; layers are matched only where both have "
            "some, so leave layer distillation out."
        )
    if version == 2:
        return tuple(_last_of(part, students, teachers) for part in range(students))
    last = sorted({_last_of(quarter, _QUARTERS, teachers) for quarter in range(_QUARTERS)})
    if version not in _SAMPLED:
        return tuple(last)
    if generator is None:
        raise ValueError(
            f"Version {version} of layer distillation draws the teacher's layers, but was given no generator; give a "
            "torch.Generator that is equal on all processes."
        )
    if version == 5:
        order = torch.randperm(teachers, generator=generator, device=generator.device)
        drawn = sorted(order[: len(last)].tolist())
    else:
        first = [0, *(layer + 1 for layer in last[:-1])]
        drawn = [
            int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))
            for low, high in zip(first, last)
        ]
    return tuple(sorted({max(drawn[0], last[0]), *drawn[1:]}))


def match_layers(distances: torch.Tensor, unpruned: torch.Tensor, version: int) -> torch.Tensor:
    """The student layer of each teacher layer, by distance.

    Version 3: the nearest unpruned one. 4 to 6: from the top down, the nearest one that is unpruned and below the one
    matched before. A teacher layer without such a candidate is skipped: it matches nothing, and the one matched before
    stays the bound of the next. Equal distances go to the lower layer. There is no branch on values, so nothing waits
    for the device.

    Args:
        distances: shape `(teacher layers, student layers)`, teacher layers ascending.
        unpruned: bool, shape `(student layers,)`.
        version: 3 to 6.

    Returns:
        Indices of shape `(teacher layers,)`, -1 where a teacher layer is skipped.

    Raises:
        ValueError: for another version, or shapes that do not fit.
    """
    _check_version(version)
    if version == 2:
        raise ValueError("Version 2 of layer distillation matches layers by depth, not by distance; give 3 to 6.")
    if distances.dim() != 2:
        raise ValueError(
            f"The distances have the shape {tuple(distances.shape)}; give one for each teacher and student layer."
        )
    unpruned = _as_unpruned(unpruned, distances.shape[1], distances.device)
    indices = torch.arange(distances.shape[1], device=distances.device)
    nothing = torch.full((), NO_MATCH, device=distances.device)
    bound = torch.full((), distances.shape[1], device=distances.device)
    matches = []
    for row in distances.flip(0):
        candidates = unpruned & (indices < bound) if version in _ORDERED else unpruned
        nearest = row.masked_fill(~candidates, torch.inf).argmin()
        exists = candidates.any()
        matches.append(torch.where(exists, nearest, nothing))
        bound = torch.where(exists, nearest, bound)
    return torch.stack(matches).flip(0)


class LayerDistillation(nn.Module):
    """Mean squared distance of student and teacher layers, after one learnable linear map for all student layers.

    The map starts as the identity. It is trained with the weights of the student: whoever trains it makes it part of
    what the optimizer, data parallelism and checkpoints see.

    Args:
        student_width: hidden width of the student.
        teacher_width: hidden width of the teacher.
        version: how layers are matched, see [`teacher_layers`] and [`match_layers`]. The published scripts use 4; 1,
            the default of the published code, never existed there.
        kept_dims: which dimension of the teacher each one of a narrower student was, so that the identity joins the
            same ones; by default the first ones.

    Raises:
        ValueError: for a version other than 2 to 6, or dimensions that do not fit the widths.
    """

    def __init__(
        self, student_width: int, teacher_width: int, *, version: int = 4, kept_dims: Sequence[int] | None = None
    ):
        super().__init__()
        _check_version(version)
        self.version = version
        self.transform = nn.Linear(student_width, teacher_width)
        rows = list(range(min(student_width, teacher_width))) if kept_dims is None else [int(dim) for dim in kept_dims]
        if kept_dims is not None and (
            len(rows) != student_width or len(set(rows)) != len(rows) or not all(0 <= r < teacher_width for r in rows)
        ):
            raise ValueError(
                f"The {len(rows)} kept dimensions do not fit a student of width {student_width} and a teacher of "
                f"width {teacher_width}; give a different one from 0 to {teacher_width - 1} for each of the student."
            )
        with torch.no_grad():
            self.transform.weight.zero_()
            self.transform.weight[rows, list(range(len(rows)))] = 1.0
            self.transform.bias.zero_()

    def forward(
        self,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
        mask: torch.Tensor | None = None,
        unpruned: torch.Tensor | Sequence[bool] | None = None,
        generator: torch.Generator | None = None,
    ) -> LayerLoss:
        """Match the layers of one micro-batch and take their distance.

        Args:
            student: output of each layer of the student, each `(batch, length, student_width)`.
            teacher: output of each layer of the teacher, each `(batch, length, teacher_width)`; they get no gradient.
            mask: shape `(batch, length)`, 0 where a position is padding, which then counts nowhere; by default all
                positions count.
            unpruned: bool, for each student layer whether any of it is left (CoFi: attention gate != 0 or feed-forward
                gate != 0); by default all.
            generator: for versions 5 and 6.

        Returns:
            The loss and what was matched. Gradients flow through the matched layers only. With no match at all the
            loss is 0, with gradients of 0.

        Raises:
            ValueError: if shapes do not fit one another, or versions 5 and 6 get no generator.
        """
        teaching = teacher_layers(self.version, len(teacher), len(student), generator)
        mask = self._check(student, teacher, mask)
        if unpruned is None:
            unpruned = torch.ones(len(student), dtype=torch.bool, device=student[0].device)
        unpruned = _as_unpruned(unpruned, len(student), student[0].device)
        teacher = [teacher[layer].detach() for layer in teaching]
        if self.version == 2:
            indices = torch.arange(len(student), device=unpruned.device)
            matches = torch.where(unpruned, indices, torch.full_like(indices, NO_MATCH))
        else:
            with torch.no_grad():
                matches = match_layers(self._distances(student, teacher, mask), unpruned, self.version)
        # Chosen by index on the device, since reading the matches would make every micro-batch wait for it.
        chosen = torch.stack(tuple(student)).index_select(0, matches.clamp(min=0))
        losses = _mean_squared(self._transformed(chosen, mask), torch.stack(teacher), mask)
        return LayerLoss(losses.masked_fill(matches == NO_MATCH, 0.0).sum(), teaching, matches)

    def _distances(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor | None
    ) -> torch.Tensor:
        columns = []
        for states in student:  # one at a time: all pairs together would be the largest tensors of the training step
            transformed = self._transformed(states, mask)
            columns.append(torch.stack([_mean_squared(transformed, taught, mask) for taught in teacher]))
        return torch.stack(columns, dim=1)

    def _transformed(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if (
            mask is not None
        ):  # what padding holds must not even reach the gradient of the map, where 0 times NaN is NaN
            states = states.masked_fill(~mask[..., None], 0.0)
        return self.transform(states.to(self.transform.weight.dtype))

    def _check(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        batch = tuple(student[0].shape[:2])
        for whose, layers, width in (
            ("student", student, self.transform.in_features),
            ("teacher", teacher, self.transform.out_features),
        ):
            wanted = (*batch, width)
            for layer, states in enumerate(layers):
                if tuple(states.shape) != wanted:
                    raise ValueError(
                        f"Layer {layer} of the {whose} gives the shape {tuple(states.shape)}, not {wanted}; give "
                        f"(batch, length, {width}) and student and teacher the same batch."
                    )
        if mask is None:
            return None
        if tuple(mask.shape) != batch:
            raise ValueError(
                f"The mask has the shape {tuple(mask.shape)} and the hidden states {batch} positions; give a value "
                "for each position, 0 for padding."
            )
        return mask != 0


def _check_version(version: int) -> None:
    if version == 1:
        raise ValueError(
            "Version 1 of layer distillation, the default of the published CoFi code, was never written there; give "
            "2 to 6 (its scripts use 4)."
        )
    if version not in VERSIONS:
        raise ValueError(f"There is no version {version!r} of layer distillation; give 2 to 6 (4 is the usual one).")


def _as_unpruned(unpruned: torch.Tensor | Sequence[bool], students: int, device: torch.device) -> torch.Tensor:
    unpruned = torch.as_tensor(unpruned, device=device)
    if unpruned.dtype != torch.bool or tuple(unpruned.shape) != (students,):
        raise ValueError(
            f"The unpruned layers are given as {unpruned.dtype} of shape {tuple(unpruned.shape)}; give a bool (gate "
            f"!= 0) for each of the {students} student layers."
        )
    return unpruned


def _last_of(part: int, parts: int, layers: int) -> int:
    """Index of the last layer in this part of the depth; parts smaller than a layer share it."""
    return -(-(part + 1) * layers // parts) - 1


def _mean_squared(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Over unpadded positions and all dimensions; leading dimensions before `(batch, length, width)` stay."""
    difference = student.float() - teacher.float()
    if mask is None:
        return difference.square().mean(dim=(-3, -2, -1))
    squared = difference.masked_fill(~mask[..., None], 0.0).square().mean(dim=-1)
    return squared.sum(dim=(-2, -1)) / mask.sum().clamp(min=1)
