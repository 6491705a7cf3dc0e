"""What the scripts refuse before anything is loaded."""

import pytest
from transformers import TrainingArguments

from trainer_plugins import (
    DistillationArguments,
    EftnasArguments,
    NasArguments,
    PruningArguments,
    SuperNetworkArguments,
)
from trainer_plugins.scripts.checks import check_best_metric, needed_splits


@pytest.mark.parametrize(
    ("nas", "what"),
    [
        (NasArguments(super_network=SuperNetworkArguments(sampling_strategy="sandwich")), "a super-network"),
        (NasArguments(distillation=DistillationArguments(kd_teacher_model="teacher")), "a teacher"),
        (NasArguments(eftnas=EftnasArguments(only_generate_importance_weight=True)), "importance"),
        (
            NasArguments(pruning=PruningArguments(pruning_type="heads", target_sparsity=0.1,
                                                  lagrangian_warmup_epochs=1)),
            "a pruning",
        ),
    ],
)  # fmt: skip
def test_fused_kernels_are_refused_where_layers_or_logits_are_needed(nas: NasArguments, what: str, tmp_path) -> None:
    training = TrainingArguments(str(tmp_path), do_train=True, use_liger_kernel=True, report_to=[])
    assert needed_splits(training, NasArguments()) == ["train"]
    with pytest.raises(ValueError, match=f"--use_liger_kernel fuses .* {what} needs apart; leave it out"):
        needed_splits(training, nas)


def test_the_metric_of_the_best_checkpoint(tmp_path) -> None:
    def named(name: str | None) -> TrainingArguments:
        return TrainingArguments(str(tmp_path), metric_for_best_model=name, report_to=[])

    for name in (None, "loss", "eval_loss", "f1", "eval_f1"):
        check_best_metric(named(name), ("accuracy", "f1"))
    check_best_metric(named("anything"), ())
    with pytest.raises(ValueError, match="is 'f2', which the task does not have; choose one of accuracy, f1, loss"):
        check_best_metric(named("f2"), ("accuracy", "f1"))
