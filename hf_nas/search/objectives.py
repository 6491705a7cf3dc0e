"""What a search minimises: named costs of an evaluated sub-network, and limits on those known before."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hf_nas.profiling import LatencyTable, MemoryTable, Parts, SizeTable
from hf_nas.subnetwork import SubNetwork


_ENCODER = Parts.encoder()


__all__ = [
    "Constraint",
    "Objective",
    "ObjectiveSources",
    "check_constraints",
    "error_objective",
    "get_constraints",
    "get_objectives",
    "is_allowed",
    "known_objectives",
    "latency_objective",
    "macs_objective",
    "memory_objective",
    "parameters_objective",
    "register_objective",
]


@dataclass(frozen=True)
class Objective:
    """One quantity to minimise.

    Args:
        name: in files and tables.
        cost: of a sub-network and the metrics of its evaluation; a value that is not a number counts as infinite.
        needs_metrics: whether it is known only once the sub-network was evaluated.
    """

    name: str
    cost: Callable[[SubNetwork, Mapping[str, float]], float]
    needs_metrics: bool = False


def error_objective(metric_name: str, greater_is_better: bool = True) -> Objective:
    """The error by one metric of the evaluation: 1 - metric, or the metric itself where lower is better.

    A metric that is not a number counts as error 1: a network that predicts a constant has no correlation with
    anything. Of a correlation that can be negative, the error can exceed 1. Where lower is better there is no such
    error, and it counts as infinite.
    """

    def cost(sub_network: SubNetwork, metrics: Mapping[str, float]) -> float:
        if metric_name not in metrics:
            raise ValueError(
                f"The evaluation returned no metric {metric_name!r} but {sorted(metrics)}; search by one of these."
            )
        value = float(metrics[metric_name])
        if math.isnan(value):
            return 1.0 if greater_is_better else math.inf
        return 1.0 - value if greater_is_better else value

    return Objective("error", cost, needs_metrics=True)


def parameters_objective(size_table: SizeTable, parts: Parts = _ENCODER) -> Objective:
    """The number of parameters as a fraction of the full network's.

    Args:
        size_table: of the model.
        parts: which parameters count; by default those inside the layers.
    """
    largest = size_table.parameters(SubNetwork.full(size_table.structure), parts)
    return Objective("parameters", lambda sub_network, _: size_table.parameters(sub_network, parts) / largest)


def macs_objective(size_table: SizeTable, sequence_length: int, decoder_length: int | None = None) -> Objective:
    """The multiply-accumulate operations a sequence as a fraction of the full network's.

    Args:
        size_table: of the model.
        sequence_length: in tokens.
        decoder_length: tokens of the decoder of an encoder-decoder, by default the same.
    """
    lengths = (sequence_length, decoder_length)
    largest = size_table.macs(SubNetwork.full(size_table.structure), *lengths)
    return Objective("macs", lambda sub_network, _: size_table.macs(sub_network, *lengths) / largest)


def latency_objective(latency_table: LatencyTable) -> Objective:
    """The predicted latency as a fraction of the full network's.

    Args:
        latency_table: of the model, for the device, batch size and length that count.
    """
    largest = latency_table.predict(SubNetwork.full(latency_table.structure))
    return Objective("latency", lambda sub_network, _: latency_table.predict(sub_network) / largest)


def memory_objective(memory_table: MemoryTable) -> Objective:
    """The bytes of parameters and activations as a fraction of the full network's.

    Args:
        memory_table: of the model, for the batch size and length that count.
    """
    largest = memory_table.total_bytes(SubNetwork.full(memory_table.structure))
    return Objective("memory", lambda sub_network, _: memory_table.total_bytes(sub_network) / largest)


@dataclass(frozen=True)
class ObjectiveSources:
    """What objectives are made of. Tables are made when an objective needs them, and once.

    Args:
        error: the error of the task.
        size_table: of the model.
        sequence_length: at which operations are counted, in tokens.
        make_latency_table: measures or loads the table of latencies.
        make_memory_table: measures the table of memory.
        decoder_length: tokens of the decoder of an encoder-decoder, by default the same as `sequence_length`.
    """

    error: Objective
    size_table: SizeTable
    sequence_length: int
    make_latency_table: Callable[[], LatencyTable] | None = None
    make_memory_table: Callable[[], MemoryTable] | None = None
    decoder_length: int | None = None

    @cached_property
    def latency_table(self) -> LatencyTable:
        """The latency table.

        Raises:
            ValueError: if there is no way to make one.
        """
        return _made("latency", "latency_table", self.make_latency_table)

    @cached_property
    def memory_table(self) -> MemoryTable:
        """The memory table.

        Raises:
            ValueError: if there is no way to make one.
        """
        return _made("memory", "memory_table", self.make_memory_table)


def _made(objective: str, table: str, make: Callable | None):
    if make is None:
        raise ValueError(f"The objective {objective!r} needs a table of the model; give make_{table}.")
    return make()


ObjectiveFactory = Callable[[ObjectiveSources], Objective]

_OBJECTIVES: dict[str, ObjectiveFactory] = {
    "error": lambda sources: sources.error,
    "params": lambda sources: parameters_objective(sources.size_table),
    "macs": lambda sources: macs_objective(sources.size_table, sources.sequence_length, sources.decoder_length),
    "latency": lambda sources: latency_objective(sources.latency_table),
    "memory": lambda sources: memory_objective(sources.memory_table),
}


def known_objectives() -> tuple[str, ...]:
    """The name of every known objective, the error first."""
    return tuple(_OBJECTIVES)


def register_objective(name: str, factory: ObjectiveFactory) -> None:
    """Make an objective known by name, so that a search can minimise it.

    Args:
        name: of the objective. One that is already known is replaced.
        factory: makes the objective.
    """
    _OBJECTIVES[name] = factory


def get_objectives(names: Sequence[str], sources: ObjectiveSources) -> list[Objective]:
    """The objectives of these names, the error first, the others in the given order.

    Args:
        names: two or more of [`known_objectives`], the error among them.
        sources: what they are made of.

    Raises:
        ValueError: for fewer, an unknown or repeated name, no error, or a table that is missing.
    """
    names = list(names)
    for name in names:
        if name not in _OBJECTIVES:
            raise ValueError(f"There is no objective {name!r}; choose from {', '.join(map(repr, _OBJECTIVES))}.")
    if len(names) < 2 or len(set(names)) < len(names) or "error" not in names:
        raise ValueError(f"The objectives are {names}; give 'error' and one or more others, each once.")
    return [_OBJECTIVES[name](sources) for name in sorted(names, key=lambda name: name != "error")]


@dataclass(frozen=True)
class Constraint:
    """A limit on an objective that is known before a sub-network is evaluated.

    Args:
        objective: that needs no metrics: any but the error.
        limit: its largest value that is allowed, above 0.

    Raises:
        ValueError: for the error, or a limit that is not above 0.
    """

    objective: Objective
    limit: float

    def __post_init__(self):
        if self.objective.name == "error":
            raise ValueError("The error is known only once a sub-network was evaluated; limit another objective.")
        if not self.limit > 0:
            raise ValueError(f"The limit of {self.objective.name} is {self.limit}; give a number above 0.")

    def value(self, sub_network: SubNetwork) -> float:
        """What is limited."""
        return float(self.objective.cost(sub_network, {}))

    def allows(self, sub_network: SubNetwork) -> bool:
        """Whether a sub-network is within the limit."""
        return self.value(sub_network) <= self.limit


def get_constraints(limits: Mapping[str, float | None], sources: ObjectiveSources) -> list[Constraint]:
    """The constraints for limits by the name of an objective; None stands for no limit.

    Args:
        limits: e.g. `{"params": 0.5, "latency": None}`, as fractions of the full network.
        sources: what the objectives are made of.

    Raises:
        ValueError: for an unknown objective, the error, a limit that is not above 0, or a table that is missing.
    """
    for name in limits:
        if name not in _OBJECTIVES:
            raise ValueError(f"There is no objective {name!r}; choose from {', '.join(map(repr, _OBJECTIVES))}.")
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return [Constraint(_OBJECTIVES[name](sources), limit) for name, limit in given.items()]


def is_allowed(constraints: Sequence[Constraint], sub_network: SubNetwork) -> bool:
    """Whether a sub-network is within all limits."""
    return all(constraint.allows(sub_network) for constraint in constraints)


def check_constraints(constraints: Sequence[Constraint], smallest: SubNetwork) -> None:
    """Refuse limits before a search that even the smallest sub-network of its space exceeds.

    Args:
        constraints: of the search.
        smallest: the smallest sub-network of the space.

    Raises:
        ValueError: for such a limit.
    """
    for constraint in constraints:
        value = constraint.value(smallest)
        if value > constraint.limit:
            raise ValueError(
                f"The limit of {constraint.objective.name} is {constraint.limit}, but the smallest sub-network of the "
                f"search space has {value:.4f}; raise the limit or choose a space with smaller ones."
            )
