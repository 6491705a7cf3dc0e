"""Losses on logits. The teacher never receives a gradient."""

import math
from typing import Any

import torch
from torch.nn import functional


__all__ = [
    "IGNORED_LABEL",
    "in_place_loss",
    "logits_of",
    "soft_label_loss",
    "task_and_teacher_loss",
    "teacher_loss",
]

IGNORED_LABEL = -100
# The logit of a position that is no candidate. Softened by any sensible temperature, it leaves no probability.
_NO_CANDIDATE = -1e9

Logits = torch.Tensor | tuple[torch.Tensor, ...]


def soft_label_loss(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """T² times the Kullback-Leibler divergence of the softened distributions (Hinton et al., 2015).

    The published weight-sharing NAS code takes the cross-entropy instead, which has the same gradient and is larger by
    the teacher's entropy; the divergence is zero when student and teacher agree.

    Args:
        student: logits, shape `(..., classes)`.
        teacher: logits, same shape.
        temperature: T, positive.
        mask: which positions count, shape `(...)`; by default all.

    Returns:
        Mean over the positions that count.
    """
    student_log = functional.log_softmax(student.float() / temperature, dim=-1)
    teacher_log = functional.log_softmax(teacher.detach().float() / temperature, dim=-1)
    divergence = functional.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=-1)
    if mask is None:
        return temperature**2 * divergence.mean()
    return temperature**2 * (divergence * mask).sum() / mask.sum().clamp(min=1)


