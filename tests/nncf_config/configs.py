"""A small configuration, made up for the tiny BERT of the zoo (3 layers, 4 heads of 8 channels, 24 neurons)."""

import copy
from pathlib import Path
from typing import Any

import pytest


SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
PUBLISHED = SHARED / "configs" / "eftnas"
GOLDEN = SHARED / "golden" / "nncf2"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published configurations are not at hand")
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recordings of NNCF 2.x are not at hand")

MODEL = "BertForSequenceClassification/BertModel[bert]"
EMBEDDINGS = f"{MODEL}/BertEmbeddings[embeddings]/Dropout[dropout]/dropout_0"


def layer(index: int) -> str:
    return f"{MODEL}/BertEncoder[encoder]/ModuleList[layer]/BertLayer[{index}]"


def projections(index: int) -> list[str]:
    attention = f"{layer(index)}/BertAttention[attention]/BertSelfAttention[self]"
    return [f"{attention}/NNCFLinear[{name}]/linear_0" for name in ("query", "key", "value")]


def neurons(index: int) -> list[str]:
    return [f"{layer(index)}/BertIntermediate[intermediate]/NNCFLinear[dense]/linear_0"]


def attention_norm(index: int) -> str:
    return f"{layer(index)}/BertAttention[attention]/BertSelfOutput[output]/NNCFLayerNorm[LayerNorm]/layer_norm_0"


def attention_addition(index: int) -> str:
    return f"{layer(index)}/BertAttention[attention]/BertSelfOutput[output]/__add___0"


def output_norm(index: int) -> str:
    return f"{layer(index)}/BertOutput[output]/NNCFLayerNorm[LayerNorm]/layer_norm_0"


def output_addition(index: int) -> str:
    return f"{layer(index)}/BertOutput[output]/__add___0"


def attention_block(index: int) -> list[str]:
    return [output_norm(index - 1) if index else EMBEDDINGS, attention_norm(index)]


def feed_forward_block(index: int) -> list[str]:
    return [attention_norm(index), output_addition(index)]


_CONFIG: dict[str, Any] = {
    "input_info": [{"sample_size": [1, 16], "type": "long", "keyword": "input_ids"}],
    "bootstrapNAS": {
        "training": {
            "algorithm": "progressive_shrinking",
            "progressivity_of_elasticity": ["width", "depth"],
            "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
            "schedule": {
                "list_stage_descriptions": [
                    {"train_dims": ["width", "depth"], "epochs": 3, "width_indicator": 3, "init_lr": 2e-5}
                ]
            },
            "elasticity": {
                "available_elasticity_dims": ["width", "depth"],
                "width": {
                    "overwrite_groups": [*map(projections, range(3)), *map(neurons, range(3))],
                    "overwrite_groups_widths": [[32, 16, 8], [16, 24], [32], [24, 17, 9, 3], [24], [20, 5]],
                    "add_dynamic_inputs": [
                        f"{layer(1)}/BertAttention[attention]/BertSelfOutput[output]/NNCFLinear[dense]/linear_0"
                    ],
                },
                "depth": {"skipped_blocks": [attention_block(0), attention_block(2), feed_forward_block(1)]},
            },
        },
        "search": {"algorithm": "NSGA2", "num_evals": 100, "population": 8},
    },
    "compression": {
        "algorithm": "movement_sparsity",
        "params": {"warmup_start_epoch": 1, "warmup_end_epoch": 3, "importance_regularization_factor": 0.02},
        "sparse_structure_by_scopes": [
            {"mode": "block", "sparse_factors": [8, 8], "target_scopes": "{re}.*BertAttention.*"}
        ],
        "ignored_scopes": ["{re}.*embeddings.*"],
    },
}


def config(**changes: Any) -> dict[str, Any]:
    """The configuration with changes: from keys joined by dots (written with __ here) to values; None removes."""
    changed = copy.deepcopy(_CONFIG)
    for path, value in changes.items():
        *parents, key = path.split("__")
        parent = changed
        for name in parents:
            parent = parent.setdefault(_LONG.get(name, name), {})
        if value is None:
            del parent[_LONG.get(key, key)]
        else:
            parent[_LONG.get(key, key)] = value
    return changed


_LONG = {"nas": "bootstrapNAS"}
