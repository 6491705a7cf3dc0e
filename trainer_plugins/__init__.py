"""Everything that knows `Trainer`: sub-classes, callbacks and argument dataclasses."""

from trainer_plugins.arguments import (
    DistillationArguments,
    EftnasArguments,
    NasArguments,
    SearchArguments,
    SuperNetworkArguments,
)
from trainer_plugins.checks import check_arguments
from trainer_plugins.cofi import run_pruning
from trainer_plugins.cofi_arguments import PruningArguments
from trainer_plugins.distilling_trainer import DistillingTrainer
from trainer_plugins.eftnas import SuperNetworkPlan, plan_super_network
from trainer_plugins.head_pruning import run_head_pruning
from trainer_plugins.head_pruning_arguments import HeadPruningArguments
from trainer_plugins.layer_distilling_trainer import LayerDistillingTrainer
from trainer_plugins.movement_trainer import MovementSparsityCallback, MovementSparsityTrainer, learn_importance
from trainer_plugins.nncf_flags import apply_config
from trainer_plugins.pruning_run import PruningOutcome
from trainer_plugins.pruning_schedule import PruningSchedule
from trainer_plugins.pruning_tasks import QuestionAnsweringPruningTrainer, TranslationPruningTrainer
from trainer_plugins.pruning_trainer import PruningTrainer
from trainer_plugins.question_answering import QuestionAnsweringTrainer
from trainer_plugins.search import ScoredRows, SearchOutcome, run_search
from trainer_plugins.staged_training import StagedTraining
from trainer_plugins.standard_nas import run_standard_nas
from trainer_plugins.super_network_trainer import SuperNetworkTrainer
from trainer_plugins.translation import CandidateScores, TranslationRows, TranslationTrainer


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
