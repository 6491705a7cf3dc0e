"""`hf-nas space generate`: a search space from movement scores, written into an NNCF configuration (EFTNAS)."""

import argparse
from pathlib import Path

from hf_nas.cli.models import add_model_class, build_counted
from hf_nas.cli.space import table
from hf_nas.importance.movement import MovementScores
from hf_nas.nncf_config import NncfConfig, describe_space, with_space, write
from hf_nas.space.generated import GeneratedSpace, generate_space
from hf_nas.space.target_sizes import size_in_millions


__all__ = ["add_parser"]

_SIZE = "up to 1 a share of the full model, above 1 millions of multiply-accumulate operations"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas space`."""
    parser = commands.add_parser(
        "generate", help="Make a search space from movement scores and write it into an NNCF configuration."
    )
    parser.add_argument("--source_config", required=True, help="NNCF 2.x configuration from which the rest is taken.")
    parser.add_argument("--model_name_or_path", required=True, help="Folder or name; only its config.json is read.")
    parser.add_argument("--importance_weight_dir", required=True, help="Folder or file with the movement scores.")
    parser.add_argument("--target_config", required=True, help="NNCF 2.x configuration to write.")
    parser.add_argument("--smallest", type=float, default=0.4, help=f"Size of the smallest sub-network: {_SIZE}.")
    parser.add_argument("--largest", type=float, default=1.0, help=f"Size of the largest sub-network: {_SIZE}.")
    parser.add_argument("--count", type=int, default=5, help="Number of sizes, from whose widths the lists are made.")
    parser.add_argument("--tolerance", type=float, default=0.01, help=f"How far a size may be off: {_SIZE}.")
    parser.add_argument(
        "--sequence_length",
        type=int,
        help="Tokens at which operations are counted; by default the configuration's, which is written as it is.",
    )
    add_model_class(parser)
    parser.add_argument(
        "--width_multiple", type=int, default=1, help="Round numbers of neurons up to a multiple of this."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: if configuration, model or scores cannot be read or do not fit, or a size cannot be had.
    """
    source, target = Path(arguments.source_config), Path(arguments.target_config)
    if target.resolve() == source.resolve():
        raise ValueError(
            f"--target_config {str(target)!r} is the source; give another file, its comments would be lost."
        )
    if target.is_dir():
        raise ValueError(f"--target_config {str(target)!r} is a folder; give the path of the file to write.")
    config = NncfConfig.load(source)
    model = build_counted(arguments.model_name_or_path, arguments.model_class, config.model_class)
    given = arguments.sequence_length
    lengths = config.lengths if given is None else (given, None)
    generated = generate_space(
        MovementScores.load(arguments.importance_weight_dir, model),
        model,
        lengths[0],
        decoder_length=lengths[1],
        largest=size_in_millions(arguments.largest),
        smallest=size_in_millions(arguments.smallest),
        count=arguments.count,
        tolerance=size_in_millions(arguments.tolerance),
        width_multiple=arguments.width_multiple,
    )
    write(with_space(config, generated.space, model), target)
    print(_networks(generated))
    print()
    print(table(describe_space(generated.space, model, *lengths)))
    print(f"\nWritten to {target}.")


def _networks(generated: GeneratedSpace) -> str:
    lines = [f"{len(generated.networks)} sub-networks:"]
    for network in generated.networks:
        skipped = f", without {', '.join(network.skipped)}" if network.skipped else ""
        lines.append(
            f"{network.macs / 1e6:.1f} MMACs (wanted {network.target / 1e6:.1f}) at threshold {network.threshold:.6g}"
            f"{skipped}"
        )
    return "\n  ".join(lines)
