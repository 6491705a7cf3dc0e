"""The command `hf-nas`: search spaces, searches, extraction and profiles, without a training script."""

import argparse
import logging
import sys
from collections.abc import Sequence

from hf_nas.cli import (
    compare,
    convert_cofi,
    evaluate,
    export,
    extract,
    families,
    front,
    generate,
    profile,
    quantize,
    report,
    search,
    space,
)
from hf_nas.search import SearchFailed


__all__ = ["main"]

logger = logging.getLogger(__name__)

_FAILED, _REFUSED, _INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its arguments; None: those of the process.

    Returns:
        The exit status: 0; 1 where a search failed; 2 where the arguments or files were refused; 130 where it was
        interrupted. One line on stderr explains what is not 0.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("hf_nas").setLevel(logging.INFO)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        return _explain(error, str(error), _REFUSED)
    except SearchFailed as error:
        return _explain(error, str(error), _FAILED)
    except KeyboardInterrupt as error:
        return _explain(error, "Interrupted; a search continues with the same command.", _INTERRUPTED)
    return 0


def _explain(error: BaseException, message: str, status: int) -> int:
    logger.debug("The command ended early.", exc_info=error)
    print(f"hf-nas: {' '.join(message.split())}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-nas", description="From a pretrained transformer to smaller ones.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    spaces = commands.add_parser("space", help="Describe and generate search spaces.")
    space_commands = spaces.add_subparsers(required=True, metavar="COMMAND")
    space.add_parser(space_commands)
    generate.add_parser(space_commands)
    search.add_parser(commands)
    front.add_parser(commands)
    compare.add_parser(commands)
    convert_cofi.add_parser(commands)
    extract.add_parser(commands)
    families.add_parser(commands)
    evaluate.add_parser(commands)
    profile.add_parser(commands)
    report.add_parser(commands)
    export.add_parser(commands)
    quantize.add_parser(commands)
    return parser
