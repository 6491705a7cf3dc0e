"""What the example scripts have in common: arguments, checks of flags, logging, and the table at the end."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import transformers
from transformers import HfArgumentParser, PreTrainedModel, Trainer, TrainingArguments

from trainer_plugins.arguments import (
    DistillationArguments,
    EftnasArguments,
    NasArguments,
    SearchArguments,
    SuperNetworkArguments,
)
from trainer_plugins.checks import NAS_TYPES
from trainer_plugins.cofi import run_pruning
from trainer_plugins.cofi_arguments import PruningArguments
from trainer_plugins.cofi_checks import check_pruning
from trainer_plugins.head_pruning import run_head_pruning
from trainer_plugins.head_pruning_arguments import HeadPruningArguments
from trainer_plugins.head_pruning_checks import check_fine_tuned, check_head_pruning
from trainer_plugins.pruning_run import PruningOutcome
from trainer_plugins.search import SearchOutcome


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


def parse_arguments(
    model_arguments: type, data_arguments: type, training_arguments: type = TrainingArguments
) -> tuple:
    """The arguments of the command line, or of its single argument if that is a JSON file.

    Returns:
        One instance each of the three types and of `NasArguments`.

    Raises:
        ValueError: if two of the flags name different teachers.
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
        parsed = parser.parse_args_into_dataclasses()
    model, nas = parsed[0], NasArguments(*parsed[3:])
    if nas.pruning.pretrained_pruned_model is not None:
        # It brings its own sizes and tokenizer; the name of the pretrained model, if it is given, says neither.
        model.model_name_or_path = nas.pruning.pretrained_pruned_model
    return model, *parsed[1:3], nas


def needed_splits(
    training: TrainingArguments, nas: NasArguments, nas_types: Sequence[str] = ("weight_sharing",)
) -> list[str]:
    """What the run cannot do without, of train, validation and test; refuses flags that contradict each other.

    Args:
        training: the arguments of Trainer.
        nas: all others.
        nas_types: values of `--nas_type` that the script can do.

    Raises:
        ValueError: if there is nothing to do, or nothing to search.
    """
    check_head_pruning(training, nas)
    if not nas.heads.is_active:
        check_pruning(training, nas)
    search = nas.search
    if search.do_search and search.nas_type in NAS_TYPES and search.nas_type not in nas_types:
        raise ValueError(f"--nas_type {search.nas_type} is not for this task; choose {' or '.join(nas_types)}.")
    if is_standard_nas(nas):
        _check_standard_nas(training, nas)
        return ["train", "validation"]
    if nas.eftnas.only_generate_importance_weight and not training.do_train:
        raise ValueError("--only_generate_importance_weight learns the importance in a training; add --do_train.")
    orders_heads = nas.heads.is_active and not nas.heads.trains_gates
    if not (training.do_train or training.do_eval or training.do_predict or search.do_search or orders_heads):
        raise ValueError("There is nothing to do; add --do_train, --do_eval, --do_predict or --do_search.")
    if search.checkpoint_dir_model is not None and (training.do_train or not search.do_search):
        raise ValueError(
            f"--checkpoint_dir_model '{search.checkpoint_dir_model}' names a trained super-network for --do_search "
            "without --do_train; leave out either of them."
        )
    if search.do_search and not training.do_train and search.checkpoint_dir_model is None:
        raise ValueError("--do_search without --do_train needs a trained super-network; add --checkpoint_dir_model.")
    if search.checkpoint_dir_model is not None and not Path(search.checkpoint_dir_model).is_dir():
        raise ValueError(
            f"--checkpoint_dir_model '{search.checkpoint_dir_model}' is no folder; give that of a super-network."
        )
    needed = {
        "train": training.do_train or search.do_search or orders_heads,
        "validation": training.do_eval or search.do_search or training.eval_strategy != "no",
        "test": training.do_predict,
    }
    return [role for role, is_needed in needed.items() if is_needed]


def is_standard_nas(nas: NasArguments) -> bool:
    """Whether a search fine-tunes every candidate on its own, so that there is no training before it."""
    return nas.search.do_search and nas.search.nas_type == "standard"


