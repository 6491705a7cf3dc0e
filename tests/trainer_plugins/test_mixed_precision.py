"""Every training under `--bf16`: losses are those of float32 up to rounding, weights and scores stay float32."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from hf_nas.gates import KINDS
from tests import zoo
from tests.trainer_plugins import pruning_world, worlds
from tests.trainer_plugins.eftnas import test_movement_trainer as movement
from tests.trainer_plugins.head_pruning import test_run as head_pruning


# Relative difference of the first losses: bfloat16 has eight bits for a number.
CLOSE = 0.02


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check(make: Callable[..., Trainer], tmp_path: Path) -> Trainer:
    """Train in both precisions and compare; the trainer of the mixed one."""
    exact, mixed = make(tmp_path / "float32"), make(tmp_path / "bf16", bf16=True)
    for each in (exact, mixed):
        each.train()
    first, ours = losses(exact)[0], losses(mixed)[0]
    assert ours != first and ours == pytest.approx(first, rel=CLOSE)
    assert losses(mixed)[-1] == pytest.approx(losses(exact)[-1], rel=0.2)
    for name, parameter in mixed.model.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.isfinite().all(), name
    return mixed


@pytest.mark.parametrize("model", ["bert", "llama", "t5"])
@pytest.mark.parametrize("strategy", ["sandwich", "kd"])
def test_super_networks(strategy: str, model: str, tmp_path) -> None:
    check(lambda folder, **settings: worlds.trainer(str(folder), strategy, model, **settings), tmp_path)


def test_movement_sparsity(tmp_path) -> None:
    mixed = check(movement.trainer, tmp_path)
    scores = mixed.sparsity.scores().weights
    assert mixed.sparsity.frozen and all(each.dtype == torch.float32 for each in scores.values())
    assert max(float(each.abs().max()) for each in scores.values()) > 0.01


@pytest.mark.parametrize("model, version", [("bert", 4), ("bert", None), ("llama", None), ("bart", 4)])
def test_gates_of_all_kinds(model: str, version: int | None, tmp_path) -> None:
    kinds = KINDS if model == "bert" else tuple(kind for kind in KINDS if kind != "hidden")
    mixed = check(lambda folder, **s: pruning_world.make_trainer(folder, model, kinds, version=version, **s), tmp_path)
    for gate in mixed.gates.parameters():
        assert gate.dtype == torch.float32 and gate.isfinite().all()


def test_a_whole_pruning(tmp_path) -> None:
    distillation = {"do_distill": True, "do_layer_distill": True}
    outcome = pruning_world.prune(tmp_path, teacher=zoo.build("bert", seed=5), pruning=distillation, bf16=True)
    assert outcome.folder == tmp_path / "finetuned"
    saved = load_file(tmp_path / "finetuned" / "model.safetensors")
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize("method", [head_pruning.DSP, head_pruning.VOITA, head_pruning.MICHEL])
def test_pruning_of_heads(method: dict, tmp_path) -> None:
    outcome = head_pruning.prune(tmp_path, method, bf16=True)
    assert head_pruning.heads_of(outcome.sub_network) == 5
