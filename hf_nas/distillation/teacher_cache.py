"""Logits of a teacher on disk, so that it answers once for each row of a data set and not once for each epoch.

Hidden states would take a thousand times the space, so training with a layer-wise loss asks the teacher itself.
"""

import hashlib
import inspect
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils.generic import find_labels

from hf_nas.distillation.fingerprints import fingerprint_of_model, fingerprint_of_rows
from hf_nas.distillation.losses import logits_of
from hf_nas.distillation.teacher_logits import (
    FORMAT,
    INDEX_FILE,
    Dataset,
    TeacherLogits,
    logits_file,
    read_logits,
    sampled_rows,
)
from hf_nas.files import atomic_path, write_json


__all__ = ["cache_teacher_logits"]

logger = logging.getLogger(__name__)


def cache_teacher_logits(
    teacher: PreTrainedModel,
    dataset: Dataset,
    folder: str | Path,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]],
    *,
    batch_size: int = 32,
    rows_per_file: int = 4096,
) -> TeacherLogits:
    """Write the teacher's logits for all rows of a data set, or find them if they were written before.

    A cache is known by fingerprints of the teacher's weights and of the rows, and has its own folder inside `folder`,
    so one folder serves any number of teachers and data sets. Files are written whole; a run that was killed goes on
    after the last one. Nothing is written for labels.

    Args:
        teacher: answers in evaluation mode, without gradients, on its device.
        dataset: tokenized rows by number, the same at each reading (no random cropping or masking).
        folder: where to.
        collate: pads rows, without labels, to a batch; nothing in it may be random, either.
        batch_size: rows a forward pass.
        rows_per_file: rows a file.

    Returns:
        The logits; [`TeacherLogits.attach`] makes the data set to train on.

    Raises:
        ValueError: if the data set cannot be read by number or holds nothing for the teacher, if the logits belong to
            the positions of a decoder or of rows without an attention mask, or if the disk is too small.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or not len(dataset):
        raise ValueError(
            f"Teacher logits are cached by row number, which a {type(dataset).__name__} of this kind or size does not "
            "have; give a data set of rows that is not streamed or empty."
        )
    for name, value in (("batch_size", batch_size), ("rows_per_file", rows_per_file)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1.")
    columns = _columns_for(teacher, dataset)
    identity = {"teacher": fingerprint_of_model(teacher), "rows": fingerprint_of_rows(dataset, columns)}
    identity |= {"format": FORMAT, "rows_per_file": rows_per_file}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = Path(folder) / key[:16]
    if (folder / INDEX_FILE).exists():
        logger.info("The logits of the teacher are in '%s' already.", folder)
        return TeacherLogits(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    with tqdm(total=len(dataset), desc="Teacher logits", unit="row") as bar:
        for start in range(0, len(dataset), rows_per_file):
            rows = range(start, min(start + rows_per_file, len(dataset)))
            path = logits_file(folder, start // rows_per_file)
            if path.exists():
                tensors = read_logits(path, key)
            else:
                contents = {row: _only(dataset[row], columns) for row in rows}
                tensors = _answers(teacher, contents, collate, batch_size, folder, len(dataset) - start)
                with atomic_path(path) as temporary:
                    save_file(tensors, temporary, metadata={"key": key})
            bar.update(len(rows))
    outputs, per_position = sum(name.startswith("logits.") for name in tensors), "ends" in tensors
    sample = fingerprint_of_rows(dataset, columns, sampled_rows(len(dataset)))
    index = {**identity, "key": key, "count": len(dataset), "columns": columns, "sample": sample}
    write_json(folder / INDEX_FILE, {**index, "outputs": outputs, "per_position": per_position})
    return TeacherLogits(folder)


def _columns_for(teacher: PreTrainedModel, dataset: Dataset) -> list[str]:
    known = set(inspect.signature(type(teacher).forward).parameters) - set(find_labels(type(teacher)))
    first = dataset[0]
    columns = [name for name in first if name in known] if isinstance(first, Mapping) else []
    if not columns:
        raise ValueError(
            f"The rows of the data set hold nothing that {type(teacher).__name__} reads; tokenize them, so that they "
            "have 'input_ids' and 'attention_mask'."
        )
    return columns


def _only(row: Mapping[str, Any], columns: list[str]) -> dict[str, Any]:
    return {name: row[name] for name in columns}


def _length(row: Mapping[str, Any]) -> int:
    shape = np.shape(next(iter(row.values())))
    return shape[0] if shape else 1


def _answers(
    teacher: PreTrainedModel,
    contents: Mapping[int, Mapping[str, Any]],
    collate: Callable,
    batch_size: int,
    folder: Path,
    missing: int,
) -> dict[str, torch.Tensor]:
    """The tensors of one file: `logits.0`, ..., of all rows one after the other, and where rows end if they differ."""
    answers: dict[int, list[torch.Tensor]] = {}
    per_position = False
    # Rows of about the same length make batches with little padding.
    ordered = sorted(contents, key=lambda number: _length(contents[number]), reverse=True)
    was_training = teacher.training
    teacher.eval()
    try:
        for first in range(0, len(ordered), batch_size):
            numbers = ordered[first : first + batch_size]
            batch = collate([contents[number] for number in numbers])
            batch = {name: values.to(teacher.device) for name, values in batch.items()}
            with torch.no_grad():
                logits = tuple(each.float().cpu() for each in logits_of(teacher(**batch)))
            per_position = len(logits) > 1 or logits[0].dim() > 2
            masks = _positions(teacher, batch, logits) if per_position else [...] * len(numbers)
            for place, (number, mask) in enumerate(zip(numbers, masks)):
                answers[number] = [each[place][mask].clone() for each in logits]
            if first == 0:
                _check_space(folder, answers, contents, missing)
    finally:
        teacher.train(was_training)
    parts = [list(each) for each in zip(*(answers[number] for number in contents))]
    join = torch.cat if per_position else torch.stack
    tensors = {f"logits.{output}": join(each).contiguous() for output, each in enumerate(parts)}
    if per_position:
        tensors["ends"] = torch.tensor([len(each) for each in parts[0]]).cumsum(0)
    return tensors


def _positions(
    teacher: PreTrainedModel, batch: Mapping[str, torch.Tensor], logits: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != logits[0].shape[:2] or teacher.config.is_encoder_decoder:
        raise ValueError(
            f"{type(teacher).__name__} gives logits of shape {tuple(logits[0].shape)}, whose positions are not those "
            "of an attention mask in the rows, so they cannot be cached; tokenize with attention masks, or have the "
            "teacher answer during training."
        )
    return mask.cpu() != 0


def _check_space(folder: Path, answers: Mapping[int, list[torch.Tensor]], contents: Mapping, missing: int) -> None:
    """Estimate the space from the first batch, whose rows are the longest."""
    stored = sum(each.numel() * each.element_size() for answer in answers.values() for each in answer)
    share = sum(map(_length, contents.values())) / max(sum(_length(contents[number]) for number in answers), 1)
    needed = stored * share * missing / len(contents)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"The logits of the teacher take about {needed / 1e9:.1f} GB more and {str(folder)!r} has "
            f"{free / 1e9:.1f} GB left; give a folder with more space, or have the teacher answer during training."
        )
