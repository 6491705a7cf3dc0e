"""`hf-nas extract`: a sub-network of a trained super-network as a small model in a folder of its own."""

import argparse
from pathlib import Path

from transformers import PreTrainedModel

from hf_nas.cli.flags import check_output_dir
from hf_nas.cli.models import load_tokenizer, read_space
from hf_nas.extraction import extract, save_extracted
from hf_nas.extraction.stored_models import load_model
from hf_nas.nncf_config import SUB_NETWORK_NAMES, named_sub_network
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork


__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser("extract", help="Save a sub-network of a trained super-network as a small model.")
    parser.add_argument("model", help="Folder or name of the trained model, with its weights.")
    parser.add_argument(
        "--space",
        help="An NNCF 2.x configuration, a JSON file with a space, or small, medium, layer or large; needed for a "
        "sub-network by name.",
    )
    parser.add_argument(
        "--sub_network",
        required=True,
        help="maximal, minimal, heuristic (the middle choice of each list), or a JSON file with a sub-network.",
    )
    parser.add_argument("--output_dir", required=True, help="Folder to write, which must be empty or not exist.")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: if the folder is not empty, or model, space and sub-network cannot be read or do not fit.
    """
    folder = check_output_dir(arguments.output_dir)
    _check_name(arguments.sub_network, arguments.space)
    model = load_model(arguments.model)
    sub_network = _sub_network(arguments.sub_network, arguments.space, model)
    small = extract(model, sub_network)
    save_extracted(small, sub_network, folder, load_tokenizer(arguments.model))
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small))
    print(f"{folder}: {type(small).__name__} with {after:,} of {before:,} parameters")


def _check_name(name: str, space: str | None) -> None:
    """Refuse before anything is loaded."""
    if name in SUB_NETWORK_NAMES:
        if space is None:
            raise ValueError(f"--space is missing, of which the sub-network {name!r} is to be taken; give one.")
    elif not name.endswith(".json"):
        raise ValueError(
            f"There is no sub-network {name!r}; choose from {', '.join(map(repr, SUB_NETWORK_NAMES))}, or give the "
            "path of a JSON file."
        )
    elif not Path(name).is_file():
        raise ValueError(f"The file {name!r} does not exist; give the path of a JSON file with a sub-network.")


def _sub_network(name: str, space: str | None, model: PreTrainedModel) -> SubNetwork:
    found = read_space(space, model) if space is not None else None
    if name in SUB_NETWORK_NAMES:
        return named_sub_network(found, name)
    sub_network = SubNetwork.load(name, describe(model))
    if found is not None:
        found.encode(sub_network)  # refuses what the space does not contain
    return sub_network
