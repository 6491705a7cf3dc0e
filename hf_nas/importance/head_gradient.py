"""Importance of heads by the gradient of the loss at their gates, and greedy pruning by it (Michel et al., 2019)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_nas.gates import Gates, head_rows
from hf_nas.main_input import MainInput
from hf_nas.structures import ModelStructure, SubLayer
from hf_nas.subnetwork import SubNetwork, kept_ids


_EPSILON = 1e-20


def head_gradient(
    model: PreTrainedModel,
    structure: ModelStructure,
    batches: Iterable[Mapping[str, Any]],
    *,
    per_example: bool = False,
    kept: SubNetwork | None = None,
    distributed: bool = False,
) -> dict[str, torch.Tensor]:
    """Absolute gradient of the loss at a gate on each head, summed over batches or over examples.

    As published, the gradient is that of the mean loss of a batch, so the batch size matters, and the sum is divided
    by the number of tokens. Per example it is what the paper says: the mean over examples of the absolute gradient of
    each one's loss, at whatever batch size. For that each row is passed through the model alone, in a loop, which
    takes as many passes as there are examples but holds for any model and loss. Without dropout in either case.

    Args:
        model: with a task head; it gets no gradients itself.
        structure: its structure.
        batches: of inputs with labels, on the device of the model; tensors have a row for each example.
        per_example: whether to take the gradient of each example apart.
        kept: a sub-network whose removed heads have a gate of 0 instead of 1; they have gradients all the same.
        distributed: whether each process of `torch.distributed` brings a part of the batches. All must call this; they
            get the importance over all parts, which is that of one process which has all batches.

    Returns:
        A score of at least 0 for each head, by sub-layer name; each of shape `(units,)` in float64 on the CPU.

    Raises:
        ValueError: if there is no batch or no loss, or distributed processes are asked for but not there.
    """
    if distributed and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ValueError(
            "The importance of heads is to be summed over distributed processes, but there are none; start them with "
            "torchrun, or leave out distributed."
        )
    rows = head_rows(structure)
    device = next(model.parameters()).device
    gates = {row.name: _gate(row, kept).to(device).requires_grad_() for row in rows}
    total = torch.zeros(sum(row.units for row in rows), dtype=torch.double)
    was_training, count, main_input = model.training, 0, MainInput.of(model)
    model.eval()
    try:
        with Gates(model, gates), torch.enable_grad():
            for batch in tqdm(batches, desc="Importance of heads", leave=False):
                for part in _examples(batch) if per_example else (batch,):
                    loss = getattr(model(**part), "loss", None)
                    if loss is None:
                        raise ValueError(
                            f"{type(model).__name__} computes no loss from {sorted(part)}; give batches with labels."
                        )
                    gradients = torch.autograd.grad(loss, list(gates.values()))
                    total += torch.cat(gradients).abs().double().cpu()
                    count += 1 if per_example else _tokens(main_input, part)
    finally:
        model.train(was_training)
    if distributed:
        total, count = _sum_over_processes(total, count, device)
    if not count:
        raise ValueError("There is no batch to compute gradients on; give at least one.")
    scores = (total / count).split([row.units for row in rows])
    return dict(zip(gates, scores))


def _gate(row: SubLayer, kept: SubNetwork | None) -> torch.Tensor:
    gate = torch.ones(row.units)
    if kept is not None:
        gate.zero_()
        gate[list(kept_ids(kept[row.name]))] = 1.0
    return gate


def _examples(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    sizes = {len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.dim()}
    if len(sizes) != 1:
        raise ValueError(
            f"The tensors of a batch have {sorted(sizes)} rows, so it cannot be split into examples; give batches in "
            "which each tensor has one row for each example."
        )
    for row in range(sizes.pop()):
        yield {
            name: value[row : row + 1] if isinstance(value, torch.Tensor) and value.dim() else value
            for name, value in batch.items()
        }


def _tokens(main_input: MainInput, batch: Mapping[str, Any]) -> int:
    """Number of tokens that attention sees; all of them where a batch has no attention mask."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    if main_input.name not in batch:
        raise ValueError(
            f"The tokens of a batch of {sorted(batch)} cannot be counted; give {main_input.name} or an attention_mask "
            "with it."
        )
    if main_input.tokens is not None:
        return len(batch[main_input.name]) * main_input.tokens
    return batch[main_input.name].numel()


def _sum_over_processes(total: torch.Tensor, count: int, device: torch.device) -> tuple[torch.Tensor, int]:
    # In one message, on the device that the processes talk through.
    message = torch.cat([total, torch.tensor([count], dtype=torch.double)]).to(device)
    torch.distributed.all_reduce(message)
    message = message.cpu()
    return message[:-1], int(message[-1])


