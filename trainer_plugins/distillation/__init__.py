"""Trainers that are taught by a fine-tuned model."""

from trainer_plugins.distillation.distilling_trainer import DistillingTrainer
from trainer_plugins.distillation.layer_distilling_trainer import LayerDistillingTrainer


__all__ = [
    "DistillingTrainer",
    "LayerDistillingTrainer",
]
