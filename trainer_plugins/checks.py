"""Refuses what cannot work, before anything is tokenised or trained."""

import contextlib
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from hf_nas.elastic import get_strategy
from hf_nas.importance import get_importance
from hf_nas.main_input import MainInput, SequenceLengths
from hf_nas.profiling import MemoryTable, SizeTable, example_inputs
from hf_nas.search import (
    ObjectiveSources,
    Racing,
    check_constraints,
    error_objective,
    get_constraints,
    get_search_method,
    known_objectives,
)
from hf_nas.space import SearchSpace, get_sampler, get_search_space
from hf_nas.structures import describe
from trainer_plugins.arguments import DistillationArguments, EftnasArguments, NasArguments, SearchArguments
from trainer_plugins.eftnas.plan import stages_of
from trainer_plugins.head_pruning.checks import check_fine_tuned, check_heads
from trainer_plugins.pruning.checks import check_prunable
from trainer_plugins.super_network.staged_training import check_order


NAS_TYPES = ("weight_sharing", "standard")
RANKINGS = ("all", "kept", "published")
# Tokens of the longest texts that are thought of where a model has no limit.
_LONGEST = 8192


def check_arguments(
    nas: NasArguments,
    model: PreTrainedModel,
    *,
    metric_name: str | None = None,
    greater_is_better: bool = True,
    metric_scale: float | None = None,
) -> None:
    """Refuse arguments that cannot work.

    Args:
        nas: what is asked for.
        model: the model that would be trained or searched.
        metric_name: by which sub-networks are compared; without it, what depends on it is refused by the search.
        greater_is_better: whether a larger one is better.
        metric_scale: the metric's value of a perfect model, where there is such a thing.

    Raises:
        ValueError: for an unknown strategy, space, sampling, importance, objective or search method, numbers out of
            range, and what the model cannot be searched by.
    """
    _check_distillation(nas.distillation)
    main_input = MainInput.of(model)
    lengths = _possible_lengths(model, main_input)
    _check_at_any(lengths, lambda each: check_prunable(nas.pruning, model, each.sequence_length))
    _check_at_any(lengths, lambda each: check_heads(nas.heads, model, nas.pruning, each))
    if nas.config is not None:
        main_input.check_length(nas.config.sequence_length)
    if nas.heads.needs_fine_tuned:
        check_fine_tuned(nas.heads, model, trains_weights=False)
    if not nas.needs_selection_set:
        return
    space = _check_super_network(nas, model)
    _check_eftnas(nas.eftnas)
    _check_scores(nas)
    if nas.search.do_search:
        _check_search(nas.search)
        _check_race(nas.search, metric_name, greater_is_better)
        wanted = nas.search.min_metric
        if wanted is not None and greater_is_better and metric_scale is not None and wanted > metric_scale:
            raise ValueError(f"min_metric is {wanted}, but {metric_name} is at most {metric_scale:g}; choose less.")
        _check_measures(nas.search, model, space)
    if not 0.0 < nas.search.selection_split < 1.0:
        raise ValueError(
            f"selection_split is {nas.search.selection_split}; choose a share between 0 and 1, such as 0.3."
        )


def check_limits(nas: NasArguments, model: PreTrainedModel, space: SearchSpace, longest: SequenceLengths) -> None:
    """Refuse limits that no sub-network of a space keeps, before the super-network is trained.

    Args:
        nas: with the limits; and with the lengths at which operations are counted, if there is a configuration.
        model: the super-network.
        space: that would be searched.
        longest: its longest inputs. How long the mean one is shows in the search.

    Raises:
        ValueError: for a limit on parameters, or on operations whatever the mean length.
    """
    ratios = {"params": nas.search.max_params_ratio, "macs": nas.search.max_macs_ratio}
    if nas.config is not None:
        lengths = [SequenceLengths(*nas.config.lengths)]
    elif MainInput.of(model).tokens is not None:
        lengths = [longest]
    else:
        written = {1, longest.decoder_length} if longest.decoder_length else {None}
        lengths = [SequenceLengths(read, each) for read in range(1, longest.sequence_length + 1) for each in written]
    table = SizeTable(model)

    def check(each: SequenceLengths) -> None:
        sources = ObjectiveSources(
            error_objective(""), table, each.sequence_length, decoder_length=each.decoder_length
        )
        check_constraints(get_constraints(ratios, sources), space.smallest)

    _check_at_any(lengths, check)


