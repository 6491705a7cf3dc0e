"""`hf-nas export`: a model as an ONNX or OpenVINO graph, or as a program of torch.export."""

import argparse
import shutil
from pathlib import Path

from hf_nas.cli.flags import check_output_dir
from hf_nas.cli.models import load_tokenizer
from hf_nas.export import FORMATS, export_model, require, save_exported
from hf_nas.export.check import TOLERANCE, check_shapes
from hf_nas.export.inputs import input_names
from hf_nas.extraction.stored_models import load_model
from hf_nas.subnetwork import FILE_NAME


__all__ = ["add_parser", "copy_sub_network", "program_bytes"]

# Beside the program these lie in the folder too.
_NO_PROGRAM = (".json", ".txt", ".model", ".jinja")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser(
        "export",
        help="Save a model as an ONNX or OpenVINO graph.",
        description="Export one forward pass of a model, for batches of any size, and compare it with the model.",
    )
    parser.add_argument("model", metavar="MODEL", help="Folder or Hub name of the model, extracted or not.")
    parser.add_argument("--format", required=True, help=f"One of {', '.join(FORMATS)}.")
    parser.add_argument("--output_dir", required=True, help="Folder to write, which must be empty or not exist.")
    parser.add_argument(
        "--fast_norms",
        action="store_true",
        help="Write layer norms so that ONNX Runtime computes them faster on CPUs (onnx alone).",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="Largest difference of an output from PyTorch's that is accepted, relative to the largest output.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: if the folder is not empty, the format cannot be written here, the model cannot be read or
            exported, or the export computes something else.
    """
    folder = check_output_dir(arguments.output_dir)
    if not 0 < arguments.tolerance < float("inf"):
        raise ValueError(f"--tolerance is {arguments.tolerance}; give a number above 0.")
    require(arguments.format)
    if arguments.fast_norms and arguments.format != "onnx":
        raise ValueError(f"--fast_norms is for --format onnx, not {arguments.format}; leave it out.")
    model, tokenizer = load_model(arguments.model).float(), load_tokenizer(arguments.model)
    names = input_names(model, tokenizer)
    exported = export_model(model, arguments.format, names, fast_norms=arguments.fast_norms)
    difference = save_exported(exported, folder, model, names, tokenizer, tolerance=arguments.tolerance)
    copy_sub_network(arguments.model, folder)
    shapes = ", ".join(f"{rows} x {length}" for rows, length in check_shapes(model))
    print(f"{folder}: {type(model).__name__} as {arguments.format}, {program_bytes(folder) / 1e6:,.1f} MB")
    print(f"Inputs: {', '.join(names)}")
    print(f"Largest difference from PyTorch: {difference:.1e} of the largest output, over batches of {shapes}")
    print(f'Run it by transformers.exporters.ExportedModel.from_pretrained("{folder}").')


def copy_sub_network(model: str, folder: Path) -> None:
    """Keep the record of what an extracted model was made of beside its export."""
    source = Path(model) / FILE_NAME
    if source.is_file():
        shutil.copyfile(source, folder / FILE_NAME)


def program_bytes(folder: Path) -> int:
    """Size of an exported program with its weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix not in _NO_PROGRAM)
