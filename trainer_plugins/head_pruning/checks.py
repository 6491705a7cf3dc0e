"""Refuses flags of a pruning of heads that cannot work, before anything is trained."""

from transformers import PreTrainedModel, TrainingArguments

from hf_nas.gates import TemperatureSchedule, head_rows
from hf_nas.main_input import SequenceLengths
from hf_nas.structures import describe
from trainer_plugins.arguments import HeadPruningArguments, NasArguments, PruningArguments
from trainer_plugins.arguments.head_pruning import METHODS
from trainer_plugins.head_pruning.budget import MEASURES, budget_of
from trainer_plugins.pruning.checks import check_final_finetune, check_unread_by_heads
from trainer_plugins.pruning.schedule import PruningSchedule, check_trainable
from trainer_plugins.pruning.unread_flags import check_unread_by_pruning, given_flags


# Flags that only some methods know.
_ONLY = {
    "annealing": ("dsp",), "initial_temperature": ("dsp",), "final_temperature": ("dsp",), "cooldown_steps": ("dsp",),
    "use_ste": ("dsp",), "l0_penalty": ("voita",), "pruning_lr": ("dsp", "voita"), "joint_pruning": ("dsp", "voita"),
    "gate_neurons": ("dsp",), "exact_pruning": ("michel",), "heads_per_step": ("michel",),
    "importance_per_example": ("michel",),
}  # fmt: skip
_GATE_GRADIENT_NORM = 1.0


def check_head_pruning(training: TrainingArguments, nas: NasArguments) -> None:
    """Refuse flags of a pruning of heads that contradict each other or others.

    Raises:
        ValueError: that says which.
    """
    heads = nas.heads
    given = given_flags(heads)
    if not heads.is_active:
        if given:
            raise ValueError(
                f"--{given[0]} belongs to a pruning of heads; add --pruning_method {'|'.join(METHODS)}, or leave it "
                "out."
            )
        return
    if heads.pruning_method not in METHODS:
        raise ValueError(f"pruning_method is {heads.pruning_method!r}; choose one of {', '.join(METHODS)}.")
    for name in given:
        if heads.pruning_method not in _ONLY.get(name, METHODS):
            raise ValueError(
                f"--{name} is for --pruning_method {' and '.join(_ONLY[name])}, not for {heads.pruning_method}; leave "
                "it out."
            )
    _check_others(nas)
    _check_budget(heads, nas.pruning)
    for name in ("pruning_lr", "l0_penalty"):
        value = getattr(heads, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value:g}; choose a number above 0, or leave it out.")
    if heads.pruning_method == "dsp":
        _check_temperature(heads)
    if heads.trains_gates:
        if not training.do_train:
            raise ValueError(f"--pruning_method {heads.pruning_method} trains gates; add --do_train.")
        schedule_of(heads).check(training)
        check_trainable(training, has_multipliers=heads.has_multipliers)
    check_final_finetune(nas.pruning)
    check_teacher(training, nas.pruning, nas.distillation.kd_teacher_model is not None)


def check_teacher(training: TrainingArguments, final: PruningArguments, has_teacher: bool) -> None:
    """Refuse a teacher that nothing would be learnt from.

    Args:
        training: the arguments of Trainer.
        final: whether the small model is fine-tuned in the end.
        has_teacher: whether there is one.

    Raises:
        ValueError: that says what could learn from it.
    """
    if has_teacher and not (training.do_train or final.do_final_finetune):
        raise ValueError(
            "--kd_teacher_model names a teacher that nothing is learnt from, as nothing is trained; add --do_train or "
            "--do_final_finetune, or leave it out."
        )


def _check_others(nas: NasArguments) -> None:
    method = f"--pruning_method {nas.heads.pruning_method}"
    given = {
        "--pruning_type": nas.pruning.prunes,
        "--pretrained_pruned_model": nas.pruning.pretrained_pruned_model is not None,
        "--sampling_strategy": nas.is_elastic,
        "--do_search": nas.search.do_search,
        "--checkpoint_dir_model": nas.search.checkpoint_dir_model is not None,
        "--nncf_config": nas.eftnas.nncf_config is not None,
        "--reorg_cache_model": nas.eftnas.reorg_cache_model is not None,
        "--only_generate_importance_weight": nas.eftnas.only_generate_importance_weight,
    }
    for flag, is_given in given.items():
        if is_given:
            raise ValueError(f"{method} and {flag} are two ways to shrink a model; leave out either of them.")
    check_unread_by_heads(nas.pruning, method)
    check_unread_by_pruning(nas, method)


