"""Gates: a multiplier for each unit, attached by hooks; trainable ones, and the budget that they are pruned to."""

from hf_nas.gates.attachment import AttachedGates
from hf_nas.gates.budget import BudgetController
from hf_nas.gates.fold import fold
from hf_nas.gates.hard_concrete import HardConcrete
from hf_nas.gates.hooks import Gates, binary_gates
from hf_nas.gates.kinds import KINDS, parse_kinds
from hf_nas.gates.projection import project
from hf_nas.gates.sampled_gates import SampledGates
from hf_nas.gates.sparsity import PublishedSparsity, published_sparsity
from hf_nas.gates.subset_gates import SubsetGates
from hf_nas.gates.top_k import TemperatureSchedule, relaxed_knapsack, relaxed_top_k
from hf_nas.gates.unit_budgets import CostBudget, HeadBudget, head_costs, head_rows, kind_of_row
from hf_nas.gates.unit_gates import UnitGates
from hf_nas.gates.values import GateValues
from hf_nas.gates.voita import VoitaGates


__all__ = [
    "KINDS",
    "AttachedGates",
    "BudgetController",
    "CostBudget",
    "GateValues",
    "Gates",
    "HardConcrete",
    "HeadBudget",
    "PublishedSparsity",
    "SampledGates",
    "SubsetGates",
    "TemperatureSchedule",
    "UnitGates",
    "VoitaGates",
    "binary_gates",
    "fold",
    "head_costs",
    "head_rows",
    "kind_of_row",
    "parse_kinds",
    "project",
    "published_sparsity",
    "relaxed_knapsack",
    "relaxed_top_k",
]
