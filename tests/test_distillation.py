"""Distillation losses against numbers computed by hand."""

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification, BertModel

from hf_nas.distillation import in_place_loss, logits_of, soft_label_loss, task_and_teacher_loss


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


def test_the_published_weights_and_temperature() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    task = torch.nn.functional.cross_entropy(student, torch.tensor([0]))
    assert task_and_teacher_loss(task, (student,), (teacher,)).item() == pytest.approx(0.12616668, abs=5e-7)
    # The mean over the batch, with weights that add up to one.
    loss = task_and_teacher_loss(task, (STUDENT,), (TEACHER,), temperature=10, task_weight=0.25)
    assert loss.item() == pytest.approx(0.25 * TASK + 0.75 * 0.6228734700, rel=1e-5)


def test_start_and_end_are_averaged() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (tuple(torch.randn(2, 3, 7, generator=generator)) for _ in range(2))
    task = torch.tensor(0.5)
    soft = sum(soft_label_loss(each, other, 2.0).item() for each, other in zip(student, teacher)) / 2
    assert task_and_teacher_loss(task, student, teacher).item() == pytest.approx(0.05 + 0.9 * soft, rel=1e-6)
    assert in_place_loss(task, student, teacher, None, 2.0).item() == pytest.approx(0.5 + soft, rel=1e-6)
    # One tensor in a tuple is that tensor.
    alone = in_place_loss(task, student[0], teacher[0], torch.tensor([0, 1, 0]), 2.0)
    assert torch.equal(in_place_loss(task, student[:1], teacher[:1], torch.tensor([0, 1, 0]), 2.0), alone)


def test_padding_is_no_candidate_of_a_span() -> None:
    generator = torch.Generator().manual_seed(0)
    short = [torch.randn(2, 4, generator=generator) for _ in range(4)]
    padded = [torch.cat([each, torch.randn(2, 3, generator=generator)], dim=1).requires_grad_() for each in short]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
    short_mask, zero = mask[:, :4], torch.tensor(0.0)
    wanted = task_and_teacher_loss(zero, short[:2], short[2:], mask=short_mask)
    loss = task_and_teacher_loss(zero, padded[:2], padded[2:], mask=mask)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert task_and_teacher_loss(zero, padded[:2], padded[2:]).item() != pytest.approx(wanted.item(), rel=1e-2)
    in_place = in_place_loss(zero, tuple(padded[:2]), tuple(padded[2:]), None, 2.0, mask=mask)
    assert in_place.item() == pytest.approx(wanted.item() / 0.9, rel=1e-6)
    # By hand, on the three positions of the second row.
    rows = [torch.cat([each[1:, :3] for each in part]) for part in (short[:2], short[2:])]
    second = task_and_teacher_loss(
        zero, [each[1:] for each in padded[:2]], [each[1:] for each in padded[2:]], mask=mask[1:]
    )
    assert second.item() == pytest.approx(0.9 * soft_label_loss(*rows, 2.0).item(), rel=1e-6)
    loss.backward()
    for student in padded[:2]:
        assert torch.isfinite(student.grad).all()
        assert (student.grad[mask == 0] == 0).all() and (student.grad[mask == 1] != 0).all()
    assert padded[2].grad is None


def test_padded_tokens_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 5, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    wanted = 0.9 * soft_label_loss(student[mask == 1], teacher[mask == 1], 2.0)
    loss = task_and_teacher_loss(torch.tensor(0.0), (student,), (teacher,), mask=mask)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_teacher_of_values_is_followed_by_their_distance() -> None:
    student, teacher = (torch.tensor([[1.0], [3.0]]),), (torch.tensor([[2.0], [5.0]]),)
    loss = task_and_teacher_loss(torch.tensor(9.0), student, teacher, regression=True)
    assert loss.item() == pytest.approx(0.1 * 9 + 0.9 * 2.5)


def test_logits_are_found() -> None:
    config = BertConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    tokens = torch.tensor([[1, 2, 3, 4]])
    outputs = [model(config)(tokens) for model in (BertForSequenceClassification, BertForQuestionAnswering)]
    assert [[tuple(logits.shape) for logits in logits_of(each)] for each in outputs] == [[(1, 2)], [(1, 4), (1, 4)]]
    assert logits_of(outputs[1])[1] is outputs[1].end_logits
    with pytest.raises(ValueError, match="returns a BaseModelOutputWithPoolingAndCrossAttentions with neither"):
        logits_of(BertModel(config)(tokens))
    with pytest.raises(ValueError, match="returns a tuple with neither"):
        logits_of(BertForSequenceClassification(config)(tokens, return_dict=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        ({"task_weight": 1.5}, "weight of the task loss is 1.5; give a number from 0 to 1"),
        ({"teacher_logits": (torch.zeros(2, 3),)}, r"shapes \[\(2, 2\)\], the teacher's \[\(2, 3\)\]; take a teacher"),
        ({"teacher_logits": (TEACHER, TEACHER)}, r"the teacher's \[\(2, 2\), \(2, 2\)\]"),
        ({"student_logits": (), "teacher_logits": ()}, r"shapes \[\], the teacher's \[\]"),
        ({"mask": torch.ones(2, 7)}, r"mask of shape \(2, 7\) does not fit logits of shape \(2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    arguments = {"student_logits": (STUDENT,), "teacher_logits": (TEACHER,), **change}
    with pytest.raises(ValueError, match=message):
        task_and_teacher_loss(torch.tensor(TASK), **arguments)
