"""Trainers for tasks that are evaluated in another way than by their logits."""

from trainer_plugins.tasks.question_answering import QuestionAnsweringTrainer
from trainer_plugins.tasks.translation import CandidateScores, TranslationRows, TranslationTrainer


__all__ = [
    "CandidateScores",
    "QuestionAnsweringTrainer",
    "TranslationRows",
    "TranslationTrainer",
]
