"""Argument dataclasses for `HfArgumentParser`. Names and defaults follow the published scripts."""

from collections.abc import Collection
from dataclasses import dataclass, field

from hf_nas.nncf_config import NncfConfig
from trainer_plugins.cofi_arguments import PruningArguments
from trainer_plugins.head_pruning_arguments import HeadPruningArguments


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
            "(from movement scores)."
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


@dataclass
class DistillationArguments:
    """By which teacher a model or super-network is taught, and how."""

    kd_teacher_model: str | None = field(
        default=None,
        metadata={"help": "Path or Hub name of a model fine-tuned on the same task, whose logits are learnt too."},
    )
    kd_mode: str = field(
        default="original", metadata={"help": "What is learnt of the teacher: original (its logits)."}
    )
    kd_temperature: float = field(default=2.0, metadata={"help": "Temperature of the teacher's logits."})
    kd_task_weight: float = field(
        default=0.1, metadata={"help": "Weight of the loss on the labels; that on the teacher's logits has the rest."}
    )


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
        default=1.0, metadata={"help": "Largest size in a generated space: share of the model's MACs, or MACs."}
    )
    space_smallest: float = field(default=0.4, metadata={"help": "Smallest size in a generated space."})
    space_count: int = field(default=5, metadata={"help": "Sizes from which a space is generated."})
    space_tolerance: float = field(
        default=0.01,
        metadata={"help": "How far these sizes may be off; small models with few heads need more than the default."},
    )
    space_width_multiple: int = field(
        default=1, metadata={"help": "Round numbers of neurons in a generated space up to a multiple of this."}
    )


@dataclass
class SearchArguments:
    """How sub-networks are searched and which one is handed over."""

    do_search: bool = field(default=False, metadata={"help": "Search sub-networks after training."})
    nas_type: str = field(
        default="weight_sharing",
        metadata={
            "help": "What is compared: weight_sharing (sub-networks of one trained super-network) or standard (every "
            "candidate is extracted from the pretrained model and fine-tuned on its own)."
        },
    )
    search_strategy: str = field(
        default="model_based",
        metadata={
            "help": "Search method: model_based, random_search, local_search, morea, nsga2, ehvi, additive, moasha "
            "(--nas_type standard only), or one registered by you."
        },
    )
    search_objectives: list[str] = field(
        default_factory=lambda: ["error", "params"],
        metadata={"help": "What the search minimises: error and one or more of params, macs, latency, memory."},
    )
    num_samples: int | None = field(
        default=None, metadata={"help": "Sub-networks to evaluate; 100 unless --runtime ends the search."}
    )
    runtime: float | None = field(
        default=None,
        metadata={"help": "Begin no evaluation once all of them together took so many seconds."},
    )
    search_storage: str | None = field(
        default=None,
        metadata={
            "help": "Where the search is recorded: path of a journal file, or URL of a database such as "
            "postgresql://user:password@host/name. Processes started with the same one share the search. "
            "Default: search/journal.log in output_dir."
        },
    )
    race: bool = field(
        default=False,
        metadata={
            "help": "Give up sub-networks early that hardly can reach the front any more, by a part of the selection "
            "set; for metrics that are means over examples."
        },
    )
    latency_batch_size: int = field(
        default=1, metadata={"help": "Sequences of the forward pass whose latency and memory count."}
    )
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
        metadata={
            "help": "Search only sub-networks with at most this share of the encoder's parameters and choose the best."
        },
    )
    max_macs_ratio: float | None = field(
        default=None,
        metadata={"help": "Search only sub-networks with at most this share of the MACs and choose the best."},
    )
    max_latency_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Search only sub-networks with at most this share of the latency, predicted for this machine, and "
            "choose the best."
        },
    )
    min_metric: float | None = field(
        default=None, metadata={"help": "Choose the smallest sub-network with at least this selection metric."}
    )
    max_metric_drop: float | None = field(
        default=None,
        metadata={
            "help": "Choose the sub-network with the fewest MACs that loses less than this of the reference metric."
        },
    )
    reference_metric: float | None = field(
        default=None, metadata={"help": "That reference; by default the selection metric of the largest sub-network."}
    )

    @property
    def most_samples(self) -> int | None:
        """The number of evaluations that ends the search, None if time alone does."""
        return 100 if self.num_samples is None and self.runtime is None else self.num_samples

    @property
    def limits(self) -> dict[str, float | None]:
        """The demands on the chosen sub-network, for [`hf_nas.report.hand_over`]."""
        names = (
            "max_params_ratio", "max_macs_ratio", "max_latency_ratio", "min_metric", "max_metric_drop",
            "reference_metric",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def constraints(self) -> dict[str, float | None]:
        """The limits that every searched sub-network keeps to, by objective."""
        return {"params": self.max_params_ratio, "macs": self.max_macs_ratio, "latency": self.max_latency_ratio}


@dataclass
class NasArguments:
    """Everything that is not in the scripts of transformers."""

    super_network: SuperNetworkArguments = field(default_factory=SuperNetworkArguments)
    distillation: DistillationArguments = field(default_factory=DistillationArguments)
    eftnas: EftnasArguments = field(default_factory=EftnasArguments)
    search: SearchArguments = field(default_factory=SearchArguments)
    pruning: PruningArguments = field(default_factory=PruningArguments)
    heads: HeadPruningArguments = field(default_factory=HeadPruningArguments)
    config: NncfConfig | None = None

    def __post_init__(self) -> None:
        # Two published systems have a flag of this name.
        temperature, ours = self.super_network.temperature, self.pruning.gate_temperature
        if self.pruning.prunes and temperature != SuperNetworkArguments().temperature:
            if ours not in (temperature, PruningArguments().gate_temperature):
                raise ValueError(
                    f"--temperature {temperature:g} and --gate_temperature {ours:g} name the same; give one."
                )
            self.pruning.gate_temperature = temperature
        path, teacher = self.pruning.distillation_path, self.distillation.kd_teacher_model
        if path is not None and teacher is not None and path != teacher:
            raise ValueError(
                f"--distillation_path '{path}' and --kd_teacher_model '{teacher}' name different teachers; give one."
            )
        self.distillation.kd_teacher_model = teacher if path is None else path

    @property
    def is_elastic(self) -> bool:
        """Whether a super-network is trained."""
        return self.super_network.sampling_strategy is not None

    @property
    def prunes(self) -> bool:
        """Whether units or heads are pruned, or something that was pruned is fine-tuned."""
        return self.pruning.is_active or self.heads.is_active

    @property
    def needs_selection_set(self) -> bool:
        """Whether examples are held out of the training to compare sub-networks on."""
        return self.is_elastic or self.search.do_search or self.eftnas.only_generate_importance_weight

    def metric_name(self, default: str, known: Collection[str] = ()) -> str:
        """The metric by which sub-networks are compared: the configuration's, or the task's.

        Args:
            default: the task's.
            known: all that the task has, as far as that is known.

        Raises:
            ValueError: if the configuration names another one.
        """
        named = self.config.search.eval_metric_name if self.config is not None and self.config.search else None
        if named is None:
            return default
        name = named.removeprefix("eval_")
        if known and name not in known:
            raise ValueError(
                f"{self.config.source} searches by the 'eval_metric_name' {named!r}, which the task does not have; "
                f"choose one of {', '.join(known)}, or remove it."
            )
        return name
