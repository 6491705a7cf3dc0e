"""The arguments that the example scripts have in common, and how all of them are read from the command line."""

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from trainer_plugins.arguments import (
    DistillationArguments,
    EftnasArguments,
    HeadPruningArguments,
    NasArguments,
    PruningArguments,
    SearchArguments,
    SuperNetworkArguments,
)


# What the published commands have and these do not.
_GONE = {
    "--evaluation_strategy": "since transformers 5 it is called --eval_strategy",
    "--overwrite_output_dir": "the same command continues its run; delete the folder to start anew",
    "--to_onnx": "hf-nas export writes the extracted model in that format",
}
FILE_TYPES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass
class PretrainedArguments:
    """Which model is fine-tuned, and from where."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Path or Hub name of the pretrained model."}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Path or name of the configuration, if it is not the model's."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Path or name of the tokenizer, if it is not the model's."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where to keep what is downloaded from huggingface.co."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model to use."})
    token: str | None = field(
        default=None, metadata={"help": "Hub token for private models; by default that of `hf auth login`."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model code from the Hub; only for repositories that you have read."}
    )

    def options(self) -> dict[str, Any]:
        """For each `from_pretrained`."""
        return {
            "cache_dir": self.cache_dir,
            "revision": self.model_revision,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }

    def sources(self, source: str) -> tuple[str, str]:
        """Where the configuration and the tokenizer of the model in `source` come from.

        A model trained here comes with its own; those of other names belong to the pretrained one.
        """
        is_given = source == self.model_name_or_path
        return (is_given and self.config_name) or source, (is_given and self.tokenizer_name) or source


@dataclass
class DataFileArguments:
    """Where data come from and how many of them are used."""

    dataset_name: str | None = field(default=None, metadata={"help": "Name of a data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with train.parquet and validation.parquet, and test.parquet to predict."},
    )
    train_file: str | None = field(default=None, metadata={"help": "CSV, JSON or Parquet file to train on."})
    validation_file: str | None = field(default=None, metadata={"help": "CSV, JSON or Parquet file to evaluate on."})
    test_file: str | None = field(default=None, metadata={"help": "CSV, JSON or Parquet file to predict."})
    dataset_seed: int = field(
        default=128,
        metadata={
            "help": "Seed that splits the selection set off the training set; training and search need the same."
        },
    )
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize again instead of using cached results."})
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Train on the first so many examples; with a search, of those not in the selection set."},
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many examples."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict the first so many examples."})

    def given_files(self) -> dict[str, str]:
        """The paths by their flags.

        Raises:
            ValueError: for a file that is missing or of another type.
        """
        files = {f"--{role}_file": getattr(self, f"{role}_file") for role in ("train", "validation", "test")}
        given = {name: path for name, path in files.items() if path is not None}
        for name, path in given.items():
            if Path(path).suffix.lower() not in FILE_TYPES:
                raise ValueError(f"{name} '{path}' is none of {', '.join(FILE_TYPES)}; convert it to one of them.")
            if not Path(path).is_file():
                raise ValueError(f"{name} '{path}' does not exist; give the path of a file.")
        return given

    def check_counts(self, *names: str) -> None:
        """Refuse numbers below 1 in these fields and in the numbers of examples; None is no number."""
        for name in (*names, "max_train_samples", "max_eval_samples", "max_predict_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; give at least 1, or leave it out.")

    def given_sources(self) -> list[str]:
        """The flags by which data are named.

        Raises:
            ValueError: for a file that is missing or of another type.
        """
        files = self.given_files()
        sources = {
            "--dataset_name": self.dataset_name is not None,
            "--data_dir": self.data_dir is not None,
            "/".join(files): bool(files),
        }
        return [name for name, is_given in sources.items() if is_given]

    def check_source(self, sources: Sequence[str], known: str = "--dataset_name, --data_dir or --train_file") -> None:
        """Refuse data from nowhere, or from several places.

        Args:
            sources: the flags by which data are named.
            known: flags by which they can be.

        Raises:
            ValueError: that says so.
        """
        if len(sources) > 1:
            raise ValueError(f"{', '.join(sources)} name different data; give only one of them.")
        if not sources:
            raise ValueError(f"No data are given; add {known}.")

    def card(self) -> dict[str, str]:
        """What a model card says of a data set on the Hub; nothing of other data."""
        if self.dataset_name is None:
            return {}
        card = {"dataset_tags": self.dataset_name, "dataset": self.dataset_name}
        return card if self.dataset_config_name is None else {**card, "dataset_args": self.dataset_config_name}


def parse_arguments(
    model_arguments: type, data_arguments: type, training_arguments: type = TrainingArguments
) -> tuple:
    """The arguments of the command line, or of its single argument if that is a JSON file.

    Returns:
        One instance each of the three types and of `NasArguments`.

    Raises:
        ValueError: for a flag that there is not, a folder that does not exist, or two flags that name different
            teachers.
    """
    # More sets of arguments than the scripts of transformers have; their defaults change nothing.
    ours = (
        SuperNetworkArguments, DistillationArguments, EftnasArguments, SearchArguments, PruningArguments,
        HeadPruningArguments,
    )  # fmt: skip
    parser = HfArgumentParser((model_arguments, data_arguments, training_arguments, *ours))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        parsed = parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    else:
        *parsed, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
        if unknown:
            raise ValueError(_unknown(unknown[0], parser))
    model, nas = parsed[0], NasArguments(*parsed[3:])
    _check_folders(model, nas)
    if nas.pruning.pretrained_pruned_model is not None:
        # It brings its own sizes and tokenizer; the name of the pretrained model, if it is given, says neither.
        model = replace(model, model_name_or_path=nas.pruning.pretrained_pruned_model)
    return model, *parsed[1:3], nas


def _unknown(flag: str, parser: HfArgumentParser) -> str:
    """The sentence about a flag that there is not."""
    name = flag.partition("=")[0]
    if name in _GONE:
        return f"There is no flag {name}; {_GONE[name]}."
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(name, known, n=1) if name.startswith("-") else []
    if near:
        return f"There is no flag {name}; did you mean {near[0]}?"
    return f"{flag!r} is no flag and belongs to none; see --help for those that there are."


def _check_folders(model: PretrainedArguments, nas: NasArguments) -> None:
    """Refuse paths that do not exist, which `from_pretrained` takes for names on the Hub."""
    given = {
        "--model_name_or_path": model.model_name_or_path,
        "--config_name": model.config_name,
        "--tokenizer_name": model.tokenizer_name,
        "--kd_teacher_model": nas.distillation.kd_teacher_model,
        "--checkpoint_dir_model": nas.search.checkpoint_dir_model,
    }
    for flag, name in given.items():
        if name is None or Path(name).exists():
            continue
        if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ValueError(f"{flag} '{name}' does not exist; give a folder that does, or a name on the Hub.")
