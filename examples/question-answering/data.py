"""Questions on texts: where they come from, what they must look like, and what is held out for a search."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError

from trainer_plugins.scripts.arguments import FILE_TYPES
from trainer_plugins.scripts.data import check_not_empty, missing_split, read_splits, read_table, unreadable


logger = logging.getLogger(__name__)

TEXT = Value("string")
ANSWERS = {"text": List(TEXT), "answer_start": List(Value("int32"))}
# Rises whenever `read_json` gives other rows of the same file.
READER_VERSION = 2
FEATURES = Features({"id": TEXT, "title": TEXT, "context": TEXT, "question": TEXT, "answers": ANSWERS})


@dataclass
class QuestionData:
    """The data of a run, checked; columns id, title, context, question and answers (text and answer_start, lists).

    Args:
        train: the training set, if there is one.
        validation: the validation set.
        test: the set to predict.
        test_is_labelled: whether the test set has answers; if not, its lists are empty.
    """

    train: Dataset | None = None
    validation: Dataset | None = None
    test: Dataset | None = None
    test_is_labelled: bool = False


def load_data(
    arguments: Any, needed: Sequence[str], cache_dir: str | None = None, token: str | None = None
) -> QuestionData:
    """Load the data that `arguments` (`DataTrainingArguments`) name, and check what the run needs of them.

    Args:
        arguments: the arguments on data.
        needed: what the run cannot do without, of `"train"`, `"validation"` and `"test"`.
        cache_dir: where data sets are cached; by default where `datasets` does.
        token: Hub token.

    Raises:
        ValueError: if a needed split or column is missing, or a row is not what it should be.
    """
    splits = read_splits(arguments, cache_dir, token, read_file)
    data = QuestionData()
    for role in needed:
        if role not in splits:
            raise missing_split(role, splits)
        if role != "test":
            check_answers_are_given(getattr(arguments, f"{role}_file"), splits[role])
        dataset = to_standard(role, splits[role])
        if role == "test":
            data.test_is_labelled = any(len(answers["text"]) for answers in dataset["answers"])
        is_labelled = role != "test" or data.test_is_labelled
        check_rows(role, dataset, is_labelled, arguments.version_2_with_negative)
        setattr(data, role, dataset)
    return data


def read_file(path: Path, cache_dir: str | None = None) -> Dataset:
    """One file: Parquet; CSV, in which the column answers holds JSON; or JSON of one of three kinds.

    JSON is one row a line, or a list of rows (which may stand under "data"), or SQuAD as it was released (rows in
    "qas" in "paragraphs" in "data").

    Raises:
        ValueError: if it is none of these.
    """
    if FILE_TYPES[path.suffix.lower()] != "json":
        return read_table(path, cache_dir)
    # `datasets` knows neither kind of nesting. Its cache knows a reader by its name and arguments alone: the digest
    # makes a changed file, and one that is read in another way, another data set there.
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    names = {"path": str(path), "digest": f"{READER_VERSION}-{digest}"}
    try:
        return Dataset.from_generator(read_json, gen_kwargs=names, features=FEATURES, cache_dir=cache_dir)
    except (DatasetGenerationError, ValueError) as error:
        reason = error.__cause__ or error
        if isinstance(reason, ValueError):
            raise reason from None
        raise unreadable(path, error) from error


def read_json(path: str, digest: str = "") -> Iterator[dict[str, Any]]:
    """The rows of a JSON file in standard form, but that `answers` is None in a row which says nothing on them.

    Args:
        path: of the file.
        digest: only tells versions of the file apart.

    Raises:
        ValueError: if the file is none of the kinds of [`read_file`], or a row is not what it should be.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # with a byte order mark, or without one
    except UnicodeDecodeError as error:
        raise ValueError(
            f"'{path}' holds the byte 0x{error.object[error.start]:02x} where it is no UTF-8; save it as UTF-8."
        ) from error
    try:
        # One row a line is no JSON document, unless there is only one.
        content = json.loads(text)
    except json.JSONDecodeError as error:
        # `str.splitlines` would also split at U+2028 and others, which may stand in a text.
        lines = [line for line in text.split("\n") if line.strip()]
        try:
            content = [json.loads(line) for line in lines]
        except json.JSONDecodeError:
            raise ValueError(f"'{path}' is no JSON, nor are its lines ({error}); correct the file.") from error
    if isinstance(content, dict):
        content = content.get("data", [content])
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise ValueError(f"'{path}' holds no list of rows; give one row a line, or a list of them under 'data'.")
    rows = [row for each in content for row in flatten(each)]
    if not rows:
        raise ValueError(f"'{path}' has no rows; give a file that does.")
    for number, row in enumerate(rows):
        for name in ("context", "question"):
            if not isinstance(row.get(name), str):
                raise ValueError(
                    f"Row {number} of '{path}' has no text '{name}'; it has {', '.join(row)} and needs id, context, "
                    "question and answers: correct the file."
                )
        yield {
            "id": as_name(row.get("id")),
            "title": as_name(row.get("title")),
            "context": row["context"],
            "question": row["question"],
            "answers": answers_of(row, f"row {number} of '{path}'"),
        }