def normalise_by_layer(scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scores divided by their Euclidean norm in each attention, removed heads included, as published."""
    return {name: score / (score.norm() + _EPSILON) for name, score in scores.items()}


def normalise_globally(scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scores moved and scaled to [0, 1] over all attentions, which keeps their order; 0 where all are equal."""
    least = min(float(score.min()) for score in scores.values())
    spread = max(float(score.max()) for score in scores.values()) - least
    return {name: (score - least) / (spread or 1.0) for name, score in scores.items()}


def michel(
    model: PreTrainedModel, structure: ModelStructure, batches: Iterable[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """The importance of heads as published: [`head_gradient`] by batch, normalised by layer and then to [0, 1].

    It has scores for heads alone; neurons keep the order they have.

    Returns:
        A score in [0, 1] for each head, by sub-layer name; each of shape `(units,)` on the CPU.

    Raises:
        ValueError: if there is no batch, or the model computes no loss from one.
    """
    return normalise_globally(normalise_by_layer(head_gradient(model, structure, batches)))


@dataclass(frozen=True)
class HeadOrder:
    """The heads of a model in the order in which they were pruned: every prefix of it says a sub-network.

    Args:
        structure: of the model.
        removed: sub-layer name and id of each head, the first one pruned first.
        heads_per_step: how many were pruned at a time.
    """

    structure: ModelStructure
    removed: tuple[tuple[str, int], ...]
    heads_per_step: int

    def keeping(self, heads: int) -> SubNetwork:
        """The sub-network with so many heads; an attention without heads keeps bias and normalisation.

        Raises:
            ValueError: for a number that the model does not have.
        """
        total = len(self.removed)
        if isinstance(heads, bool) or not isinstance(heads, int) or not 0 <= heads <= total:
            raise ValueError(f"{heads!r} of {total} heads are to be kept; give a whole number from 0 to {total}.")
        return _without(self.structure, self.removed[: total - heads])

    @property
    def sub_networks(self) -> tuple[SubNetwork, ...]:
        """The sub-network after each of the `ceil(heads / heads_per_step)` steps, the last one without heads."""
        total = len(self.removed)
        steps = math.ceil(total / self.heads_per_step)
        return tuple(self.keeping(max(total - step * self.heads_per_step, 0)) for step in range(1, steps + 1))


def _without(structure: ModelStructure, removed: Iterable[tuple[str, int]]) -> SubNetwork:
    gone = set(removed)
    kept = {
        row.name: tuple(unit for unit in range(row.units) if (row.name, unit) not in gone)
        for row in head_rows(structure)
    }
    return SubNetwork.of(structure, kept)


def order_heads(
    structure: ModelStructure,
    importance: Callable[[SubNetwork], Mapping[str, torch.Tensor]],
    heads_per_step: int,
    *,
    exact: bool = False,
    by_layer: bool = True,
) -> HeadOrder:
    """Prune the least important heads, so many at a time, until none is left.

    Args:
        structure: of the model.
        importance: scores of all heads, those removed included, where a sub-network is what is left of the model.
        heads_per_step: how many to prune at a time; the last step takes what is left.
        exact: whether importance is computed anew before each step, and not only before the first.
        by_layer: whether scores are normalised within each attention before they are compared across them.

    Returns:
        The order; of equally important heads those of earlier attentions go first.

    Raises:
        ValueError: for a step out of range or scores that are not finite.
    """
    rows = head_rows(structure)
    heads = [(row.name, unit) for row in rows for unit in range(row.units)]
    if (
        isinstance(heads_per_step, bool)
        or not isinstance(heads_per_step, int)
        or not 1 <= heads_per_step <= len(heads)
    ):
        raise ValueError(
            f"heads_per_step is {heads_per_step!r}; give a whole number from 1 to the {len(heads)} heads of the model."
        )
    removed: list[tuple[str, int]] = []
    ranked: torch.Tensor | None = None
    steps = math.ceil(len(heads) / heads_per_step)
    for _ in tqdm(range(steps), desc="Pruning heads", leave=False, disable=not exact):
        if ranked is None or exact:
            scores = importance(_without(structure, removed))
            scores = normalise_by_layer(scores) if by_layer else scores
            ranked = torch.cat([scores[row.name].double() for row in rows])
            if not bool(torch.isfinite(ranked).all()):
                raise ValueError("The importance of heads is not finite; take a model whose loss is finite.")
        gone = set(removed)
        # Sorting is stable, so that equal heads are taken in the order of the rows.
        left = [head for head in ranked.argsort(stable=True).tolist() if heads[head] not in gone]
        removed += [heads[head] for head in left[:heads_per_step]]
    return HeadOrder(structure, tuple(removed), heads_per_step)


def michel_order(
    model: PreTrainedModel,
    structure: ModelStructure,
    batches: Iterable[Mapping[str, Any]],
    heads_per_step: int,
    *,
    exact: bool = False,
    per_example: bool = False,
    by_layer: bool = True,
    distributed: bool = False,
) -> HeadOrder:
    """Prune the heads of a trained model by [`head_gradient`], without any training (Michel et al., 2019).

    Args:
        model: with a task head, trained.
        structure: its structure.
        batches: of its training set; read anew before each step where `exact` is set.
        heads_per_step: how many to prune at a time.
        exact: whether importance is computed anew before each step, at the gates of the heads that are left.
        per_example: see [`head_gradient`].
        by_layer: see [`order_heads`].
        distributed: see [`head_gradient`].

    Raises:
        ValueError: for a step out of range, batches that can be read only once, no batch or no loss.
    """
    if exact and iter(batches) is batches:
        raise ValueError(
            "Exact pruning reads the batches before each step, but these can be read only once; give a list or a "
            "DataLoader."
        )

    def importance(left: SubNetwork) -> dict[str, torch.Tensor]:
        return head_gradient(model, structure, batches, per_example=per_example, kept=left, distributed=distributed)

    return order_heads(structure, importance, heads_per_step, exact=exact, by_layer=by_layer)
