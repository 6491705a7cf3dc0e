"""Several methods on one task: what their runs left, on common axes, as a table and as a picture."""

from hf_nas.report.compare.common_axes import compare_runs
from hf_nas.report.compare.comparison import ComparedModel, Comparison, DenseModel
from hf_nas.report.compare.folders import MeasuredModel, RunResults, read_run
from hf_nas.report.compare.plot import plot_comparison
from hf_nas.report.compare.series import Series, SeriesPoint


__all__ = [
    "ComparedModel",
    "Comparison",
    "DenseModel",
    "MeasuredModel",
    "RunResults",
    "Series",
    "SeriesPoint",
    "compare_runs",
    "plot_comparison",
    "read_run",
]
