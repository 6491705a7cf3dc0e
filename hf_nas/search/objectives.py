"""What a search minimises: named costs of an evaluated sub-network."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hf_nas.profiling import Parts, SizeTable
from hf_nas.subnetwork import SubNetwork


_ENCODER = Parts.encoder()


__all__ = ["Objective", "error_objective", "macs_objective", "parameters_objective"]


@dataclass(frozen=True)
class Objective:
    """One quantity to minimise.

    Args:
        name: in files and tables.
        cost: of a sub-network and the metrics of its evaluation; a value that is not a number counts as infinite.
    """

    name: str
    cost: Callable[[SubNetwork, Mapping[str, float]], float]


def error_objective(metric_name: str, greater_is_better: bool = True) -> Objective:
    """The error by one metric of the evaluation: 1 - metric, or the metric itself where lower is better.

    A metric that is not a number counts as error 1: a network that predicts a constant has no correlation with
    anything. Of a correlation that can be negative, the error can exceed 1.
    """

    def cost(sub_network: SubNetwork, metrics: Mapping[str, float]) -> float:
        if metric_name not in metrics:
            raise ValueError(
                f"The evaluation returned no metric {metric_name!r} but {sorted(metrics)}; search by one of these."
            )
        value = float(metrics[metric_name])
        if math.isnan(value):
            return 1.0
        return 1.0 - value if greater_is_better else value

    return Objective("error", cost)


def parameters_objective(size_table: SizeTable, parts: Parts = _ENCODER) -> Objective:
    """The number of parameters as a fraction of the full network's.

    Args:
        size_table: of the model.
        parts: which parameters count; by default those inside the layers.
    """
    largest = size_table.parameters(SubNetwork.full(size_table.structure), parts)
    return Objective("parameters", lambda sub_network, _: size_table.parameters(sub_network, parts) / largest)


def macs_objective(size_table: SizeTable, sequence_length: int) -> Objective:
    """The multiply-accumulate operations a sequence as a fraction of the full network's.

    Args:
        size_table: of the model.
        sequence_length: in tokens.
    """
    largest = size_table.macs(SubNetwork.full(size_table.structure), sequence_length)
    return Objective("macs", lambda sub_network, _: size_table.macs(sub_network, sequence_length) / largest)
