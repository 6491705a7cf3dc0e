"""`hf-nas convert-cofi`: a checkpoint of the published CoFi code as a small model in our format."""

import argparse
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig

from hf_nas.cli.models import load_tokenizer
from hf_nas.extraction import save_extracted
from hf_nas.extraction.cofi import read_cofi


__all__ = ["add_parser"]

# What a checkpoint consists of, its tokenizer included.
_FILES = ["*.json", "*.txt", "*.bin", "*.pt", "*.model"]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `hf-nas`."""
    parser = commands.add_parser(
        "convert-cofi",
        help="Save a checkpoint of the published CoFi code as a model that loads everywhere.",
        description="Read a CoFi checkpoint of BERT or RoBERTa (config.json and pytorch_model.bin, and zs.pt where "
        "the gates are not in the weights yet) and save the small model. The order of its labels stays as it is; the "
        "released MNLI models number them in another order than GLUE does: contradiction, entailment, neutral.",
    )
    parser.add_argument("folder", help="Folder of the checkpoint, or its name on the Hub.")
    parser.add_argument("output_dir", help="Folder to write, which must be empty or not exist.")
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME",
        help="Names of the labels in the order of the model's outputs, where its configuration does not tell them or "
        "tells wrong ones.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: if the output folder is not empty, the checkpoint cannot be read, or the labels do not fit it.
    """
    output = Path(arguments.output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"The output folder {str(output)!r} exists and is not an empty folder; give another one.")
    folder = _local(arguments.folder)
    small, sub_network = read_cofi(folder)
    if arguments.labels is not None:
        _name_labels(small.config, arguments.labels)
    save_extracted(small, sub_network, output, load_tokenizer(folder))
    parameters = sum(p.numel() for p in small.parameters())
    layers = small.config.num_hidden_layers
    print(f"{output}: {type(small).__name__} with {layers} layers and {parameters:,} parameters")


def _local(name: str) -> str:
    """The folder of a checkpoint, downloaded if it is none.

    Raises:
        ValueError: if the Hub cannot be asked or has no such model.
    """
    if Path(name).is_dir():
        return name
    try:
        return snapshot_download(name, allow_patterns=_FILES)
    except (OSError, ValueError) as error:  # of the network, of the Hub, and of names that no model can have
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"There is no folder {name!r}, and nothing of that name can be had from the Hub ({reason}); give the "
            "folder of a CoFi checkpoint or a name such as princeton-nlp/CoFi-MNLI-s95."
        ) from error


def _name_labels(config: PreTrainedConfig, labels: list[str]) -> None:
    if len(labels) != config.num_labels or len({label.lower() for label in labels}) < len(labels):
        raise ValueError(
            f"--labels is {' '.join(labels)}; give each of the model's {config.num_labels} labels another name."
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
