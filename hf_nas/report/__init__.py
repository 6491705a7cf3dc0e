"""Reports: the numbers first, then the pictures of them, and all that is written when a search ends."""

from hf_nas.report.data import FrontRow, FrontTable
from hf_nas.report.handover import RelativeSizes, SearchOutcome, fully_evaluated, hand_over, read_outcome
from hf_nas.report.plots import plot_front, plot_progress
from hf_nas.report.progress import ProgressFront, ProgressStep, SearchProgress


__all__ = [
    "FrontRow",
    "FrontTable",
    "ProgressFront",
    "ProgressStep",
    "RelativeSizes",
    "SearchOutcome",
    "SearchProgress",
    "fully_evaluated",
    "hand_over",
    "plot_front",
    "plot_progress",
    "read_outcome",
]
