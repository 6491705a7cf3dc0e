"""Flags of the pruning of heads that cannot work are refused, each in a sentence that says what to do."""

import pytest
from datasets import Dataset
from transformers import PreTrainedModel, TrainingArguments, default_data_collator

from hf_nas.gates import head_rows
from hf_nas.main_input import SequenceLengths
from hf_nas.profiling import mac_costs
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork
from tests import zoo
from tests.trainer_plugins.head_pruning.test_run import DSP, MICHEL, VOITA, prune, total_heads
from tests.trainer_plugins.pruning_world import arguments
from tests.trainer_plugins.worlds import rows
from trainer_plugins import (
    HeadPruningArguments,
    NasArguments,
    PruningArguments,
    check_arguments,
    run_head_pruning,
    run_pruning,
)
from trainer_plugins.arguments import (
    DistillationArguments,
    EftnasArguments,
    SearchArguments,
    SuperNetworkArguments,
)
from trainer_plugins.head_pruning.checks import check_fine_tuned, check_head_pruning, check_heads


NONE = {**DSP, "num_of_heads": None}


def asking(heads: dict, **others) -> NasArguments:
    return NasArguments(heads=HeadPruningArguments(**heads), **others)


@pytest.mark.parametrize(
    ("heads", "others", "message"),
    [
        ({"num_of_heads": 5}, {}, "belongs to a pruning of heads; add --pruning_method dsp.voita.michel, "),
        ({"joint_pruning": True}, {}, "--joint_pruning belongs to a pruning of heads"),
        ({"pruning_method": "cofi"}, {}, "pruning_method is 'cofi'; choose one of dsp, voita, michel"),
        ({"pruning_method": "dsp", "annealing": True}, {}, "dsp keeps a number of heads; add --num_of_heads"),
        ({"pruning_method": "michel"}, {}, "michel keeps a number of heads; add --num_of_heads"),
        ({"pruning_method": "dsp", "num_of_heads": 5}, {}, "Without --annealing .* add --annealing, or --use_ste"),
        ({**DSP, "use_ste": True}, {}, "--use_ste has no temperature that --annealing could let fall"),
        ({**DSP, "annealing": False, "use_ste": True}, {}, "no temperature, but --initial_temperature is given"),
        ({**DSP, "initial_temperature": 1e-9}, {}, "temperature goes from 1e-09 to 1e-08; let it fall"),
        ({**DSP, "cooldown_steps": 0}, {}, "cooldown_steps is 0; give at least 1"),
        ({**DSP, "pruning_lr": -1.0}, {}, "pruning_lr is -1; choose a number above 0"),
        ({**DSP, "l0_penalty": 0.1}, {}, "--l0_penalty is for --pruning_method voita, not for dsp; leave it out"),
        ({**DSP, "exact_pruning": True}, {}, "--exact_pruning is for --pruning_method michel, not for dsp"),
        ({**VOITA, "annealing": True}, {}, "--annealing is for --pruning_method dsp, not for voita"),
        ({**VOITA, "l0_penalty": 0.0}, {}, "l0_penalty is 0; choose a number above 0"),
        ({**MICHEL, "joint_pruning": True}, {}, "--joint_pruning is for --pruning_method dsp and voita, not for mich"),
        (DSP, {"pruning": PruningArguments(pruning_type="heads")}, "dsp and --pruning_type are two ways to shrink"),
        (DSP, {"super_network": SuperNetworkArguments(sampling_strategy="kd")}, "dsp and --sampling_strategy are two"),
        (DSP, {"search": SearchArguments(do_search=True)}, "dsp and --do_search are two ways"),
        (DSP, {"pruning": PruningArguments(do_distill=True)}, "--do_distill belongs to --pruning_type; with --pru"),
        (DSP, {"pruning": PruningArguments(target_sparsity=0.5)}, "--target_sparsity and --num_of_heads are two bud"),
        (VOITA, {"pruning": PruningArguments(target_sparsity=0.5)}, "is for --pruning_type and dsp; .* voita goes by"),
        (NONE, {"pruning": PruningArguments(target_sparsity=1.5)}, "target_sparsity is 1.5; give the fraction to rem"),
        (
            NONE,
            {"pruning": PruningArguments(target_sparsity=0.5, pruning_budget="latency")},
            "pruning_budget is 'latency'; --pruning_method dsp has a sparsity in params or macs",
        ),
        (DSP, {"pruning": PruningArguments(pruning_budget="macs")}, "says what --target_sparsity is a fraction of"),
        ({**NONE, "gate_neurons": True}, {}, "--gate_neurons prunes heads and .*; add --target_sparsity.$"),
        ({**DSP, "gate_neurons": True}, {}, "add --target_sparsity, and leave out --num_of_heads.$"),
        ({**VOITA, "gate_neurons": True}, {}, "--gate_neurons is for --pruning_method dsp, not for voita"),
        ({"gate_neurons": True}, {}, "--gate_neurons belongs to a pruning of heads"),
        ({**DSP, "num_of_heads_cross": 3}, {}, "for all attentions together and --num_of_heads_cross for one kind"),
        (DSP, {"pruning": PruningArguments(do_final_finetune=True, final_finetune_epochs=0)}, "_epochs is 0; choose"),
        (DSP, {"super_network": SuperNetworkArguments(search_space="medium")}, "--search_space belongs to a super-"),
        (VOITA, {"super_network": SuperNetworkArguments(num_random_sub_nets=2)}, "--num_random_sub_nets belongs to a"),
        (DSP, {"super_network": SuperNetworkArguments(importance="none")}, "--importance belongs to .* with --prun"),
        (DSP, {"super_network": SuperNetworkArguments(temperature=1.0)}, "--temperature .* reads it, so leave it out"),
        (MICHEL, {"search": SearchArguments(num_samples=7)}, "--num_samples belongs to a search .--do_search.; with "),
        (DSP, {"search": SearchArguments(search_objectives=["error", "macs"])}, "--search_objectives belongs to a s"),
        (DSP, {"eftnas": EftnasArguments(space_count=3)}, "--space_count belongs to the steps of EFTNAS; with --pru"),
        (DSP, {"distillation": DistillationArguments(kd_task_weight=0.5)}, "--kd_task_weight belongs to a teacher"),
    ],
)  # fmt: skip
def test_flags_that_contradict_each_other_are_refused(heads: dict, others: dict, message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        check_head_pruning(TrainingArguments(str(tmp_path), do_train=True), asking(heads, **others))


def test_settings_that_gates_cannot_be_trained_with_are_refused(tmp_path) -> None:
    adafactor = TrainingArguments(str(tmp_path), do_train=True, optim="adafactor")
    with pytest.raises(ValueError, match="optim is 'adafactor', which cannot maximise"):
        check_head_pruning(adafactor, asking(VOITA))
    for heads in (DSP, MICHEL, {**VOITA, "l0_penalty": 0.1}, {"pruning_method": "voita"}):
        check_head_pruning(adafactor, asking(heads))
    reentrant = TrainingArguments(
        str(tmp_path),
        do_train=True,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )
    for heads in (DSP, VOITA):
        with pytest.raises(ValueError, match="use_reentrant True, which cannot take gradients of gates"):
            check_head_pruning(reentrant, asking(heads))
    check_head_pruning(reentrant, asking(MICHEL))


def test_operations_are_not_judged_before_the_length_is_known(tmp_path) -> None:
    model = zoo.build("bert")
    least = {length: max_sparsity(model, length) for length in (8, 30)}
    assert least[30] > least[8] + 0.01
    budget = PruningArguments(target_sparsity=least[30] - 0.005, pruning_budget="macs")
    wanted = asking({**NONE, "joint_pruning": True}, pruning=budget)
    check_arguments(wanted, model)
    check_heads(wanted.heads, model, budget, SequenceLengths(30))
    with pytest.raises(ValueError, match="would leave none of the heads"):
        check_heads(wanted.heads, model, budget, SequenceLengths(8))


def max_sparsity(model: PreTrainedModel, length: int) -> float:
    """What pruning all heads but one removes of the operations."""
    structure, costs = describe(model), mac_costs(model, length)
    rows = head_rows(structure)
    one = SubNetwork.of(structure, {row.name: 1 if row is rows[0] else 0 for row in rows})
    return costs.sparsity(one)


def test_a_training_set_without_a_length_is_refused(tmp_path) -> None:
    stream = Dataset.from_list(rows()[:16]).to_iterable_dataset()
    for run, flags in (
        (run_head_pruning, HeadPruningArguments(**{**DSP, "joint_pruning": True})),
        (run_head_pruning, HeadPruningArguments(**MICHEL)),
        (run_pruning, PruningArguments(pruning_type="heads", target_sparsity=0.2)),
    ):
        with pytest.raises(ValueError, match="training set is a stream, whose length is not known"):
            run(
                zoo.build("bert"), arguments(tmp_path, max_steps=4, do_train=True), flags, sequence_length=8,
                train_dataset=stream, data_collator=default_data_collator,
            )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_flags_that_fit_are_accepted(tmp_path) -> None:
    training = TrainingArguments(str(tmp_path), do_train=True)
    for heads in ({}, DSP, VOITA, MICHEL, {"pruning_method": "voita"}, {**NONE, "num_of_heads_encoder_self": 0}):
        check_head_pruning(training, asking(heads))
    for gate_neurons in (False, True):
        budget = PruningArguments(target_sparsity=0.5, pruning_budget="macs")
        check_head_pruning(training, asking({**NONE, "gate_neurons": gate_neurons}, pruning=budget))
    check_head_pruning(TrainingArguments(str(tmp_path)), asking(MICHEL))
    with pytest.raises(ValueError, match="--pruning_method dsp trains gates; add --do_train"):
        check_head_pruning(TrainingArguments(str(tmp_path)), asking(DSP))
    with pytest.raises(ValueError, match="goes by more than the number of the step"):
        check_head_pruning(
            TrainingArguments(
                str(tmp_path), do_train=True, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch"
            ),
            asking(DSP),
        )


def test_a_teacher_that_nothing_is_learnt_from_is_refused(tmp_path) -> None:
    teacher = DistillationArguments(kd_teacher_model="teacher", kd_task_weight=0.5)
    training, message = TrainingArguments(str(tmp_path)), "nothing is learnt from, .* add --do_train or --do_final_fin"
    with pytest.raises(ValueError, match=message):
        check_head_pruning(training, asking(MICHEL, distillation=teacher))
    final = PruningArguments(do_final_finetune=True)
    check_head_pruning(training, asking(MICHEL, distillation=teacher, pruning=final))
    check_head_pruning(TrainingArguments(str(tmp_path), do_train=True), asking(MICHEL, distillation=teacher))
    with pytest.raises(ValueError, match=message):
        prune(tmp_path / "out", MICHEL, do_train=False, teacher=zoo.build("bert", seed=5))


def test_what_the_model_cannot_do_is_refused(tmp_path) -> None:
    model = zoo.build("bert")
    total = total_heads(model)
    for heads, message in (
        (
            {**DSP, "num_of_heads": total + 1},
            f"{total + 1} heads .* the model has {total}; give a whole number from 1",
        ),
        ({**DSP, "num_of_heads": 0}, "0 heads of all kinds of attention are to be kept"),
        (
            {**MICHEL, "heads_per_step": total + 1},
            f"heads_per_step is {total + 1}; give .* from 1 to the {total} heads",
        ),
        (
            {**NONE, "num_of_heads_cross": 3},
            "--num_of_heads_cross is 3, but this bert model has no heads of the cross",
        ),
        ({**NONE, "num_of_heads_encoder_self": 0}, "The budget keeps no head of any kind; let at least one stay"),
        (DSP, "dsp takes the weights as they are, but .* is not fine-tuned, .* or add --joint_pruning"),
    ):
        with pytest.raises(ValueError, match=message):
            check_arguments(asking(heads), model)
    check_arguments(asking({**DSP, "joint_pruning": True}), model)
    check_arguments(asking(MICHEL), model)
    with pytest.raises(ValueError, match="michel takes the weights as they are, .* or add --do_train"):
        check_fine_tuned(HeadPruningArguments(**MICHEL), model, trains_weights=False)
    model.save_pretrained(tmp_path)
    check_arguments(asking(DSP), type(model).from_pretrained(tmp_path))
    with pytest.raises(ValueError, match="No heads are to be pruned; set pruning_method"):
        prune(tmp_path / "out", {})
    with pytest.raises(ValueError, match="99 heads"):
        prune(tmp_path / "out", {**DSP, "num_of_heads": 99})
    assert not (tmp_path / "out").exists()
