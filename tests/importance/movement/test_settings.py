"""Settings are read as NNCF writes them, and refused in a sentence."""

import copy
import json
import logging
from pathlib import Path

import pytest

from hf_nas import describe
from hf_nas.importance.movement import MovementSettings, MovementSparsity, SparseStructure
from hf_nas.importance.movement.structure import layers_with_structures
from tests import zoo


CONFIGS = Path(__file__).resolve().parents[3] / ".." / "shared" / "configs" / "eftnas" / "strict"
QUERY = (
    "BertForSequenceClassification/BertModel[bert]/BertEncoder[encoder]/ModuleList[layer]/BertLayer[0]/"
    "BertAttention[attention]/BertSelfAttention[self]/NNCFLinear[query]/linear_0"
)


def entry(**changes) -> dict:
    params = {"warmup_start_epoch": 1, "warmup_end_epoch": 3, "importance_regularization_factor": 0.02}
    params |= changes.pop("params", {})
    return {"algorithm": "movement_sparsity", "params": params, **changes}


@pytest.mark.parametrize(
    ("structure", "factors", "scores", "bias"),
    [
        (SparseStructure(), (1, 1), (64, 32), 64),
        (SparseStructure("fine", (1, 1)), (1, 1), (64, 32), 64),
        (SparseStructure("block", (16, 8)), (16, 8), (4, 4), 4),
        (SparseStructure("per_dim", axis=0), (1, 32), (64, 1), 64),
        (SparseStructure("per_dim", axis=1), (64, 1), (1, 32), 1),
    ],
)
def test_shapes_of_scores(structure: SparseStructure, factors: tuple, scores: tuple, bias: int) -> None:
    assert structure.factors((64, 32)) == factors
    model = zoo.build("bert", intermediate_size=64)
    path = "bert.encoder.layer.1.intermediate.dense"
    settings = MovementSettings(
        1, 3, 0.02, sparse_structure_by_scopes=(SparseStructure(
            structure.mode, structure.sparse_factors, structure.axis, ("{re}BertIntermediate",)
        ),), target_scopes=("{re}BertIntermediate",),
    )  # fmt: skip
    MovementSparsity(model, settings)
    layer = model.get_submodule(path)
    assert tuple(layer.weight_importance.shape) == scores
    assert tuple(layer.bias_importance.shape) == (bias,)
    assert layer.weight_mask.shape == layer.weight.shape and layer.bias_mask.shape == layer.bias.shape
    assert not layer.weight_importance.any() and layer.weight_mask.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "blocks"}, "mode 'blocks' is not known; choose from fine, block, per_dim"),
        ({"mode": "block"}, "'block' has no 'sparse_factors'"),
        ({"mode": "block", "sparse_factors": [32]}, r"'sparse_factors' of a sparse structure are \[32\]"),
        ({"mode": "block", "sparse_factors": [0, 32]}, "two whole numbers above 0"),
        ({"mode": "block", "sparse_factors": [32, 32], "axis": 0}, "'block' is given the 'axis' 0"),
        ({"mode": "fine", "sparse_factors": [2, 2]}, r"'fine' is given the 'sparse_factors' \[2, 2\]"),
        ({"mode": "fine", "axis": 1}, "'fine' is given the 'axis' 1"),
        ({"mode": "per_dim"}, "'per_dim' has the 'axis' None"),
        ({"mode": "per_dim", "axis": 2}, "'per_dim' has the 'axis' 2"),
        ({"mode": "per_dim", "axis": 0, "sparse_factors": [1, 1]}, "'per_dim' is given the 'sparse_factors'"),
    ],
)
def test_structures_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseStructure(**arguments)
    with pytest.raises(ValueError, match="my.json: .*" + message):
        MovementSettings.from_nncf(
            entry(sparse_structure_by_scopes=[{**arguments, "target_scopes": "{re}.*"}]), "my.json"
        )


def test_blocks_must_divide_the_weights() -> None:
    model = zoo.build("bert")
    scopes = ("{re}BertIntermediate",)
    settings = MovementSettings(
        1, 3, 0.02, sparse_structure_by_scopes=(SparseStructure("block", (16, 16), None, scopes),)
    )
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"intermediate.dense' has a weight of 24 x 32, which .* \[16, 16\] do not"):
        MovementSparsity(model, settings)
    assert [type(module) for module in model.modules()] == before


