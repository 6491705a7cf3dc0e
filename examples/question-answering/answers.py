"""From the start and end logits of windows to answers: the best spans of each example, and the files of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_nas.files import write_text
from windows import PADDING


# So many windows are worked on at once, which bounds the memory to some ten megabytes.
_CHUNK = 2048
_LOWEST, _HIGHEST = np.float32(-1e30), np.float32(1e30)


@dataclass(frozen=True)
class Answers:
    """The best spans of each of E examples, best first, N of them at most.

    Args:
        contexts: of the examples.
        example: of each span, ascending; with it shape (spans,) all the following.
        characters: first character of the span, and the one after its last; shape (spans, 2).
        start_logits: of the first token.
        end_logits: of the last token.
        null_logits: start and end logit of no answer, in the window where their sum is lowest; shape (E, 2).
    """

    contexts: Sequence[str]
    example: np.ndarray
    characters: np.ndarray
    start_logits: np.ndarray
    end_logits: np.ndarray
    null_logits: np.ndarray

    @cached_property
    def _first(self) -> np.ndarray:
        """Where the spans of each example begin; one more entry at the end."""
        return np.searchsorted(self.example, np.arange(len(self.contexts) + 1))

    def texts(self) -> list[str]:
        """The best answer of each example; "empty" where no span is possible, as in the scripts of transformers."""
        texts = []
        for number, context in enumerate(self.contexts):
            span = self._first[number]
            is_there = span < self._first[number + 1]
            texts.append(context[slice(*self.characters[span])] if is_there else "empty")
        return texts

    def null_odds(self) -> np.ndarray:
        """By how much the score of no answer exceeds that of the best answer; shape (E,)."""
        span, has_span = self._first[:-1], self._first[:-1] < self._first[1:]
        best = np.zeros(len(self.contexts), dtype=np.float32)
        best[has_span] = (self.start_logits + self.end_logits)[span[has_span]]
        return (self.null_logits.sum(axis=1) - best).astype(float)

    def n_best(self, n_best_size: int, with_null: bool) -> list[list[dict[str, Any]]]:
        """For each example, its answers with logits and probabilities, best first.

        Args:
            n_best_size: how many at most; where no answer is not among them it comes as one more.
            with_null: whether no answer, an empty text, is one.
        """
        texts = [self.contexts[number][start:end] for number, (start, end) in zip(self.example, self.characters)]
        everything = []
        for number, (first, end) in enumerate(zip(self._first[:-1], self._first[1:])):
            found = [(self.start_logits[i], self.end_logits[i], texts[i]) for i in range(first, end)]
            if with_null:
                null = (*self.null_logits[number], "")
                found = sorted([*found, null], key=lambda each: each[0] + each[1], reverse=True)
                position = found.index(null)
                found = found[:n_best_size] + ([null] if position >= n_best_size else [])
            if not found or [text for *_, text in found] == [""]:
                found.insert(0, (np.float32(0.0), np.float32(0.0), "empty"))
            scores = np.array([start + end for start, end, _ in found], dtype=np.float32)
            weights = np.exp(scores - scores.max())
            everything.append(
                [
                    {"start_logit": float(start), "end_logit": float(end), "text": text, "probability": float(share)}
                    for (start, end, text), share in zip(found, weights / weights.sum())
                ]
            )
        return everything


class SpanReader:
    """Finds the answers in the logits of the windows of one data set.

    What does not depend on the logits is worked out once, so that a search can score many models. Of each window the
    `n_best_size` best starts and ends are combined, and of the spans of all windows of an example the best ones are
    kept. Spans that leave the context or are too long are left out, as in the scripts of transformers; unlike there,
    padding is no start or end to begin with, so that the answers do not depend on how windows are padded.

    Args:
        contexts: of the examples.
        windows: with the columns of `windows.READING_COLUMNS`, in the order of the examples.
        n_best_size: how many.
        max_answer_length: longest answer in tokens.
    """

    def __init__(self, contexts: Sequence[str], windows: Dataset, n_best_size: int = 20, max_answer_length: int = 30):
        self.contexts = contexts
        self.n_best_size = n_best_size
        self.max_answer_length = max_answer_length
        table = windows.with_format("arrow")[:]
        self.example = table.column("example").to_numpy()
        self.null_position = table.column("null_position").to_numpy()
        self.offset_start = _dense(table.column("offset_start"))
        self.offset_end = _dense(table.column("offset_end"))
        self.attended = self.offset_start != PADDING

    def __call__(self, start_logits: np.ndarray, end_logits: np.ndarray) -> Answers:
        """The answers by these logits, both of shape (windows, length); a logit that is no number counts as lowest.

        Raises:
            ValueError: if they are of other windows.
        """
        logits = [np.asarray(each) for each in (start_logits, end_logits)]
        for each in logits:
            if each.ndim != 2 or len(each) != len(self.attended) or each.shape[1] < self.attended.shape[1]:
                raise ValueError(
                    f"The logits have the shape {each.shape} and the data {self.attended.shape[0]} windows of up to "
                    f"{self.attended.shape[1]} tokens; give start and end logits of each token."
                )
        logits = [np.nan_to_num(each.astype(np.float32), True, _LOWEST, _HIGHEST, _LOWEST) for each in logits]
        chunks = [self._spans(*logits, slice(at, at + _CHUNK)) for at in range(0, len(self.example), _CHUNK)]
        window, start, end, start_logit, end_logit = (np.concatenate(parts) for parts in zip(*chunks))
        order, example = self._best_of_each(self.example[window], start_logit + end_logit)
        window, start, end = window[order], start[order], end[order]
        characters = np.stack([self.offset_start[window, start], self.offset_end[window, end]], axis=1)
        null = np.stack([each[np.arange(len(each)), self.null_position] for each in logits], axis=1)
        lowest, null_example = self._best_of_each(self.example, -null.sum(axis=1), count=1)
        null_logits = np.zeros((len(self.contexts), 2), dtype=np.float32)
        null_logits[null_example] = null[lowest]
        return Answers(self.contexts, example, characters, start_logit[order], end_logit[order], null_logits)

    def _spans(self, start_logits: np.ndarray, end_logits: np.ndarray, windows: slice) -> tuple[np.ndarray, ...]:
        """The best spans of some windows: window, first and last token, and their logits."""
        start, start_logit = self._best_tokens(start_logits[windows], windows)
        end, end_logit = self._best_tokens(end_logits[windows], windows)
        rows = np.arange(len(start))[:, None]
        from_character = self.offset_start[windows][rows, start][:, :, None]
        to_character = self.offset_end[windows][rows, end][:, None, :]
        length = end[:, None, :] - start[:, :, None] + 1
        # No characters: the start or the end is not of the context, or a token that stands for none.
        allowed = (length > 0) & (length <= self.max_answer_length)
        allowed &= (from_character >= 0) & (to_character > from_character)
        allowed &= (start_logit > _LOWEST)[:, :, None] & (end_logit > _LOWEST)[:, None, :]
        scores = np.where(allowed, start_logit[:, :, None] + end_logit[:, None, :], -np.inf)
        best, score = _largest(scores.reshape(len(scores), -1), self.n_best_size)
        row, rank = np.nonzero(score > -np.inf)
        first, last = np.divmod(best[row, rank], end.shape[1])
        first_window = windows.start or 0
        return (
            row + first_window, start[row, first], end[row, last], start_logit[row, first], end_logit[row, last]
        )  # fmt: skip

    def _best_tokens(self, logits: np.ndarray, windows: slice) -> tuple[np.ndarray, np.ndarray]:
        logits = np.where(self.attended[windows], logits[:, : self.attended.shape[1]], _LOWEST)
        return _largest(logits, self.n_best_size)

    def _best_of_each(
        self, example: np.ndarray, score: np.ndarray, count: int | None = None
    ) -> tuple[np.ndarray, ...]:
        """The `count` largest of each example, largest first; of equal ones the first."""
        order = np.lexsort((-score, example))
        example = example[order]
        rank = np.arange(len(order)) - np.searchsorted(example, example)
        kept = rank < (self.n_best_size if count is None else count)
        return order[kept], example[kept]


def _largest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of the `count` largest of each row, largest first, of equal ones the first."""
    count = min(count, values.shape[1])
    columns = np.sort(np.argpartition(-values, count - 1, axis=1)[:, :count], axis=1)
    found = np.take_along_axis(values, columns, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(found, order, axis=1)


def _dense(column: Any) -> np.ndarray:
    """A column of lists as one array, filled up with `PADDING`."""
    lists = column.combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    dense = np.full((len(lengths), lengths.max()), PADDING, dtype=np.int32)
    dense[np.arange(dense.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy()
    return dense


def write_answers(
    folder: str | Path, prefix: str, ids: Sequence[str], answers: Answers, threshold: float | None, n_best_size: int
) -> None:
    """Write `<prefix>_predictions.json`, `<prefix>_nbest_predictions.json` and, of v2, `<prefix>_null_odds.json`.

    Args:
        folder: where to.
        prefix: the stage, eval or predict.
        ids: of the examples.
        answers: to write.
        threshold: above these odds there is no answer; None if there always is one.
        n_best_size: how many answers to a question.
    """
    files = {
        "predictions": dict(zip(ids, final_texts(answers, threshold))),
        "nbest_predictions": dict(zip(ids, answers.n_best(n_best_size, with_null=threshold is not None))),
    }
    if threshold is not None:
        files["null_odds"] = dict(zip(ids, answers.null_odds().tolist()))
    for name, content in files.items():
        write_text(Path(folder) / f"{prefix}_{name}.json", json.dumps(content, indent=4) + "\n")


def final_texts(answers: Answers, threshold: float | None) -> list[str]:
    """The answer to each question: empty where the odds of no answer are above the threshold."""
    if threshold is None:
        return answers.texts()
    return ["" if odds > threshold else text for text, odds in zip(answers.texts(), answers.null_odds())]
