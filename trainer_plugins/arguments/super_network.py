"""Arguments of the training of a super-network for `HfArgumentParser`."""

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
        metadata={
            "help": "Search space: small, medium, large, layer, the path of a JSON file with your own, or generated "
            "(from movement scores). Of a --checkpoint_dir_model by default the one that it was trained in."
        },
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
            "keeps the k best: magnitude, gradient, movement (learnt in a training before this one), or none."
        },
    )
    importance_batches: int = field(
        default=32, metadata={"help": "Batches of the training set that an importance which needs data looks at."}
    )
