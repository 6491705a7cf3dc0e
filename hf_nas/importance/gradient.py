"""Importance of units by how much the loss would change without them, to first order."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_nas.gates import Gates
from hf_nas.structures import ModelStructure


def gradient(
    model: PreTrainedModel, structure: ModelStructure, batches: Iterable[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """Mean over batches of the absolute gradient of the loss by a gate of 1 on each unit (Michel et al., 2019).

    Args:
        model: with a task head; it is evaluated without dropout and gets no gradients itself.
        structure: its structure.
        batches: of inputs with labels, on the device of the model.

    Returns:
        A score for each unit, by sub-layer name; each of shape `(units,)` on the CPU.

    Raises:
        ValueError: if there is no batch, or the model computes no loss from one.
    """
    device = next(model.parameters()).device
    gates = {s.name: torch.ones(s.units, device=device, requires_grad=True) for s in structure if s.units}
    scores = {name: torch.zeros(len(gate), dtype=torch.double) for name, gate in gates.items()}
    was_training, count = model.training, 0
    model.eval()
    try:
        with Gates(model, gates):
            for batch in tqdm(batches, desc="Importance", leave=False):
                loss = getattr(model(**batch), "loss", None)
                if loss is None:
                    raise ValueError(
                        f"{type(model).__name__} computes no loss from {sorted(batch)}; give batches with labels."
                    )
                for name, derivative in zip(gates, torch.autograd.grad(loss, list(gates.values()))):
                    scores[name] += derivative.abs().double().cpu()
                count += 1
    finally:
        model.train(was_training)
    if not count:
        raise ValueError("There is no batch to compute gradients on; give at least one.")
    return {name: score / count for name, score in scores.items()}
