"""`hf-nas profile`: sizes of models and their latency, measured in turns."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_nas.cli.dense import build_dense, read_sub_network
from hf_nas.cli.models import get_device, load_model
from hf_nas.profiling import measure_latencies
from hf_nas.report import DEFINITIONS, describe_conditions, plot_profile, profile_models, usual_length


__all__ = ["add_parser", "profile_small"]

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
    parser.add_argument("--sequence_length", type=int, default=128, help="Tokens of a sequence.")
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
    for name in ("batch_size", "sequence_length", "decoder_length", "repeats", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; give 1 or more.")
    plot = None if arguments.plot is None else Path(arguments.plot)
    if plot is not None and (plot.is_dir() or plot.suffix.lower() not in _PICTURES):
        raise ValueError(f"--plot {arguments.plot!r} is no picture; give a file that ends in {', '.join(_PICTURES)}.")
    device = get_device(arguments.device)
    models = [(name, load_model(name).to(device)) for name in arguments.models]
    threads = torch.get_num_threads()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        found = profile_models(
            models,
            batch_size=arguments.batch_size,
            sequence_length=arguments.sequence_length,
            decoder_length=arguments.decoder_length,
            repeats=arguments.repeats,
            measure=measure_latencies,
        )
    finally:
        torch.set_num_threads(threads)
    if plot is not None:
        plot_profile(found, plot)
    print(json.dumps(found, indent=2) if arguments.json else _text(found, arguments.per_layer))


def profile_small(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    sequence_length: int | None = None,
    repeats: int = 10,
    measured: bool = True,
) -> dict[str, Any]:
    """Profile an extracted model beside the dense one it was made of, in one measurement.

    The dense one is built from what `sub_network.json` records, with random weights, on which its speed does not
    depend.

    Args:
        folder: of the extracted model.
        device: where to measure.
        batch_size: sequences of a pass.
        sequence_length: tokens of a sequence; by default 128, or what the model reads.
        repeats: rounds, in which the two take turns.
        measured: whether to measure; otherwise there are sizes alone.

    Returns:
        What [`hf_nas.report.profile_models`] returns, of the models "dense" and "small", and under `sub_network` what
        the small one keeps.

    Raises:
        ValueError: if the model cannot be read, or its record is missing or does not tell the dense sizes.
    """
    source = str(folder)
    small = load_model(source).to(device)
    sub_network = read_sub_network(source)
    if sub_network is None:
        raise ValueError(f"{source!r} has no sub_network.json, which tells of what it was made; extract it again.")
    dense = build_dense(small, sub_network, source)
    found = profile_models(
        [("dense", dense), ("small", small)],
        batch_size=batch_size,
        sequence_length=sequence_length or usual_length(small),
        repeats=repeats,
        measure=measure_latencies if measured else None,
    )
    return {**found, "sub_network": sub_network.to_dict()}


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
