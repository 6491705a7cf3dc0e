"""The steps of EFTNAS before a super-network is trained: importance, search space, stages.

Importance is learnt by movement sparsity in a training of its own; the search space is made from the scores where none
is given; an NNCF 2.x configuration can say all of it.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from hf_nas.importance import OrderRecord
from hf_nas.importance.movement import MovementScores, unit_scores
from hf_nas.nncf_config import filter_importance, nncf_space, with_space
from hf_nas.run_files import MOVEMENT_FOLDER, SPACE_FILE, read_arguments, record_folder
from hf_nas.space import CustomSpace, SearchSpace, get_search_space
from hf_nas.space.generated import generate_space
from hf_nas.space.target_sizes import check_sizes, size_in_millions
from hf_nas.structures import describe
from trainer_plugins.arguments import EftnasArguments, NasArguments, SuperNetworkArguments
from trainer_plugins.eftnas.movement_trainer import learn_importance
from trainer_plugins.eftnas.nncf_flags import movement_settings
from trainer_plugins.super_network.staged_training import StagedTraining


logger = logging.getLogger(__name__)

# Of Trainer; whoever leaves the flag out gets these.
_DEFAULT_EPOCHS = next(f.default for f in fields(TrainingArguments) if f.name == "num_train_epochs")


@dataclass(frozen=True)
class SuperNetworkPlan:
    """What a super-network is trained on.

    Args:
        search_space: the search space, if it is not one that is known by name or file.
        stages: of the training, if a configuration describes some.
        scores: importance of the units by sub-layer name, if it was learnt in a training of its own.
    """

    search_space: SearchSpace | None = None
    stages: StagedTraining | None = None
    scores: dict[str, torch.Tensor] | None = None

    @property
    def searched(self) -> SearchSpace | None:
        """The space of the last stage, or the only one."""
        return self.search_space if self.stages is None else self.stages.spaces[-1]


def plan_super_network(
    nas: NasArguments,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    model_init: Callable[[], PreTrainedModel],
    *,
    sequence_length: int,
    decoder_length: int | None = None,
    **trainer_arguments: Any,
) -> SuperNetworkPlan:
    """Do what comes before the training of a super-network, as far as it is not done already.

    Writes `movement_sparsity/` and, unless the space is one that is known by name or file, `search_space.json`, which
    is searched afterwards, into the output folder. Scores that are there are not learnt again.

    Args:
        nas: what to do.
        arguments: of the training of the super-network; the importance training goes by them too.
        model: that becomes the super-network.
        model_init: makes a fresh copy of it, on which importance is learnt.
        sequence_length: number of tokens for which MACs are counted, where no configuration says it.
        decoder_length: the same of the decoder of an encoder-decoder, by default as many.
        trainer_arguments: of the importance training, such as data, tokenizer and teacher.

    Raises:
        ValueError: if the configuration, the scores or the sizes asked for do not fit the model.
    """
    if nas.search.checkpoint_dir_model is not None:
        return SuperNetworkPlan(_space_of_trained(nas, model, nas.search.checkpoint_dir_model))
    if not nas.is_elastic and not nas.eftnas.only_generate_importance_weight:
        return SuperNetworkPlan()
    folder = Path(arguments.output_dir)
    lengths = (sequence_length, decoder_length) if nas.config is None else nas.config.lengths
    if nas.super_network.search_space == "generated":
        _check_sizes(nas.eftnas, model, lengths)
    movement = None
    needs_movement = "movement" == nas.super_network.importance or nas.super_network.search_space == "generated"
    if needs_movement or nas.eftnas.only_generate_importance_weight:
        movement = _movement_scores(nas, arguments, model, model_init, folder, trainer_arguments)
    if nas.eftnas.only_generate_importance_weight:
        return SuperNetworkPlan()
    scores = None
    if nas.super_network.importance == "movement":
        scores = unit_scores(movement, describe(model), ranking=nas.eftnas.unit_ranking)
        done = OrderRecord.read(model.config)
        is_own = nas.eftnas.reorg_cache_model is None
        if is_own and done is not None and done.digest != OrderRecord.of("movement", scores).digest:
            # They were learnt on the units as they are, whatever order that is.
            OrderRecord.forget(model.config)
    space = None
    if nas.super_network.search_space == "generated":
        space = _generated(nas.eftnas, movement, model, lengths)
    plan = SuperNetworkPlan(space, stages_of(nas, model, space), scores)
    if plan.searched is not None and arguments.should_save:
        plan.searched.save(folder / SPACE_FILE)
    return plan


def _space_of_trained(nas: NasArguments, model: PreTrainedModel, checkpoint: str) -> SearchSpace | None:
    """The search space of a super-network that was trained before; None: the one that the flags name.

    Where no flag names one, it is what the super-network was trained in.
    """
    stages = stages_of(nas, model, None) if nas.super_network.search_space != "generated" else None
    if stages is not None:
        return stages.spaces[-1]
    folder = record_folder(checkpoint) or Path(checkpoint)
    trained = read_arguments(folder)
    name, default = nas.super_network.search_space, SuperNetworkArguments().search_space
    has_own = trained.get("search_space") == "generated" or trained.get("nncf_config") is not None
    if name == "generated" or (name == default and has_own):
        path = folder / SPACE_FILE
        if not path.exists():
            raise ValueError(
                f"The super-network in '{checkpoint}' was trained in a space of its own, but '{path}' does not exist; "
                "give the file of the space by --search_space, or the configuration that lists its widths by "
                "--nncf_config."
            )
        logger.info("Searched is what the super-network was trained in, '%s'.", path)
        return CustomSpace.load(path, describe(model))
    if name == default and trained.get("search_space") not in (None, default):
        logger.info("Searched is the space that the super-network was trained in, %r.", trained["search_space"])
        return get_search_space(trained["search_space"], describe(model))
    return None


def _movement_scores(
    nas: NasArguments,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    model_init: Callable[[], PreTrainedModel],
    folder: Path,
    trainer_arguments: dict[str, Any],
) -> MovementScores:
    eftnas = nas.eftnas
    if eftnas.reorg_cache_model is not None:
        return MovementScores.load(eftnas.reorg_cache_model, model)
    return learn_importance(
        model_init,
        functools.partial(movement_settings, nas),
        arguments,
        folder / MOVEMENT_FOLDER,
        num_train_epochs=_importance_epochs(nas, arguments),
        **trainer_arguments,
    )


def _importance_epochs(nas: NasArguments, arguments: TrainingArguments) -> float:
    """The length of the importance training."""
    given = nas.eftnas.movement_num_train_epochs
    # Where importance is all that is learnt, Trainer's own flag can mean nothing else.
    if given is None and nas.eftnas.only_generate_importance_weight:
        given = arguments.num_train_epochs if arguments.num_train_epochs != _DEFAULT_EPOCHS else None
    return 2 * nas.eftnas.movement_warmup_end_epoch if given is None else given


@contextlib.contextmanager
def _naming_flags(eftnas: EftnasArguments) -> Iterator[None]:
    """Let an error about sizes say which flags they come from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"No search space is generated with space_smallest {eftnas.space_smallest:g}, space_largest "
            f"{eftnas.space_largest:g} (above 1: millions of MACs), space_count {eftnas.space_count} and "
            f"space_tolerance {eftnas.space_tolerance:g}: {error}"
        ) from error


