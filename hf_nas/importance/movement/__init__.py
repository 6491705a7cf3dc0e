"""Movement sparsity: importance learnt beside the weights, by whether they move towards or away from zero."""

from hf_nas.importance.movement.masking import Masks
from hf_nas.importance.movement.resolution import kept_units, resolve, write_report
from hf_nas.importance.movement.schedule import MovementSchedule, Stage
from hf_nas.importance.movement.scores import MovementScores, keep_thresholds, unit_scores
from hf_nas.importance.movement.settings import MovementSettings
from hf_nas.importance.movement.sparsity import MovementSparsity
from hf_nas.importance.movement.structure import SparseStructure


__all__ = [
    "Masks",
    "MovementSchedule",
    "MovementScores",
    "MovementSettings",
    "MovementSparsity",
    "SparseStructure",
    "Stage",
    "keep_thresholds",
    "kept_units",
    "resolve",
    "unit_scores",
    "write_report",
]
