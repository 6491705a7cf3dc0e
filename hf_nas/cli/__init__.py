"""The command `hf-nas`: search spaces, extraction and profiles, without a training script."""

import argparse
import logging
import sys
from collections.abc import Sequence

from hf_nas.cli import extract, generate, profile, space


__all__ = ["main"]

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its arguments; None: those of the process.

    Returns:
        The exit status: 0, or 2 where the arguments or files were refused, which one line on stderr then explains.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("hf_nas").setLevel(logging.INFO)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        logger.debug("The command was refused.", exc_info=True)
        print(f"hf-nas: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-nas", description="From a pretrained transformer to smaller ones.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    spaces = commands.add_parser("space", help="Describe and generate search spaces.")
    space_commands = spaces.add_subparsers(required=True, metavar="COMMAND")
    space.add_parser(space_commands)
    generate.add_parser(space_commands)
    extract.add_parser(commands)
    profile.add_parser(commands)
    return parser
