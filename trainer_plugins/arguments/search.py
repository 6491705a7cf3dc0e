"""Arguments of a search for `HfArgumentParser`; names and defaults follow the published scripts."""

from dataclasses import dataclass, field


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
        metadata={
            "help": "Folder of a trained super-network to search, when it is not trained in the same run. Where no "
            "flag says otherwise, it is searched in the space that it was trained in."
        },
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
        metadata={
            "help": "Search only sub-networks with at most this share of the MACs and choose the best; counted at the "
            "mean length of the selection set or, with --nncf_config, at its lengths."
        },
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
