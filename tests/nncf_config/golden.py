"""The recordings of NNCF 2.x: their model and what was computed with it."""

import json
from functools import cache

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_nas.structures import ModelStructure
from hf_nas.subnetwork import NORM_ONLY, SubNetwork
from tests.nncf_config.configs import GOLDEN


@cache
def recordings() -> dict:
    return json.loads((GOLDEN / "reorder_subnets" / "golden.json").read_text())


def golden_model(weights: str) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=50, hidden_size=192, num_hidden_layers=3, num_attention_heads=3, intermediate_size=160,
        max_position_embeddings=64, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with np.load(GOLDEN / "reorder_subnets" / weights) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays}
    loaded = model.load_state_dict(state, strict=False)
    assert not loaded.missing_keys and set(loaded.unexpected_keys) <= {"bert.embeddings.position_ids"}
    return model


def batch() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "reorder_subnets" / "eval_batch.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays if name != "labels"}


def sub_network(structure: ModelStructure, width: list[int], depth: list[int]) -> SubNetwork:
    """From the recorded widths (three attentions, three feed-forwards) and skipped blocks, in the same order."""
    kept: dict = {}
    for index in range(3):
        kept[f"encoder.{index}.attention"] = None if index in depth else width[index] // 64
        kept[f"encoder.{index}.feed_forward"] = NORM_ONLY if index + 3 in depth else width[index + 3]
    return SubNetwork.of(structure, kept)
