"""Reports: the numbers first, then the pictures of them, and all that is written when a search ends."""

from hf_nas.report.card_facts import CardFacts
from hf_nas.report.compare import (
    ComparedModel,
    Comparison,
    DenseModel,
    MeasuredModel,
    RunResults,
    Series,
    SeriesPoint,
    compare_runs,
    plot_comparison,
    read_run,
)
from hf_nas.report.data import FrontRow, FrontTable
from hf_nas.report.handover import RelativeSizes, hand_over
from hf_nas.report.machine import describe_conditions
from hf_nas.report.model_card import check_metadata, render_card, write_model_card
from hf_nas.report.outcome import SearchOutcome, fully_evaluated, read_outcome
from hf_nas.report.page import PAGE_FILE, render_page, write_page
from hf_nas.report.plots import plot_front, plot_progress
from hf_nas.report.profile import DEFINITIONS, profile_models
from hf_nas.report.profile_plot import plot_profile
from hf_nas.report.progress import ProgressFront, ProgressStep, SearchProgress
from hf_nas.report.run_folder import CARD_FILE, PROFILE_FILE, RunFolder, find_run_folder, find_small_model
from hf_nas.report.small_profile import add_profile, profile_small


__all__ = [
    "CARD_FILE",
    "CardFacts",
    "DEFINITIONS",
    "ComparedModel",
    "Comparison",
    "DenseModel",
    "FrontRow",
    "FrontTable",
    "PAGE_FILE",
    "PROFILE_FILE",
    "MeasuredModel",
    "ProgressFront",
    "ProgressStep",
    "RelativeSizes",
    "RunFolder",
    "RunResults",
    "SearchOutcome",
    "SearchProgress",
    "Series",
    "SeriesPoint",
    "add_profile",
    "check_metadata",
    "compare_runs",
    "describe_conditions",
    "find_run_folder",
    "find_small_model",
    "fully_evaluated",
    "hand_over",
    "plot_comparison",
    "plot_front",
    "plot_profile",
    "plot_progress",
    "profile_models",
    "profile_small",
    "read_outcome",
    "read_run",
    "render_card",
    "render_page",
    "write_model_card",
    "write_page",
]
