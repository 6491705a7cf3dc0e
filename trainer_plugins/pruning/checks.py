"""Refuses flags of a pruning that cannot work, before anything is tokenised or trained."""

import logging
from collections.abc import Collection
from pathlib import Path

from transformers import PreTrainedModel, TrainingArguments

from hf_nas.distillation import VERSIONS, DistillationObjective
from hf_nas.gates import BudgetController, UnitGates, parse_kinds
from hf_nas.profiling import mac_costs, parameter_costs
from hf_nas.subnetwork import FILE_NAME
from trainer_plugins.arguments import NasArguments, PruningArguments
from trainer_plugins.arguments.pruning import BUDGETS
from trainer_plugins.pruning.schedule import PruningSchedule, check_trainable
from trainer_plugins.pruning.unread_flags import check_unread_by_pruning, given_flags


logger = logging.getLogger(__name__)

# Flags that are read only beside another one.
_READ_WITH = {
    "pruning_type": (
        "target_sparsity", "pruning_budget", "sparsity_epsilon", "prepruning_finetune_epochs",
        "lagrangian_warmup_epochs", "reg_learning_rate", "droprate_init", "gate_temperature", "do_final_finetune",
    ),
    "do_final_finetune": (
        "final_finetune_epochs", "final_finetune_learning_rate", "final_finetune_scheduler_type",
        "final_finetune_warmup_steps",
    ),
    "do_distill": ("distill_ce_loss_alpha", "distill_label_loss_alpha", "distill_temp"),
    "do_layer_distill": ("layer_distill_version", "distill_loss_alpha"),
}  # fmt: skip
# The published command that fine-tunes a pruned model has them from that which pruned it.
_HARMLESS = (
    "target_sparsity", "sparsity_epsilon", "prepruning_finetune_epochs", "lagrangian_warmup_epochs",
    "reg_learning_rate", "droprate_init", "gate_temperature",
)  # fmt: skip
# They say what is so in any training, or are only labels.
_ALWAYS = ("freeze_embeddings", "distillation_path", "ex_name", "test")
# What a pruning of heads reads.
_OF_HEADS = ("target_sparsity", "pruning_budget", "do_final_finetune", *_READ_WITH["do_final_finetune"], *_ALWAYS)


def check_pruning(training: TrainingArguments, nas: NasArguments) -> None:
    """Refuse flags of a pruning that contradict each other or others; nothing where nothing is pruned.

    Raises:
        ValueError: that says which.
    """
    pruning = nas.pruning
    if not pruning.is_active:
        _check_unused(pruning, _ALWAYS)
        return
    if not training.do_train:
        raise ValueError("Pruning is a training; add --do_train.")
    given = {
        "--sampling_strategy": nas.is_elastic,
        "--do_search": nas.search.do_search,
        "--nncf_config": nas.eftnas.nncf_config is not None,
        "--checkpoint_dir_model": nas.search.checkpoint_dir_model is not None,
        "--reorg_cache_model": nas.eftnas.reorg_cache_model is not None,
        "--only_generate_importance_weight": nas.eftnas.only_generate_importance_weight,
    }
    ours = "--pruning_type" if pruning.prunes else "--pretrained_pruned_model"
    for flag, is_given in given.items():
        if is_given:
            raise ValueError(f"{ours} trains no super-network to search; leave out {flag}, or {ours}.")
    check_pruning_values(pruning, nas.distillation.kd_teacher_model is not None)
    _check_read(pruning)
    # The temperature of the gates has two names.
    read = ("temperature", *(["latency_batch_size"] if pruning.pruning_budget == "latency" else []))
    check_unread_by_pruning(nas, ours, read)
    if pruning.do_distill:
        for name in given_flags(nas.distillation):
            if name != "kd_teacher_model":
                raise ValueError(f"--{name} is not for --do_distill, whose flags begin with distill; leave it out.")
    if not pruning.prunes:
        return
    if pruning.sparsity_epsilon != PruningArguments().sparsity_epsilon and not training.load_best_model_at_end:
        raise ValueError(
            f"--sparsity_epsilon {pruning.sparsity_epsilon:g} says among which evaluations the best model is chosen, "
            "but none is; add --load_best_model_at_end, or leave it out."
        )
    schedule_of(pruning).check(training)
    check_trainable(training)