def _check_sizes(eftnas: EftnasArguments, model: PreTrainedModel, lengths: tuple[int, int | None]) -> None:
    largest, smallest = size_in_millions(eftnas.space_largest), size_in_millions(eftnas.space_smallest)
    with _naming_flags(eftnas):
        check_sizes(model, lengths[0], largest, smallest, eftnas.space_count, decoder_length=lengths[1])


def _generated(
    eftnas: EftnasArguments,
    movement: MovementScores,
    model: PreTrainedModel,
    lengths: tuple[int, int | None],
) -> CustomSpace:
    with _naming_flags(eftnas):
        generated = generate_space(
            movement,
            model,
            lengths[0],
            largest=size_in_millions(eftnas.space_largest),
            smallest=size_in_millions(eftnas.space_smallest),
            count=eftnas.space_count,
            tolerance=size_in_millions(eftnas.space_tolerance),
            width_multiple=eftnas.space_width_multiple,
            decoder_length=lengths[1],
        )
    for network in generated.networks:
        logger.info("Generated space: %d MACs above the threshold %g.", network.macs, network.threshold)
    return generated.space


def stages_of(nas: NasArguments, model: PreTrainedModel, generated: CustomSpace | None) -> StagedTraining | None:
    """The stages of the configuration, each with what it makes elastic.

    Args:
        nas: with the configuration; without one, or one that trains no super-network, there are no stages.
        model: that becomes the super-network.
        generated: the space that takes the place of what the configuration lists.

    Raises:
        ValueError: if the configuration or the space does not fit the model.
    """
    if nas.config is None or nas.config.training is None:
        return None
    # As if it had been generated into the configuration by a command of its own.
    config = nas.config if generated is None else with_space(nas.config, generated, model)
    schedule = config.training.schedule
    return StagedTraining(
        schedule,
        tuple(nncf_space(config, model, stage) for stage in schedule.stages),
        functools.partial(filter_importance, norm=config.training.width.filter_importance),
        compat=nas.eftnas.nncf_compat,
    )
