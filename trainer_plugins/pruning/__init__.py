"""Pruning by trained gates for any kinds of units (CoFi), and what all methods of pruning have in common."""

from trainer_plugins.pruning.cofi import run_pruning
from trainer_plugins.pruning.pruning_trainer import PruningTrainer
from trainer_plugins.pruning.run import PruningOutcome
from trainer_plugins.pruning.schedule import PruningSchedule
from trainer_plugins.pruning.tasks import QuestionAnsweringPruningTrainer, TranslationPruningTrainer


__all__ = [
    "PruningOutcome",
    "PruningSchedule",
    "PruningTrainer",
    "QuestionAnsweringPruningTrainer",
    "TranslationPruningTrainer",
    "run_pruning",
]
