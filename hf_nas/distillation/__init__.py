"""Distillation: losses on logits, on layers, and logits of a teacher kept on disk. No teacher receives a gradient."""

from hf_nas.distillation.layer_outputs import LayerOutputs, position_mask, present_layers
from hf_nas.distillation.layers import (
    VERSIONS,
    LayerDistillation,
    LayerLoss,
    match_layers,
    teacher_layers,
)
from hf_nas.distillation.losses import (
    IGNORED_LABEL,
    in_place_loss,
    logits_of,
    soft_label_loss,
    task_and_teacher_loss,
    teacher_loss,
)
from hf_nas.distillation.objective import DistillationLoss, DistillationObjective
from hf_nas.distillation.teacher_cache import cache_teacher_logits
from hf_nas.distillation.teacher_logits import ROW_COLUMN, TeacherLogits


__all__ = [
    "IGNORED_LABEL",
    "ROW_COLUMN",
    "VERSIONS",
    "DistillationLoss",
    "DistillationObjective",
    "LayerDistillation",
    "LayerLoss",
    "LayerOutputs",
    "TeacherLogits",
    "cache_teacher_logits",
    "in_place_loss",
    "teacher_layers",
    "logits_of",
    "match_layers",
    "position_mask",
    "present_layers",
    "soft_label_loss",
    "task_and_teacher_loss",
    "teacher_loss",
]
