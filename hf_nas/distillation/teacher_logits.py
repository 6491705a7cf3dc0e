"""Cached logits of a teacher, read from memory-mapped files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hf_nas.distillation.fingerprints import fingerprint_of_rows


__all__ = ["ROW_COLUMN", "TeacherLogits"]

ROW_COLUMN = "teacher_row"
INDEX_FILE = "index.json"
FORMAT = "hf_nas.teacher_logits/1"

Dataset = Sequence[Mapping[str, Any]]


class TeacherLogits:
    """Logits of a teacher for the rows of a data set, read from memory-mapped files.

    Args:
        folder: what [`cache_teacher_logits`] wrote: a folder with an `index.json`.

    Raises:
        ValueError: if the folder holds no complete cache.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX_FILE).read_text(encoding="utf-8"))
            if index["format"] != FORMAT:
                raise ValueError(f"its format is {index['format']!r}, not {FORMAT!r}")
            self._count, self._rows_per_file = int(index["count"]), int(index["rows_per_file"])
            self._key, self._columns = str(index["key"]), [str(column) for column in index["columns"]]
            self._sample = str(index["sample"])
            self._outputs, self.per_position = int(index["outputs"]), bool(index["per_position"])
            self._files: dict[int, dict[str, torch.Tensor]] = {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"The folder {str(self.folder)!r} holds no complete cache of teacher logits ({error!r}); delete it or "
                "have it written by cache_teacher_logits."
            ) from error

    def __len__(self) -> int:
        return self._count

    def attach(self, dataset: Dataset) -> Dataset:
        """The data set, in the order of the cached one, with the column `teacher_row` by which rows are looked up.

        Shuffle, select and batch it afterwards as you like, but keep the column.

        Raises:
            ValueError: if it has other rows or another order than the cached one, or such a column already.
        """
        if len(dataset) != len(self):
            raise ValueError(
                f"The data set has {len(dataset)} rows and the cache {str(self.folder)!r} {len(self)}; give the one "
                "that was cached."
            )
        if ROW_COLUMN in dataset[0]:
            raise ValueError(f"The data set has a column {ROW_COLUMN!r} already; remove it.")
        if fingerprint_of_rows(dataset, self._columns, sampled_rows(len(self))) != self._sample:
            raise ValueError(
                f"The rows of the data set are not those, or not in the order of those, in {str(self.folder)!r}; give "
                "the one that was cached, and shuffle what attach() returns."
            )
        if hasattr(dataset, "add_column"):
            return dataset.add_column(ROW_COLUMN, list(range(len(dataset))))
        return _Numbered(dataset)

    def lookup(self, rows: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """The teacher's logits for a batch, in float32.

        Args:
            rows: the column `teacher_row` of the batch, shape `(batch,)`.
            attention_mask: of the batch, `(batch, length)`; only logits of spans and tokens need it, and those of
                padding are 0.

        Returns:
            As `logits_of` the teacher's outputs, on the device of `rows`.

        Raises:
            ValueError: if there is no such row, or the batch has other positions than the cached row.
        """
        numbers = rows.tolist()
        for row in numbers:
            if not 0 <= row < len(self):
                raise ValueError(
                    f"Row {row} is not in the cache {str(self.folder)!r} of {len(self)} rows; use the data set that "
                    "attach() returned."
                )
        found = [self._row(row) for row in numbers]
        if not self.per_position:
            return tuple(torch.stack(each).to(rows.device) for each in zip(*found))
        if attention_mask is None or attention_mask.dim() != 2:
            raise ValueError(
                "The cached logits are one for each position, so where these are must be known; give the attention "
                "mask of the batch, of shape (batch, length)."
            )
        mask = attention_mask.cpu() != 0
        lengths = torch.tensor([len(each[0]) for each in found])
        if mask.shape[0] != len(found) or not torch.equal(mask.sum(dim=1), lengths):
            raise ValueError(
                f"The batch has {mask.sum(dim=1).tolist()} unpadded positions in its rows and the cache "
                f"{lengths.tolist()}; use the data set and the truncation that were cached."
            )
        results = []
        for each in zip(*found):
            result = each[0].new_zeros(*mask.shape, *each[0].shape[1:])
            result[mask] = torch.cat(each)
            results.append(result.to(rows.device))
        return tuple(results)

    def _row(self, row: int) -> list[torch.Tensor]:
        number, offset = divmod(row, self._rows_per_file)
        if number not in self._files:
            self._files[number] = read_logits(logits_file(self.folder, number), self._key)
        tensors = self._files[number]
        logits = [tensors[f"logits.{output}"] for output in range(self._outputs)]
        if not self.per_position:
            return [each[offset] for each in logits]
        start = int(tensors["ends"][offset - 1]) if offset else 0
        return [each[start : int(tensors["ends"][offset])] for each in logits]


class _Numbered(torch.utils.data.Dataset):
    """Rows of a data set that cannot take a column, with their numbers."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        return {**self._dataset[index], ROW_COLUMN: index}


def sampled_rows(count: int) -> list[int]:
    """The rows by which a data set is recognised without reading all of it: up to 64, the first and last included."""
    return sorted({position * (count - 1) // 63 for position in range(64)})


def logits_file(folder: Path, number: int) -> Path:
    return folder / f"logits-{number:05d}.safetensors"


def read_logits(path: Path, key: str) -> dict[str, torch.Tensor]:
    """Views of the file, of which the system reads what is looked at."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                raise ValueError("it belongs to another teacher or other rows")
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"The file {str(path)!r} holds no logits of this cache ({error}); delete the folder to have it written "
            "anew."
        ) from error