def answers_of(row: Mapping[str, Any], where: str) -> dict[str, list] | None:
    """The answers of a row as two lists, empty where it says that there are none; None if it says nothing on them.

    Raises:
        ValueError: for answers that are not what they should be.
    """
    if "answers" in row:
        return standard_answers(row["answers"], where)
    return standard_answers(None, where) if row.get("is_impossible") is True else None


def as_name(value: Any) -> str:
    """An id or a title as text; empty if there is none."""
    return "" if value is None else str(value)


def flatten(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rows of an article of the released SQuAD; a row that is none stays as it is."""
    if "paragraphs" not in row:
        yield row
        return
    for paragraph in row["paragraphs"]:
        for question in paragraph["qas"]:
            # An impossible one may come with answers that are only plausible.
            answers = {"answers": []} if question.get("is_impossible") else {}
            yield {**question, **answers, "title": row.get("title"), "context": paragraph.get("context")}


def standard_answers(value: Any, where: str) -> dict[str, list]:
    """Answers as two lists, from two lists, from a list of pairs, or from either as JSON text.

    Raises:
        ValueError: for anything else.
    """
    answers = value
    try:
        if isinstance(answers, str):
            answers = json.loads(answers) if answers.strip() else []
        if not isinstance(answers, Mapping):
            pairs = [] if answers is None else answers
            answers = {name: [each[name] for each in pairs] for name in ("text", "answer_start")}
        texts, starts = list(answers["text"]), [int(start) for start in answers["answer_start"]]
    except (KeyError, TypeError, ValueError):
        texts, starts = [], [0]
    if len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"The answers of {where} are {str(value)[:80]!r}; write them as "
            '{"text": ["..."], "answer_start": [0]}, in a CSV file as JSON.'
        )
    return {"text": texts, "answer_start": starts}


def check_answers_are_given(path: str | None, dataset: Dataset) -> None:
    """Refuse rows of a JSON file that say nothing on answers: unlike a table, it may have other columns in each row.

    Args:
        path: of the file, if the data are one.
        dataset: read from there.

    Raises:
        ValueError: naming the first such row.
    """
    if path is None or FILE_TYPES[Path(path).suffix.lower()] != "json":
        return
    for row, answers in enumerate(dataset["answers"]):
        if answers is None:
            raise ValueError(
                f"Row {row} of '{path}' has neither 'answers' nor \"is_impossible\": true; write its answers under "
                "'answers', as empty lists if there are none."
            )


def to_standard(role: str, dataset: Dataset) -> Dataset:
    """A split with the five standard columns and no others.

    Raises:
        ValueError: if a column is missing or of another type. Only predictions need an id, and a test set no answers.
    """
    needed = {"train": ("context", "question", "answers"), "test": ("id", "context", "question")}
    for name in needed.get(role, ("id", "context", "question", "answers")):
        if name not in dataset.column_names:
            raise ValueError(
                f"The {role} split has no column '{name}'; it has {', '.join(dataset.column_names)} and needs id, "
                "context, question and answers: rename its columns."
            )
    check_not_empty(role, dataset)
    if dataset.features == FEATURES and not any(each.null_count for each in dataset.data.table.flatten().columns):
        return dataset

    def convert(rows: Mapping[str, list], indices: list[int]) -> Mapping[str, list]:
        count = len(indices)
        converted = {name: [as_name(value) for value in rows.get(name, [""] * count)] for name in ("id", "title")}
        for name in ("context", "question"):
            converted[name] = rows[name]
            wrong = [index for index, text in zip(indices, rows[name]) if not isinstance(text, str)]
            if wrong:
                raise ValueError(f"Row {wrong[0]} of the {role} split has no text as {name}; it needs one.")
        answers = zip(rows.get("answers", [[]] * count), indices)
        converted["answers"] = [standard_answers(each, f"row {index} of the {role} split") for each, index in answers]
        return converted

    others = [name for name in dataset.column_names if name not in FEATURES]
    return dataset.map(
        convert, batched=True, with_indices=True, features=FEATURES, remove_columns=others, desc=f"Reading {role}"
    )


def check_rows(role: str, dataset: Dataset, is_labelled: bool, version_2: bool) -> None:
    """Refuse rows that cannot be learnt from or scored.

    Raises:
        ValueError: for an empty context; an answer that is not in its context at its place; no answer, unless
            `version_2`; and, but for training, an id that is missing or there twice.
    """
    ids: set[str] = set()
    start = 0
    for batch in dataset.iter(batch_size=1000):
        for row, (name, context, answers) in enumerate(zip(batch["id"], batch["context"], batch["answers"]), start):
            where = f"Row {row} of the {role} split" + (f" (id '{name}')" if name else "")
            if not context.strip():
                raise ValueError(f"{where} has an empty context; leave it out.")
            if role != "train" and (not name or name in ids):
                found = "an id that is there twice" if name else "no id"
                raise ValueError(f"{where} has {found}; predictions are written by id: give each row one of its own.")
            ids.add(name)
            if is_labelled and not version_2 and not answers["text"]:
                raise ValueError(
                    f"{where} has no answer; add --version_2_with_negative if that means that there is none, or leave "
                    "it out."
                )
            for text, place in zip(answers["text"], answers["answer_start"]):
                if not text or place < 0 or context[place : place + len(text)] != text:
                    found = context[place : place + len(text)][:60] if place >= 0 else ""
                    raise ValueError(
                        f"{where} has the answer {text[:60]!r} at character {place} and its context has {found!r} "
                        "there; correct text or answer_start."
                    )
        start += len(batch["id"])


def split_selection(train: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split the set on which sub-networks are compared off the training set, the same for the same seed.

    Whole articles are held out, or whole contexts where the rows have no titles or all the same one, so that no
    context of the selection set was trained on. Therefore the share is met only roughly.

    Returns:
        the training set without it, and the selection set in random order, so that its first examples are a sample.

    Raises:
        ValueError: if `share` is not between 0 and 1 or leaves one of the two empty.
    """
    contexts = train["context"][:]
    title_of: dict[str, str] = {}
    for context, title in zip(contexts, train["title"]):
        # A context belongs to one article only, even if rows of it come with several titles or none.
        title_of[context] = title_of.get(context) or title
    groups = [title_of[context] or context for context in contexts]
    if len(set(groups)) < 2:
        groups = contexts
    generator = np.random.default_rng(seed)
    names = list(dict.fromkeys(groups))
    sizes = {name: 0 for name in names}
    for name in groups:
        sizes[name] += 1
    wanted, held_out, taken = share * len(train), set(), 0
    for index in generator.permutation(len(names)):
        # Taken if that comes nearer to the share than leaving it.
        if taken + sizes[names[index]] / 2 <= wanted and len(held_out) < len(names) - 1:
            held_out.add(names[index])
            taken += sizes[names[index]]
    if not held_out and len(names) > 1:
        held_out.add(min(names, key=sizes.__getitem__))
    is_held_out = np.array([name in held_out for name in groups])
    if not 0 < share < 1 or not held_out:
        raise ValueError(
            f"--selection_split {share} of {len(train)} training examples with {len(names)} different contexts leaves "
            "one part empty; give a share between 0 and 1, 0.3 for example, and enough contexts."
        )
    logger.info("Held out %d of %d training examples, of whole articles or contexts.", is_held_out.sum(), len(train))
    return train.select(np.flatnonzero(~is_held_out)), train.select(generator.permutation(np.flatnonzero(is_held_out)))
