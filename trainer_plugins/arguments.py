"""Argument dataclasses for `HfArgumentParser`. Names and defaults follow the published weight-sharing NAS scripts."""

from dataclasses import dataclass, field

from transformers import PreTrainedModel

from hf_nas.elastic import get_strategy
from hf_nas.importance import get_importance
from hf_nas.search import get_search_method
from hf_nas.space import get_sampler, get_search_space
from hf_nas.structures import describe


@dataclass
class SuperNetworkArguments:
    """How the super-network is trained; without `--sampling_strategy` the plain model is."""

    sampling_strategy: str | None = field(
        default=None,
        metadata={
            "help": "Train a super-network with this strategy: standard, random, linear_random, one_shot, sandwich, "
            "kd, or one registered by you. Not given: plain fine-tuning."
        },
    )
    search_space: str = field(
        default="small",
        metadata={"help": "Search space: small, medium, large, layer, or the path of a JSON file with your own."},
    )
    num_random_sub_nets: int = field(
        default=1,
        metadata={"help": "Random sub-networks a training step, for the strategies that draw some (the paper: 2)."},
    )
    temperature: float = field(
        default=10.0, metadata={"help": "Temperature of the distillation loss of one_shot and kd."}
    )
    sub_network_sampling: str = field(
        default="stratified",
        metadata={
            "help": "How random sub-networks are drawn: stratified (every size equally often) or published (every "
            "dimension of the space uniformly, which in medium and large rarely leaves 50 to 70 percent of the size)."
        },
    )
    importance: str = field(
        default="magnitude",
        metadata={
            "help": "Reorder heads and neurons by this importance before training, so that a sub-network of k units "
            "keeps the k best: magnitude, or none."
        },
    )


@dataclass
class SearchArguments:
    """How the trained super-network is searched and which sub-network is handed over."""

    do_search: bool = field(default=False, metadata={"help": "Search sub-networks after training."})
    search_strategy: str = field(
        default="random_search",
        metadata={"help": "Search method: random_search, nsga2, local_search, or one registered by you."},
    )
    num_samples: int = field(default=100, metadata={"help": "Sub-networks to evaluate."})
    checkpoint_dir_model: str | None = field(
        default=None,
        metadata={"help": "Folder of a trained super-network to search, when it is not trained in the same run."},
    )
    selection_split: float = field(
        default=0.15,
        metadata={
            "help": "Share of the training set that is held out of training and on which sub-networks are compared; "
            "the published split is 0.3. At most --max_selection_samples of it are used for the comparison."
        },
    )
    max_selection_samples: int | None = field(
        default=2048, metadata={"help": "At most this many examples of the selection set are used in the search."}
    )
    max_params_ratio: float | None = field(
        default=None,
        metadata={"help": "Choose the best sub-network with at most this share of the encoder's parameters."},
    )
    max_macs_ratio: float | None = field(
        default=None, metadata={"help": "Choose the best sub-network with at most this share of the MACs."}
    )
    min_metric: float | None = field(
        default=None, metadata={"help": "Choose the smallest sub-network with at least this selection metric."}
    )


def check_arguments(super_network: SuperNetworkArguments, search: SearchArguments, model: PreTrainedModel) -> None:
    """Refuse what cannot work, before anything is tokenised or trained.

    Args:
        super_network: how to train.
        search: how to search.
        model: the model that would be trained or searched.

    Raises:
        ValueError: for an unknown strategy, space, sampling, importance or search method, and numbers out of range.
    """
    if super_network.sampling_strategy is None and not search.do_search:
        return
    structure = describe(model)
    space = get_search_space(super_network.search_space, structure)
    sampler = get_sampler(super_network.sub_network_sampling, space, lambda sub_network: 0.0)
    if super_network.sampling_strategy is not None:
        get_strategy(super_network.sampling_strategy)
    if super_network.importance != "none":
        get_importance(super_network.importance)
    _at_least("num_random_sub_nets", super_network.num_random_sub_nets, 1)
    _in_range("temperature", super_network.temperature, 0.0, None)
    if search.do_search:
        get_search_method(search.search_strategy, space, sampler)
        _at_least("num_samples", search.num_samples, 1)
        if search.max_selection_samples is not None:
            _at_least("max_selection_samples", search.max_selection_samples, 1)
        for name in ("max_params_ratio", "max_macs_ratio"):
            if (value := getattr(search, name)) is not None:
                _in_range(name, value, 0.0, 1.0)
    if not 0.0 < search.selection_split < 1.0:
        raise ValueError(f"selection_split is {search.selection_split}; choose a share between 0 and 1, such as 0.3.")


def _at_least(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise ValueError(f"{name} is {value}; choose {lowest} or more.")


def _in_range(name: str, value: float, low: float, high: float | None) -> None:
    if value <= low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}; choose a number above {low:g}{f' and up to {high:g}' if high else ''}.")
