"""Matching of layers and the layer-wise loss, against loops written by hand and the numbers of the published code."""

import itertools

import pytest
import torch

from hf_nas.distillation import LayerDistillation, match_layers, teacher_layers


PUBLISHED = torch.tensor([[0.10, 0.40, 0.30, 0.20], [0.50, 0.05, 0.20, 0.15]])
WIDTH = 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def match_by_hand(distances: list[list[float]], unpruned: list[bool], ordered: bool) -> list[int]:
    bound, found = len(unpruned), []
    for row in reversed(distances):
        candidates = [j for j in range(len(row)) if unpruned[j] and (j < bound or not ordered)]
        if not candidates:
            found.insert(0, -1)
            continue
        bound = min(candidates, key=lambda j: row[j])
        found.insert(0, bound)
    return found


def states(layers: int, width: int = WIDTH, seed: int = 0, batch: int = 2, length: int = 5) -> list[torch.Tensor]:
    return list(torch.randn(layers, batch, length, width, generator=seeded(seed)))


def distance_by_hand(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> float:
    total, count = 0.0, 0
    for row, position in itertools.product(range(mask.shape[0]), range(mask.shape[1])):
        if mask[row, position]:
            total += ((student[row, position] - teacher[row, position]) ** 2).sum().item()
            count += student.shape[-1]
    return total / count


@pytest.mark.parametrize(
    ("unpruned", "wanted"),
    [
        ([True, True, True, True], [0, 1]),
        ([True, False, True, True], [0, 3]),
        ([False, True, True, True], [-1, 1]),  # the published code goes out of range here
        ([False, False, False, False], [-1, -1]),
    ],
)
def test_published_matching(unpruned: list[bool], wanted: list[int]) -> None:
    for version in (4, 5, 6):
        assert match_layers(PUBLISHED, torch.tensor(unpruned), version).tolist() == wanted


def test_a_pruned_layer_is_left_out_by_its_index_and_not_by_its_rank() -> None:
    distances, unpruned = torch.tensor([[0.9, 0.1, 0.5, 0.3]]), torch.tensor([True, False, True, True])
    assert match_layers(distances, unpruned, 4).tolist() == [3]
    assert match_layers(distances, unpruned, 3).tolist() == [3]


def test_version_3_knows_no_order_but_leaves_pruned_layers_out() -> None:
    distances = torch.tensor([[0.4, 0.3, 0.1], [0.1, 0.3, 0.4]])
    assert match_layers(distances, torch.tensor([True, True, True]), 3).tolist() == [2, 0]
    assert match_layers(distances, torch.tensor([True, True, False]), 3).tolist() == [1, 0]
    assert match_layers(distances, torch.tensor([True, True, True]), 4).tolist() == [-1, 0]


def test_a_skipped_teacher_layer_does_not_loosen_the_bound() -> None:
    distances = torch.tensor([[0.1, 0.2, 0.9], [0.2, 0.3, 0.1], [0.1, 0.5, 0.6]])
    assert match_layers(distances, torch.tensor([True, True, True]), 4).tolist() == [-1, -1, 0]


@pytest.mark.parametrize("seed", range(20))
def test_matching_is_that_of_a_loop(seed: int) -> None:
    generator = seeded(seed)
    distances = torch.rand(4, 1 + seed % 12, generator=generator)
    unpruned = torch.rand(distances.shape[1], generator=generator) < 0.7
    for version, ordered in ((3, False), (4, True)):
        matches = match_layers(distances, unpruned, version).tolist()
        assert matches == match_by_hand(distances.tolist(), unpruned.tolist(), ordered)
        found = [match for match in matches if match >= 0]
        assert all(unpruned[match] for match in found)
        assert not ordered or found == sorted(set(found))


@pytest.mark.parametrize(
    ("teachers", "wanted"),
    [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (6, (1, 2, 4, 5)), (4, (0, 1, 2, 3)), (3, (0, 1, 2)), (2, (0, 1))],
)
def test_the_last_layer_of_each_quarter_teaches(teachers: int, wanted: tuple[int, ...]) -> None:
    for version in (3, 4):
        assert teacher_layers(version, teachers, 12) == wanted
    assert teacher_layers(4, 1, 12) == (0,)


@pytest.mark.parametrize(
    ("teachers", "students", "wanted"),
    [(3, 3, (0, 1, 2)), (12, 6, (1, 3, 5, 7, 9, 11)), (3, 6, (0, 0, 1, 1, 2, 2)), (5, 2, (2, 4))],
)
def test_version_2_goes_by_the_fraction_of_depth(teachers: int, students: int, wanted: tuple[int, ...]) -> None:
    assert teacher_layers(2, teachers, students) == wanted


def test_drawn_teacher_layers() -> None:
    generator = seeded()
    drawn = {5: set(), 6: set()}
    for version, chosen in drawn.items():
        for _ in range(300):
            layers = teacher_layers(version, 12, 12, generator)
            assert layers[-1] <= 11 and list(layers) == sorted(set(layers)) and 3 <= len(layers) <= 4
            assert any(layer >= 2 for layer in layers)
            chosen.update(layers)
            if version == 6:  # the first quarter ends with layer 2, to which its layer is raised
                assert layers[0] == 2
                assert [layer // 3 for layer in layers] == [0, 1, 2, 3]
    assert drawn[5] >= set(range(1, 12)) and 0 not in drawn[5]
    assert drawn[6] == set(range(2, 12))
    for version, teachers in itertools.product((5, 6), (1, 2, 3, 5, 7, 24)):
        layers = teacher_layers(version, teachers, 12, generator)
        assert 1 <= len(layers) <= min(4, teachers) and max(layers) < teachers


@pytest.mark.parametrize("version", [5, 6])
def test_drawing_is_repeatable(version: int) -> None:
    layers = [[teacher_layers(version, 12, 12, generator) for _ in range(10)] for generator in (seeded(3), seeded(3))]
    assert layers[0] == layers[1]
    assert layers[0] != [teacher_layers(version, 12, 12, seeded(4)) for _ in range(10)]
    loss = LayerDistillation(WIDTH, WIDTH, version=version)
    results = [loss(states(6, seed=1), states(8, seed=2), generator=seeded(5)) for _ in range(2)]
    assert results[0].teacher_layers == results[1].teacher_layers
    assert torch.equal(results[0].loss, results[1].loss)


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
@pytest.mark.parametrize(("students", "teachers"), [(4, 12), (12, 4), (3, 3), (1, 6)])
def test_the_loss_is_that_of_a_loop(version: int, students: int, teachers: int) -> None:
    torch.manual_seed(0)
    loss = LayerDistillation(WIDTH, WIDTH + 2, version=version)
    torch.nn.init.normal_(loss.transform.weight)
    torch.nn.init.normal_(loss.transform.bias)
    student, teacher = states(students, seed=1), states(teachers, WIDTH + 2, seed=2)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    unpruned = [index != 1 for index in range(students)]
    result = loss(student, teacher, mask, unpruned, seeded(7))
    transformed = [each @ loss.transform.weight.T + loss.transform.bias for each in student]
    teaching = teacher_layers(version, teachers, students, seeded(7))
    if version == 2:
        matches = [index if keep else -1 for index, keep in enumerate(unpruned)]
    else:
        distances = [[distance_by_hand(each, teacher[t], mask) for each in transformed] for t in teaching]
        matches = match_by_hand(distances, unpruned, ordered=version != 3)
    assert result.teacher_layers == teaching and result.matches.tolist() == matches
    wanted = sum(distance_by_hand(transformed[m], teacher[t], mask) for t, m in zip(teaching, matches) if m >= 0)
    assert result.loss.item() == pytest.approx(wanted, rel=1e-5)


def test_a_student_like_its_teacher_costs_nothing_and_finds_its_own_layers() -> None:
    teacher = states(12)
    result = LayerDistillation(WIDTH, WIDTH)(teacher, teacher)
    assert result.loss.item() == 0 and result.matches.tolist() == [2, 5, 8, 11]


def test_padding_changes_nothing() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    results = []
    for padding in (0.0, 1e4, float("nan")):
        loss = LayerDistillation(WIDTH, WIDTH)
        student, teacher = (
            [each.masked_fill(mask[..., None] == 0, padding) for each in states(4, seed=seed)] for seed in (1, 2)
        )
        student = [each.requires_grad_() for each in student]
        result = loss(student, teacher, mask)
        result.loss.backward()
        assert all((each.grad[mask == 0] == 0).all() for each in student)
        results.append([result.loss.detach(), result.matches, loss.transform.weight.grad, loss.transform.bias.grad])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other))
    assert results[0][2].abs().sum() > 0


