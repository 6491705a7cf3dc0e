"""Trainers with gates for tasks that are evaluated in another way than by their logits."""

from trainer_plugins.pruning.pruning_trainer import PruningTrainer
from trainer_plugins.tasks.question_answering import QuestionAnsweringTrainer
from trainer_plugins.tasks.translation import TranslationTrainer


class QuestionAnsweringPruningTrainer(PruningTrainer, QuestionAnsweringTrainer):
    """A [`PruningTrainer`] that evaluates answers, as [`QuestionAnsweringTrainer`] does."""


class TranslationPruningTrainer(PruningTrainer, TranslationTrainer):
    """A [`PruningTrainer`] for encoder-decoders that translates to evaluate, as [`TranslationTrainer`] does."""
