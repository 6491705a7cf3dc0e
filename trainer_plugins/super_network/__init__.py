"""The training of a super-network, whole or in stages."""

from trainer_plugins.super_network.staged_training import StagedTraining
from trainer_plugins.super_network.super_network_trainer import SuperNetworkTrainer


__all__ = [
    "StagedTraining",
    "SuperNetworkTrainer",
]