def in_place_loss(
    task_loss: torch.Tensor,
    student: Logits,
    teacher: Logits,
    labels: torch.Tensor | None,
    temperature: float,
    regression: bool = False,
    shifted: bool = False,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss of a sub-network taught by the full network in the same step (Klein et al., 2024; Yu et al., 2019).

    Args:
        task_loss: loss of the sub-network on the labels.
        student: its logits, shape `(batch, classes)` or `(batch, length, classes)`; of question answering the start
            and the end logits, each `(batch, length)`.
        teacher: logits of the full network.
        labels: labels, by which ignored positions are left out; `(batch,)` or `(batch, length)`.
        temperature: of the soft labels.
        regression: the loss is then the mean squared distance of the logits alone.
        shifted: whether the logits at a position predict the label of the next one (causal language models).
        mask: as in [`task_and_teacher_loss`]; ignored labels go before it.

    Returns:
        Soft-label loss plus task loss, each with weight 1; for regression the squared distance. Of several logits the
        mean of both.

    Raises:
        ValueError: if the logits of student and teacher, or those and the mask, do not fit one another.
    """
    pairs = _pairs(student, teacher)
    if regression:
        return _squared_distance(pairs)
    if len(pairs) == 1 and labels is not None and labels.dim() == pairs[0][0].dim() - 1 and pairs[0][0].dim() == 3:
        ((student, teacher),) = pairs
        if shifted:
            student, teacher, labels = student[:, :-1], teacher[:, :-1], labels[:, 1:]
        return soft_label_loss(student, teacher, temperature, labels.ne(IGNORED_LABEL)) + task_loss
    return _mean_soft_label_loss(pairs, temperature, mask) + task_loss


def task_and_teacher_loss(
    task_loss: torch.Tensor,
    student_logits: tuple[torch.Tensor, ...],
    teacher_logits: tuple[torch.Tensor, ...],
    *,
    temperature: float = 2.0,
    task_weight: float = 0.1,
    regression: bool = False,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss of a network that a finished model teaches, with the weights and the temperature of EFTNAS.

    The teacher's part is the soft-label loss; in regression it is the mean squared distance of the logits (the
    softmax of a single logit, which EFTNAS takes there as well, teaches nothing).

    The candidates of a span are the positions of its row, and a trained teacher gives those of padding next to
    nothing, but not nothing, the more the further a batch is padded. With a mask they are taken out of both
    distributions, so that the loss of a row does not depend on the rest of its batch. EFTNAS leaves them in.

    Args:
        task_loss: loss of the student on the labels.
        student_logits: one tensor, `(batch, classes)` or `(batch, length, classes)`, or several, such as the start
            and end logits of question answering, `(batch, length)`, of whose losses the mean is taken.
        teacher_logits: of the teacher on the same batch; they get no gradient.
        temperature: of the soft labels.
        task_weight: share of the task loss; the rest is the teacher's.
        regression: whether the logits are predicted values.
        mask: for logits of spans or of tokens only: the attention mask, `(batch, length)`, not 0 where positions are
            candidates of a span or tokens that count.

    Returns:
        `task_weight * task_loss + (1 - task_weight) * (mean over the batch of the teacher's part)`.

    Raises:
        ValueError: for a temperature or weight out of range, or if the logits of student and teacher, or those and the
            mask, do not fit one another.
    """
    if not 0 <= task_weight <= 1:
        raise ValueError(f"The weight of the task loss is {task_weight}; give a number from 0 to 1.")
    taught = teacher_loss(student_logits, teacher_logits, temperature=temperature, regression=regression, mask=mask)
    return task_weight * task_loss + (1 - task_weight) * taught


def teacher_loss(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: float = 2.0,
    regression: bool = False,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The part of a finished model in what it teaches; arguments and errors as in [`task_and_teacher_loss`].

    Returns:
        Mean over the batch of the soft-label loss, or of the squared distance in regression; of several logits, such
        as those of start and end, the mean of their losses.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"The distillation temperature is {temperature}; give a number above 0.")
    pairs = _pairs(student_logits, teacher_logits)
    return _squared_distance(pairs) if regression else _mean_soft_label_loss(pairs, temperature, mask)


def logits_of(outputs: Any) -> tuple[torch.Tensor, ...]:
    """The logits among the outputs of a model: one tensor, or the start and end logits of question answering.

    Raises:
        ValueError: if there are neither.
    """
    for names in (("logits",), ("start_logits", "end_logits")):
        logits = tuple(getattr(outputs, name, None) for name in names)
        if all(isinstance(each, torch.Tensor) for each in logits):
            return logits
    raise ValueError(
        f"The model returns a {type(outputs).__name__} with neither 'logits' nor 'start_logits' and 'end_logits', so "
        "nothing can be distilled; take a model with a task head that returns a dictionary."
    )


def _pairs(student: Logits, teacher: Logits) -> list[tuple[torch.Tensor, torch.Tensor]]:
    students, teachers = ((each,) if isinstance(each, torch.Tensor) else tuple(each) for each in (student, teacher))
    shapes = [[tuple(logits.shape) for logits in each] for each in (students, teachers)]
    if shapes[0] != shapes[1] or not students:
        raise ValueError(
            f"The student's logits have the shapes {shapes[0]}, the teacher's {shapes[1]}; take a teacher for "
            "the same task and labels."
        )
    return list(zip(students, teachers))


def _squared_distance(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    losses = [functional.mse_loss(student.float(), teacher.detach().float()) for student, teacher in pairs]
    return sum(losses) / len(losses)


def _mean_soft_label_loss(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], temperature: float, mask: torch.Tensor | None
) -> torch.Tensor:
    losses = []
    for student, teacher in pairs:
        counted = None
        if mask is not None and mask.shape == student.shape:
            student, teacher = (each.float().masked_fill(mask == 0, _NO_CANDIDATE) for each in (student, teacher))
        elif mask is not None and mask.shape == student.shape[:-1] and student.dim() == 3:
            counted = mask != 0
        elif mask is not None:
            raise ValueError(
                f"A mask of shape {tuple(mask.shape)} does not fit logits of shape {tuple(student.shape)}; give one "
                "for logits of spans or tokens only, with a value for each position."
            )
        losses.append(soft_label_loss(student, teacher, temperature, counted))
    return sum(losses) / len(losses)
