"""What a model reads first, texts as token ids or images as pixels, and how many tokens its layers make of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel


__all__ = ["MainInput", "SequenceLengths", "image_tokens", "mean_lengths"]

TOKENS = "input_ids"
IMAGES = "pixel_values"
_NO_LABEL = -100
# How a row gets what it lacks.
_ADVICE = {TOKENS: "tokenise it first", IMAGES: "pass its images through the image processor first"}


class SequenceLengths(NamedTuple):
    """Numbers of tokens that the layers of a model compute on for one row.

    Args:
        sequence_length: of the main input.
        decoder_length: of the texts that an encoder-decoder writes; None where nothing else is known, or for others.
    """

    sequence_length: int
    decoder_length: int | None = None

    def stated(self) -> dict[str, int]:
        """Those that are known, by name."""
        return {name: length for name, length in self._asdict().items() if length is not None}


@dataclass(frozen=True)
class MainInput:
    """The input of a model that is never left out, `main_input_name` in transformers.

    Args:
        name: of the argument, e.g. `"input_ids"` or `"pixel_values"`.
        tokens: of every row, where the configuration fixes their number (images); None where rows differ (texts).
        reader: what reads it, for messages.
    """

    name: str
    tokens: int | None
    reader: str

    @classmethod
    def of(cls, model: PreTrainedModel) -> "MainInput":
        """That of a model."""
        name, reader = model.main_input_name, type(model).__name__
        sizes = _image_and_patch(model) if name == IMAGES else None
        if sizes is None:
            return cls(name, None, reader)
        height, width = sizes[0]
        return cls(name, image_tokens(model), f"{reader} for images of {height} x {width}")

    def tokens_of(self, row: Mapping[str, Any]) -> int:
        """Number of tokens that the layers of the model compute on for one row of a data set.

        Args:
            row: as the model's collator takes it; of several choices the longest one counts.

        Raises:
            ValueError: if the row lacks the main input, or its tokens cannot be counted.
        """
        if self.name not in row:
            advice = _ADVICE.get(self.name, "give it that column")
            raise ValueError(f"The data set has the columns {sorted(row)} but no {self.name!r}; {advice}.")
        if self.tokens is not None:
            return self.tokens
        if self.name != TOKENS:
            raise ValueError(
                f"{self.reader} reads {self.name!r}, whose tokens hf-nas cannot count; give a model that reads "
                f"{TOKENS!r}, or {IMAGES!r} of the sizes that its configuration states."
            )
        ids = row[TOKENS]
        return max(map(len, ids)) if len(ids) and np.ndim(ids[0]) else len(ids)

    def mean_tokens(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Mean number of tokens of rows, rounded, at least 1; rows that all have the same number are not looked at.

        Raises:
            ValueError: as [`tokens_of`] does.
        """
        if self.tokens is not None:
            return self.tokens
        return max(1, round(float(np.mean([self.tokens_of(rows[index]) for index in range(len(rows))]))))

    def check_length(self, sequence_length: int) -> None:
        """Raise a `ValueError` if no row of this model has so many tokens."""
        if self.tokens not in (None, sequence_length):
            raise ValueError(
                f"A {self.reader} reads {self.tokens} tokens, not {sequence_length}; give the sequence_length "
                f"{self.tokens}."
            )


def mean_lengths(model: PreTrainedModel, rows: Sequence[Mapping[str, Any]]) -> SequenceLengths:
    """Mean numbers of tokens that the layers of a model compute on for one row.

    Args:
        model: that reads the rows.
        rows: with the main input, and with `labels` if the model writes texts.

    Returns:
        That of the main input, and of the texts to write where an encoder-decoder does; labels of -100 do not count.

    Raises:
        ValueError: as [`MainInput.tokens_of`] does.
    """
    length = MainInput.of(model).mean_tokens(rows)
    if not model.config.is_encoder_decoder or not np.ndim(rows[0].get("labels", 0)):
        return SequenceLengths(length)
    written = [int(np.sum(np.asarray(rows[index]["labels"]) != _NO_LABEL)) for index in range(len(rows))]
    return SequenceLengths(length, max(1, round(float(np.mean(written)))))


def image_tokens(model: PreTrainedModel) -> int:
    """Number of tokens that a model like ViT makes of an image: one for each patch, one for the whole.

    Raises:
        ValueError: if its configuration does not state the sizes of images and patches.
    """
    sizes = _image_and_patch(model)
    if sizes is None:
        raise ValueError(f"{type(model).__name__} states no image_size or no patch_size; give a model like ViT.")
    (height, width), patch = sizes
    return (height // patch[0]) * (width // patch[1]) + 1


def _image_and_patch(model: PreTrainedModel) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Height and width of images and of patches, where the configuration states both."""
    sizes = [getattr(model.config, field, None) for field in ("image_size", "patch_size")]
    if None in sizes:
        return None
    image, patch = ((size, size) if isinstance(size, int) else tuple(size) for size in sizes)
    return image, patch
