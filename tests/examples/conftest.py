"""The example scripts as modules, and a tiny model and data for them."""

import csv
import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel, BertTokenizerFast

from tests.examples.runs import Script
from tests.examples.translations import NEW, TRAINING, sentences


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KINDS = {"colour": ("red", "blue", "green"), "animal": ("cat", "dog", "cow"), "fruit": ("fig", "pear", "kiwi")}
WORDS = ("good", "fine", "nice", "bad", "poor", "ugly", "the", "film", "book", "was", "and", "a", "very", "it")


@contextmanager
def example_modules(folder: str, script: str) -> Iterator[dict[str, ModuleType]]:
    """Import a script as if it were run; other scripts may have modules of the same names beside them."""
    path = EXAMPLES / folder
    names = {file.stem for file in path.glob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(path))
    try:
        importlib.import_module(script)
        yield {name: sys.modules[name] for name in names if name in sys.modules}
    finally:
        sys.path.remove(str(path))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


@pytest.fixture(scope="package")
def glue_modules() -> Iterator[dict[str, ModuleType]]:
    with example_modules("text-classification", "run_glue") as modules:
        yield modules


@pytest.fixture(scope="package")
def run_glue(glue_modules: dict[str, ModuleType]) -> ModuleType:
    return glue_modules["run_glue"]


@pytest.fixture(scope="package")
def data_module(glue_modules: dict[str, ModuleType]) -> ModuleType:
    return glue_modules["data"]


@pytest.fixture(scope="package")
def demo(glue_modules: dict[str, ModuleType]) -> ModuleType:
    return glue_modules["demo"]


@pytest.fixture(scope="package")
def qa_modules() -> Iterator[dict[str, ModuleType]]:
    with example_modules("question-answering", "run_qa") as modules:
        yield modules


@pytest.fixture(scope="package")
def run_qa(qa_modules: dict[str, ModuleType]) -> ModuleType:
    return qa_modules["run_qa"]


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


def save_tiny_bert(folder: Path, words: tuple[str, ...], hidden_size: int = 16) -> str:
    """A random BERT of 2 layers without a head, with a tokenizer of these word pieces and the five special ones."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words)) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), model_max_length=32)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="package")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_bert(tmp_path_factory.mktemp("model"), WORDS)


@pytest.fixture(scope="package")
def tiny_qa_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    pieces = ("which", "is", "there", "a", "the", "and", ".", "##ish", "very", "big", "small")
    kinds = (name for names in KINDS.values() for name in names)
    return save_tiny_bert(tmp_path_factory.mktemp("qa_model"), (*pieces, *KINDS, *kinds), hidden_size=32)


@pytest.fixture(scope="package")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where all tests cache data sets."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="package")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of 64 training and 24 validation texts."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "train_file": write_csv(folder / "train.csv", reviews(64, seed=0)),
        "validation_file": write_csv(folder / "validation.csv", reviews(24, seed=1)),
    }


def questions(count: int, seed: int, unanswerable: float = 0.0) -> list[dict]:
    """Questions whose answer is the only word of any kind in the context; contexts of 6 to 22 word pieces."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        kind = generator.choice(list(KINDS))
        has_answer = generator.random() >= unanswerable
        place = generator.randrange(3) if has_answer else None
        context, answers = "", {"text": [], "answer_start": []}
        for position in range(3):
            context += " ".join(
                ["there is a"[: generator.choice((5, 8, 10))], *["very"] * generator.randint(0, 2), ""]
            )
            if position == place:
                # "blueish" is two pieces, and one answer.
                word = generator.choice(KINDS[kind]) + ("ish" if generator.random() < 0.3 else "")
                answers = {"text": [word], "answer_start": [len(context)]}
                context += f"{word} . "
            else:
                context += generator.choice(("big . ", "small . "))
        rows.append(
            {
                "id": f"q{seed}-{number}",
                "title": f"article {number % 8}",
                "context": context.strip(),
                "question": f"which {kind} is there",
                "answers": answers,
            }
        )
    return rows


def qa_example(context: str, answer: str | None = None, question: str = "which colour") -> dict:
    """A row whose answer is where it first occurs in the context."""
    found = {"text": [answer], "answer_start": [context.index(answer)]} if answer else {"text": [], "answer_start": []}
    return {"id": "1", "title": "", "context": context, "question": question, "answers": found}


def qa_dataset(data_module: ModuleType, *rows: dict) -> Dataset:
    """Rows with the columns that the question-answering script works on."""
    return Dataset.from_list(list(rows), features=data_module.FEATURES)


@pytest.fixture
def load_questions(qa_modules: dict[str, ModuleType], tmp_path: Path) -> Callable[..., Any]:
    """Load data as the question-answering script does."""

    def load(needed: tuple[str, ...] = ("train", "validation"), **arguments: Any) -> Any:
        arguments = qa_modules["arguments"].DataTrainingArguments(**arguments)
        return qa_modules["data"].load_data(arguments, needed, cache_dir=str(tmp_path / "cache"))

    return load


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="package")
def qa_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of 96 training and 32 validation questions."""
    folder = tmp_path_factory.mktemp("qa_files")
    return {
        "train_file": write_lines(folder / "train.json", questions(96, seed=0)),
        "validation_file": write_lines(folder / "validation.json", questions(32, seed=1)),
    }


@pytest.fixture(scope="package")
def glue_settings(tiny_model: str, tiny_files: dict[str, str], data_cache: str) -> dict[str, Any]:
    """Model and data of the text-classification script, by flag."""
    return tiny_files | {"model_name_or_path": tiny_model, "cache_dir": data_cache, "max_seq_length": 12}


@pytest.fixture(scope="package")
def qa_settings(tiny_qa_model: str, qa_files: dict[str, str], data_cache: str) -> dict[str, Any]:
    """Model and data of the question-answering script, by flag; some contexts make two windows."""
    settings = {"model_name_or_path": tiny_qa_model, "cache_dir": data_cache, "max_seq_length": 22, "doc_stride": 6}
    return qa_files | settings


@pytest.fixture(scope="package")
def translation_modules() -> Iterator[dict[str, ModuleType]]:
    with example_modules("translation", "run_translation") as modules:
        yield modules


@pytest.fixture(scope="package")
def run_translation(translation_modules: dict[str, ModuleType]) -> ModuleType:
    return translation_modules["run_translation"]


@pytest.fixture(scope="package")
def pair_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of a training, a validation and a test set."""
    folder = tmp_path_factory.mktemp("pair_files")
    sizes = {"train": 200, "validation": 20, "test": 10}
    return {
        f"{role}_file": write_lines(folder / f"{role}.json", sentences(count, seed))
        for seed, (role, count) in enumerate(sizes.items())
    }


@pytest.fixture(scope="package")
def translate(run_translation: ModuleType, pair_files: dict[str, str], data_cache: str) -> Script:
    """The translation script with a tiny training on these files."""
    lengths = {"max_source_length": 20, "max_target_length": 20}
    languages = {"source_lang": "en", "target_lang": "de", "cache_dir": data_cache}
    return Script(run_translation, TRAINING | pair_files | languages | lengths)


@pytest.fixture(scope="package")
def translator(translate: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a new Marian that has learnt the task, and its test set translated: two layers a side with 4 heads."""
    folder = tmp_path_factory.mktemp("runs") / "translator"
    flags = "--train_tokenizer --do_train --do_eval --do_predict --predict_with_generate --num_beams 2".split()
    translate(folder, *flags, **NEW, max_steps=260, save_steps=260)
    return folder