def _check_budget(heads: HeadPruningArguments, pruning: PruningArguments) -> None:
    """Exactly one of a number of heads, numbers by kind, and a fraction of the cost; voita does without."""
    method, target = f"--pruning_method {heads.pruning_method}", pruning.target_sparsity
    numbers = [f"--{name}" for name in heads.heads_by_kind]
    if heads.num_of_heads is not None:
        if numbers:
            raise ValueError(
                f"--num_of_heads is for all attentions together and {numbers[0]} for one kind; leave out one of them."
            )
        numbers = ["--num_of_heads"]
    if target:
        if heads.pruning_method != "dsp":
            raise ValueError(f"--target_sparsity is for --pruning_type and dsp; {method} goes by --num_of_heads.")
        if numbers:
            raise ValueError(f"--target_sparsity and {numbers[0]} are two budgets; leave out either of them.")
        if not 0 < target < 1:
            raise ValueError(f"target_sparsity is {target:g}; give the fraction to remove, between 0 and 1.")
        if pruning.pruning_budget not in MEASURES:
            raise ValueError(
                f"pruning_budget is {pruning.pruning_budget!r}; {method} has a sparsity in {' or '.join(MEASURES)}."
            )
    elif heads.gate_neurons:
        raise ValueError(
            "--gate_neurons prunes heads and neurons by one budget, in which a head costs more than a neuron; add "
            f"--target_sparsity{f', and leave out {numbers[0]}' if numbers else ''}."
        )
    elif pruning.pruning_budget != PruningArguments().pruning_budget:
        raise ValueError(
            f"--pruning_budget {pruning.pruning_budget} says what --target_sparsity is a fraction of, but that is not "
            "given; add it, or leave out --pruning_budget."
        )
    elif not numbers and heads.pruning_method != "voita":
        other = " or --target_sparsity" if heads.pruning_method == "dsp" else ""
        raise ValueError(f"{method} keeps a number of heads; add --num_of_heads{other}.")


def _check_temperature(heads: HeadPruningArguments) -> None:
    if heads.annealing and heads.use_ste:
        raise ValueError("--use_ste has no temperature that --annealing could let fall; leave out either of them.")
    if not heads.annealing and not heads.use_ste:
        raise ValueError(
            "Without --annealing the temperature would be low from the beginning, and a random subset of heads would "
            "stay; add --annealing, or --use_ste."
        )
    names = ("initial_temperature", "final_temperature", "cooldown_steps")
    if heads.use_ste and (given := [name for name in given_flags(heads) if name in names]):
        raise ValueError(f"--use_ste has no temperature, but --{given[0]} is given; leave it out.")
    TemperatureSchedule(
        heads.initial_temperature,
        heads.final_temperature,
        *(() if heads.cooldown_steps is None else (heads.cooldown_steps,)),
    )


def schedule_of(heads: HeadPruningArguments) -> PruningSchedule:
    """The schedule of the gates: from the first step on, with a falling learning rate and a clipping of their own."""
    return PruningSchedule(
        prepruning_epochs=0,
        warmup_epochs=0,
        learning_rate=heads.gate_learning_rate,
        decay=True,
        gate_gradient_norm=_GATE_GRADIENT_NORM,
    )


def check_heads(
    heads: HeadPruningArguments, model: PreTrainedModel, pruning: PruningArguments, lengths: SequenceLengths
) -> None:
    """Refuse a budget that the model cannot have.

    Args:
        heads: with numbers of heads.
        model: to be pruned.
        pruning: with the other budgets.
        lengths: of a sequence, as far as they are known by now.

    Raises:
        ValueError: that says which it can have.
    """
    if not heads.is_active:
        return
    _check_budget(heads, pruning)
    budget_of(heads, pruning, model, lengths)
    total = sum(row.units for row in head_rows(describe(model)))
    if heads.heads_per_step is not None and not 1 <= heads.heads_per_step <= total:
        raise ValueError(
            f"heads_per_step is {heads.heads_per_step}; give a whole number from 1 to the {total} heads of the model."
        )


def check_fine_tuned(heads: HeadPruningArguments, model: PreTrainedModel, trains_weights: bool) -> None:
    """Refuse a model that was saved without the head it has now, as pretrained ones are, where it is not trained.

    Args:
        heads: what to do.
        model: as it was loaded.
        trains_weights: whether it is fine-tuned first, or its weights are trained with the gates.

    Raises:
        ValueError: that says what to do instead.
    """
    if heads.is_active and not trains_weights and type(model).__name__ not in (model.config.architectures or ()):
        other = "--joint_pruning" if heads.trains_gates else "--do_train, which does it first"
        raise ValueError(
            f"--pruning_method {heads.pruning_method} takes the weights as they are, but the model "
            f"'{model.config._name_or_path}' is not fine-tuned, since its head for the task is new; give one that is, "
            f"or add {other}."
        )
