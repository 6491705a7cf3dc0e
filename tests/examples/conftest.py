"""The example scripts as modules, and a tiny model and data for them."""

import csv
import importlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WORDS = ("good", "fine", "nice", "bad", "poor", "ugly", "the", "film", "book", "was", "and", "a", "very", "it")


@contextmanager
def example_modules(folder: str, script: str) -> Iterator[ModuleType]:
    """Import a script as if it were run; other scripts may have modules of the same names beside them."""
    path = EXAMPLES / folder
    names = {file.stem for file in path.glob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(path))
    try:
        yield importlib.import_module(script)
    finally:
        sys.path.remove(str(path))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


@pytest.fixture(scope="package")
def run_glue() -> Iterator[ModuleType]:
    with example_modules("text-classification", "run_glue") as module:
        yield module


@pytest.fixture(scope="package")
def data_module(run_glue: ModuleType) -> ModuleType:
    return sys.modules["data"]


@pytest.fixture(scope="package")
def demo(run_glue: ModuleType) -> ModuleType:
    return sys.modules["demo"]


@pytest.fixture(scope="package")
def data_arguments(run_glue: ModuleType) -> type:
    return run_glue.DataTrainingArguments


def write_csv(path: Path, rows: list[dict]) -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def reviews(count: int, seed: int) -> list[dict]:
    """Texts whose label is in one of their words."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        label = generator.randrange(2)
        words = generator.choices(WORDS[6:], k=generator.randint(2, 7))
        words.insert(generator.randint(0, len(words)), generator.choice(WORDS[:3] if label else WORDS[3:6]))
        rows.append({"text": " ".join(words), "label": "positive" if label else "negative"})
    return rows


@pytest.fixture(scope="package")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT of 2 layers without a head, with a vocabulary of 19 words."""
    folder = tmp_path_factory.mktemp("model")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), model_max_length=32)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="package")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of 64 training and 24 validation texts."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "train_file": write_csv(folder / "train.csv", reviews(64, seed=0)),
        "validation_file": write_csv(folder / "validation.csv", reviews(24, seed=1)),
    }
