"""`hf-nas evaluate`: size, sparsity, metrics and speed of a small model, beside the dense one."""

import argparse
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_nas.cli.evaluate_data import Batches, metrics_of, read_labels
from hf_nas.cli.flags import get_device, limited_threads
from hf_nas.cli.models import load_text_classifier
from hf_nas.cli.speed import accepted_inputs, measure_reading
from hf_nas.cli.task_flags import add_data_flags, add_measuring_flags, batches_of, check_task_flags, task_of
from hf_nas.cli.text_data import TASKS, Task
from hf_nas.cli.text_rows import check_tokens, token_limit
from hf_nas.extraction.dense import build_dense, is_made_of, recorded_sub_network
from hf_nas.extraction.stored_models import load_model
from hf_nas.files import write_json
from hf_nas.gates import published_sparsity
from hf_nas.profiling import Parts, SizeTable
from hf_nas.profiling.machine import describe_machine, machine_words
from hf_nas.structures import known_families
from hf_nas.subnetwork import SubNetwork


__all__ = ["add_parser"]

logger = logging.getLogger(__name__)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser(
        "evaluate",
        help="Size, sparsity, metrics and measured speed-up of a small model.",
        description="Evaluate a model of texts on a task, and measure it in turns with the dense model that it was "
        "made from.",
    )
    parser.add_argument("task", metavar="TASK", help=f"One of {', '.join(TASKS)}.")
    parser.add_argument("model", metavar="MODEL", help="Folder or Hub name of the model.")
    parser.add_argument(
        "--dense",
        metavar="DIR",
        help="Folder or name of the dense model; by default one of the same sizes with random weights, which is as "
        "fast, built from what the small model's sub_network.json records.",
    )
    add_data_flags(parser.add_argument_group("data, by default the task's data set on the Hub"))
    add_measuring_flags(parser, batch_size=128, timed_batches=None)
    parser.add_argument("--device", help="Where to compute, e.g. cpu or cuda; by default a GPU if there is one.")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: for arguments out of range, a task that is not known, or models or data that cannot be read or do
            not fit each other.
    """
    name = _check_arguments(arguments)
    task, device = TASKS[name], get_device(arguments.device)
    with limited_threads(arguments.threads):
        model, tokenizer = load_text_classifier(arguments.model, device)
        read_labels(model.config, task, name, arguments.labels, arguments.model)
        length = token_limit(arguments.max_length, model, tokenizer)
        data = batches_of(arguments, name, model, tokenizer, length)
        first = next(iter(data.values()))
        dense = _load_dense(arguments, model, tokenizer, first, length)
        found = {
            "task": name,
            "model": arguments.model,
            "dense": dense.source,
            "examples": {split: len(each.rows) for split, each in data.items()},
            **_sizes(model, dense),
            "metrics": _metrics(model, name, task, data, arguments.model),
            "speed": _speed(arguments, model, dense, first, length),
        }
    if arguments.json is not None:
        write_json(arguments.json, found)
    print(_text(found))


@dataclass(frozen=True)
class _Dense:
    """The dense model, where there is one, and the sub-network of it that the small model is, where that is known."""

    model: PreTrainedModel | None
    source: str | None
    sub_network: SubNetwork | None


def _check_arguments(arguments: argparse.Namespace) -> str:
    """Refuse before anything is loaded; returns the name of the task."""
    if arguments.task.lower().replace("-", "") in ("squad", "squad_v2"):
        raise ValueError(
            f"The task {arguments.task!r} is answered in windows of texts, which this command does not read; use "
            "run_qa.py --do_eval for its metrics and hf-nas profile for sizes and speed."
        )
    check_task_flags(arguments)
    return task_of(arguments.task)


def _load_dense(
    arguments: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Batches,
    length: int,
) -> _Dense:
    sub_network = recorded_sub_network(arguments.model)
    if arguments.dense is None:
        if sub_network is None:
            logger.warning(
                "%s has no sub_network.json that tells of which sizes it was made, so that there is no speed-up and "
                "no sparsity; give the dense model by --dense.",
                arguments.model,
            )
            return _Dense(None, None, None)
        return _Dense(build_dense(model, sub_network, arguments.model), "random weights", sub_network)
    # In the same precision, or the speed-up would be another one.
    dense = load_model(arguments.dense).to(model.device, model.dtype)
    check_tokens(data.rows, dense, arguments.dense)
    if (limit := token_limit(length, dense, tokenizer)) < length:
        raise ValueError(
            f"--dense {arguments.dense!r} reads at most {limit} tokens and {arguments.model!r} {length}; give a "
            f"--max_length of at most {limit}."
        )
    _check_reading(dense, data, arguments.dense)
    if sub_network is not None and not is_made_of(model, sub_network, dense):
        logger.warning(
            "By its sub_network.json %s was not made of %s, so that there is no published sparsity.",
            arguments.model,
            arguments.dense,
        )
        sub_network = None
    return _Dense(dense, arguments.dense, sub_network)


def _check_reading(model: PreTrainedModel, data: Batches, source: str) -> None:
    """Refuse a model that cannot compute a batch, in one sentence."""
    try:
        with torch.inference_mode():
            model(**accepted_inputs(model)(data.batches[0]))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise ValueError(_cannot_read(source, data, error)) from error


def _cannot_read(source: str, data: Batches, error: Exception) -> str:
    shape = " x ".join(map(str, data.batches[0]["input_ids"].shape))
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    hint = "give a smaller --batch_size" if "memory" in reason else "give a model that reads such texts"
    return f"{source!r} cannot compute a batch of {shape} tokens ({reason}); {hint}."


def _sizes(model: PreTrainedModel, dense: _Dense) -> dict[str, Any]:
    """Parameters of both models, and the sparsity by all definitions."""
    parameters = {"model": _parameters(model), "dense": None if dense.model is None else _parameters(dense.model)}
    sparsity: dict[str, float | None] = dict.fromkeys(("layers", "all", "training", "evaluation", "readme"))
    for part, size in parameters["model"].items():
        if dense.model is not None and size is not None and parameters["dense"][part]:
            sparsity[part] = 1 - size / parameters["dense"][part]
    if dense.sub_network is not None:
        sparsity.update(published_sparsity(dense.model, dense.sub_network).to_dict())
    return {"parameters": parameters, "sparsity": sparsity}


def _parameters(model: PreTrainedModel) -> dict[str, int | None]:
    layers = None
    if model.config.model_type in known_families():
        table = SizeTable(model)
        layers = table.parameters(SubNetwork.full(table.structure), Parts.encoder())
    return {"layers": layers, "all": sum(parameter.numel() for parameter in model.parameters())}


def _metrics(
    model: PreTrainedModel, name: str, task: Task, data: Mapping[str, Batches], source: str
) -> dict[str, dict[str, float | None]]:
    found = {}
    for split, each in data.items():
        try:
            values = metrics_of(model, name, task, each, split)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(_cannot_read(source, each, error)) from error
        # What is no number has no place in JSON.
        found[split] = {metric: None if math.isnan(value) else value for metric, value in values.items()}
    return found


def _speed(
    arguments: argparse.Namespace, model: PreTrainedModel, dense: _Dense, data: Batches, length: int
) -> dict[str, Any]:
    models = [model] if dense.model is None else [model, dense.model]
    own, *others = measure_reading(models, data.batches[: arguments.timed_batches], passes=arguments.passes)
    theirs = others[0] if others else None
    return {
        "seconds_per_example": own.seconds_per_example,
        "dense_seconds_per_example": theirs and theirs.seconds_per_example,
        "speed_up": theirs and own.speed_up_over(theirs),
        "speed_up_quartiles": theirs and list(own.speed_up_quartiles(theirs)),
        "examples": own.examples,
        "passes": arguments.passes,
        "batch_size": arguments.batch_size,
        "length": length,
        "machine": describe_machine(model),
    }


def _text(found: Mapping[str, Any]) -> str:
    """The results as lines of text."""
    sizes, dense, speed = found["parameters"]["model"], found["parameters"]["dense"], found["speed"]
    examples = ", ".join(f"{count:,} examples of {split}" for split, count in found["examples"].items())
    rows = [("Task", f"{found['task']} ({examples})"), ("Model", found["model"])]
    for part, place in (("layers", "in the layers"), ("all", "in all")):
        full = "" if dense is None or dense[part] is None else f" of {dense[part]:,}"
        if sizes[part] is not None:
            rows.append((f"Parameters {place}", f"{sizes[part]:,}{full}"))
    sparsity = found["sparsity"]
    rows.append(("Sparsity", f"{_share(sparsity['layers'])} in the layers, {_share(sparsity['all'])} in all"))
    published = ("training", "evaluation", "readme")
    rows.append(("As published", ", ".join(f"{_share(sparsity[name])} ({name})" for name in published)))
    for split, metrics in found["metrics"].items():
        place = f" ({split})" if len(found["metrics"]) > 1 else ""
        rows += [(f"{name}{place}", "-" if value is None else f"{value:.4f}") for name, value in metrics.items()]
    rows.append(("Seconds/example", f"{speed['seconds_per_example']:.6f}"))
    if speed["speed_up"] is not None:
        lower, upper = speed["speed_up_quartiles"]
        rows.append(("Seconds/example, dense", f"{speed['dense_seconds_per_example']:.6f} ({found['dense']})"))
        rows.append(("Speed-up", f"{speed['speed_up']:.2f}x (quartiles {lower:.2f}x to {upper:.2f}x)"))
    machine = speed["machine"]
    rows.append(
        (
            "Measured",
            f"{speed['examples']:,} examples in batches of {speed['batch_size']} x {speed['length']} tokens, "
            f"{speed['passes']} times in turns, {machine['dtype']}, {machine['attention']} attention, on "
            f"{machine_words(machine)}",
        )
    )
    width = max(len(label) for label, _ in rows) + 2
    return "\n".join(f"{label + ':':{width}}{value}" for label, value in rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
