"""Fingerprints of a model and of the rows of a data set: equal where, and only where, what is in them is equal."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel


# What a configuration says of the files it came from; the same weights give the same logits whatever it is.
_VOLATILE = ("_name_or_path", "transformers_version", "architectures", "dtype")


def fingerprint_of_model(model: PreTrainedModel) -> str:
    """SHA-256 of the class, the configuration and all weights of a model, whatever device they are on."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _VOLATILE}
    digest = hashlib.sha256(type(model).__name__.encode())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_of_rows(
    dataset: Sequence[Mapping[str, Any]], columns: Sequence[str], rows: Sequence[int] | None = None
) -> str:
    """SHA-256 of these columns of these rows; of any integers, floats and bools, also as tensors or arrays.

    Args:
        dataset: rows by number.
        columns: names; their order does not matter.
        rows: numbers, whose order does; by default all, with a progress bar.

    Raises:
        ValueError: if a row lacks a column, or a column holds something else.
    """
    digest = hashlib.sha256(json.dumps(sorted(columns)).encode())
    if rows is None:
        rows = tqdm(range(len(dataset)), desc="Rows for the teacher", unit="row", leave=False)
    for number in rows:
        row = dataset[number]
        for column in sorted(columns):
            if column not in row:
                raise ValueError(
                    f"Row {number} of the data set has no column {column!r}, which other rows have; give all rows the "
                    "same columns."
                )
            array = _as_array(row[column], column, number)
            digest.update(f"\n{array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _as_array(value: Any, column: str, index: int) -> np.ndarray:
    try:
        array = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"The column {column!r} of row {index} holds no numbers of a regular shape; tokenize the data before its "
            "teacher logits are cached."
        )
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
