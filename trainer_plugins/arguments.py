"""Argument dataclasses for `HfArgumentParser`. Names and defaults follow the published weight-sharing NAS scripts."""

from dataclasses import dataclass, field


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
        default=2, metadata={"help": "Random sub-networks a training step, for the strategies that draw some."}
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
        default=0.3,
        metadata={
            "help": "Share of the training set that is held out of training and on which sub-networks are compared; "
            "0.3 is the published split. At most --max_selection_samples of it are used for the comparison."
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
