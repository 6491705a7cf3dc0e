"""What a sub-network costs: parameters, operations and memory counted without building it, and measured latency."""

from hf_nas.profiling.latency import Latency, example_inputs, measure_latencies, measure_latency, time_interleaved
from hf_nas.profiling.latency_table import LatencyError, LatencyTable
from hf_nas.profiling.memory import MemoryTable, peak_activation_bytes
from hf_nas.profiling.probes import LatencyPlan, shrink
from hf_nas.profiling.size import Parts, SizeTable


__all__ = [
    "Latency",
    "LatencyError",
    "LatencyPlan",
    "LatencyTable",
    "MemoryTable",
    "Parts",
    "SizeTable",
    "example_inputs",
    "measure_latencies",
    "measure_latency",
    "peak_activation_bytes",
    "shrink",
    "time_interleaved",
]
