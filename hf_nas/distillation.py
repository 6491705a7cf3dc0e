"""Distillation losses. The teacher never receives a gradient."""

import torch
from torch.nn import functional


IGNORED_LABEL = -100


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
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor | None,
    temperature: float,
    regression: bool = False,
    shifted: bool = False,
) -> torch.Tensor:
    """Loss of a sub-network taught by the full network in the same step (Klein et al., 2024; Yu et al., 2019).

    Args:
        task_loss: loss of the sub-network on the labels.
        student: its logits, shape `(batch, classes)` or `(batch, length, classes)`.
        teacher: logits of the full network.
        labels: labels, by which ignored positions are left out; `(batch,)` or `(batch, length)`.
        temperature: of the soft labels.
        regression: the loss is then the mean squared distance of the logits alone.
        shifted: whether the logits at a position predict the label of the next one (causal language models).

    Returns:
        Soft-label loss plus task loss, each with weight 1; for regression the squared distance.
    """
    if regression:
        return functional.mse_loss(student.float(), teacher.detach().float())
    mask = None
    if labels is not None and labels.dim() == student.dim() - 1 and student.dim() == 3:
        if shifted:
            student, teacher, labels = student[:, :-1], teacher[:, :-1], labels[:, 1:]
        mask = labels.ne(IGNORED_LABEL)
    return soft_label_loss(student, teacher, temperature, mask) + task_loss
