"""How an NNCF 2.x configuration and the flags beside it become one: it speaks where a flag has its default."""

import logging
from dataclasses import fields, replace
from typing import Any

from transformers import PreTrainedModel

from hf_nas.importance.movement import MovementSettings
from hf_nas.nncf_config import NncfConfig
from hf_nas.search import published_demands, published_nsga2
from trainer_plugins.arguments import NasArguments, SuperNetworkArguments


logger = logging.getLogger(__name__)

# The flags that say what the movement sparsity of a configuration says too.
MOVEMENT_FLAGS = {
    "movement_warmup_start_epoch": "warmup_start_epoch",
    "movement_warmup_end_epoch": "warmup_end_epoch",
    "importance_regularization_factor": "importance_regularization_factor",
}


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
    if config.movement is not None:
        _fill(nas.eftnas, **{flag: getattr(config.movement, key) for flag, key in MOVEMENT_FLAGS.items()})
    if config.training is not None:
        _fill(nas.super_network, sampling_strategy="sandwich")
        if not config.training.width.has_widths and config.movement is not None:
            logger.info(
                "%s gives no widths, so the search space is generated from what its movement sparsity finds.",
                config.source,
            )
            _fill(nas.super_network, search_space="generated")
        space = nas.super_network.search_space
        if space not in (SuperNetworkArguments().search_space, "generated"):
            raise ValueError(
                f"search_space is {space!r}, but the stages of {config.source} train the space that it describes; "
                "leave search_space out, or give 'generated'."
            )
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
        chosen_by = (*nas.search.constraints.values(), nas.search.min_metric)
        if all(demand is None for demand in chosen_by):
            settings = config.search
            _fill(nas.search, **published_demands(settings.ref_acc, settings.acc_delta, metric_scale=metric_scale))


def movement_settings(nas: NasArguments, model: PreTrainedModel) -> MovementSettings:
    """Movement sparsity as the flags say, and in all else the configuration, if there is one that has it."""
    values = {key: getattr(nas.eftnas, flag) for flag, key in MOVEMENT_FLAGS.items()}
    given = nas.config.movement if nas.config is not None else None
    return replace(given, **values) if given is not None else MovementSettings.for_model(model, **values)


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
