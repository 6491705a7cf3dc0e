"""Tiny classifiers of texts, data for them, and their outputs worked out text by text."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast


WORDS = [f"word{i}" for i in range(40)]
KEPT = {
    "encoder.0.attention": [1, 3],
    "encoder.0.feed_forward": 5,
    "encoder.1.attention": None,
    "encoder.1.feed_forward": [0, 7, 9],
}
HIDDEN = (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15)


def make_tokenizer() -> BertTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    return BertTokenizerFast(vocab=vocabulary, model_max_length=32)


def make_model(labels: Sequence[str], **changes) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=45, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=32, id2label=dict(enumerate(labels)), initializer_range=0.5, **changes,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def rows(columns: Sequence[str], count: int, labels: Sequence, seed: int = 0) -> list[dict]:
    """Texts with the numbers that labels have in the task's own order, or with values."""
    rng = random.Random(seed)
    texts = [{name: " ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for name in columns} for _ in range(count)]
    return [{**text, "label": rng.choice(labels)} for text in texts]


def write(path: Path, lines: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def outputs(model, lines: list[dict], columns: Sequence[str]) -> np.ndarray:
    """Logits text by text, without padding."""
    tokenizer, cut = make_tokenizer(), {"truncation": True, "max_length": 16, "return_tensors": "pt"}
    with torch.no_grad():
        each = [model(**tokenizer(*(line[name] for name in columns), **cut)).logits for line in lines]
    return torch.cat(each).numpy()
