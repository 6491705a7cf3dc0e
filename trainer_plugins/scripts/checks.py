"""What a run of an example script cannot do without; flags that contradict each other are refused before that."""

from collections.abc import Collection, Sequence
from pathlib import Path

from transformers import TrainingArguments

from trainer_plugins.arguments import NasArguments
from trainer_plugins.checks import NAS_TYPES
from trainer_plugins.head_pruning.checks import check_head_pruning
from trainer_plugins.pruning.checks import check_pruning
from trainer_plugins.super_network.staged_training import check_length


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
    if (scores := nas.eftnas.reorg_cache_model) is not None and not nas.is_elastic:
        raise ValueError(
            f"--reorg_cache_model '{scores}' has scores for the training of a super-network; add --sampling_strategy, "
            "or leave it out."
        )
    _check_kernels(training, nas)
    search = nas.search
    if search.do_search and search.nas_type in NAS_TYPES and search.nas_type not in nas_types:
        raise ValueError(f"--nas_type {search.nas_type} is not for this task; choose {' or '.join(nas_types)}.")
    if is_standard_nas(nas):
        _check_standard_nas(training, nas)
        return ["train", "validation"]
    _check_importance(training, nas)
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


def check_best_metric(training: TrainingArguments, known: Collection[str]) -> None:
    """Refuse to choose the best checkpoint by a metric that the task does not have.

    Args:
        training: the arguments of Trainer.
        known: names of the metrics of the task, as far as they are known; the loss need not be among them.

    Raises:
        ValueError: that says which it has.
    """
    name = training.metric_for_best_model
    if name is not None and known and name.removeprefix("eval_") not in (*known, "loss"):
        raise ValueError(
            f"--metric_for_best_model is {name!r}, which the task does not have; choose one of "
            f"{', '.join(dict.fromkeys([*known, 'loss']))}."
        )


def is_standard_nas(nas: NasArguments) -> bool:
    """Whether a search fine-tunes every candidate on its own, so that there is no training before it."""
    return nas.search.do_search and nas.search.nas_type == "standard"


def _check_kernels(training: TrainingArguments, nas: NasArguments) -> None:
    """Refuse fused kernels: they compute losses without logits, and of their layers no units can be left out."""
    learns = {
        "a super-network": nas.is_elastic,
        "a pruning": nas.prunes,
        "importance": nas.eftnas.only_generate_importance_weight,
        "a teacher": nas.distillation.kd_teacher_model is not None,
    }
    for what, is_given in learns.items():
        if training.use_liger_kernel and is_given:
            raise ValueError(f"--use_liger_kernel fuses layers and losses that {what} needs apart; leave it out.")


def _check_importance(training: TrainingArguments, nas: NasArguments) -> None:
    """Refuse lengths that importance and stages, which have their own, would pass over."""
    if nas.eftnas.only_generate_importance_weight:
        if not training.do_train:
            raise ValueError("--only_generate_importance_weight learns the importance in a training; add --do_train.")
        if training.max_steps > 0:
            raise ValueError(
                f"--max_steps is {training.max_steps}, but movement sparsity ends with its warm-up; leave it out, and "
                "give --movement_warmup_end_epoch and --movement_num_train_epochs."
            )
    elif nas.is_elastic and training.do_train and nas.config is not None and nas.config.training is not None:
        check_length(nas.config.training.schedule, training)


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
