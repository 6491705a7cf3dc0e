"""Everything that knows `Trainer`: sub-classes, callbacks and argument dataclasses."""

from trainer_plugins.arguments import (
    DistillationArguments,
    EftnasArguments,
    HeadPruningArguments,
    NasArguments,
    PruningArguments,
    SearchArguments,
    SuperNetworkArguments,
)
from trainer_plugins.checks import check_arguments
from trainer_plugins.distillation import DistillingTrainer, LayerDistillingTrainer
from trainer_plugins.eftnas import (
    MovementSparsityCallback,
    MovementSparsityTrainer,
    SuperNetworkPlan,
    apply_config,
    learn_importance,
    plan_super_network,
)
from trainer_plugins.head_pruning import run_head_pruning
from trainer_plugins.pruning import (
    PruningOutcome,
    PruningSchedule,
    PruningTrainer,
    QuestionAnsweringPruningTrainer,
    TranslationPruningTrainer,
    run_pruning,
)
from trainer_plugins.search import ScoredRows, SearchOutcome, run_search, run_standard_nas
from trainer_plugins.super_network import StagedTraining, SuperNetworkTrainer
from trainer_plugins.tasks import CandidateScores, QuestionAnsweringTrainer, TranslationRows, TranslationTrainer


__all__ = [
    "CandidateScores",
    "DistillationArguments",
    "DistillingTrainer",
    "EftnasArguments",
    "HeadPruningArguments",
    "LayerDistillingTrainer",
    "MovementSparsityCallback",
    "MovementSparsityTrainer",
    "NasArguments",
    "PruningArguments",
    "PruningOutcome",
    "PruningSchedule",
    "PruningTrainer",
    "QuestionAnsweringPruningTrainer",
    "QuestionAnsweringTrainer",
    "ScoredRows",
    "SearchArguments",
    "SearchOutcome",
    "StagedTraining",
    "SuperNetworkArguments",
    "SuperNetworkPlan",
    "SuperNetworkTrainer",
    "TranslationPruningTrainer",
    "TranslationRows",
    "TranslationTrainer",
    "apply_config",
    "check_arguments",
    "learn_importance",
    "plan_super_network",
    "run_head_pruning",
    "run_pruning",
    "run_search",
    "run_standard_nas",
]
