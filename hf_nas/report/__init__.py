"""Reports: the numbers first, then the pictures of them."""

from hf_nas.report.data import FrontRow, FrontTable
from hf_nas.report.plots import plot_front


__all__ = ["FrontRow", "FrontTable", "plot_front"]
