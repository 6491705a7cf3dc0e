"""All arguments of this library together, and what they say of a run."""

from collections.abc import Collection
from dataclasses import dataclass, field

from hf_nas.nncf_config import NncfConfig
from trainer_plugins.arguments.distillation import DistillationArguments
from trainer_plugins.arguments.eftnas import EftnasArguments
from trainer_plugins.arguments.head_pruning import HeadPruningArguments
from trainer_plugins.arguments.pruning import PruningArguments
from trainer_plugins.arguments.search import SearchArguments
from trainer_plugins.arguments.super_network import SuperNetworkArguments


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