def test_the_unpadded_positions_alone_give_the_same() -> None:
    student, teacher = states(4, seed=1), states(4, seed=2)
    cut = LayerDistillation(WIDTH, WIDTH)([each[:, :3] for each in student], [each[:, :3] for each in teacher])
    whole = LayerDistillation(WIDTH, WIDTH)(student, teacher, torch.tensor([[1, 1, 1, 0, 0]] * 2))
    assert whole.loss.item() == pytest.approx(cut.loss.item(), rel=1e-6)
    assert torch.equal(whole.matches, cut.matches)
    unmasked = LayerDistillation(WIDTH, WIDTH)(student, teacher)
    assert unmasked.loss.item() != pytest.approx(cut.loss.item(), rel=1e-3)


def test_a_batch_of_padding_alone_costs_nothing() -> None:
    result = LayerDistillation(WIDTH, WIDTH)(states(3), states(3, seed=1), torch.zeros(2, 5))
    assert result.loss.item() == 0


def test_gradients_reach_the_map_and_the_matched_layers_only() -> None:
    loss = LayerDistillation(WIDTH, WIDTH)
    student, teacher = ([each.requires_grad_() for each in states(8, seed=s)] for s in (1, 2))
    result = loss(student, teacher)
    result.loss.backward()
    touched = {index for index, each in enumerate(student) if each.grad is not None and each.grad.abs().sum() > 0}
    assert touched == set(result.matches.tolist()) - {-1}
    assert all(each.grad is None for each in teacher)
    assert loss.transform.weight.grad.abs().sum() > 0 and loss.transform.bias.grad.abs().sum() > 0


