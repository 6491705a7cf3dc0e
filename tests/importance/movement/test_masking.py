"""The arithmetic of one layer, on examples worked out by hand."""

import math

import pytest
import torch
from torch import nn

from hf_nas.bypass import swap_class
from hf_nas.importance.movement.masking import MovementLinear, MovementState, expand, mask_of, start_threshold


def layer(weight: list, scores: list, bias: list | None = None, bias_scores: list | None = None, **state) -> nn.Linear:
    """A linear layer with these weights and scores, in training."""
    weight, scores = torch.tensor(weight, dtype=torch.float), torch.tensor(scores, dtype=torch.float)
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(torch.tensor(bias, dtype=torch.float))
    swap_class(module, MovementLinear)
    shared = MovementState(state.pop("quantile", 1.0), state.pop("gradient_multiplier", 1.0))
    shared.threshold = state.pop("threshold", 0.0)
    module.attach_movement(shared, (weight.shape[0] // scores.shape[0], weight.shape[1] // scores.shape[1]))
    with torch.no_grad():
        module.weight_importance.copy_(scores)
        if bias is not None:
            module.bias_importance.copy_(torch.tensor(bias_scores, dtype=torch.float))
    return module


def test_the_worked_example() -> None:
    module = layer([[2, -1], [0.5, 3]], [[0.3, -0.2], [0.1, 0]])
    outputs = module(torch.tensor([1.0, 2.0]))
    assert outputs.tolist() == [2.0, 0.5]
    assert module.weight_mask.tolist() == [[True, False], [True, False]]  # an equal score is masked
    outputs.backward(torch.ones(2))
    assert module.weight.grad.tolist() == [[1, 0], [1, 0]]
    assert module.weight_importance.grad.tolist() == [[2, -2], [0.5, 6]]


def test_the_bias_is_masked_alike() -> None:
    module = layer([[1], [1]], [[1], [1]], bias=[5, 7], bias_scores=[0.5, -0.5])
    outputs = module(torch.tensor([1.0]))
    assert outputs.tolist() == [6.0, 1.0]
    outputs.backward(torch.tensor([2.0, 3.0]))
    assert module.bias.grad.tolist() == [2, 0]
    assert module.bias_importance.grad.tolist() == [10, 21]  # the masked one may come back


@pytest.mark.parametrize("factors", [(2, 2), (1, 4), (4, 1), (4, 2)])
def test_gradients_of_shared_scores_are_sums(factors: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(4, 4), torch.randn(5, 4)
    scores = torch.randn(4 // factors[0], 4 // factors[1])
    shared = layer(weight.tolist(), scores.tolist())
    single = layer(weight.tolist(), expand(scores, (4, 4)).tolist())
    results = [module(inputs) for module in (shared, single)]
    assert torch.equal(*results)
    for result in results:
        result.square().sum().backward()
    assert torch.equal(shared.weight.grad, single.weight.grad)
    blocks = single.weight_importance.grad.reshape(4 // factors[0], factors[0], 4 // factors[1], factors[1])
    torch.testing.assert_close(shared.weight_importance.grad, blocks.sum(dim=(1, 3)))


def test_masks_at_their_limits() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert mask_of(scores, (1, 4), 1.0).tolist() == [[False, False, True, True]]
    assert mask_of(scores, (1, 4), -math.inf).all()
    assert mask_of(torch.zeros(2, 2), (4, 4), -math.inf).all()
    for threshold in (3.0, 100.0, math.inf):
        assert not mask_of(scores, (1, 4), threshold).any()
    assert not mask_of(torch.zeros(2, 2), (4, 4), 0.0).any()


def test_a_quantile_leaves_something() -> None:
    torch.manual_seed(0)
    for shape, full in (((10, 100), (10, 100)), ((5, 10), (10, 100)), ((1, 100), (50, 100))):
        scores = torch.randn(shape)
        for quantile in (0.98, 0.5, 0.013):
            for threshold in (100.0, 0.1):
                expanded = expand(scores, full)
                limit = min(threshold, torch.quantile(expanded, quantile).item())
                assert torch.equal(mask_of(scores, full, threshold, quantile), expanded > limit)
        assert mask_of(scores, full, 100.0, 0.98).float().mean() >= 0.02 - 1e-6
    # More elements than torch.quantile takes.
    assert mask_of(torch.arange(100.0)[None], (200_000, 100), 1e9, 0.98)[0].tolist() == [False] * 98 + [True] * 2


def test_the_threshold_at_the_start() -> None:
    torch.manual_seed(0)
    scores = [(torch.randn(10, 10), 32), (torch.randn(50), 1), (torch.randn(1, 7), 300)]
    expanded = torch.cat([tensor.flatten().repeat_interleave(shared) for tensor, shared in scores])
    rank = int(expanded.numel() * 0.001) + 1
    assert start_threshold(scores) == expanded.sort().values[rank - 1].item()
    assert start_threshold([(torch.tensor([3.0]), 1)]) == 3.0
    assert start_threshold([(torch.arange(3.0), 1)], share=1.0) == 2.0


def test_evaluation_uses_the_masks_of_the_last_training_step() -> None:
    module = layer([[1, 1]], [[0.5, 1.5]])
    inputs = torch.ones(2)
    assert module(inputs).item() == 2
    module.movement.threshold = 1.0
    module.eval()
    assert module(inputs).item() == 2
    module.train()
    assert module(inputs).item() == 1
    module.movement.threshold = 2.0
    module.movement.frozen = True
    assert module(inputs).item() == 1
    module(inputs).backward()
    assert module.weight.grad.tolist() == [[0, 1]] and module.weight_importance.grad is None


def test_two_forward_passes_before_a_backward_pass() -> None:
    module = layer([[1, 1]], [[0.5, 1.5]])
    first = module(torch.ones(2))
    module.movement.threshold = 1.0
    second = module(torch.ones(2))
    (first + second).backward()
    assert module.weight.grad.tolist() == [[1, 2]]


def test_the_worked_regularization() -> None:
    module = layer([[2, -1], [0.5, 3]], [[0.3, -0.2], [0.1, 0]])
    term = 0.01 * module.regularization()
    assert term.item() == pytest.approx(0.00256198, abs=1e-8)
    term.backward()
    wanted = torch.tensor([[3.0557e-4, 3.0940e-4], [3.1172e-4, 3.125e-4]])
    torch.testing.assert_close(module.weight_importance.grad, wanted, rtol=0, atol=1e-8)


def test_the_multiplier_scales_all_gradients_of_scores_and_nothing_else() -> None:
    gradients = []
    for multiplier in (1.0, 10.0):
        module = layer([[2, -1], [0.5, 3]], [[0.3, -0.2], [0.1, 0]], [1, 1], [1, -1], gradient_multiplier=multiplier)
        (module(torch.tensor([1.0, 2.0])).sum() + module.regularization()).backward()
        gradients.append([p.grad for p in (module.weight, module.weight_importance, module.bias_importance)])
    assert torch.equal(gradients[0][0], gradients[1][0])
    for plain, scaled in zip(gradients[0][1:], gradients[1][1:]):
        torch.testing.assert_close(10 * plain, scaled)
