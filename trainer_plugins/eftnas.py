"""The steps of EFTNAS before a super-network is trained: importance, search space, stages.

Importance is learnt by movement sparsity in a training of its own; the search space is made from the scores where none
is given; an NNCF 2.x configuration can say all of it.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from hf_nas.importance import OrderRecord
from hf_nas.importance.movement import MovementScores, MovementSettings, unit_scores
from hf_nas.nncf_config import NncfConfig, filter_importance, nncf_space
from hf_nas.search import WidthGroups, published_demands, published_nsga2
from hf_nas.space import CustomSpace, SearchSpace
from hf_nas.space.generated import generate_space
from hf_nas.structures import describe
from trainer_plugins.arguments import EftnasArguments, NasArguments
from trainer_plugins.movement_trainer import learn_importance
from trainer_plugins.staged_training import StagedTraining


logger = logging.getLogger(__name__)

MOVEMENT_FOLDER = "movement_sparsity"
SPACE_FILE = "search_space.json"


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


def apply_config(nas: NasArguments, model_arguments: Any, metric_scale: float = 1.0) -> None:
    """Let the NNCF configuration that `--nncf_config` names speak where a flag has its default.

    Args:
        nas: the flags; the configuration is kept there too.
        model_arguments: with `model_name_or_path`.
        metric_scale: value of the task's metric that is 100 percent: 1 for fractions, 100 for percent.

    Raises:
        ValueError: if it cannot be read, or the flags ask for what it does not describe.
    """
    if nas.eftnas.nncf_config is None:
        if nas.eftnas.nncf_compat:
            raise ValueError("nncf_compat is True, but there is no configuration to train by; add --nncf_config.")
        if nas.eftnas.reorg_cache_model is not None:
            _fill(nas.super_network, importance="movement")
        return
    config = nas.config = NncfConfig.load(nas.eftnas.nncf_config)
    _fill(model_arguments, model_name_or_path=config.model_name_or_path)
    _fill(nas.distillation, kd_teacher_model=config.kd_teacher_model, kd_temperature=config.kd_temperature)
    _fill(nas.eftnas, movement_num_train_epochs=config.movement_sparsity_total_epochs)
    if config.training is not None:
        _fill(nas.super_network, sampling_strategy="sandwich")
        if config.training.width.overwrite_groups_widths is None and config.movement is not None:
            _fill(nas.super_network, search_space="generated")
    if nas.eftnas.reorg_cache_model is not None or config.movement is not None:
        _fill(nas.super_network, importance="movement")
    if config.search is not None:
        options = published_search(config)
        _fill(
            nas.search,
            search_strategy=options["method"],
            num_samples=options["num_samples"],
            search_objectives=["error", "macs"],
        )
        demands = (nas.search.max_params_ratio, nas.search.max_macs_ratio, nas.search.min_metric)
        if all(demand is None for demand in demands):
            settings = config.search
            _fill(nas.search, **published_demands(settings.ref_acc, settings.acc_delta, metric_scale=metric_scale))


def published_search(config: NncfConfig) -> dict[str, Any]:
    """The search that a configuration describes: `method`, `num_samples`, `seed` and `method_options`."""
    settings = config.search
    return published_nsga2(
        num_evals=settings.num_evals,
        population=settings.population,
        seed=settings.seed,
        crossover_prob=settings.crossover_prob,
        mutation_prob=settings.mutation_prob,
        crossover_eta=settings.crossover_eta,
        mutation_eta=settings.mutation_eta,
    )


def _fill(arguments: Any, **values: Any) -> None:
    """Set those fields that have their default, to values that are not None."""
    defaults = type(arguments)()
    names = {field.name for field in fields(arguments)}
    for name, value in values.items():
        if name in names and value is not None and getattr(arguments, name) == getattr(defaults, name):
            setattr(arguments, name, value)


def old_groups(space: SearchSpace) -> WidthGroups:
    """The numbers that the published files give to the sub-layers of a space of widths."""
    structure = space.structure
    names = [s.name for kind in ("attention", "feed_forward") for s in structure if s.kind == kind and s.units]
    choices = {dimension.name: dimension.choices for dimension in space.dimensions}
    widths = [
        [count * structure[name].features for count in choices.get(name, (structure[name].units,)) if count]
        for name in names
    ]
    blocks = [name for name in names if 0 in choices.get(name, ())]
    return WidthGroups.of(structure, names=names, widths=widths, blocks=blocks or None)


def plan_super_network(
    nas: NasArguments,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    model_init: Callable[[], PreTrainedModel],
    *,
    sequence_length: int,
    **trainer_arguments: Any,
) -> SuperNetworkPlan:
    """Do what comes before the training of a super-network, as far as it is not done already.

    Writes `movement_sparsity/` and `search_space.json` into the output folder. Scores that are there are not learnt
    again.

    Args:
        nas: what to do.
        arguments: of the training of the super-network; the importance training goes by them too.
        model: that becomes the super-network.
        model_init: makes a fresh copy of it, on which importance is learnt.
        sequence_length: number of tokens for which MACs are counted, where no configuration says it.
        trainer_arguments: of the importance training, such as data, tokenizer and teacher.

    Raises:
        ValueError: if the configuration, the scores or the sizes asked for do not fit the model.
    """
    if nas.search.checkpoint_dir_model is not None:
        return SuperNetworkPlan(_space_of_trained(nas, model, Path(nas.search.checkpoint_dir_model)))
    if not nas.is_elastic and not nas.eftnas.only_generate_importance_weight:
        return SuperNetworkPlan()
    folder = Path(arguments.output_dir)
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
    if nas.super_network.search_space == "generated":
        length = sequence_length if nas.config is None else nas.config.sequence_length
        space = _generated(nas.eftnas, movement, model, length, folder if arguments.should_save else None)
        return SuperNetworkPlan(space, _stages(nas, model, space), scores)
    return SuperNetworkPlan(None, _stages(nas, model, None), scores)


def _space_of_trained(nas: NasArguments, model: PreTrainedModel, folder: Path) -> SearchSpace | None:
    """The search space of a super-network that was trained before, if it has none of a name."""
    if nas.config is not None and nas.config.training is not None and nas.super_network.search_space != "generated":
        return nncf_space(nas.config, model, nas.config.training.schedule.stages[-1])
    if nas.super_network.search_space != "generated":
        return None
    path = folder / SPACE_FILE
    if not path.exists():
        raise ValueError(
            f"The super-network in '{folder}' has no generated space ({SPACE_FILE}); give the search_space that it "
            "was trained on."
        )
    return CustomSpace.load(path, describe(model))


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
    given = nas.config.movement if nas.config is not None else None

    def settings(model: PreTrainedModel) -> MovementSettings:
        if given is not None:
            return given
        return MovementSettings.for_model(
            model,
            eftnas.movement_warmup_start_epoch,
            eftnas.movement_warmup_end_epoch,
            eftnas.importance_regularization_factor,
        )

    warmup_end = eftnas.movement_warmup_end_epoch if given is None else given.warmup_end_epoch
    return learn_importance(
        model_init,
        settings,
        arguments,
        folder / MOVEMENT_FOLDER,
        num_train_epochs=eftnas.movement_num_train_epochs or 2 * warmup_end,
        **trainer_arguments,
    )


def _generated(
    eftnas: EftnasArguments,
    movement: MovementScores,
    model: PreTrainedModel,
    sequence_length: int,
    folder: Path | None,
) -> SearchSpace:
    generated = generate_space(
        movement,
        model,
        sequence_length,
        largest=eftnas.space_largest,
        smallest=eftnas.space_smallest,
        count=eftnas.space_count,
        tolerance=eftnas.space_tolerance,
        width_multiple=eftnas.space_width_multiple,
    )
    if folder is not None:
        generated.space.save(folder / SPACE_FILE)
    for network in generated.networks:
        logger.info("Generated space: %d MACs above the threshold %g.", network.macs, network.threshold)
    return generated.space


def _stages(nas: NasArguments, model: PreTrainedModel, space: SearchSpace | None) -> StagedTraining | None:
    """The stages of the configuration; all in one space if that was generated."""
    if nas.config is None or nas.config.training is None:
        return None
    schedule = nas.config.training.schedule
    if space is not None:
        spaces = (space,) * len(schedule.stages)
    else:
        spaces = tuple(nncf_space(nas.config, model, stage) for stage in schedule.stages)
    return StagedTraining(
        schedule,
        spaces,
        functools.partial(filter_importance, norm=nas.config.training.width.filter_importance),
        compat=nas.eftnas.nncf_compat,
    )