def check_pruning_values(pruning: PruningArguments, has_teacher: bool) -> None:
    """Refuse values that contradict each other or are out of range.

    Args:
        pruning: something is pruned, or fine-tuned after that.
        has_teacher: whether there is a teacher to learn from.

    Raises:
        ValueError: that says which.
    """
    _check_pruned(pruning)
    _check_distillation(pruning, has_teacher)
    if pruning.prunes:
        _check_target(pruning)


def check_unread_by_heads(pruning: PruningArguments, method: str) -> None:
    """Refuse flags of CoFi that a pruning of heads would accept and ignore.

    Args:
        pruning: the flags, of which it reads some.
        method: of the pruning of heads, for the message.

    Raises:
        ValueError: that says which.
    """
    for name in _changed(pruning):
        if name not in _OF_HEADS:
            raise ValueError(
                f"--{name} belongs to --pruning_type; with {method} nothing reads it, so leave it out (a teacher is "
                "given by --kd_teacher_model)."
            )
    _check_read(pruning, ("do_final_finetune",))


def check_prunable(pruning: PruningArguments, model: PreTrainedModel, sequence_length: int) -> None:
    """Refuse kinds of units that the model does not have, and a target that pruning them cannot reach.

    Args:
        pruning: the flags.
        model: to be pruned.
        sequence_length: tokens of a sequence, as far as they are known by now.

    Raises:
        ValueError: that says what can be reached.
    """
    if not pruning.prunes:
        return
    kinds = parse_kinds(pruning.pruning_type)
    with UnitGates(model, kinds) as gates:
        if pruning.pruning_budget != "latency":  # which is not measured yet
            by_params = pruning.pruning_budget == "params"
            costs = parameter_costs(model) if by_params else mac_costs(model, sequence_length)
            BudgetController(costs, pruning.target_sparsity).check(gates)
        elif "hidden" in gates.kinds:
            raise ValueError(
                "--pruning_budget latency has no measurements of pruned hidden dimensions; leave hidden out of "
                "--pruning_type, or choose params or macs."
            )


def schedule_of(pruning: PruningArguments) -> PruningSchedule:
    """The schedule that the flags ask for.

    Raises:
        ValueError: for numbers out of range.
    """
    return PruningSchedule(
        prepruning_epochs=pruning.prepruning_finetune_epochs,
        warmup_epochs=pruning.lagrangian_warmup_epochs,
        learning_rate=pruning.reg_learning_rate,
        epsilon=pruning.sparsity_epsilon,
    )


def check_final_finetune(pruning: PruningArguments) -> None:
    """Refuse values of the final fine-tuning that are out of range.

    Raises:
        ValueError: that says which.
    """
    if pruning.do_final_finetune and not pruning.final_finetune_epochs > 0:
        raise ValueError(f"final_finetune_epochs is {pruning.final_finetune_epochs:g}; choose a number above 0.")
    if pruning.final_finetune_learning_rate is not None and not pruning.final_finetune_learning_rate > 0:
        raise ValueError(
            f"final_finetune_learning_rate is {pruning.final_finetune_learning_rate:g}; choose a number above 0, or "
            "leave it out for that of the pruning."
        )
    if not pruning.final_finetune_warmup_steps >= 0:
        raise ValueError(
            f"final_finetune_warmup_steps is {pruning.final_finetune_warmup_steps:g}; choose a number of steps, or a "
            "share below 1."
        )
    # Of these, others need more than a name.
    known = ("constant", "linear", "cosine", "polynomial", "constant_with_warmup", "inverse_sqrt")
    if pruning.final_finetune_scheduler_type not in known:
        raise ValueError(
            f"final_finetune_scheduler_type is {pruning.final_finetune_scheduler_type!r}; choose one of "
            f"{', '.join(known)}."
        )


def objective_of(pruning: PruningArguments, with_layers: bool = True) -> DistillationObjective | None:
    """The losses that the flags ask for, None without `--do_distill`.

    Args:
        pruning: the flags.
        with_layers: whether there are layers to compare.

    Raises:
        ValueError: for weights or a temperature out of range.
    """
    if not pruning.do_distill:
        return None
    return DistillationObjective(
        layer_weight=pruning.distill_loss_alpha if pruning.do_layer_distill and with_layers else 0.0,
        soft_label_weight=pruning.distill_ce_loss_alpha,
        label_weight=pruning.distill_label_loss_alpha,
        temperature=pruning.distill_temp,
    )


def _changed(pruning: PruningArguments) -> list[str]:
    """Names of the flags that are given, those that ask for something first."""
    return sorted(
        given_flags(pruning),
        key=lambda name: name != "target_sparsity" and not isinstance(getattr(pruning, name), bool),
    )


