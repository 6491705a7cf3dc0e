"""What a run leaves in its output folder, so that the same command continues it and another one does not harm it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_nas.files import write_json


RUN_FILE = "run.json"
RESULT_FILES = ("all_results.json", "train_results.json", "model.safetensors", "model.safetensors.index.json")

# What the trained weights depend on; batch sizes of the evaluation or logging may change between two attempts.
MODEL_KEYS = ("model_name_or_path", "config_name", "tokenizer_name", "model_revision")
DATA_KEYS = (
    "task_name", "dataset_name", "dataset_config_name", "data_dir", "train_file", "demo", "max_seq_length",
    "pad_to_max_length", "max_train_samples",
)  # fmt: skip
TRAINING_KEYS = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "data_seed", "fp16", "gradient_accumulation_steps",
    "label_smoothing_factor", "learning_rate", "load_best_model_at_end", "lr_scheduler_type", "max_grad_norm",
    "max_steps", "metric_for_best_model", "num_train_epochs", "optim", "per_device_train_batch_size", "seed",
    "warmup_steps", "weight_decay",
)  # fmt: skip
# With these, a search finds the examples that the super-network was not trained on.
SPLIT_KEYS = ("task_name", "dataset_name", "dataset_config_name", "demo", "dataset_seed", "selection_split")


def describe_run(
    model: Any, data: Any, training: TrainingArguments, super_network: Any = None, search: Any = None
) -> dict[str, Any]:
    """The arguments that the trained weights depend on, as JSON values.

    Args:
        model: the arguments on the model.
        data: the arguments on data.
        training: the arguments of Trainer.
        super_network: those of the super-network; None without.
        search: those of the search, of which the selection set counts; None if all examples are trained on.
    """
    arguments = {key: getattr(model, key) for key in MODEL_KEYS} | {key: getattr(data, key) for key in DATA_KEYS}
    trainer_arguments = training.to_dict()
    arguments |= {key: trainer_arguments[key] for key in TRAINING_KEYS}
    if super_network is not None:
        arguments |= asdict(super_network)
    if search is not None:
        arguments |= {"dataset_seed": data.dataset_seed, "selection_split": search.selection_split}
    return json.loads(json.dumps(arguments))


def prepare_output_folder(folder: str | Path, arguments: dict[str, Any]) -> tuple[bool, str | None]:
    """Look for an earlier attempt in the output folder.

    Returns:
        whether the same training is finished there, and else the checkpoint to resume from, if there is one.

    Raises:
        ValueError: if the folder holds another run.
    """
    folder = Path(folder)
    advice = "choose another --output_dir or delete it"
    earlier = read_run(folder)
    if earlier is not None:
        differing = [
            f"{key} was {earlier['arguments'].get(key)!r} and is {arguments.get(key)!r}"
            for key in sorted({*earlier["arguments"], *arguments})
            if earlier["arguments"].get(key) != arguments.get(key)
        ]
        if differing:
            raise ValueError(f"The folder '{folder}' holds another run ({'; '.join(differing)}); {advice}.")
        if earlier["finished"]:
            return True, None
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    found = [name for name in RESULT_FILES if (folder / name).exists()]
    # An attempt of ours that died while it wrote its results has both a record and some of these.
    if found and earlier is None and checkpoint is None:
        raise ValueError(f"The folder '{folder}' holds another run ({', '.join(found)}); {advice}.")
    return False, checkpoint


def read_run(folder: str | Path) -> dict[str, Any] | None:
    """The record of the run in this folder, if there is one."""
    path = Path(folder) / RUN_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_run(folder: str | Path, arguments: dict[str, Any], finished: bool) -> None:
    """Record the run in its folder."""
    write_json(Path(folder) / RUN_FILE, {"arguments": arguments, "finished": finished})


def check_same_split(folder: str | Path, data: Any, search: Any) -> None:
    """Refuse to search a super-network on examples that it was trained on.

    Args:
        folder: of the super-network, or one of its checkpoints; nothing is checked if our record is in neither.
        data: the arguments on data.
        search: the arguments of the search.

    Raises:
        ValueError: if it was trained with another selection set, or without one.
    """
    run = read_run(folder) or read_run(Path(folder).resolve().parent)
    if run is None:
        return
    if "selection_split" not in run["arguments"]:
        raise ValueError(
            f"The model in '{folder}' was trained on all examples, so none are left to compare sub-networks on; train "
            "one with --sampling_strategy (standard for plain fine-tuning)."
        )
    now = {key: getattr(data, key, None) for key in SPLIT_KEYS} | {"selection_split": search.selection_split}
    for key in SPLIT_KEYS:
        if run["arguments"].get(key) != now[key]:
            raise ValueError(
                f"The super-network in '{folder}' was trained with {key} {run['arguments'].get(key)!r} and is to be "
                f"searched with {now[key]!r}, so the search would compare on examples of the training; give "
                f"--{key} the same value."
            )
