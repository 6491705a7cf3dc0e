"""The published objective against numbers computed by hand."""

import math

import pytest
import torch

from hf_nas.distillation import DistillationObjective


STUDENT, TEACHER = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[2.0, 0.0, -2.0]])


def divergence(student: list[float], teacher: list[float], temperature: float) -> float:
    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in values]
        return [power / sum(powers) for power in powers]

    return temperature**2 * sum(p * math.log(p / q) for p, q in zip(softmax(teacher), softmax(student)))


@pytest.mark.parametrize(("temperature", "wanted"), [(1, 0.115611), (2, 0.241076), (2 / 3, 0.049923)])
def test_published_soft_labels(temperature: float, wanted: float) -> None:
    assert divergence([1, 0, -1], [2, 0, -2], temperature) == pytest.approx(wanted, abs=1e-6)
    objective = DistillationObjective(layer_weight=0, soft_label_weight=1, temperature=temperature)
    loss = objective(student_logits=STUDENT, teacher_logits=TEACHER)
    assert loss.soft_labels.item() == pytest.approx(wanted, abs=1e-6)
    assert loss.total.item() == pytest.approx(wanted, abs=1e-6)
    assert loss.layer is None and loss.labels is None


def test_the_published_total_has_no_task_loss() -> None:
    task, layer = torch.tensor(5.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    arguments = {"student_logits": STUDENT, "teacher_logits": TEACHER, "layer_loss": layer, "task_loss": task}
    loss = DistillationObjective()(**arguments)
    assert loss.total.item() == pytest.approx(0.9 * 3 + 0.1 * 0.241076, abs=1e-6)
    loss.total.backward()
    assert layer.grad.item() == pytest.approx(0.9) and task.grad is None and loss.labels is None
    loss = DistillationObjective(0.5, 0.5, 0.25)(**arguments)
    assert loss.total.item() == pytest.approx(0.5 * 3 + 0.5 * 0.241076 + 0.25 * 5, abs=1e-6)
    assert loss.labels is task and loss.layer is layer


def test_question_answering_takes_the_mean_of_start_and_end_without_padding() -> None:
    starts, ends = [[1.0, 0.0, 2.0], [0.5, -1.0, 9.0]], [[0.0, 0.3, 1.0], [2.0, 1.0, -7.0]]
    teacher_starts, teacher_ends = [[2.0, 0.0, 1.0], [1.0, 1.0, 30.0]], [[0.0, 0.0, 0.0], [1.0, 3.0, -30.0]]
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    wanted = 0.0
    for student, teacher in ((starts, teacher_starts), (ends, teacher_ends)):
        rows = [divergence(student[0], teacher[0], 2), divergence(student[1][:2], teacher[1][:2], 2)]
        wanted += sum(rows) / 2 / 2
    loss = DistillationObjective(0, 1)(
        student_logits=(torch.tensor(starts), torch.tensor(ends)),
        teacher_logits=(torch.tensor(teacher_starts), torch.tensor(teacher_ends)),
        mask=mask,
    )
    assert loss.total.item() == pytest.approx(wanted, rel=1e-5)


def test_tokens_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    rows = [divergence(student[r, c].tolist(), teacher[r, c].tolist(), 2) for r, c in mask.nonzero().tolist()]
    objective = DistillationObjective(0, 1)
    loss = objective(student_logits=student, teacher_logits=teacher, mask=mask).total
    assert loss.item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)
    student[0, 2] = 1e3
    assert torch.equal(objective(student_logits=student, teacher_logits=teacher, mask=mask).total, loss)


def test_regression_learns_from_the_values() -> None:
    student = torch.tensor([[1.0], [3.0]], requires_grad=True)
    teacher = torch.tensor([[2.0], [5.0]], requires_grad=True)
    loss = DistillationObjective(0, 1)(student_logits=student, teacher_logits=teacher, regression=True)
    assert loss.total.item() == pytest.approx(2.5)
    loss.total.backward()
    assert student.grad.flatten().tolist() == pytest.approx([-1.0, -2.0]) and teacher.grad is None
    # What is published: a softmax over one logit, from which nothing is learnt.
    assert DistillationObjective(0, 1)(student_logits=student, teacher_logits=teacher).total.item() == 0


@pytest.mark.parametrize(
    ("weights", "given", "message"),
    [
        (
            {},
            {"student_logits": STUDENT, "teacher_logits": TEACHER},
            "layer_weight is 0.9, but the layer loss is",
        ),
        ({"layer_weight": 0}, {"student_logits": STUDENT}, "soft_label_weight is 0.1, but the logits of the teacher"),
        ({"layer_weight": 0}, {"teacher_logits": STUDENT}, "but the logits of the student are missing"),
        (
            {"layer_weight": 0, "soft_label_weight": 0, "label_weight": 2.0},
            {},
            "label_weight is 2, but the task loss is missing",
        ),
        (
            {"layer_weight": 0},
            {"student_logits": STUDENT, "teacher_logits": TEACHER[:, :2]},
            r"shapes \[\(1, 3\)\], the teacher's \[\(1, 2\)\]; take a teacher",
        ),
    ],
)
def test_missing_parts_are_refused(weights: dict, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationObjective(**weights)(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_weight": -0.1}, "The layer_weight of distillation is -0.1; give a number of at least 0"),
        ({"label_weight": float("nan")}, "The label_weight of distillation is nan"),
        ({"soft_label_weight": float("inf")}, "The soft_label_weight of distillation is inf"),
        ({"layer_weight": 0, "soft_label_weight": 0}, "All weights of distillation are 0"),
        ({"temperature": 0}, "temperature is 0; give a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationObjective(**arguments)