def test_without_any_candidate_the_loss_is_zero_and_every_parameter_still_takes_part() -> None:
    for version in (2, 3, 4):
        loss = LayerDistillation(WIDTH, WIDTH, version=version)
        result = loss(states(3), states(3, seed=1), unpruned=torch.zeros(3, dtype=torch.bool))
        assert result.loss.item() == 0 and set(result.matches.tolist()) == {-1}
        result.loss.backward()  # data parallelism waits for the gradient of each parameter
        assert all((each.grad == 0).all() for each in loss.parameters())


def test_the_map_starts_as_the_identity_of_the_same_dimensions() -> None:
    inputs = torch.randn(2, 3, 4, generator=seeded())
    assert torch.equal(LayerDistillation(4, 4).transform(inputs), inputs)
    wider = LayerDistillation(4, 6).transform(inputs)
    assert torch.equal(wider[..., :4], inputs) and (wider[..., 4:] == 0).all()
    assert torch.equal(LayerDistillation(4, 3).transform(inputs), inputs[..., :3])
    kept = LayerDistillation(4, 6, kept_dims=(0, 2, 3, 5)).transform(inputs)
    assert torch.equal(kept[..., [0, 2, 3, 5]], inputs) and (kept[..., [1, 4]] == 0).all()


def test_low_precision_states_are_compared_in_float32() -> None:
    student, teacher = ([each.bfloat16() for each in states(3, seed=s)] for s in (1, 2))
    loss = LayerDistillation(WIDTH, WIDTH)
    wanted = loss([each.float() for each in student], [each.float() for each in teacher]).loss
    result = loss(student, teacher).loss
    assert result.dtype == torch.float32 and torch.equal(result, wanted)


def test_matching_compiles_without_a_graph_break() -> None:
    compiled = torch.compile(match_layers, fullgraph=True, backend="eager")
    unpruned = torch.tensor([True, False, True, True])
    assert compiled(PUBLISHED, unpruned, 4).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (1, "Version 1 of layer distillation, the default of the published CoFi code, was never written"),
        (0, "There is no version 0 of layer distillation; give 2 to 6"),
        (7, "There is no version 7"),
        ("4", "There is no version '4'"),
    ],
)
def test_unknown_versions_are_refused(version: object, message: str) -> None:
    for call in (
        lambda: LayerDistillation(WIDTH, WIDTH, version=version),
        lambda: teacher_layers(version, 12, 12, seeded()),
        lambda: match_layers(PUBLISHED, torch.ones(4, dtype=torch.bool), version),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": states(3, WIDTH + 1)}, r"Layer 0 of the student gives the shape \(2, 5, 7\), not \(2, 5, 6\)"),
        ({"teacher": states(3, length=4)}, r"Layer 0 of the teacher gives the shape \(2, 4, 6\), not \(2, 5, 6\)"),
        ({"teacher": [*states(2), states(1, batch=1)[0]]}, r"Layer 2 of the teacher gives the shape \(1, 5, 6\)"),
        ({"student": []}, "The teacher has 3 layers and the student 0"),
        ({"teacher": []}, "The teacher has 0 layers and the student 3"),
        ({"mask": torch.ones(2, 4)}, r"mask has the shape \(2, 4\) and the hidden states \(2, 5\) positions"),
        ({"unpruned": [True, False]}, r"torch.bool of shape \(2,\); give a bool"),
        ({"unpruned": torch.tensor([0.3, 0.0, 1.0])}, r"torch.float32 of shape \(3,\); give a bool"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerDistillation(WIDTH, WIDTH)(**{"student": states(3), "teacher": states(3, seed=1), **change})


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="Version 5 of layer distillation draws .* give a torch.Generator"):
        LayerDistillation(WIDTH, WIDTH, version=5)(states(3), states(3))
    with pytest.raises(ValueError, match="Version 2 of layer distillation matches layers by depth"):
        match_layers(PUBLISHED, torch.ones(4, dtype=torch.bool), 2)
    with pytest.raises(ValueError, match=r"distances have the shape \(4,\)"):
        match_layers(PUBLISHED[0], torch.ones(4, dtype=torch.bool), 4)
    for kept in ((0, 1), (0, 1, 1, 2), (0, 1, 2, 6), (-1, 0, 1, 2)):
        with pytest.raises(ValueError, match="kept dimensions do not fit a student of width 4 and .* of width 6"):
            LayerDistillation(4, 6, kept_dims=kept)
