"""From questions on texts to the windows that a model reads: pieces of a context that overlap, behind its question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Offsets of tokens that are not of the context.
OUTSIDE, PADDING = -1, -2
# Columns that tell of a window what answers are read off with; the model does not see them.
READING_COLUMNS = ("example", "null_position", "offset_start", "offset_end")
# What the models call a table with a row for each position, learnt or sinusoidal.
POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")


@dataclass(frozen=True)
class WindowMaker:
    """Cuts examples into windows.

    Args:
        tokenizer: a fast one; it tells which characters a token comes from. If it pads on the left, the context comes
            before the question, as in the scripts of transformers.
        max_length: of a window in tokens.
        stride: how many tokens of the context a window shares with the next.
        pad_to_max_length: pad all windows to `max_length`; else not at all (the collator does).

    Raises:
        ValueError: for a slow tokenizer, dynamic padding on the left, or a stride that no window has room for.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    stride: int
    pad_to_max_length: bool

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"The tokenizer {type(self.tokenizer).__name__} is a slow one, which does not tell where a token "
                "stands in the text; give a model or --tokenizer_name that has a fast tokenizer."
            )
        if self.tokenizer.padding_side == "left" and not self.pad_to_max_length:
            raise ValueError(
                "This tokenizer pads on the left, so that --pad_to_max_length False would move the answers of a batch "
                "by different numbers of tokens; leave the flag out."
            )
        if self.stride >= self.room:
            raise ValueError(
                f"doc_stride is {self.stride} and max_seq_length {self.max_length}, which leaves {max(self.room, 0)} "
                f"tokens beside the {self.max_length - self.room} special ones, and windows must overlap by fewer; "
                "lower --doc_stride or raise --max_seq_length, as far as the model can read."
            )

    @property
    def room(self) -> int:
        """How many tokens of a window are left to the question and its context."""
        return self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)

    @property
    def context_sequence(self) -> int:
        """Whether the context is the first (0) or the second (1) of the two texts."""
        return 1 if self.tokenizer.padding_side == "right" else 0

    def training_windows(self, examples: Dataset, **options: Any) -> Dataset:
        """Model inputs with the columns start_positions and end_positions.

        Both are tokens of the first answer, or the token that stands for no answer (CLS) in a window that does not
        have the whole of it.

        Args:
            examples: with columns context, question and answers.
            options: of `Dataset.map`.

        Raises:
            ValueError: if a question leaves no room for its context.
        """

        def prepare(rows: Mapping[str, list]) -> Mapping[str, list]:
            encoded = self._encode(rows)
            spans = []
            for window, example in enumerate(encoded.pop("overflow_to_sample_mapping")):
                null, starts, ends = self._reading(encoded, window)
                answers = rows["answers"][example]
                span = None
                if answers["text"]:
                    first = answers["answer_start"][0]
                    span = token_span(starts, ends, first, first + len(answers["text"][0]))
                spans.append(span or (null, null))
            encoded.pop("offset_mapping")
            return {**encoded, "start_positions": [s for s, _ in spans], "end_positions": [e for _, e in spans]}

        return examples.map(prepare, batched=True, remove_columns=examples.column_names, **options)

    def reading_windows(self, examples: Dataset, **options: Any) -> Dataset:
        """Model inputs with the columns of `READING_COLUMNS`.

        `example` is the number of the example, `null_position` the token that stands for no answer; `offset_start` and
        `offset_end` are the characters of the context that each token covers, or `OUTSIDE` or `PADDING`.

        Args:
            examples: with columns context and question.
            options: of `Dataset.map`.

        Raises:
            ValueError: if a question leaves no room for its context.
        """

        def prepare(rows: Mapping[str, list], indices: Sequence[int]) -> Mapping[str, list]:
            encoded = self._encode(rows)
            readings = [self._reading(encoded, window) for window in range(len(encoded["input_ids"]))]
            example = [indices[row] for row in encoded.pop("overflow_to_sample_mapping")]
            encoded.pop("offset_mapping")
            columns = [example, *map(list, zip(*readings))]
            return {**encoded, **dict(zip(READING_COLUMNS, columns))}

        return examples.map(prepare, batched=True, with_indices=True, remove_columns=examples.column_names, **options)

    def _encode(self, rows: Mapping[str, list]) -> Any:
        # Some questions of SQuAD start with many blanks, which would make cutting the context alone fail.
        texts = [[question.lstrip() for question in rows["question"]], rows["context"]]
        self._check_room(*texts)
        second = self.context_sequence == 1
        return self.tokenizer(
            *(texts if second else reversed(texts)),
            truncation="only_second" if second else "only_first",
            max_length=self.max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding="max_length" if self.pad_to_max_length else False,
        )

    def _check_room(self, questions: Sequence[str], contexts: Sequence[str]) -> None:
        """Refuse what would stop the tokenizer: a context to be cut into pieces no longer than their overlap."""
        room = self.room
        lengths = [len(ids) for ids in self.tokenizer(questions, add_special_tokens=False)["input_ids"]]
        for question, context, length in zip(questions, contexts, lengths):
            if room - length > self.stride:
                continue
            if len(self.tokenizer(context, add_special_tokens=False)["input_ids"]) > room - length:
                raise ValueError(
                    f"The question '{question[:60]}' has {length} tokens and leaves {max(room - length, 0)} of "
                    f"max_seq_length {self.max_length} for its context, which is not more than doc_stride "
                    f"{self.stride}; raise --max_seq_length or lower --doc_stride."
                )

    def _reading(self, encoded: Any, window: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Of one window: where no answer stands, and the characters that each token covers."""
        encoding = encoded.encodings[window]
        attended = np.array(encoding.attention_mask, dtype=bool)
        offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
        is_context = np.array([each == self.context_sequence for each in encoding.sequence_ids], dtype=bool)
        starts[~is_context], ends[~is_context] = OUTSIDE, OUTSIDE
        starts[~attended], ends[~attended] = PADDING, PADDING
        return self._null_position(np.array(encoding.ids), attended), starts, ends

    def _null_position(self, ids: np.ndarray, attended: np.ndarray) -> int:
        """The token CLS, else the one that starts a text, else the first that is no padding."""
        for token in (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id):
            found = np.flatnonzero((ids == token) & attended) if token is not None else ()
            if len(found):
                return int(found[0])
        return int(np.argmax(attended))


def token_span(starts: np.ndarray, ends: np.ndarray, first: int, end: int) -> tuple[int, int] | None:
    """First and last token of the characters from `first` up to `end` (exclusive); None if they are not all there.

    Args:
        starts: first character of each token, negative outside of the context.
        ends: the character after the last one of each token.
        first: first character of the answer.
        end: the character after its last one.
    """
    context = np.flatnonzero(starts >= 0)
    if len(context) == 0 or starts[context[0]] > first or ends[context[-1]] < end:
        return None
    # Of tokens that cover the same character, the last one starts the answer and the first one ends it.
    start = np.searchsorted(starts[context], first, side="right") - 1
    last = np.searchsorted(ends[context], end, side="left")
    return int(context[start]), int(context[last])


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Refuse windows that are longer than the model has positions for.

    Raises:
        ValueError: if it has fewer.
    """
    positions = position_count(model)
    if positions is not None and positions < max_length:
        raise ValueError(
            f"max_seq_length is {max_length} and the model has {positions} positions; give a --max_seq_length of at "
            "most that."
        )


def position_count(model: PreTrainedModel) -> int | None:
    """How many tokens a model has positions for; None where they are relative or rotary, which has no end.

    The tables are asked and not the config, whose `max_position_embeddings` counts rows that no token gets (RoBERTa),
    or is only the length of the pretraining (rotary positions).
    """
    counts = []
    for module in model.modules():
        for name in POSITION_TABLES:
            table = getattr(module, name, None)
            rows = row_count(table)
            if rows is None:
                continue
            # BART's has an offset; where padding has a row (RoBERTa), the first token gets the one after it.
            padding = getattr(table, "padding_idx", None)
            counts.append(rows - getattr(table, "offset", 0 if padding is None else padding + 1))
            # Of longer texts, some (Nystromformer) have rows but not their numbers.
            numbers = getattr(module, "position_ids", None)
            if isinstance(numbers, torch.Tensor):
                counts.append(numbers.shape[-1])
    return min(counts, default=None)


def row_count(table: Any) -> int | None:
    """Rows of an embedding, or of a bare tensor (GPT-J); None for what is no table, or makes its rows as needed."""
    if isinstance(table, nn.Embedding):
        return table.num_embeddings  # DeepSpeed may keep its weight elsewhere
    weight = getattr(table, "weight", table)
    return len(weight) if isinstance(weight, torch.Tensor) else None
