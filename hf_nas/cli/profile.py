"""`hf-nas profile`: sizes of models and their latency, measured in turns."""

import argparse
import json
import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_nas.cli.models import get_device, load_model
from hf_nas.profiling import Latency, Parts, SizeTable, measure_latencies
from hf_nas.structures import known_families
from hf_nas.subnetwork import SubNetwork


__all__ = ["add_parser"]

logger = logging.getLogger(__name__)

# The definitions of size in circulation.
_DEFINITIONS = {
    "all": Parts(),
    "layers": Parts.encoder(),
    "layers_without_norms": Parts(embeddings=False, norms=False, heads=False),
    "layers_and_head": Parts(embeddings=False),
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser("profile", help="Compare sizes and measured latency of models.")
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="Folder or name of a model, extracted or not; all are compared with the first.",
    )
    parser.add_argument("--batch_size", type=int, default=1, help="Sequences of a forward pass.")
    parser.add_argument("--sequence_length", type=int, default=128, help="Tokens of a sequence.")
    parser.add_argument("--decoder_length", type=int, help="Tokens of a decoder; by default the same.")
    parser.add_argument("--repeats", type=int, default=10, help="Rounds in which each model is measured once.")
    parser.add_argument("--threads", type=int, help="Threads on a CPU; by default those of PyTorch.")
    parser.add_argument("--device", default="cpu", help="Where to measure, e.g. cpu or cuda.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: for a number below 1, a device that is not there, or a model that cannot be read.
    """
    for name in ("batch_size", "sequence_length", "decoder_length", "repeats", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; give 1 or more.")
    device = get_device(arguments.device)
    models = [load_model(name).to(device) for name in arguments.models]
    threads = torch.get_num_threads()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        latencies = measure_latencies(
            models,
            batch_size=arguments.batch_size,
            sequence_length=arguments.sequence_length,
            decoder_length=arguments.decoder_length,
            repeats=arguments.repeats,
            description="Latency",
        )
    finally:
        torch.set_num_threads(threads)
    found = _compare(arguments, models, latencies)
    print(json.dumps(found, indent=2) if arguments.json else _table(found))


def _compare(arguments: argparse.Namespace, models: list[PreTrainedModel], latencies: list[Latency]) -> dict[str, Any]:
    lengths = (arguments.sequence_length, arguments.decoder_length)
    rows: list[dict[str, Any]] = []
    for name, model, latency in zip(arguments.models, models, latencies):
        parameters, macs = _sizes(name, model, *lengths)
        first_macs = rows[0]["macs"] if rows else macs
        bound = first_macs / macs if macs and first_macs else None
        speed_up = latency.speed_up_over(latencies[0])
        measured = {key: latency.to_dict()[key] for key in ("median", "quartiles", "spread", "seconds")}
        rows.append(
            {
                "model": name,
                "class": type(model).__name__,
                "parameters": parameters,
                "macs": macs,
                "latency": measured,
                "speed_up": speed_up,
                "speed_up_bound": bound,
                "share_of_bound": speed_up / bound if bound else None,
            }
        )
    return {
        "batch_size": arguments.batch_size,
        "sequence_length": arguments.sequence_length,
        "decoder_length": latencies[0].decoder_length,
        "repeats": arguments.repeats,
        "machine": dict(latencies[0].machine),
        "models": rows,
    }


def _sizes(
    name: str, model: PreTrainedModel, sequence_length: int, decoder_length: int | None
) -> tuple[dict[str, int | None], int | None]:
    """Parameters by definition, and MACs of a sequence; of a family that is not known, all parameters alone."""
    if model.config.model_type not in known_families():
        logger.warning(
            "%s is a %s model, whose layers are not known, so that only all of its parameters are counted.",
            name,
            model.config.model_type,
        )
        return {**dict.fromkeys(_DEFINITIONS), "all": sum(p.numel() for p in model.parameters())}, None
    table = SizeTable(model)
    full = SubNetwork.full(table.structure)
    parameters = {definition: table.parameters(full, parts) for definition, parts in _DEFINITIONS.items()}
    return parameters, table.macs(full, sequence_length, decoder_length)


def _table(found: dict[str, Any]) -> str:
    """The comparison as lines of text."""
    machine, first = found["machine"], found["models"][0]
    sizes = (name.replace("_", " ") for name in _DEFINITIONS)
    rows = [("model", *sizes, "MMACs", "ms", "+-", "speed-up", "bound", "reached")]
    for row in found["models"]:
        rows.append(
            (
                row["model"],
                *(_number(value, "{:,}") for value in row["parameters"].values()),
                _number(row["macs"] and row["macs"] / 1e6, "{:,.1f}"),
                _number(1e3 * row["latency"]["median"], "{:.2f}"),
                _number(50 * row["latency"]["spread"], "{:.0f}%"),
                _number(row["speed_up"], "{:.2f}x"),
                _number(row["speed_up_bound"], "{:.2f}x"),
                _number(row["share_of_bound"], "{:.0%}"),
            )
        )
    tokens = f"{found['sequence_length']} tokens"
    if found["decoder_length"] is not None:
        tokens += f" and {found['decoder_length']} of the decoder"
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else ""
    return "\n".join(
        [
            f"Batches of {found['batch_size']}, {tokens}, {machine['dtype']}, {machine['attention']} attention, on "
            f"{machine['device']} ({machine['processor']}{threads}); medians of {found['repeats']} rounds",
            "",
            *_columns(rows),
            "",
            "all to layers and head: parameters by the published definitions; +-: half the distance of the quartiles",
            f"speed-up: measured, over {first['model']}; bound: the ratio of the MACs; reached: speed-up / bound",
        ]
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as columns, the names to the left and the numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]
