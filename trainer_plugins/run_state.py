"""What a run leaves in its output folder, so that the same command continues it and another one does not harm it."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_nas.files import write_json
from hf_nas.run_files import RUN_FILE
from trainer_plugins.arguments import NasArguments


logger = logging.getLogger(__name__)

RESULT_FILES = ("all_results.json", "train_results.json", "model.safetensors", "model.safetensors.index.json")

# What the trained weights depend on; batch sizes of the evaluation or logging may change between two attempts.
MODEL_KEYS = ("model_name_or_path", "config_name", "tokenizer_name", "model_revision")
# Of these, the ones that the task has.
DATA_KEYS = (
    "task_name", "dataset_name", "dataset_config_name", "data_dir", "train_file", "demo", "max_seq_length",
    "pad_to_max_length", "max_train_samples", "doc_stride", "version_2_with_negative", "source_lang", "target_lang",
    "max_source_length", "max_target_length", "source_prefix", "ignore_pad_token_for_loss", "forced_bos_token",
)  # fmt: skip
TRAINING_KEYS = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "data_seed", "fp16", "gradient_accumulation_steps",
    "label_smoothing_factor", "learning_rate", "load_best_model_at_end", "lr_scheduler_type", "max_grad_norm",
    "max_steps", "metric_for_best_model", "num_train_epochs", "optim", "per_device_train_batch_size", "seed",
    "warmup_steps", "weight_decay",
)  # fmt: skip
# With these, a search finds the examples that the super-network was not trained on.
SPLIT_KEYS = (
    "task_name", "dataset_name", "dataset_config_name", "demo", "dataset_seed", "selection_split", "source_lang",
    "target_lang",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run from where an earlier attempt at it, killed or finished, left off.

    Args:
        arguments: what the trained weights depend on.
        source: where the model is loaded from.
        is_trained: whether the training is finished.
        checkpoint: from which to resume the training, if there is one.
    """

    arguments: dict[str, Any]
    source: str
    is_trained: bool = False
    checkpoint: str | None = None

    @classmethod
    def begin(cls, model: Any, data: Any, training: TrainingArguments, nas: NasArguments) -> "Run":
        """Look for an earlier attempt in the output folder.

        Args:
            model: the arguments on the model.
            data: the arguments on data.
            training: the arguments of Trainer.
            nas: all others.

        Raises:
            ValueError: if there is no model, the folder holds another run, or the search would compare sub-networks
                on examples that the super-network was trained on.
        """
        search = nas.search
        source = search.checkpoint_dir_model or model.model_name_or_path
        if source is None:
            raise ValueError("No model is given; add --model_name_or_path.")
        arguments = describe_run(model, data, training, nas)
        if not training.do_train:
            if search.checkpoint_dir_model is not None:
                check_same_split(search.checkpoint_dir_model, data, search)
            return cls(arguments, source)
        is_trained, checkpoint = prepare_output_folder(training.output_dir, arguments)
        checkpoint = training.resume_from_checkpoint or checkpoint
        logger.info("Training is %s.", "done" if is_trained else f"resumed from {checkpoint}" if checkpoint else "new")
        return cls(arguments, training.output_dir if is_trained else source, is_trained, checkpoint)

    def claim(self, training: TrainingArguments) -> None:
        """Record the run in its folder, unless it is trained; to be done before anything else is written there."""
        if training.do_train and training.should_save and not self.is_trained:
            write_run(training.output_dir, self.arguments, finished=False)

    def train(self, trainer: Trainer) -> None:
        """Train and save what the example scripts of transformers do; nothing if that is done already."""
        if self.is_trained:
            return
        folder = trainer.args.output_dir
        metrics = trainer.train(resume_from_checkpoint=self.checkpoint).metrics
        metrics["train_samples"] = len(trainer.train_dataset)
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
        if trainer.args.should_save:
            write_run(folder, self.arguments, finished=True)


def describe_run(model: Any, data: Any, training: TrainingArguments, nas: NasArguments) -> dict[str, Any]:
    """The arguments that the trained weights depend on, as JSON values.

    Args:
        model: the arguments on the model.
        data: the arguments on data.
        training: the arguments of Trainer.
        nas: all others.
    """
    arguments = {key: getattr(model, key) for key in MODEL_KEYS}
    arguments |= {key: getattr(data, key) for key in DATA_KEYS if hasattr(data, key)}
    trainer_arguments = training.to_dict()
    arguments |= {key: trainer_arguments[key] for key in TRAINING_KEYS}
    if nas.is_elastic:
        arguments |= asdict(nas.super_network)
    if nas.is_elastic or nas.eftnas.only_generate_importance_weight:
        arguments |= asdict(nas.eftnas)
    if nas.distillation.kd_teacher_model is not None:
        arguments |= asdict(nas.distillation)
    if nas.prunes:
        pruning = nas.pruning
        arguments["pruning"] = nas.heads.pruning_method or pruning.pruning_type or pruning.pretrained_pruned_model
    if nas.needs_selection_set:
        arguments |= {"dataset_seed": data.dataset_seed, "selection_split": nas.search.selection_split}
    if nas.config is not None:
        # The file may have changed since the first attempt.
        arguments["nncf_config"] = hashlib.blake2b(repr(nas.config).encode(), digest_size=16).hexdigest()
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