def _check_standard_nas(training: TrainingArguments, nas: NasArguments) -> None:
    """Refuse the flags of what standard NAS has not: a super-network, or a model before the search."""
    given = {
        "--do_train": (training.do_train, "every candidate is trained in the search"),
        "--do_predict": (training.do_predict, "there is a trained model only after the search, in extracted/"),
        "--nncf_config": (nas.config is not None, "there is no super-network"),
        "--sampling_strategy": (nas.is_elastic, "there is no super-network"),
        "--checkpoint_dir_model": (nas.search.checkpoint_dir_model is not None, "there is no super-network"),
        "--only_generate_importance_weight": (nas.eftnas.only_generate_importance_weight, "there is a search"),
        "--search_space generated": (nas.super_network.search_space == "generated", "no importance is learnt"),
        "--importance movement": (nas.super_network.importance == "movement", "no importance is learnt"),
    }
    for flag, (is_given, reason) in given.items():
        if is_given:
            raise ValueError(f"With --nas_type standard {reason}; leave out {flag}.")


def set_up_logging(training_args: TrainingArguments, *modules: str) -> None:
    """Let the libraries log at Trainer's level, and our own packages and `modules` tell what they do."""
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
        datefmt="%m/%d/%Y %H:%M:%S",
        handlers=[logging.StreamHandler(sys.stdout)],
    )
    level = training_args.get_process_log_level()
    for library in (datasets.utils.logging, transformers.utils.logging):
        library.set_verbosity(level)
    if training_args.should_log and training_args.log_level == "passive":
        level = logging.INFO
    for name in (*modules, "hf_nas", "trainer_plugins"):
        logging.getLogger(name).setLevel(level)
    transformers.utils.logging.enable_default_handler()
    transformers.utils.logging.enable_explicit_format()
    if modules:
        logging.getLogger(modules[0]).debug("Training/evaluation parameters %s", training_args)


def load_teacher(nas: NasArguments, auto_class: type, arguments: PretrainedArguments) -> PreTrainedModel | None:
    """The model that `--kd_teacher_model` names.

    Args:
        nas: where it is named.
        auto_class: of the task, such as `AutoModelForSequenceClassification`.
        arguments: with the options for the Hub.

    Raises:
        ValueError: if it has no head for the task.
    """
    name = nas.distillation.kd_teacher_model
    if name is None:
        return None
    options = {key: value for key, value in arguments.options().items() if key != "revision"}
    teacher, loading = auto_class.from_pretrained(name, output_loading_info=True, **options)
    if loading["missing_keys"]:
        raise ValueError(
            f"The teacher '{name}' has no weights for {sorted(loading['missing_keys'])[0]!r}; give a model that was "
            "fine-tuned on the task."
        )
    return teacher


def token_limit(max_seq_length: int, tokenizer_limit: int, logger: logging.Logger) -> int:
    """`max_seq_length`, or the tokenizer's limit if that is smaller."""
    if tokenizer_limit < max_seq_length:
        logger.warning("max_seq_length %d is cut to the model's %d.", max_seq_length, tokenizer_limit)
    return min(max_seq_length, tokenizer_limit)


def take(dataset: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    """The first `limit` examples."""
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def show_search(trainer: Trainer, outcome: SearchOutcome) -> None:
    """Log and save the numbers of a search, and print its table."""
    trainer.log_metrics("search", outcome.metrics)
    trainer.save_metrics("search", outcome.metrics)
    if trainer.is_world_process_zero():
        print(f"\n{outcome.table.to_markdown()}\n\nThe chosen model is in {outcome.chosen_folder}.")


def prune(
    nas: NasArguments, model: PreTrainedModel, training: TrainingArguments, *, sequence_length: int, **options: Any
) -> PruningOutcome:
    """Prune as the flags say: units by [`run_pruning`], or heads by [`run_head_pruning`].

    Args:
        nas: with the flags.
        model: as it was loaded.
        training: the arguments of Trainer.
        sequence_length: tokens of a sequence.
        options: of both: data, collator, metric, tokenizer, teacher, class of the trainer and record of the run.

    Raises:
        ValueError: if the weights are to be used as they are, but the model is not fine-tuned.
    """
    options |= {"sequence_length": sequence_length}
    if not nas.heads.is_active:
        return run_pruning(
            model, training, nas.pruning, latency_batch_size=nas.search.latency_batch_size, **options
        )  # fmt: skip
    check_fine_tuned(nas.heads, model, trains_weights=training.do_train and not nas.heads.needs_fine_tuned)
    return run_head_pruning(model, training, nas.heads, final=nas.pruning, **options)


def show_pruning(trainer: Trainer, outcome: PruningOutcome) -> None:
    """Print the sizes of a pruned model by all definitions."""
    if trainer.is_world_process_zero():
        print(f"\n{outcome.summary()}")


def write_card(trainer: Trainer, **card: Any) -> None:
    """Write the model card, and with --push_to_hub push it with the model."""
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
