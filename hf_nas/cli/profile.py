"""`hf-nas profile`: sizes of models and their latency, measured in turns."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_nas.cli.flags import check_numbers, get_device, limited_threads
from hf_nas.extraction.stored_models import load_model
from hf_nas.profiling import measure_latencies
from hf_nas.report import DEFINITIONS, describe_conditions, plot_profile, profile_models


__all__ = ["add_parser"]

# The formats that need no other program than matplotlib.
_PICTURES = (".png", ".svg", ".pdf")


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
    length = "Tokens of a sequence; by default 128, or what the model reads if that is less or fixed."
    parser.add_argument("--sequence_length", type=int, help=length)
    parser.add_argument("--decoder_length", type=int, help="Tokens of a decoder; by default the same.")
    parser.add_argument("--repeats", type=int, default=10, help="Rounds in which each model is measured once.")
    parser.add_argument("--threads", type=int, help="Threads on a CPU; by default those of PyTorch.")
    parser.add_argument("--device", default="cpu", help="Where to measure, e.g. cpu or cuda.")
    parser.add_argument("--per_layer", action="store_true", help="Show every layer of every model too.")
    parser.add_argument("--plot", metavar="FILE.png", help="Draw parameters and latency into this file.")
    parser.add_argument("--json", action="store_true", help="Print JSON, layers included, instead of tables.")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: for a number below 1, a device that is not there, or a model that cannot be read.
    """
    check_numbers(arguments, "batch_size", "sequence_length", "decoder_length", "repeats", "threads")
    plot = None if arguments.plot is None else Path(arguments.plot)
    if plot is not None and (plot.is_dir() or plot.suffix.lower() not in _PICTURES):
        raise ValueError(f"--plot {arguments.plot!r} is no picture; give a file that ends in {', '.join(_PICTURES)}.")
    device = get_device(arguments.device)
    models = [(name, load_model(name).to(device)) for name in arguments.models]
    with limited_threads(arguments.threads):
        found = profile_models(
            models,
            batch_size=arguments.batch_size,
            sequence_length=arguments.sequence_length,
            decoder_length=arguments.decoder_length,
            repeats=arguments.repeats,
            measure=measure_latencies,
        )
    if plot is not None:
        plot_profile(found, plot)
    print(json.dumps(found, indent=2) if arguments.json else _text(found, arguments.per_layer))


def _text(found: Mapping[str, Any], per_layer: bool) -> str:
    """The comparison as lines of text."""
    sizes = (name.replace("_", " ") for name in DEFINITIONS)
    rows = [("model", *sizes, "MMACs", "ms", "+-", "speed-up", "bound", "reached")]
    for row in found["models"]:
        latency = row["latency"] or {"median": None, "spread": None}
        rows.append(
            (
                row["model"],
                *(_number(value, "{:,}") for value in row["parameters"].values()),
                _number(row["macs"], "{:,.1f}", 1e-6),
                _number(latency["median"], "{:.2f}", 1e3),
                _number(latency["spread"], "{:.0f}%", 50),
                _number(row["speed_up"], "{:.2f}x"),
                _number(row["speed_up_bound"], "{:.2f}x"),
                _number(row["share_of_bound"], "{:.0%}"),
            )
        )
    lines = [
        describe_conditions(found),
        "",
        *_columns(rows),
        "",
        "all to layers and head: parameters by the published definitions; +-: half the distance of the quartiles",
        f"speed-up: measured, over {found['models'][0]['model']}; bound: the ratio of the MACs; reached: speed-up / "
        "bound",
    ]
    if per_layer:
        for row in found["models"]:
            lines += ["", row["model"], *_layer_lines(row["layers"])]
    return "\n".join(lines)


def _layer_lines(layers: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """A line for each layer, "gone" where a sub-layer is skipped."""
    if layers is None:
        return ["Its layers are not known."]
    kinds = list(dict.fromkeys(kind for layer in layers for kind in layer["units"]))
    units = {"attention": "heads", "cross_attention": "cross heads", "feed_forward": "neurons"}
    rows = [("layer", *(units[kind] for kind in kinds), "parameters", "MMACs")]
    for layer in layers:
        counts = layer["units"]
        cells = ("" if kind not in counts else _number(counts[kind], "{:,}", missing="gone") for kind in kinds)
        name = f"{layer['stack']} {layer['layer']}"
        rows.append((name, *cells, f"{layer['parameters']:,}", _number(layer["macs"], "{:,.1f}", 1e-6)))
    return _columns(rows)


def _number(value: float | None, form: str, factor: float | None = None, missing: str = "-") -> str:
    if value is None:
        return missing
    return form.format(value if factor is None else factor * value)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as columns, the names to the left and the numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]
