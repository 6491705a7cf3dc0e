"""`hf-nas quantize`: an export in int8 or int4, measured beside what it was before."""

import argparse
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_nas.cli.evaluate_data import metrics_of, read_labels
from hf_nas.cli.export import copy_sub_network, program_bytes
from hf_nas.cli.flags import check_numbers, check_output_dir, limited_threads
from hf_nas.cli.models import load_text_classifier, load_tokenizer
from hf_nas.cli.speed import ReadingTime, measure_reading
from hf_nas.cli.task_flags import add_data_flags, add_measuring_flags, batches_of, check_task_flags, task_of
from hf_nas.cli.text_data import TASKS, load_splits
from hf_nas.cli.text_rows import TextColumns, check_tokens, token_limit, tokenize
from hf_nas.export import FORMATS, QUANTIZATIONS, export_model, load_exported, quantize, require, save_exported
from hf_nas.export.check import batch_difference
from hf_nas.export.inputs import input_names, longest_input, text_inputs
from hf_nas.extraction.stored_models import load_model
from hf_nas.files import write_json
from hf_nas.profiling.machine import describe_machine, machine_words


if TYPE_CHECKING:
    from transformers.exporters import ExportedModel

__all__ = ["add_parser"]

logger = logging.getLogger(__name__)

_ABLE = [name for name, each in FORMATS.items() if each.quantizer is not None]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser(
        "quantize",
        help="Save a model as a graph in int8 or int4.",
        description="Export a model, quantize it after training by NNCF, and measure it in turns with the model and "
        "with its export before the quantization.",
    )
    parser.add_argument("model", metavar="MODEL", help="Folder or Hub name of the model, extracted or not.")
    parser.add_argument("--output_dir", required=True, help="Folder to write, which must be empty or not exist.")
    parser.add_argument("--format", default="openvino", help=f"One of {', '.join(_ABLE)}.")
    parser.add_argument(
        "--quantization",
        help="One of "
        + "; ".join(f"{name}: {what}" for name, what in QUANTIZATIONS.items())
        + ". By default int8-weights for a model that generates, and int8 for others.",
    )
    parser.add_argument("--task", metavar="TASK", help=f"Task of the texts, one of {', '.join(TASKS)}.")
    data = parser.add_argument_group("data")
    data.add_argument("--calibration_data", metavar="FILE", help="Texts of the task for int8, e.g. train.parquet.")
    data.add_argument("--num_samples", type=int, default=300, help="So many of them are drawn.")
    data.add_argument("--seed", type=int, default=0, help="Of the draw.")
    add_data_flags(data)
    add_measuring_flags(parser, batch_size=1, timed_batches=50)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: for arguments out of range or that do not fit each other, a missing package, or a model or data
            that cannot be read, exported or quantized.
    """
    folder, task = _check_arguments(arguments)
    require(arguments.format, quantization=True)
    model, tokenizer = _load(arguments, task)
    how = arguments.quantization or ("int8-weights" if model.can_generate() else "int8")
    if how == "int8" and arguments.calibration_data is None:
        raise ValueError(
            "int8 is calibrated on texts; add --calibration_data and --task, or --quantization int8-weights."
        )
    if how != "int8" and arguments.calibration_data is not None:
        raise ValueError(f"--calibration_data is of no use for {how}, which reads none; leave it out.")
    if model.main_input_name != "input_ids":
        raise ValueError(f"{arguments.model!r} reads {model.main_input_name}; this command takes models of texts.")
    with limited_threads(arguments.threads):
        found = _quantize(arguments, task, model, tokenizer, how, folder)
    if arguments.json is not None:
        write_json(arguments.json, found)
    print(_text(found))


def _check_arguments(arguments: argparse.Namespace) -> tuple[Path, str | None]:
    """Refuse before anything is loaded; returns the folder to write and the name of the task."""
    folder = check_output_dir(arguments.output_dir)
    task = None if arguments.task is None else task_of(arguments.task)
    if arguments.quantization is not None and arguments.quantization not in QUANTIZATIONS:
        raise ValueError(
            f"There is no --quantization {arguments.quantization!r}; choose from {', '.join(QUANTIZATIONS)}."
        )
    check_numbers(arguments, "num_samples")
    check_task_flags(arguments)
    for flag in ("calibration_data", "data_dir", "labels"):
        if getattr(arguments, flag) is not None and task is None:
            raise ValueError(f"--{flag} says nothing without the task of the texts; add --task.")
    if arguments.calibration_data is not None and not Path(arguments.calibration_data).is_file():
        raise ValueError(
            f"--calibration_data {arguments.calibration_data!r} is no file; give one of texts, e.g. train.parquet."
        )
    return folder, task


def _load(arguments: argparse.Namespace, task: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    if task is None:
        return load_model(arguments.model).float(), load_tokenizer(arguments.model)
    model, tokenizer = load_text_classifier(arguments.model, torch.device("cpu"))
    read_labels(model.config, TASKS[task], task, arguments.labels, arguments.model)
    return model.float(), tokenizer


def _quantize(
    arguments: argparse.Namespace,
    task: str | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    how: str,
    folder: Path,
) -> dict[str, Any]:
    names = input_names(model, tokenizer)
    length = min(arguments.max_length, longest_input(model))
    if tokenizer is not None:
        length = token_limit(length, model, tokenizer)
    samples = [] if how != "int8" else _calibration(arguments, task, model, tokenizer, length)
    data = {}
    if arguments.data_dir is not None:
        data = batches_of(arguments, task, model, tokenizer, length)
        batches: Sequence[Mapping[str, torch.Tensor]] = next(iter(data.values())).batches
    else:
        batches = [text_inputs(model, arguments.batch_size, length, names)]
    with tempfile.TemporaryDirectory(prefix="hf-nas-export-") as temporary:
        before = Path(temporary)
        exported = export_model(model, arguments.format, names)
        difference = save_exported(exported, before, model, names)
        quantized = quantize(exported, how, samples)
        save_exported(quantized, folder, model, names, tokenizer, tolerance=None)
        copy_sub_network(arguments.model, folder)
        threads = torch.get_num_threads()
        engines = {
            "pytorch": model,
            "float32": _Engine(load_exported(before, threads=threads), model.config),
            how: _Engine(load_exported(folder, threads=threads), model.config),
        }
        batches = batches[: arguments.timed_batches]
        times = measure_reading(list(engines.values()), batches, passes=arguments.passes)
        taken = [{name: each for name, each in batch.items() if name in names} for batch in batches]
        change = max(batch_difference(model, engines[how].exported, batch) for batch in taken)
        return {
            "model": arguments.model,
            "folder": str(folder),
            "format": arguments.format,
            "quantization": how,
            "calibration_samples": len(samples),
            "bytes": {"float32": program_bytes(before), how: program_bytes(folder)},
            "difference": {"float32": difference, how: change},
            "metrics": {
                split: {
                    name: metrics_of(engine, task, TASKS[task], each, f"{split} ({name})")
                    for name, engine in engines.items()
                }
                for split, each in data.items()
            },
            "speed": _speed(dict(zip(engines, times)), how),
            "batch_size": arguments.batch_size,
            "length": length,
            "passes": arguments.passes,
            "machine": describe_machine(model),
        }


def _calibration(
    arguments: argparse.Namespace,
    task: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
) -> list[dict[str, torch.Tensor]]:
    """Texts drawn for the calibration, one in a batch and so without padding."""
    dataset = load_splits(arguments.calibration_data, task_name=task).selection
    if len(dataset) < arguments.num_samples:
        logger.warning("%s has %d texts, which are all taken.", arguments.calibration_data, len(dataset))
    dataset = dataset.shuffle(seed=arguments.seed).select(range(min(arguments.num_samples, len(dataset))))
    columns = TextColumns(TASKS[task].columns, names=TASKS[task].labels)
    rows = tokenize(dataset, columns, model.config, tokenizer, length, arguments.calibration_data)
    check_tokens(rows, model, arguments.model)
    return [{name: torch.tensor([value]) for name, value in row.items() if name != "label"} for row in rows]


class _Engine(nn.Module):
    """An export in the place of the model that it was made of, for what measures models."""

    def __init__(self, exported: "ExportedModel", config: Any):
        super().__init__()
        self.exported = exported
        self.config = config
        self.device = torch.device("cpu")
        self.taken = set(next(iter(exported.components.values())).metadata.kwargs)

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, decoder_input_ids=None) -> Any:
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "decoder_input_ids": decoder_input_ids,
        }
        return self.exported(**{name: given[name] for name in given if name in self.taken})


def _speed(times: Mapping[str, ReadingTime], how: str) -> dict[str, Any]:
    own = times[how]
    return {
        "seconds_per_example": {name: each.seconds_per_example for name, each in times.items()},
        "speed_up": {name: own.speed_up_over(each) for name, each in times.items() if name != how},
        "speed_up_quartiles": {
            name: list(own.speed_up_quartiles(each)) for name, each in times.items() if name != how
        },
        "examples": own.examples,
    }


def _text(found: Mapping[str, Any]) -> str:
    """The results as lines of text."""
    how, speed, machine = found["quantization"], found["speed"], found["machine"]
    sizes, difference = found["bytes"], found["difference"]
    rows = [
        ("Model", f"{found['model']} -> {found['folder']} ({found['format']}, {how})"),
        ("Size", f"{sizes[how] / 1e6:,.1f} MB of {sizes['float32'] / 1e6:,.1f} MB in float32"),
        ("Difference", f"{difference[how]:.1e} of the largest output ({difference['float32']:.1e} in float32)"),
    ]
    if found["calibration_samples"]:
        rows.append(("Calibrated on", f"{found['calibration_samples']:,} texts"))
    for split, engines in found["metrics"].items():
        for metric in engines[how]:
            values = ", ".join(f"{values[metric]:.4f} {name}" for name, values in engines.items())
            rows.append((f"{metric} ({split})", values))
    seconds = ", ".join(f"{value:.6f} {name}" for name, value in speed["seconds_per_example"].items())
    rows.append(("Seconds/example", seconds))
    for name, factor in speed["speed_up"].items():
        lower, upper = speed["speed_up_quartiles"][name]
        rows.append((f"Speed-up over {name}", f"{factor:.2f}x (quartiles {lower:.2f}x to {upper:.2f}x)"))
    rows.append(
        (
            "Measured",
            f"{speed['examples']:,} texts in batches of {found['batch_size']} x {found['length']} tokens, "
            f"{found['passes']} times in turns, on {machine_words(machine)}",
        )
    )
    width = max(len(label) for label, _ in rows) + 2
    return "\n".join(f"{label + ':':{width}}{value}" for label, value in rows)
