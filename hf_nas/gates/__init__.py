"""Gates: a multiplier for each unit, attached by hooks; trainable ones, and the budget that they are pruned to."""

from hf_nas.gates.budget import BudgetController
from hf_nas.gates.fold import fold
from hf_nas.gates.hard_concrete import HardConcrete
from hf_nas.gates.hooks import Gates, binary_gates
from hf_nas.gates.kinds import KINDS, parse_kinds
from hf_nas.gates.projection import project
from hf_nas.gates.sparsity import PublishedSparsity, published_sparsity
from hf_nas.gates.unit_gates import UnitGates
from hf_nas.gates.values import GateValues


__all__ = [
    "KINDS",
    "BudgetController",
    "GateValues",
    "Gates",
    "HardConcrete",
    "PublishedSparsity",
    "UnitGates",
    "binary_gates",
    "fold",
    "parse_kinds",
    "project",
    "published_sparsity",
]
