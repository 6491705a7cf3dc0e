"""What a sub-network costs: parameters, operations and memory counted without building it, and measured latency."""

from hf_nas.profiling.latency import Latency, example_inputs, measure_latencies, measure_latency, time_interleaved
from hf_nas.profiling.latency_table import LatencyError, LatencyTable
from hf_nas.profiling.memory import MemoryTable, peak_activation_bytes
from hf_nas.profiling.probes import LatencyPlan, shrink
from hf_nas.profiling.size import Parts, SizeTable
from hf_nas.profiling.unit_costs import UnitCosts, linear_costs, mac_costs, parameter_costs, published_costs


__all__ = [
    "Latency",
    "LatencyError",
    "LatencyPlan",
    "LatencyTable",
    "MemoryTable",
    "Parts",
    "SizeTable",
    "UnitCosts",
    "example_inputs",
    "linear_costs",
    "mac_costs",
    "measure_latencies",
    "measure_latency",
    "parameter_costs",
    "peak_activation_bytes",
    "published_costs",
    "shrink",
    "time_interleaved",
]