def _possible_lengths(model: PreTrainedModel, main_input: MainInput) -> tuple[SequenceLengths, ...]:
    """The shortest and the longest inputs: how long texts are is not known yet."""
    if main_input.tokens is not None:
        return (SequenceLengths(main_input.tokens),)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _LONGEST
    return SequenceLengths(1), SequenceLengths(longest)


def _check_at_any(lengths: Sequence[SequenceLengths], check: Callable[[SequenceLengths], None]) -> None:
    """Refuse what is refused at all of these lengths; shares of the operations rise or fall from one to the other."""
    for length in lengths[:-1]:
        with contextlib.suppress(ValueError):
            check(length)
            return
    check(lengths[-1])


def _check_super_network(nas: NasArguments, model: PreTrainedModel) -> SearchSpace | None:
    """The search space, if it is known before the training."""
    arguments = nas.super_network
    structure = describe(model)
    space = None
    if nas.config is not None and nas.config.training is not None:
        # All that can be said before the importance is learnt, which may take hours.
        check_order(nas.config.training.schedule)
        if arguments.search_space != "generated":
            stages_of(nas, model, None)
    elif arguments.search_space != "generated":
        space = get_search_space(arguments.search_space, structure)
        get_sampler(arguments.sub_network_sampling, space, lambda sub_network: 0.0)
    if arguments.sampling_strategy is not None:
        get_strategy(arguments.sampling_strategy)
    if arguments.importance not in ("none", "movement"):
        get_importance(arguments.importance)
    _at_least("num_random_sub_nets", arguments.num_random_sub_nets, 1)
    _at_least("importance_batches", arguments.importance_batches, 1)
    _in_range("temperature", arguments.temperature, 0.0, None)
    return space


def _check_distillation(arguments: DistillationArguments) -> None:
    if arguments.kd_mode not in ("original", "self_attention_distillation"):
        raise ValueError(f"kd_mode is {arguments.kd_mode!r}; choose 'original', which compares logits.")
    if arguments.kd_mode != "original":
        raise ValueError(
            f"kd_mode is {arguments.kd_mode!r}, but hf-nas does not compare attention maps, which sub-networks with "
            "fewer heads do not have; choose 'original', the logits."
        )
    _in_range("kd_temperature", arguments.kd_temperature, 0.0, None)
    if not 0.0 <= arguments.kd_task_weight <= 1.0:
        raise ValueError(f"kd_task_weight is {arguments.kd_task_weight}; choose a number from 0 to 1.")


def _check_eftnas(arguments: EftnasArguments) -> None:
    if arguments.unit_ranking not in RANKINGS:
        raise ValueError(f"unit_ranking is {arguments.unit_ranking!r}; choose one of {', '.join(RANKINGS)}.")
    if not 0 <= arguments.movement_warmup_start_epoch < arguments.movement_warmup_end_epoch:
        raise ValueError(
            f"movement_warmup_start_epoch is {arguments.movement_warmup_start_epoch:g} and movement_warmup_end_epoch "
            f"{arguments.movement_warmup_end_epoch:g}; choose a start of 0 or more before the end."
        )
    if arguments.reorg_cache_model is not None and arguments.only_generate_importance_weight:
        raise ValueError(
            f"reorg_cache_model '{arguments.reorg_cache_model}' gives the importance that "
            "only_generate_importance_weight would learn; leave out either of them."
        )
    _in_range("space_largest", arguments.space_largest, 0.0, None)
    _in_range("space_smallest", arguments.space_smallest, 0.0, None)
    _in_range("space_tolerance", arguments.space_tolerance, 0.0, None)
    _at_least("space_count", arguments.space_count, 2)
    _at_least("space_width_multiple", arguments.space_width_multiple, 1)


