"""The steps of EFTNAS before a super-network is trained."""

from trainer_plugins.eftnas.movement_trainer import MovementSparsityCallback, MovementSparsityTrainer, learn_importance
from trainer_plugins.eftnas.nncf_flags import apply_config
from trainer_plugins.eftnas.plan import SuperNetworkPlan, plan_super_network


__all__ = [
    "MovementSparsityCallback",
    "MovementSparsityTrainer",
    "SuperNetworkPlan",
    "apply_config",
    "learn_importance",
    "plan_super_network",
]