def test_scopes_are_searched_for_or_equal() -> None:
    model = zoo.build("bert")
    structure = SparseStructure("per_dim", axis=1, target_scopes=("{re}.*BertOutput.*",))
    found = layers_with_structures(model, [structure], ignored_scopes=["{re}pooler", "{re}classifier"])
    assert len(found) == 18
    # "BertSelfOutput" does not contain "BertOutput".
    assert {path for path, each in found.items() if each is structure} == {
        f"bert.encoder.layer.{layer}.output.dense" for layer in range(3)
    }
    query = "bert.encoder.layer.0.attention.self.query"
    assert list(layers_with_structures(model, [], target_scopes=[QUERY])) == [query]
    assert query not in layers_with_structures(model, [], ignored_scopes=[QUERY])
    with pytest.raises(ValueError, match=r"BertLayer\[0\].*' in 'target_scopes' means nothing"):
        layers_with_structures(model, [], target_scopes=[QUERY.removesuffix("/linear_0")])
    with pytest.raises(ValueError, match="'{re}Roberta' in 'ignored_scopes' means nothing in this BertForSequence"):
        layers_with_structures(model, [], ignored_scopes=["{re}Roberta"])
    assert layers_with_structures(model, [], ignored_scopes=["{re}Roberta"], validate_scopes=False)
    with pytest.raises(ValueError, match="'{re}NoSuch' in 'sparse_structure_by_scopes' means nothing"):
        layers_with_structures(model, [SparseStructure("per_dim", None, 0, ("{re}NoSuch",))])
    with pytest.raises(ValueError, match=r"'\{re\}\(' is no regular expression"):
        layers_with_structures(model, [], ignored_scopes=["{re}("])
    with pytest.raises(ValueError, match="No linear layer of this BertForSequenceClassification is left"):
        layers_with_structures(model, [], ignored_scopes=["{re}.*"])


def test_two_structures_for_one_layer() -> None:
    model = zoo.build("bert")
    first = SparseStructure("per_dim", None, 0, ("{re}BertIntermediate",))
    second = SparseStructure("per_dim", None, 1, ("{re}Intermediate.*dense",))
    with pytest.raises(ValueError, match=r"BertLayer\[0\]/BertIntermediate.* is meant by two entries"):
        layers_with_structures(model, [first, second])
    # The same layer twice in one entry is no contradiction, nor is it where the layer is ignored.
    twice = SparseStructure("per_dim", None, 0, ("{re}BertIntermediate", "{re}Intermediate"))
    layers_with_structures(model, [twice])
    layers_with_structures(model, [first, second], ignored_scopes=["{re}BertIntermediate"])


