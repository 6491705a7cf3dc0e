"""The steps that the example scripts have in common, from logging to the model card."""

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import transformers
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed

from hf_nas.main_input import SequenceLengths
from hf_nas.space import get_search_space
from hf_nas.structures import describe
from trainer_plugins.arguments import NasArguments
from trainer_plugins.checks import check_limits
from trainer_plugins.eftnas.plan import plan_super_network
from trainer_plugins.head_pruning.checks import check_fine_tuned
from trainer_plugins.head_pruning.run import run_head_pruning
from trainer_plugins.model_card import SmallModelHub
from trainer_plugins.pruning.cofi import run_pruning
from trainer_plugins.pruning.pruning_trainer import PruningTrainer
from trainer_plugins.pruning.run import PruningOutcome
from trainer_plugins.run_state import Run
from trainer_plugins.scripts.arguments import PretrainedArguments
from trainer_plugins.scripts.checks import is_standard_nas
from trainer_plugins.search.run import SearchOutcome
from trainer_plugins.super_network.super_network_trainer import SuperNetworkTrainer


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


def set_up(training_args: TrainingArguments, *modules: str) -> None:
    """Set up logging as [`set_up_logging`] does, and the seed of everything random."""
    set_up_logging(training_args, *modules)
    set_seed(training_args.seed)


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


def token_limit(length: int, limit: int, logger: logging.Logger, name: str = "max_seq_length") -> int:
    """A length in tokens, or the limit if that is smaller, which is said under the name of the flag."""
    if limit < length:
        logger.warning("%s %d is cut to the model's %d.", name, length, limit)
    return min(length, limit)


def take(dataset: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    """The first `limit` examples."""
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def hold_out(
    nas: NasArguments,
    train: datasets.Dataset | None,
    split: Callable[[datasets.Dataset, float, int], tuple[datasets.Dataset, datasets.Dataset]],
    seed: int,
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """Split the set off the training set on which sub-networks are compared, if any are.

    Args:
        nas: with the share and the largest number of rows.
        train: the training set, if there is one.
        split: of the task: splits a share off a data set, by a seed.
        seed: the same in training and search.

    Returns:
        The training set without it, and the selection set.
    """
    if train is None or not nas.needs_selection_set:
        return train, None
    train, selection = split(train, nas.search.selection_split, seed)
    return train, take(selection, nas.search.max_selection_samples)


def train_or_prune(
    nas: NasArguments,
    run: Run,
    training: TrainingArguments,
    model: PreTrainedModel,
    arguments: PretrainedArguments,
    *,
    pretrained: Callable[[], PreTrainedModel],
    auto_class: type,
    trainer_class: type[SuperNetworkTrainer],
    pruning_class: type[PruningTrainer],
    sequence_length: int,
    train_dataset: Any,
    data_collator: Any,
    processing_class: Any,
    decoder_length: int | None = None,
    **options: Any,
) -> tuple[Trainer, Path] | None:
    """Train the model or a super-network as far as `--do_train` asks for it, or prune the model.

    Before, the folder of the run is claimed, the teacher loaded, and a super-network planned: its importance is
    learnt, and its search space and stages follow from that.

    Args:
        nas: the arguments of ours.
        run: that begins.
        training: the arguments of Trainer.
        model: as it was loaded.
        arguments: with the options for the Hub.
        pretrained: loads the pretrained model again.
        auto_class: of the task, for the teacher.
        trainer_class: of the task.
        pruning_class: of the task, for a pruning.
        sequence_length: tokens of a sequence.
        train_dataset: tokenized, where something is trained.
        data_collator: of the task.
        processing_class: the tokenizer.
        decoder_length: tokens of a sequence that an encoder-decoder writes, by default as many.
        options: of either class of trainers: what it evaluates on, and how.

    Returns:
        A trainer that holds the model to evaluate, and the folder of that model; None if importance is all that is
        asked for.
    """
    run.claim(training)
    if not training.do_train:  # what is evaluated or searched is trained, and its units are in order
        nas = replace(nas, super_network=replace(nas.super_network, sampling_strategy=None))
    trains = (training.do_train or is_standard_nas(nas)) and not run.is_trained
    # What michel leaves of a model that is fine-tuned already may be all that is trained.
    trains |= nas.pruning.do_final_finetune
    teacher = load_teacher(nas, auto_class, arguments) if trains else None
    data = {
        "train_dataset": train_dataset,
        "data_collator": data_collator,
        "processing_class": processing_class,
        "teacher": teacher,
        "distillation": nas.distillation,
    }
    lengths = {"sequence_length": sequence_length, "decoder_length": decoder_length}
    plan = plan_super_network(nas, training, model, pretrained, **lengths, **data)
    if nas.eftnas.only_generate_importance_weight:
        return None
    if training.do_train and nas.is_elastic and nas.search.do_search:
        space = plan.searched or get_search_space(nas.super_network.search_space, describe(model))
        check_limits(nas, model, space, SequenceLengths(sequence_length, decoder_length))
    options |= data
    if nas.prunes:
        outcome = prune(
            nas, model, training, record=run.arguments, trainer_class=pruning_class, **lengths, **options
        )  # fmt: skip
        show_pruning(outcome.trainer, outcome)
        return outcome.trainer, outcome.folder
    trainer = trainer_class(
        model=model,
        args=training,
        super_network=nas.super_network,
        search_space=plan.search_space,
        stages=plan.stages,
        scores=plan.scores,
        **options,
    )
    if training.do_train:
        run.train(trainer)
    return trainer, Path(training.output_dir)


def show_search(trainer: Trainer, outcome: SearchOutcome) -> None:
    """Log and save the numbers of a search, and print its table."""
    trainer.log_metrics("search", outcome.metrics)
    trainer.save_metrics("search", outcome.metrics)
    if trainer.is_world_process_zero():
        print(f"\n{outcome.table.to_markdown()}\n\nThe chosen model is in {outcome.chosen_folder}.")


def prune(nas: NasArguments, model: PreTrainedModel, training: TrainingArguments, **options: Any) -> PruningOutcome:
    """Prune as the flags say: units by [`run_pruning`], or heads by [`run_head_pruning`].

    Args:
        nas: with the flags.
        model: as it was loaded.
        training: the arguments of Trainer.
        options: of both: lengths of sequences, data, collator, metric, tokenizer, teacher, class of the trainer, and
            record of the run.

    Raises:
        ValueError: if the weights are to be used as they are, but the model is not fine-tuned.
    """
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


def write_card(trainer: SmallModelHub, run: Run, folder: Path, **card: Any) -> None:
    """Write the model card of what was trained or made small, and with --push_to_hub push it with the model.

    Args:
        trainer: that holds the model.
        run: without a small model, nothing is written where it was finished before, or trains nothing.
        folder: of the model.
        card: of `Trainer.create_model_card`.
    """
    if (not trainer.args.do_train or run.is_trained) and trainer.small_model_folder() is None:
        return
    trainer.args.output_dir = str(folder)
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
