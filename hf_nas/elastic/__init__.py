"""Elastic execution: a stock model that computes as any of its sub-networks, and what to train of it in a step."""

from hf_nas.elastic.stages import GlobalLearningRate, Stage, StageSchedule
from hf_nas.elastic.strategies import Pass, TrainingStrategy, get_strategy, register_strategy
from hf_nas.elastic.supernetwork import SuperNetwork, is_elastic, plain_copy_of


__all__ = [
    "GlobalLearningRate",
    "Pass",
    "Stage",
    "StageSchedule",
    "SuperNetwork",
    "TrainingStrategy",
    "get_strategy",
    "is_elastic",
    "plain_copy_of",
    "register_strategy",
]