def _check_scores(nas: NasArguments) -> None:
    """Refuse scores that nothing reads."""
    is_read = nas.super_network.importance == "movement" or nas.super_network.search_space == "generated"
    if nas.eftnas.reorg_cache_model is not None and nas.is_elastic and not is_read:
        raise ValueError(
            f"reorg_cache_model '{nas.eftnas.reorg_cache_model}' has scores, but importance is "
            f"{nas.super_network.importance!r} and no space is generated; give importance 'movement', or leave it out."
        )


def _check_search(arguments: SearchArguments) -> None:
    if arguments.nas_type not in NAS_TYPES:
        raise ValueError(f"nas_type is {arguments.nas_type!r}; choose one of {', '.join(NAS_TYPES)}.")
    if arguments.search_strategy == "moasha" and arguments.nas_type != "standard":
        raise ValueError(
            f"search_strategy is 'moasha', which stops trainings early, but with nas_type {arguments.nas_type!r} no "
            "candidate is trained; add --nas_type standard, or choose another search method."
        )
    get_search_method(arguments.search_strategy, None, None)
    if arguments.num_samples is not None:
        _at_least("num_samples", arguments.num_samples, 1)
    if arguments.runtime is not None:
        _in_range("runtime", arguments.runtime, 0.0, None)
    _at_least("latency_batch_size", arguments.latency_batch_size, 1)
    if arguments.max_selection_samples is not None:
        _at_least("max_selection_samples", arguments.max_selection_samples, 1)
    for name in ("max_params_ratio", "max_macs_ratio", "max_latency_ratio"):
        if (value := getattr(arguments, name)) is not None:
            _in_range(name, value, 0.0, 1.0)
    names, known = arguments.search_objectives, known_objectives()
    wrong = [name for name in names if name not in known]
    if wrong or "error" not in names or len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"search_objectives are {' '.join(map(repr, names))}; give error and one or more of "
            f"{', '.join(name for name in known if name != 'error')}, each once."
        )
    if arguments.max_metric_drop is not None and arguments.max_metric_drop < 0:
        raise ValueError(f"max_metric_drop is {arguments.max_metric_drop}; choose 0 or more.")


def _check_race(arguments: SearchArguments, metric_name: str | None, greater_is_better: bool) -> None:
    if not arguments.race:
        return
    if arguments.nas_type == "standard":
        raise ValueError(
            "race is True, which gives up evaluations early, but with nas_type 'standard' it is the training that "
            "takes long; leave out --race, or choose the search strategy moasha."
        )
    if metric_name is not None:
        Racing(metric=metric_name)
        if not greater_is_better:
            raise ValueError(f"race is True, but of {metric_name!r} less is better; leave out --race.")


def _check_measures(arguments: SearchArguments, model: PreTrainedModel, space: SearchSpace | None) -> None:
    """Refuse what this model cannot be measured by, and a limit that its search space cannot keep."""
    objectives = arguments.search_objectives
    # As little as says whether it can be done: passes over one token, or one image.
    tokens = MainInput.of(model).tokens or 1
    if "latency" in objectives or arguments.max_latency_ratio is not None:
        example_inputs(model, arguments.latency_batch_size, tokens)
    if "memory" in objectives:
        MemoryTable(model, 1, tokens, widths=2)
    if space is not None:
        sources = ObjectiveSources(error_objective(""), SizeTable(model), tokens)
        check_constraints(get_constraints({"params": arguments.max_params_ratio}, sources), space.smallest)


def _at_least(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise ValueError(f"{name} is {value}; choose {lowest} or more.")


def _in_range(name: str, value: float, low: float, high: float | None) -> None:
    if value <= low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}; choose a number above {low:g}{f' and up to {high:g}' if high else ''}.")
