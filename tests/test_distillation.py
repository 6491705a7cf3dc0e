"""Distillation losses against numbers computed by hand."""

import pytest
import torch

from hf_nas.distillation import in_place_loss, soft_label_loss


STUDENT, TEACHER = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[2.0, 0.0], [0.5, 0.5]])
LABELS = torch.tensor([1, 0])
TASK = 0.3132616875


@pytest.mark.parametrize("temperature, wanted", [(1, 0.4744197087), (2, 0.5766659365), (10, 0.6228734700)])
def test_soft_labels(temperature: float, wanted: float) -> None:
    assert soft_label_loss(STUDENT, TEACHER, temperature).item() == pytest.approx(wanted, rel=1e-5)
    task = torch.nn.functional.cross_entropy(STUDENT, LABELS)
    assert task.item() == pytest.approx(TASK, rel=1e-6)
    loss = in_place_loss(task, STUDENT, TEACHER, LABELS, temperature)
    assert loss.item() == pytest.approx(wanted + TASK, rel=1e-5)


def test_equal_logits_cost_nothing() -> None:
    assert soft_label_loss(STUDENT, STUDENT, 3.0).item() == pytest.approx(0.0, abs=1e-7)


def test_the_gradient_is_that_of_the_soft_cross_entropy_and_the_teacher_gets_none() -> None:
    gradients = []
    for kind in ("divergence", "cross-entropy"):
        student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
        if kind == "divergence":
            soft_label_loss(student, teacher, 2.0).backward()
            assert teacher.grad is None
        else:
            log = (student / 2.0).log_softmax(-1)
            (4.0 * -((teacher.detach() / 2.0).softmax(-1) * log).sum(-1).mean()).backward()
        gradients.append(student.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_regression_is_the_squared_distance_of_the_logits_alone() -> None:
    student, teacher = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [5.0]])
    loss = in_place_loss(torch.tensor(9.0), student, teacher, torch.tensor([0.0, 0.0]), 10.0, regression=True)
    assert loss.item() == pytest.approx(2.5)


def test_ignored_positions_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 5, generator=generator) for _ in range(2))
    labels = torch.tensor([[1, 2, -100, -100], [3, -100, 0, 1]])
    rows = labels.ne(-100)
    wanted = soft_label_loss(student[rows], teacher[rows], 2.0)
    zero = torch.tensor(0.0)
    assert in_place_loss(zero, student, teacher, labels, 2.0).item() == pytest.approx(wanted.item(), rel=1e-5)
    rows = labels[:, 1:].ne(-100)
    wanted = soft_label_loss(student[:, :-1][rows], teacher[:, :-1][rows], 2.0)
    shifted = in_place_loss(zero, student, teacher, labels, 2.0, shifted=True)
    assert shifted.item() == pytest.approx(wanted.item(), rel=1e-5)
