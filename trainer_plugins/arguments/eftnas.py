"""Arguments of EFTNAS for `HfArgumentParser`: the published flags, and a few more."""

from dataclasses import dataclass, field


@dataclass
class EftnasArguments:
    """The steps of EFTNAS: importance by movement sparsity, a search space made from it, training in stages."""

    nncf_config: str | None = field(
        default=None,
        metadata={
            "help": "Configuration of NNCF 2.x with movement sparsity, search space, stages and search. Its values "
            "apply where a flag has its default."
        },
    )
    nncf_compat: bool = field(
        default=False,
        metadata={"help": "Train with the learning rates and the optimizer of the published code, faults included."},
    )
    reorg_cache_model: str | None = field(
        default=None,
        metadata={"help": "Importance scores learnt before (file or folder), in our format or as pytorch_model.bin."},
    )
    only_generate_importance_weight: bool = field(
        default=False, metadata={"help": "Learn the importance by movement sparsity, and stop."}
    )
    movement_warmup_start_epoch: float = field(
        default=1.0, metadata={"help": "Epoch at which the threshold of movement sparsity begins to rise."}
    )
    movement_warmup_end_epoch: float = field(
        default=3.0, metadata={"help": "Epoch at which it is reached and the scores are final."}
    )
    movement_num_train_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Epochs over which the learning rate of movement sparsity falls to 0; it stops after the warm-up. "
            "Default: twice the end of the warm-up, as published (with --only_generate_importance_weight "
            "--num_train_epochs, if that is given)."
        },
    )
    importance_regularization_factor: float = field(
        default=0.02, metadata={"help": "Weight of the regularisation of the movement scores."}
    )
    unit_ranking: str = field(
        default="all",
        metadata={
            "help": "What of the movement scores orders the units: all of them; kept (the threshold up to which a "
            "unit stays); or published (those of query, key and value or of the first feed-forward projection, "
            "without biases)."
        },
    )
    space_largest: float = field(
        default=1.0,
        metadata={
            "help": "Largest size in a generated space: up to 1 a share of the model's MACs, above 1 millions of "
            "MACs; counted at the longest inputs or, with --nncf_config, at its lengths."
        },
    )
    space_smallest: float = field(default=0.4, metadata={"help": "Smallest size in a generated space, likewise."})
    space_count: int = field(default=5, metadata={"help": "Sizes from which a space is generated."})
    space_tolerance: float = field(
        default=0.01,
        metadata={"help": "How far these sizes may be off, likewise; small models with few heads need more."},
    )
    space_width_multiple: int = field(
        default=1, metadata={"help": "Round numbers of neurons in a generated space up to a multiple of this."}
    )
