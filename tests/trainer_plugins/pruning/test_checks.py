"""Flags of CoFi: what contradicts itself, is out of range or would not be read is refused before any training."""

import logging
from pathlib import Path

import pytest
from transformers import TrainingArguments

from tests import zoo
from tests.trainer_plugins.pruning_world import prune
from trainer_plugins import NasArguments, PruningArguments, check_arguments
from trainer_plugins.arguments import DistillationArguments, SearchArguments, SuperNetworkArguments
from trainer_plugins.pruning.checks import check_pruning, check_unread_by_heads
from trainer_plugins.pruning.schedule import rate_factor


def shrinking(pruning: dict, **others) -> NasArguments:
    flags = {"pruning_type": "heads+neurons", "target_sparsity": 0.5, **pruning}
    return NasArguments(pruning=PruningArguments(**flags), **others)


TEACHER = DistillationArguments(kd_teacher_model="teacher")
NOT_PRUNED = {"pruning_type": None, "target_sparsity": 0.0}


@pytest.mark.parametrize(
    ("pruning", "others", "message"),
    [
        ({"pruning_type": "structured_haeds"}, {}, "'structured_haeds' in pruning_type"),
        ({"target_sparsity": 0.0}, {}, "target_sparsity is 0; give the fraction to remove"),
        ({"target_sparsity": 60.0}, {}, "target_sparsity is 60; give the fraction"),
        ({"pruning_budget": "watts"}, {}, "pruning_budget is 'watts'; choose one of params, macs, latency"),
        ({"droprate_init": 1.0}, {}, "droprate_init is 1; choose a number between 0 and 1"),
        ({"reg_learning_rate": -0.1}, {}, "learning rate of the gates is -0.1"),
        ({"gate_temperature": 0.0}, {}, "gate_temperature is 0; choose a number above 0"),
        ({"do_final_finetune": True, "final_finetune_epochs": 0.0}, {}, "final_finetune_epochs is 0"),
        ({"final_finetune_learning_rate": -1.0}, {}, "final_finetune_learning_rate is -1; choose"),
        ({"final_finetune_scheduler_type": "none"}, {}, "is 'none'; choose one of constant, linear, cosine"),
        ({"final_finetune_epochs": 3.0}, {}, "--final_finetune_epochs would not be read without --do_final_finetune"),
        ({"final_finetune_warmup_steps": 9.0}, {}, "--final_finetune_warmup_steps would not be read without"),
        ({"do_final_finetune": True, "final_finetune_warmup_steps": -1.0}, {}, "final_finetune_warmup_steps is -1"),
        ({"sparsity_epsilon": 0.03}, {}, "--sparsity_epsilon 0.03 .* add --load_best_model_at_end"),
        ({"distill_temp": 4.0}, {}, "--distill_temp would not be read without --do_distill; add --do_distill"),
        (
            {"do_distill": True, "layer_distill_version": 5},
            {"distillation": TEACHER},
            "--layer_distill_version would not be read without --do_layer_distill",
        ),
        (
            {"do_distill": True},
            {"distillation": DistillationArguments(kd_teacher_model="teacher", kd_task_weight=0.5)},
            "--kd_task_weight is not for --do_distill",
        ),
        ({}, {"super_network": SuperNetworkArguments(search_space="layer")}, "--search_space belongs to a super-netw"),
        ({}, {"search": SearchArguments(latency_batch_size=4)}, "--latency_batch_size .* with --pruning_type nothing"),
        ({}, {"distillation": DistillationArguments(kd_temperature=4.0)}, "--kd_temperature belongs to a teacher"),
        ({"lagrangian_warmup_epochs": 2.0}, {}, "num_train_epochs is 3, but pruning begins after epoch 1"),
        ({"do_distill": True}, {}, "--do_distill needs a teacher .* add --distillation_path"),
        ({"distillation_path": "teacher"}, {}, "nothing is learnt from; add --do_distill"),
        ({"do_layer_distill": True}, {"distillation": TEACHER}, "part of distillation; add --do_distill"),
        ({"cache_teacher_logits": True}, {}, "but there is no teacher; leave it out"),
        (
            {"do_distill": True, "do_layer_distill": True, "layer_distill_version": 1},
            {"distillation": TEACHER},
            "layer_distill_version is 1; choose one of 2, 3, 4, 5, 6 .the published default 1 was never written",
        ),
        (
            {"do_distill": True, "do_layer_distill": True, "distill_loss_alpha": 0.0},
            {"distillation": TEACHER},
            "distill_loss_alpha is 0, with which layers are not learnt",
        ),
        (
            {"do_distill": True, "do_layer_distill": True, "cache_teacher_logits": True},
            {"distillation": TEACHER},
            "the teacher runs anyway",
        ),
        ({"do_distill": True, "distill_temp": 0.0}, {"distillation": TEACHER}, "temperature is 0"),
        ({}, {"search": SearchArguments(do_search=True)}, "trains no super-network to search; leave out --do_search"),
        ({}, {"super_network": SuperNetworkArguments(sampling_strategy="kd")}, "leave out --sampling_strategy"),
        ({"pretrained_pruned_model": "x"}, {}, "leave out either of them"),
        ({"pretrained_pruned_model": "x", "pruning_type": "None"}, {}, "'x' is no folder of a pruned model"),
        ({**NOT_PRUNED, "do_final_finetune": True}, {}, "--do_final_finetune belongs to a pruning"),
        ({"pruning_type": None}, {}, "--target_sparsity belongs to a pruning"),
        ({**NOT_PRUNED, "do_distill": True}, {}, "--do_distill belongs to a pruning"),
        (
            {**NOT_PRUNED, "scheduler_type": "none", "lagrangian_warmup_epochs": 2.0},
            {},
            "--lr_scheduler_type is for any training",
        ),
        ({**NOT_PRUNED, "lagrangian_warmup_epochs": 7.0}, {}, "--lagrangian_warmup_epochs belongs to a pruning"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(pruning: dict, others: dict, message: str, tmp_path) -> None:
    training = TrainingArguments(str(tmp_path), do_train=True)
    pruning = {"lagrangian_warmup_epochs": 1.0, **pruning}
    with pytest.raises(ValueError, match=message):
        check_pruning(training, shrinking(pruning, **others))


def test_settings_under_which_gates_cannot_be_trained_are_refused(tmp_path) -> None:
    for settings, message in (
        ({"optim": "adafactor"}, "optim is 'adafactor', which cannot maximise .* choose adamw_torch_fused"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "has use_reentrant True, .* give ..use_reentrant.: false",
        ),
        ({"lr_scheduler_kwargs": {"power": 2}}, "lr_scheduler_kwargs .'power': 2., which do not fit"),
    ):
        training = TrainingArguments(str(tmp_path), do_train=True, num_train_epochs=4, **settings)
        with pytest.raises(ValueError, match=message):
            check_pruning(training, shrinking({}))


def test_flags_that_fit_are_accepted(tmp_path) -> None:
    training = TrainingArguments(str(tmp_path), do_train=True, num_train_epochs=4)
    check_pruning(training, shrinking({}))
    check_pruning(training, NasArguments())
    check_pruning(training, shrinking({"pruning_budget": "latency"}, search=SearchArguments(latency_batch_size=4)))
    nas = shrinking(
        {"do_distill": True, "do_layer_distill": True, "distillation_path": "teacher"},
        super_network=SuperNetworkArguments(temperature=0.33),
    )
    check_pruning(training, nas)
    assert nas.pruning.gate_temperature == 0.33 and nas.distillation.kd_teacher_model == "teacher"
    with pytest.raises(ValueError, match="Pruning is a training; add --do_train"):
        check_pruning(TrainingArguments(str(tmp_path)), shrinking({}))
    with pytest.raises(ValueError, match="--temperature 0.33 and --gate_temperature 0.9 name the same"):
        shrinking({"gate_temperature": 0.9}, super_network=SuperNetworkArguments(temperature=0.33))
    with pytest.raises(ValueError, match="'one' and --kd_teacher_model 'teacher' name different teachers"):
        shrinking({"distillation_path": "one"}, distillation=TEACHER)


@pytest.mark.parametrize(
    ("name", "pruning", "message"),
    [
        ("bert", {"target_sparsity": 0.95}, "target sparsity 0.95 cannot be reached by pruning heads: at most"),
        ("bert", {"pruning_budget": "macs", "target_sparsity": 0.95}, "cannot be reached by pruning heads"),
        ("bert", {"pruning_type": "hidden", "pruning_budget": "latency"}, "no measurements of pruned hidden"),
        ("llama", {"pruning_type": "hidden"}, "hidden"),
    ],
)
def test_what_the_model_cannot_do_is_refused(name: str, pruning: dict, message: str) -> None:
    model = zoo.build(name)
    with pytest.raises(ValueError, match=message):
        check_arguments(shrinking({"pruning_type": "heads", **pruning}), model)
    check_arguments(shrinking({"target_sparsity": 0.3}), model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def pruned_folder(tmp_path: Path) -> str:
    (tmp_path / "sub_network.json").write_text("{}")
    return str(tmp_path)


def test_the_fine_tuning_of_a_pruned_model_has_the_flags_of_any_training(tmp_path, caplog) -> None:
    training = TrainingArguments(str(tmp_path), do_train=True)
    folder = pruned_folder(tmp_path)
    for flags in ({"do_final_finetune": True}, {"final_finetune_learning_rate": 1e-5}, {"final_finetune_epochs": 5.0}):
        nas = NasArguments(pruning=PruningArguments(pretrained_pruned_model=folder, **flags))
        with pytest.raises(ValueError, match=f"--{[*flags][0]} would not be read .* by --num_train_epochs"):
            check_pruning(training, nas)
    # The published command has those of the pruning beside it.
    published = PruningArguments(pretrained_pruned_model=folder, target_sparsity=0.6, scheduler_type="none")
    with caplog.at_level(logging.WARNING):
        check_pruning(training, NasArguments(pruning=published))
    assert "--target_sparsity is for a pruning; the fine-tuning of a pruned model does not read it" in caplog.text
    with pytest.raises(ValueError, match="--pruning_budget would not be read"):
        check_pruning(
            training, NasArguments(pruning=PruningArguments(pretrained_pruned_model=folder, pruning_budget="macs"))
        )


def test_a_pruning_of_heads_reads_few_of_them() -> None:
    allowed = {
        "target_sparsity": 0.5,
        "pruning_budget": "macs",
        "do_final_finetune": True,
        "final_finetune_epochs": 2.0,
    }
    check_unread_by_heads(PruningArguments(**allowed, ex_name="x"), "--pruning_method dsp")
    for flags in ({"reg_learning_rate": 0.1}, {"do_distill": True}, {"scheduler_type": "none"}):
        with pytest.raises(ValueError, match=f"--{[*flags][0]} belongs to --pruning_type; with --pruning_method dsp"):
            check_unread_by_heads(PruningArguments(**flags), "--pruning_method dsp")
    with pytest.raises(ValueError, match="--final_finetune_epochs would not be read without --do_final_finetune"):
        check_unread_by_heads(PruningArguments(final_finetune_epochs=2.0), "--pruning_method dsp")


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        ({"pruning_budget": "flops"}, "pruning_budget is 'flops'"),
        ({"target_sparsity": 0.0}, "target_sparsity is 0"),
        ({"do_distill": True, "do_layer_distill": True}, "--do_distill needs a teacher"),
        ({"cache_teacher_logits": True}, "there is no teacher"),
    ],
)
def test_python_is_told_as_well(pruning: dict, message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        prune(tmp_path, pruning=pruning)
    assert not any(tmp_path.iterdir())


def test_a_learning_rate_that_needs_more_than_a_name(tmp_path) -> None:
    arguments = TrainingArguments(str(tmp_path), lr_scheduler_type="warmup_stable_decay")
    with pytest.raises(ValueError, match="'warmup_stable_decay' with the lr_scheduler_kwargs None, which do not fit"):
        rate_factor(arguments, 10)


def test_the_learning_rate_of_the_final_fine_tuning_may_fall(tmp_path) -> None:
    steady = prune(tmp_path / "steady", save_strategy="no")
    falling = prune(tmp_path / "falling", pruning={"final_finetune_scheduler_type": "linear"}, save_strategy="no")
    ours, theirs = (each.trainer.model.state_dict()["classifier.weight"] for each in (falling, steady))
    assert falling.sub_network == steady.sub_network and not ours.equal(theirs)
