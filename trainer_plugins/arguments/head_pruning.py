"""Arguments of the pruning of heads for `HfArgumentParser`: the published flags, and a few more."""

from dataclasses import dataclass, field


METHODS = ("dsp", "voita", "michel")
# Published learning rates of the gates.
_GATE_RATES = {"dsp": 0.5, "voita": 0.1}


@dataclass
class HeadPruningArguments:
    """How attention heads are pruned; without `--pruning_method` none are.

    Names are those of the published code of differentiable subset pruning (Li, Cotterell and Sachan, 2021) and of the
    methods that it compares with (Voita et al., 2019; Michel et al., 2019). `num_of_heads` is the number of heads to
    keep for each of them. dsp also takes CoFi's `target_sparsity` and `pruning_budget` in its place.
    """

    pruning_method: str | None = field(
        default=None,
        metadata={
            "help": "Prune heads by dsp (differentiable subset pruning), voita (hard concrete gates with a penalty) "
            "or michel (importance by gradients of a fine-tuned model). Not given: no pruning of heads."
        },
    )
    num_of_heads: int | None = field(
        default=None,
        metadata={
            "help": "Heads to keep, over all attentions; under grouped-query attention key-value heads. dsp and "
            "michel need it or one of the next three; voita without them keeps what its gates leave open. For michel "
            "the published flag of this name was the number of heads to remove in a step, here --heads_per_step."
        },
    )
    num_of_heads_encoder_self: int | None = field(
        default=None,
        metadata={
            "help": "Heads to keep of the self-attentions of the encoder, in place of --num_of_heads; attentions for "
            "which no number is given keep all of their heads."
        },
    )
    num_of_heads_cross: int | None = field(
        default=None, metadata={"help": "The same for the cross-attentions of the decoder."}
    )
    num_of_heads_decoder_self: int | None = field(
        default=None, metadata={"help": "The same for the self-attentions of the decoder."}
    )
    gate_neurons: bool = field(
        default=False,
        metadata={
            "help": "Let dsp prune neurons of feed-forward networks together with heads, by --target_sparsity as the "
            "fraction of --pruning_budget (params or macs) that is removed."
        },
    )
    pruning_lr: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the gates, which falls as that of the weights. Default, as published: 0.5 for "
            "dsp, 0.1 for voita."
        },
    )
    annealing: bool = field(
        default=False,
        metadata={"help": "Let the temperature of dsp fall; needed unless --use_ste, since else nothing is learnt."},
    )
    initial_temperature: float = field(default=1000.0, metadata={"help": "Temperature of dsp at the beginning."})
    final_temperature: float = field(default=1e-8, metadata={"help": "Temperature of dsp from --cooldown_steps on."})
    cooldown_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps in which the temperature falls. Default: 68 percent of the training, which the "
            "published 25000 are of three epochs on MNLI (and the 8333 of one)."
        },
    )
    joint_pruning: bool = field(
        default=False,
        metadata={
            "help": "Train the weights together with the gates, from a pretrained model. Not given: train the gates "
            "alone, on a model that is fine-tuned already."
        },
    )
    use_ste: bool = field(
        default=False,
        metadata={"help": "Train dsp with the straight-through estimator, which has no temperature."},
    )
    l0_penalty: float | None = field(
        default=None,
        metadata={
            "help": "What voita charges for each gate that is expected to be open; the published runs had 0.0015 for "
            "BERT (and 0.5 as default). Not given: with --num_of_heads, Lagrange multipliers drive the gates to that "
            "number; without, 0.0015."
        },
    )
    exact_pruning: bool = field(
        default=False, metadata={"help": "Compute the importance of michel anew before each step of --heads_per_step."}
    )
    heads_per_step: int | None = field(
        default=None,
        metadata={
            "help": "Heads that michel removes at a time, and between the sub-networks of its front. Default: a "
            "twelfth of the heads, which the published 12 are of BERT-base."
        },
    )
    importance_per_example: bool = field(
        default=False,
        metadata={
            "help": "Take the mean over examples of absolute gradients, as the paper of michel does, in as many "
            "passes as there are examples. Not given: over batches of --per_device_train_batch_size, as its code."
        },
    )

    @property
    def is_active(self) -> bool:
        """Whether heads are pruned."""
        return self.pruning_method is not None

    @property
    def heads_by_kind(self) -> dict[str, int]:
        """The numbers of heads that are given for one kind of attention, by flag, in the published order."""
        names = ("num_of_heads_encoder_self", "num_of_heads_cross", "num_of_heads_decoder_self")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def trains_gates(self) -> bool:
        """Whether they are pruned by gates that are trained."""
        return self.pruning_method in _GATE_RATES

    @property
    def has_multipliers(self) -> bool:
        """Whether Lagrange multipliers drive gates of voita to a number of heads, as no penalty is given."""
        has_number = self.num_of_heads is not None or bool(self.heads_by_kind)
        return self.pruning_method == "voita" and has_number and self.l0_penalty is None

    @property
    def needs_fine_tuned(self) -> bool:
        """Whether weights are taken as they are, while gates are trained."""
        return self.trains_gates and not self.joint_pruning

    @property
    def gate_learning_rate(self) -> float:
        """The learning rate of the gates of a method that has some."""
        return _GATE_RATES[self.pruning_method] if self.pruning_lr is None else self.pruning_lr
