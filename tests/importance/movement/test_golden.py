"""Number by number as NNCF 2.x recorded it: a training run, its masks and report, and the order of units."""

from pathlib import Path

import pytest
import torch

from hf_nas import describe
from hf_nas.importance import reorder
from hf_nas.importance.movement import (
    Masks,
    MovementScores,
    MovementSettings,
    MovementSparsity,
    kept_units,
    resolve,
    unit_scores,
    write_report,
)
from tests.importance.movement.recordings import FOLDER, arrays, needs_recordings, read, recorded_bert


pytestmark = needs_recordings
PUBLISHED = {
    "algorithm": "movement_sparsity",
    "params": {"warmup_start_epoch": 1, "warmup_end_epoch": 3, "importance_regularization_factor": 0.02},
    "sparse_structure_by_scopes": [
        {"mode": "block", "sparse_factors": [32, 32], "target_scopes": "{re}.*BertAttention.*"},
        {"mode": "per_dim", "axis": 0, "target_scopes": "{re}.*BertIntermediate.*"},
        {"mode": "per_dim", "axis": 1, "target_scopes": "{re}.*BertOutput.*"},
    ],
    "ignored_scopes": ["{re}.*NNCFEmbedding", "{re}.*LayerNorm.*", "{re}.*pooler.*", "{re}.*classifier.*"],
}


def recorded_masks(name: str) -> dict[str, Masks]:
    tensors = arrays(name)
    end = ".pre_ops.0.op.weight_ctx._binary_mask"
    paths = [key.removesuffix(end) for key in tensors if key.endswith(end)]
    return {path: Masks(*(tensors[path + end.replace("weight", kind)] > 0 for kind in ("weight", "bias")))
            for path in paths}  # fmt: skip


def test_sixteen_steps_of_training(tmp_path: Path) -> None:
    record = read("movement/trace.json")
    batches = arrays("movement/batches.npz")
    model = recorded_bert("movement/init_weights.npz").train()
    sparsity = MovementSparsity(model, MovementSettings.from_nncf(PUBLISHED))
    optimizer = torch.optim.AdamW(model.parameters(), lr=record["lr"], weight_decay=0.0)
    query = model.bert.encoder.layer[0].attention.self.query
    assert len(record["trace"]) == 16
    for step, wanted in enumerate(record["trace"]):
        batch = {key.split(".", 1)[1]: value for key, value in batches.items() if key.startswith(f"{step % 4}.")}
        if step == 12:  # the masks that are resolved are those of the last step before
            for path, masks in recorded_masks("movement/unstructured_end.npz").items():
                assert torch.equal(sparsity.masks()[path].weight, masks.weight), path
                assert torch.equal(sparsity.masks()[path].bias, masks.bias), path
            before = arrays("movement/unstructured_end.npz")
            for path, scores in sparsity.scores().weights.items():
                recorded = before[f"{path}.pre_ops.0.op.weight_importance"]
                torch.testing.assert_close(scores, recorded, rtol=0, atol=1e-5)
        sparsity.set_step(step, record["steps_per_epoch"] if step >= 4 else None)
        loss = model(**batch).loss
        regularization = sparsity.regularization()
        assert sparsity.threshold == pytest.approx(wanted["threshold"], abs=1e-7)
        assert sparsity.factor == pytest.approx(wanted["reg_factor"], abs=1e-12)
        assert loss.item() == pytest.approx(wanted["task_loss"], abs=1e-4)
        assert regularization.item() == pytest.approx(wanted["compression_loss"], abs=1e-4)
        assert [list(counts) for counts in sparsity.masked_counts().values()] == list(wanted["mask_zeros"].values())
        assert sparsity.frozen == wanted["frozen"]
        optimizer.zero_grad()
        (loss + regularization).backward()
        if not sparsity.frozen:
            gradient = query.weight_importance.grad.sum().item()
            assert gradient == pytest.approx(wanted["q0_importance_grad_sum"], abs=1e-4)
        optimizer.step()
    assert sparsity.schedule.initial_threshold == pytest.approx(record["init_importance_threshold"], abs=1e-7)
    for path, masks in recorded_masks("movement/final_state.npz").items():
        assert torch.equal(sparsity.masks()[path].weight, masks.weight), path
        assert torch.equal(sparsity.masks()[path].bias, masks.bias), path
    report = sparsity.write_report(tmp_path)
    assert report.read_text() == (FOLDER / "movement/structured_sparsity.csv").read_text()


