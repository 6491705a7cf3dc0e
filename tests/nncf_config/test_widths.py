"""Automatic lists of widths, and the importance by filters, against what NNCF 2.x computed."""

import json

import numpy as np
import pytest
import torch

from hf_nas.importance import reorder
from hf_nas.nncf_config import WidthElasticity, filter_importance, generated_widths
from hf_nas.structures import describe
from tests import zoo
from tests.nncf_config.configs import GOLDEN, needs_golden
from tests.nncf_config.golden import golden_model, recordings


@pytest.mark.parametrize(
    "full, settings, widths",
    [
        (768, {}, list(range(768, 31, -32))),
        (768, {"max_num_widths": 3}, [768, 736, 704]),
        (64, {"min_width": 64}, [64]),
        (16, {}, [16]),
        (3072, {"width_step": 1024, "min_width": 100}, [3072, 2048, 1024]),
        (3072, {"width_multipliers": (1, 0.8, 0.6)}, [3072, 2456, 1840]),
        (3072, {"width_multipliers": (0.6, 0.8)}, [3072, 2456, 1840]),
        (768, {"width_multipliers": (1, 0.8, 0.6), "max_num_widths": 2}, [768, 608]),
        (100, {"width_multipliers": (0.5, 0.25), "min_width": 32}, [100, 48, 32]),
        (100, {"width_multipliers": (0.2, 0.1), "min_width": 32}, [100, 32]),
    ],
)
def test_automatic_lists(full: int, settings: dict, widths: list[int]) -> None:
    assert list(generated_widths(full, WidthElasticity(**settings))) == widths


@needs_golden
def test_automatic_lists_are_those_of_nncf() -> None:
    recorded = json.loads((GOLDEN / "reorder_subnets" / "golden.json").read_text())["generated_width_lists"]
    assert len(recorded) == 8
    for case, widths in recorded.items():
        full, settings = case.split(" ", 1)
        settings = json.loads(settings)
        if "width_multipliers" in settings:
            settings["width_multipliers"] = tuple(settings["width_multipliers"])
        assert list(generated_widths(int(full), WidthElasticity(**settings))) == widths, case


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_filter_importance_by_hand(name: str) -> None:
    model = zoo.build(name)
    structure = describe(model)
    scores = {norm: filter_importance(model, structure, norm) for norm in ("L1", "L2", "geometric_median")}
    for sub_layer in structure:
        assert {score.shape for score in (scores[norm][sub_layer.name] for norm in scores)} == {(sub_layer.units,)}
    if name == "bert":
        layer = model.bert.encoder.layer[1]
        rows = layer.intermediate.dense.weight.double()
        assert scores["L1"]["encoder.1.feed_forward"][3] == pytest.approx(rows[3].abs().sum().item())
        assert scores["L2"]["encoder.1.feed_forward"][3] == pytest.approx(rows[3].norm().item())
        distances = sum((rows[3] - row).norm().item() for row in rows)
        assert scores["geometric_median"]["encoder.1.feed_forward"][3] == pytest.approx(distances)
        attention = layer.attention.self
        head = sum(p.weight[8:16].abs().sum().item() for p in (attention.query, attention.key, attention.value))
        assert scores["L1"]["encoder.1.attention"][1] == pytest.approx(head)


def test_an_unknown_filter_importance() -> None:
    model = zoo.build("bert")
    with pytest.raises(ValueError, match="no filter importance 'L3'"):
        filter_importance(model, describe(model), "L3")


@needs_golden
@pytest.mark.parametrize("norm", ["L1", "L2", "geometric_median"])
def test_filter_importance_orders_units_as_nncf(norm: str) -> None:
    recorded = recordings()[f"permutations_{norm}"]
    model = golden_model("init_weights.npz")
    structure = describe(model)
    orders = reorder(model, structure, filter_importance(model, structure, norm))
    for index in range(3):
        layer = (
            f"BertForSequenceClassification/BertModel[bert]/BertEncoder[encoder]/ModuleList[layer]/BertLayer[{index}]"
        )
        heads = recorded[f"{layer}/BertAttention[attention]/BertSelfAttention[self]/NNCFLinear[query]/linear_0"]
        assert np.array_equal(np.array(heads).reshape(3, 64)[:, 0] // 64, orders[f"encoder.{index}.attention"])
        neurons = recorded[f"{layer}/BertIntermediate[intermediate]/NNCFLinear[dense]/linear_0"]
        assert neurons == orders[f"encoder.{index}.feed_forward"]
    assert torch.isfinite(model.classifier.weight).all()
