"""Scores as a value: files of all kinds, the importance of units, the thresholds at which units go."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_nas import describe
from hf_nas.importance import reorder
from hf_nas.importance.movement import (
    MovementScores,
    MovementSettings,
    MovementSparsity,
    SparseStructure,
    keep_thresholds,
    kept_units,
    unit_scores,
)
from tests import zoo


NAMES = [name for name in zoo.MODELS if name != "gpt2"]


def random_scores(model, seed: int = 0, settings: MovementSettings | None = None) -> MovementScores:
    """Scores as a training would leave them, at random."""
    generator = torch.Generator().manual_seed(seed)
    with MovementSparsity(model, settings or MovementSettings.for_model(model, 1, 3)) as sparsity:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("_importance"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
        return sparsity.scores()


def assert_equal(first: MovementScores, second: MovementScores) -> None:
    assert dict(first.shapes) == dict(second.shapes)
    for kind in ("weights", "biases"):
        ours, theirs = getattr(first, kind), getattr(second, kind)
        assert set(ours) == set(theirs)
        assert all(torch.equal(tensor, theirs[path]) for path, tensor in ours.items())


@pytest.mark.parametrize("name", ["bert", "llama", "bart"])
def test_files_of_our_own(name: str, tmp_path: Path) -> None:
    model = zoo.build(name)
    scores = random_scores(model)
    assert scores.save(tmp_path / "run") == tmp_path / "run" / "importance.safetensors"
    file = scores.save(tmp_path / "other.safetensors")
    for path in (tmp_path / "run", file):
        assert_equal(MovementScores.load(path), scores)
        assert_equal(MovementScores.load(path, model), scores)
    assert bool(scores.biases) == (name != "llama")


def old_layout(model, scores: MovementScores, masks: bool = True) -> dict[str, torch.Tensor]:
    state = dict(model.state_dict())
    for path, tensor in scores.weights.items():
        prefix = f"{path}.pre_ops.0.op."
        state[prefix + "weight_importance"] = tensor
        if path in scores.biases:
            state[prefix + "bias_importance"] = scores.biases[path]
        if masks:
            state[prefix + "weight_ctx._binary_mask"] = torch.ones(scores.shapes[path])
    return state


def test_files_of_nncf(tmp_path: Path) -> None:
    model = zoo.build("bert")
    scores = random_scores(model)
    state = old_layout(model, scores)
    for folder in (tmp_path, tmp_path / "movement_sparsity_0"):
        folder.mkdir(exist_ok=True)
        torch.save(state, folder / "pytorch_model.bin")
        assert_equal(MovementScores.load(folder), scores)
        assert_equal(MovementScores.load(tmp_path, model), scores)
        (folder / "pytorch_model.bin").unlink()
    # Scripts for question answering left a model without scores above the one with them.
    torch.save(dict(model.state_dict()), tmp_path / "pytorch_model.bin")
    torch.save(state, tmp_path / "movement_sparsity_0" / "pytorch_model.bin")
    assert_equal(MovementScores.load(tmp_path), scores)
    # The folder of a run of ours has them in one of its own.
    other = random_scores(model, seed=1)
    other.save(tmp_path / "movement_sparsity")
    assert_equal(MovementScores.load(tmp_path), other)
    with pytest.raises(ValueError, match="pytorch_model.bin' holds no movement scores"):
        MovementScores.load(tmp_path / "pytorch_model.bin")
    # Alone, the scores do not tell the shape of the weights.
    alone = {name: tensor for name, tensor in old_layout(model, scores, False).items() if "pre_ops" in name}
    torch.save(alone, tmp_path / "alone.bin")
    assert_equal(MovementScores.load(tmp_path / "alone.bin", model), scores)
    with pytest.raises(ValueError, match="give the model that they are for"):
        MovementScores.load(tmp_path / "alone.bin")


def test_checkpoints_with_movement_sparsity_attached(tmp_path: Path) -> None:
    model = zoo.build("bert")
    with MovementSparsity(model, MovementSettings.for_model(model, 1, 3)) as sparsity:
        model.bert.encoder.layer[1].attention.self.key.weight_importance.data.normal_()
        scores = sparsity.scores()
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert_equal(MovementScores.load(tmp_path, model), scores)


def test_scores_of_heads_that_the_model_lacks_are_left_out(tmp_path: Path) -> None:
    model = zoo.build("bert")
    settings = MovementSettings(1, 3, 0.02)  # all layers, "fine"
    scores = random_scores(model, settings=settings)
    assert "classifier" in scores.weights
    scores.save(tmp_path)
    del model.classifier
    loaded = MovementScores.load(tmp_path, model)
    assert set(scores.weights) - set(loaded.weights) == {"classifier"} == set(scores.shapes) - set(loaded.shapes)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file or folder .*nowhere"):
        MovementScores.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="The folder .* holds no movement scores; give one with"):
        MovementScores.load(tmp_path)
    for name in ("a.bin", "a.safetensors", "empty.bin", "empty.safetensors"):
        (tmp_path / name).write_text("" if "empty" in name else "not tensors at all")
        with pytest.raises(ValueError, match="give what movement sparsity wrote"):
            MovementScores.load(tmp_path / name)
    torch.save({"model": zoo.build("bert")}, tmp_path / "pickle.bin")
    with pytest.raises(ValueError, match="without running code"):
        MovementScores.load(tmp_path / "pickle.bin")
    torch.save([torch.zeros(2)], tmp_path / "list.bin")
    with pytest.raises(ValueError, match="no state dict"):
        MovementScores.load(tmp_path / "list.bin")
    save_file({"x.weight": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="weights.safetensors' holds no movement scores"):
        MovementScores.load(tmp_path / "weights.safetensors")
    metadata = {"format": "hf_nas.movement_scores/1", "shapes": json.dumps({"x": [4]})}
    save_file({"x.weight_importance": torch.zeros(2, 2)}, tmp_path / "shapes.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="no readable safetensors file of movement scores"):
        MovementScores.load(tmp_path / "shapes.safetensors")


def test_scores_of_another_model(tmp_path: Path) -> None:
    model = zoo.build("bert")
    random_scores(model).save(tmp_path)
    for changes, message in (
        (
            {"intermediate_size": 48},
            r"layer.0.intermediate.dense' for a weight of shape \(24, 32\), .* has \(48, 32\)",
        ),
        ({"num_hidden_layers": 4}, "has no scores of 'bert.encoder.layer.3.attention.self.query'"),
        ({"num_hidden_layers": 2}, "scores of 'bert.encoder.layer.2.* which is no linear layer of this BertFor"),
    ):
        with pytest.raises(ValueError, match=message):
            MovementScores.load(tmp_path, zoo.build("bert", **changes))
    with pytest.raises(ValueError, match="has no scores of 'distilbert.transformer.layer.0.attention.q_lin'"):
        MovementScores.load(tmp_path, zoo.build("distilbert"))
    scores = MovementScores.load(tmp_path)
    with pytest.raises(ValueError, match="'encoder.0.feed_forward' are for 24 inputs .* but this model has 48"):
        unit_scores(scores, describe(zoo.build("bert", intermediate_size=48)))
    with pytest.raises(ValueError, match="no movement scores of .*which belongs to the sub-layer 'decoder.0.att"):
        keep_thresholds(scores, describe(zoo.build("llama")))


def test_the_value_is_checked() -> None:
    weights, biases, shapes = {"a": torch.zeros(2, 3)}, {"a": torch.zeros(2)}, {"a": (4, 6)}
    assert MovementScores(weights, biases, shapes).factors("a") == (2, 2)
    for arguments, message in (
        (({}, {}, {}), "without any layer"),
        ((weights, biases, {}), "scores of 'a' are incomplete"),
        ((weights, {"b": torch.zeros(2)}, shapes), "scores of 'b' are incomplete"),
        ((weights, biases, {"a": (5, 6)}), r"'a' have the shape \(2, 3\), which does not divide"),
        (({"a": torch.zeros(2)}, biases, shapes), r"have the shape \(2,\)"),
        ((weights, {"a": torch.zeros(3)}, shapes), "both need equally many rows"),
        (({"a": torch.full((2, 3), float("nan"))}, biases, shapes), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            MovementScores(*arguments)


def test_unit_scores_by_hand() -> None:
    model = zoo.build("bert", hidden_size=16, num_attention_heads=2, intermediate_size=3)
    structure = describe(model)
    blocks = (
        SparseStructure("block", (4, 8), None, ("{re}BertAttention",)),
        SparseStructure("per_dim", None, 0, ("{re}BertIntermediate",)),
        SparseStructure("per_dim", None, 1, ("{re}BertOutput",)),
    )
    scores = random_scores(model, settings=MovementSettings(1, 3, 0.02, sparse_structure_by_scopes=blocks))
    published, everything = (unit_scores(scores, structure, ranking) for ranking in ("published", "all"))
    layer = "bert.encoder.layer.1"
    for unit in range(2):
        rows = slice(2 * unit, 2 * unit + 2)  # two rows of blocks a head
        names = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
        wanted = sum(32 * scores.weights[name][rows].double().sum() for name in names)
        torch.testing.assert_close(published["encoder.1.attention"][unit], wanted)
        wanted += sum(4 * scores.biases[name][rows].double().sum() for name in names)
        wanted += 32 * scores.weights[f"{layer}.attention.output.dense"][:, unit].double().sum()
        torch.testing.assert_close(everything["encoder.1.attention"][unit], wanted)
    for unit in range(3):
        wanted = 16 * scores.weights[f"{layer}.intermediate.dense"][unit, 0].double()
        torch.testing.assert_close(published["encoder.1.feed_forward"][unit], wanted)
        wanted += scores.biases[f"{layer}.intermediate.dense"][unit].double()
        wanted += 16 * scores.weights[f"{layer}.output.dense"][0, unit].double()
        torch.testing.assert_close(everything["encoder.1.feed_forward"][unit], wanted)
    assert published["encoder.1.attention"].dtype == torch.float64
    with pytest.raises(ValueError, match="ranking 'best' is not known; choose from 'published', 'all', 'kept'"):
        unit_scores(scores, structure, "best")


def test_unit_scores_add_the_query_heads_of_a_group() -> None:
    model = zoo.build("llama")  # 8 query heads for 4 key-value heads, two rows of blocks of 4 x 4 each
    scores = random_scores(model)
    unit = unit_scores(scores, describe(model))["decoder.2.attention"]
    weights = {name: scores.weights[f"model.layers.2.self_attn.{name}_proj"].double().sum(1) for name in "qkv"}
    wanted = 16 * sum(rows.view(4, -1).sum(1) for rows in weights.values())
    torch.testing.assert_close(unit, wanted)


@pytest.mark.parametrize("ranking", ["published", "all", "kept"])
@pytest.mark.parametrize("name", NAMES)
def test_reordering_keeps_the_function_and_is_done_once(name: str, ranking: str) -> None:
    model = zoo.build(name)
    structure, inputs = describe(model), zoo.inputs_for(model)
    wanted = zoo.logits(model, inputs)
    scores = unit_scores(random_scores(model), structure, ranking)
    orders = reorder(model, structure, scores)
    assert any(order != sorted(order) for order in orders.values())
    result = zoo.logits(model, inputs)
    assert (result - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
    moved = {name: score[orders[name]] for name, score in scores.items()}
    again = reorder(model, structure, moved)
    assert all(order == sorted(order) for order in again.values())


def test_ties_keep_their_order() -> None:
    model = zoo.build("bert")
    with MovementSparsity(model, MovementSettings.for_model(model, 1, 3)) as sparsity:
        scores = unit_scores(sparsity.scores(), describe(model))
    orders = reorder(model, describe(model), scores)
    assert all(order == sorted(order) for order in orders.values())


@pytest.mark.parametrize("name", NAMES)
def test_keep_thresholds_solve_the_rule_of_resolution(name: str) -> None:
    model = zoo.build(name)
    structure = describe(model)
    scores = random_scores(model)
    solved = keep_thresholds(scores, structure)
    values = torch.cat([tensor.flatten() for tensor in (*scores.weights.values(), *scores.biases.values())])
    # At the scores themselves, where a unit is about to go, and far off.
    at_units = torch.cat(list(solved.values()))[::9]
    for threshold in [*values[::97].tolist(), *at_units.tolist(), -1.0, 0.0, 1.0]:
        kept = kept_units(scores.masks(threshold), structure)
        assert set(kept) == set(solved)
        assert all(torch.equal(kept[key], solved[key] > threshold) for key in kept), threshold


def test_keep_thresholds_of_blocks_across_heads_and_biases_without_weights() -> None:
    model = zoo.build("bert", hidden_size=24, num_attention_heads=4)  # heads of 6
    structure = describe(model)
    blocks = (SparseStructure("block", (4, 4), None, ("{re}BertAttention",)),)
    scores = random_scores(model, settings=MovementSettings(1, 3, 0.02, sparse_structure_by_scopes=blocks))
    high = scores.biases["bert.encoder.layer.0.attention.self.key"]
    high += 1.0
    solved = keep_thresholds(scores, structure)
    assert solved["encoder.0.attention"].max() < 0.5
    for threshold in (-0.02, 0.0, 0.02, 0.03, 0.04, 0.5):
        kept = kept_units(scores.masks(threshold), structure)
        assert all(torch.equal(kept[key], solved[key] > threshold) for key in kept), threshold


@pytest.mark.parametrize("name", ["bert", "llama", "bart"])
def test_the_first_units_by_what_is_kept_are_those_that_a_threshold_keeps(name: str) -> None:
    model = zoo.build(name)
    structure = describe(model)
    scores = random_scores(model)
    order = {key: score.argsort(descending=True) for key, score in unit_scores(scores, structure, "kept").items()}
    for threshold in (-0.01, 0.0, 0.01, 0.015):
        for key, kept in kept_units(scores.masks(threshold), structure).items():
            assert set(order[key][: int(kept.sum())].tolist()) == set(kept.nonzero().flatten().tolist())