def test_settings_of_nncf_survive_both_ways(caplog: pytest.LogCaptureFixture) -> None:
    full = entry(
        params={
            "enable_structured_masking": False,
            "power": 2.0,
            "init_importance_threshold": -0.5,
            "final_importance_threshold": 0.25,
            "steps_per_epoch": 7,
        },
        sparse_structure_by_scopes=[
            {"mode": "block", "sparse_factors": [32, 16], "target_scopes": ["{re}a", "b"]},
            {"mode": "per_dim", "axis": 1, "target_scopes": ["{re}c"]},
        ],
        ignored_scopes=["x"],
        target_scopes=["y"],
        validate_scopes=False,
        compression_lr_multiplier=10,
    )
    settings = MovementSettings.from_nncf(full)
    assert settings.to_nncf() == full
    assert MovementSettings.from_nncf(json.loads(json.dumps(settings.to_nncf()))) == settings
    least = MovementSettings.from_nncf(entry(ignored_scopes="{re}pooler"))
    assert least.ignored_scopes == ("{re}pooler",) and least.target_scopes is None
    assert (least.power, least.final_importance_threshold, least.enable_structured_masking) == (3.0, 0.0, True)
    assert MovementSettings.from_nncf(least.to_nncf()) == least
    with caplog.at_level(logging.WARNING):
        MovementSettings.from_nncf(entry(params={"init_importance_threshold": 0.0}))
    assert "not below the 'final_importance_threshold'" in caplog.text
    with caplog.at_level(logging.WARNING):
        MovementSettings.from_nncf(entry(params={"warmup_start_epoch": 0}))
    assert "masks all weights at first" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params": {"warmup_start": 1}}, "my.json has the unknown key 'warmup_start' in 'params'"),
        ({"sparsity": 1}, "my.json has the unknown key 'sparsity' in 'compression'"),
        ({"algorithm": "magnitude_sparsity"}, "compression algorithm 'magnitude_sparsity'"),
        ({"sparse_structure_by_scopes": [{"mode": "fine"}]}, "lacks 'target_scopes'"),
        ({"sparse_structure_by_scopes": [{"mode": "fine", "target_scopes": "a", "scope": 1}]}, "unknown key 'scope'"),
        ({"sparse_structure_by_scopes": {"mode": "fine"}}, "write a list of objects"),
        ({"sparse_structure_by_scopes": ["fine"]}, "an entry of 'sparse_structure_by_scopes' is 'fine'"),
        ({"ignored_scopes": 3}, "'ignored_scopes' is 3"),
        ({"params": {"warmup_start_epoch": 3}}, "warms up from epoch 3 to epoch 3"),
        ({"params": {"warmup_start_epoch": -1, "steps_per_epoch": 5}}, "warms up from epoch -1"),
        ({"params": {"warmup_end_epoch": "3"}}, "the 'warmup_end_epoch' '3'; give a finite number"),
        ({"params": {"warmup_end_epoch": None}}, "the 'warmup_end_epoch' None"),
        ({"params": {"importance_regularization_factor": -0.1}}, "'importance_regularization_factor' -0.1"),
        ({"params": {"power": 0}}, "the 'power' 0; give a number above 0"),
        ({"params": {"steps_per_epoch": 2.5}}, "'steps_per_epoch' 2.5; give a whole number"),
        ({"params": {"enable_structured_masking": "yes"}}, "'enable_structured_masking' 'yes'; give true or false"),
        ({"validate_scopes": 1}, "'validate_scopes' 1; give true or false"),
        ({"compression_lr_multiplier": -1}, "'compression_lr_multiplier' -1"),
    ],
)
def test_settings_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MovementSettings.from_nncf(entry(**copy.deepcopy(changes)), "my.json")


@pytest.mark.parametrize("key", ["warmup_start_epoch", "warmup_end_epoch", "importance_regularization_factor"])
def test_required_settings(key: str) -> None:
    given = entry()
    del given["params"][key]
    with pytest.raises(ValueError, match=f"lacks '{key}' in the 'params'"):
        MovementSettings.from_nncf(given)


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name != "gpt2"])
def test_the_published_scheme_for_every_family(name: str) -> None:
    model = zoo.build(name)
    structure = describe(model)
    with MovementSparsity(model, MovementSettings.for_model(model, 1, 3)) as sparsity:
        scores = sparsity.scores()
    projections = sum(len(sub_layer.layout.writers) + 1 for sub_layer in structure)
    assert len(scores.weights) == projections
    for group in scores.groups(structure):
        factors = {scores.factors(path) for path in group.members}
        if group.sub_layer.layout.is_attention:
            core = group.sub_layer.module(model.base_model, group.sub_layer.layout.core)
            head_size = getattr(core, group.sub_layer.layout.head_size)
            assert factors == {(head_size // 2, head_size // 2)}
        else:
            assert factors == {(1, 32), (32, 1)}


@pytest.mark.parametrize(
    ("hidden", "heads", "block"),
    [(192, 3, 32), (256, 2, 64), (128, 4, 16), (96, 2, 24), (80, 2, 20), (96, 4, 12), (36, 4, 3), (34, 2, 1)],
)
def test_blocks_fit_the_heads(hidden: int, heads: int, block: int) -> None:
    model = zoo.build("bert", hidden_size=hidden, num_attention_heads=heads)
    settings = MovementSettings.for_model(model, 1, 3)
    assert settings.sparse_structure_by_scopes[0].sparse_factors == (block, block)
    assert MovementSettings.from_nncf(settings.to_nncf()) == settings


def test_published_configurations() -> None:
    if not CONFIGS.is_dir():
        pytest.skip("the published configurations are not beside the checkout")
    read = 0
    for path in sorted(CONFIGS.glob("*.json")):
        compression = json.loads(path.read_text()).get("compression", [])
        for each in [compression] if isinstance(compression, dict) else compression:
            if each["algorithm"] == "movement_sparsity":
                settings = MovementSettings.from_nncf(each, path.name)
                assert settings.importance_regularization_factor == 0.02
                assert [s.mode for s in settings.sparse_structure_by_scopes] == ["block", "per_dim", "per_dim"]
                read += 1
    assert read == 19