def _check_unused(pruning: PruningArguments, allowed: Collection[str]) -> None:
    """Without a pruning, these would do nothing."""
    for name in _changed(pruning):
        if name not in allowed:
            other = "a teacher for a plain fine-tuning is given by --kd_teacher_model"
            if name == "scheduler_type":
                other = "--lr_scheduler_type is for any training"
            raise ValueError(
                f"--{name} belongs to a pruning; add --pruning_type or --pretrained_pruned_model, or leave it out "
                f"({other})."
            )


def _check_read(pruning: PruningArguments, conditions: Collection[str] = tuple(_READ_WITH)) -> None:
    """Refuse flags that would be accepted and ignored."""
    for condition in conditions:
        if getattr(pruning, condition):
            continue
        for name in _changed(pruning):
            if name not in _READ_WITH[condition]:
                continue
            if condition == "pruning_type" and name in _HARMLESS:
                logger.warning("--%s is for a pruning; the fine-tuning of a pruned model does not read it.", name)
                continue
            advice = f"add --{condition}"
            if pruning.pretrained_pruned_model is not None and condition in ("pruning_type", "do_final_finetune"):
                advice = "a pruned model is fine-tuned by --num_train_epochs, --learning_rate and --scheduler_type"
            raise ValueError(f"--{name} would not be read without --{condition}; {advice}, or leave it out.")


def _check_pruned(pruning: PruningArguments) -> None:
    if pruning.pretrained_pruned_model is None:
        return
    if pruning.prunes:
        raise ValueError(
            f"--pretrained_pruned_model '{pruning.pretrained_pruned_model}' is fine-tuned and --pruning_type "
            f"'{pruning.pruning_type}' asks to prune; leave out either of them."
        )
    if not (Path(pruning.pretrained_pruned_model) / FILE_NAME).is_file():
        raise ValueError(
            f"--pretrained_pruned_model '{pruning.pretrained_pruned_model}' is no folder of a pruned model, which has "
            f"a {FILE_NAME}; give the folder pruned/ of a pruning, or what hf-nas convert-cofi wrote."
        )


def _check_distillation(pruning: PruningArguments, has_teacher: bool) -> None:
    if pruning.do_distill and not has_teacher:
        raise ValueError("--do_distill needs a teacher that was fine-tuned on the task; add --distillation_path.")
    if pruning.distillation_path is not None and not pruning.do_distill:
        raise ValueError("--distillation_path names a teacher that nothing is learnt from; add --do_distill.")
    if pruning.do_layer_distill and not pruning.do_distill:
        raise ValueError("--do_layer_distill is a part of distillation; add --do_distill.")
    if pruning.cache_teacher_logits and (not has_teacher or pruning.do_layer_distill):
        reason = "there is no teacher" if not has_teacher else "the teacher runs anyway for --do_layer_distill"
        raise ValueError(f"--cache_teacher_logits is given, but {reason}; leave it out.")
    if not pruning.do_layer_distill:
        objective_of(pruning)
        return
    if pruning.layer_distill_version not in VERSIONS:
        raise ValueError(
            f"layer_distill_version is {pruning.layer_distill_version}; choose one of "
            f"{', '.join(map(str, VERSIONS))} (the published default 1 was never written, its scripts have 4)."
        )
    objective_of(pruning)
    if not pruning.distill_loss_alpha > 0:
        raise ValueError(
            f"distill_loss_alpha is {pruning.distill_loss_alpha:g}, with which layers are not learnt; choose a weight "
            "above 0, or leave out --do_layer_distill."
        )


def _check_target(pruning: PruningArguments) -> None:
    parse_kinds(pruning.pruning_type)
    if pruning.pruning_budget not in BUDGETS:
        raise ValueError(f"pruning_budget is {pruning.pruning_budget!r}; choose one of {', '.join(BUDGETS)}.")
    if not 0 < pruning.target_sparsity < 1:
        raise ValueError(
            f"target_sparsity is {pruning.target_sparsity:g}; give the fraction to remove, between 0 and 1, such as "
            "0.6 or 0.95."
        )
    if not 0 < pruning.droprate_init < 1:
        raise ValueError(f"droprate_init is {pruning.droprate_init:g}; choose a number between 0 and 1, such as 0.5.")
    if not pruning.gate_temperature > 0:
        raise ValueError(f"gate_temperature is {pruning.gate_temperature:g}; choose a number above 0.")
    check_final_finetune(pruning)
    schedule_of(pruning)
