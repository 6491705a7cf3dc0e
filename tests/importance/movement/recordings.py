"""What NNCF 2.x recorded, for the tests that compare with it; and the tiny BERT that it recorded it on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification


FOLDER = Path(__file__).resolve().parents[3] / ".." / "shared" / "golden" / "nncf2"
needs_recordings = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the recordings of NNCF 2.x are not beside the checkout"
)


def arrays(name: str) -> dict[str, torch.Tensor]:
    """The tensors of an `.npz` file, without the buffer that transformers no longer saves."""
    with np.load(FOLDER / name) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if "position_ids" not in key}


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def recorded_bert(weights: str | None = None, **changes) -> BertForSequenceClassification:
    """The stock model of the recordings, with recorded weights if a file of them is named."""
    sizes = {
        "vocab_size": 50,
        "hidden_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 160,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 2,
    }
    model = BertForSequenceClassification(BertConfig(**{**sizes, **changes}))
    if weights is not None:
        model.load_state_dict(arrays(weights), strict=True)
    return model.eval()
