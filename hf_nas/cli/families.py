"""`hf-nas families`: what can be pruned in which family of models."""

import argparse

from hf_nas.structures.table import families_table


__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser("families", help="Show what can be pruned in which family of models.")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    print(families_table())