def test_structured_resolution_of_the_recorded_masks() -> None:
    model = recorded_bert()
    resolved = resolve(recorded_masks("movement/unstructured_end.npz"), describe(model))
    for path, masks in recorded_masks("movement/final_state.npz").items():
        assert torch.equal(resolved[path].weight, masks.weight), path
        assert torch.equal(resolved[path].bias, masks.bias), path


@pytest.mark.parametrize("threshold", ["-0.03", "0.0", "0.02"])
def test_the_report_of_a_threshold(threshold: str, tmp_path: Path) -> None:
    model = recorded_bert()
    structure = describe(model)
    scores = MovementScores.load(FOLDER / "space/importance.bin", model)
    write_report(tmp_path / "report.csv", model, structure, kept_units(scores.masks(float(threshold)), structure))
    wanted = (FOLDER / f"space/structured_sparsity_thre{threshold}.csv").read_text()
    assert (tmp_path / "report.csv").read_text() == wanted


def test_the_published_scheme_needs_no_scopes() -> None:
    model = recorded_bert("movement/init_weights.npz")
    with MovementSparsity(model, MovementSettings.from_nncf(PUBLISHED)) as sparsity:
        wanted = sparsity.scores()
    with MovementSparsity(model, MovementSettings.for_model(model, 1, 3)) as sparsity:
        ours = sparsity.scores()
    for kind in ("weights", "biases"):
        shapes = [{path: scores.shape for path, scores in getattr(each, kind).items()} for each in (ours, wanted)]
        assert shapes[0] == shapes[1]
    assert len(ours.weights) == 18


def test_permutations_and_reordered_weights() -> None:
    model = recorded_bert("reorder_subnets/init_weights.npz")
    batch = arrays("reorder_subnets/eval_batch.npz")
    record = read("reorder_subnets/golden.json")
    structure = describe(model)
    scores = MovementScores.load(FOLDER / "space/importance.bin", model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    orders = reorder(model, structure, unit_scores(scores, structure))
    for name, recorded in record["permutations"].items():
        layer = int(name.split("BertLayer[")[1].split("]")[0])
        kind, features = ("feed_forward", 1) if "BertIntermediate" in name else ("attention", 64)
        order = orders[f"encoder.{layer}.{kind}"]
        assert [unit * features + feature for unit in order for feature in range(features)] == recorded
    wanted = arrays("reorder_subnets/reordered_weights.npz")
    state = model.state_dict()
    assert set(state) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor), name
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    assert changed <= set(record["changed_tensors"]) and len(record["changed_tensors"]) == 30
    with torch.no_grad():
        logits = model(**batch).logits
    torch.testing.assert_close(logits, torch.tensor(record["ref_logits"]), rtol=0, atol=2e-6)


def test_scores_are_read_alike_from_both_recorded_files() -> None:
    model = recorded_bert()
    recorded = arrays("space/importance.npz")
    scores = MovementScores.load(FOLDER / "space/importance.bin", model)
    assert len(scores.weights) == len(scores.biases) == 18
    for path in scores.weights:
        assert torch.equal(scores.weights[path], recorded[f"{path}.pre_ops.0.op.weight_importance"])
        assert torch.equal(scores.biases[path], recorded[f"{path}.pre_ops.0.op.bias_importance"])
    with pytest.raises(ValueError, match="not the shape of the weights of 'bert.encoder.layer.0.attention.output"):
        MovementScores.load(FOLDER / "space/importance.bin")
    with pytest.raises(ValueError, match="no linear layer of this BertForSequenceClassification"):
        MovementScores.load(FOLDER / "space/importance.bin", recorded_bert(num_hidden_layers=2))
    with pytest.raises(ValueError, match="has no scores of 'bert.encoder.layer.3.attention.self.query'"):
        MovementScores.load(FOLDER / "space/importance.bin", recorded_bert(num_hidden_layers=4))
    with pytest.raises(ValueError, match="does not divide that of its weight"):
        MovementScores.load(FOLDER / "space/importance.bin", recorded_bert(intermediate_size=200))
