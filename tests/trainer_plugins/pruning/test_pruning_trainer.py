"""Gates and weights are trained as a hand-written loop would, in two phases, on any family, and resumed exactly."""

import copy
import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, TrainerCallback, default_data_collator

from hf_nas.distillation import DistillationObjective, LayerDistillation, cache_teacher_logits, match_layers
from hf_nas.extraction import extract, save_extracted
from hf_nas.gates import KINDS, BudgetController, UnitGates, fold, project
from hf_nas.profiling import parameter_costs
from hf_nas.structures import describe
from tests import zoo
from tests.trainer_plugins.pruning_world import EPOCH, arguments, make_trainer, rows_for
from tests.trainer_plugins.worlds import rows
from trainer_plugins import PruningSchedule, PruningTrainer
from trainer_plugins.distillation.distilling_trainer import DistillingTrainer


ROOT = Path(__file__).resolve().parents[3]
AT_ONCE = PruningSchedule(prepruning_epochs=0, warmup_epochs=0, learning_rate=0.1)
SUBSETS = [subset for size in range(1, 6) for subset in itertools.combinations(KINDS, size)]


class Watch(TrainerCallback):
    """Calls a function after each optimizer step."""

    def __init__(self, function):
        self.function = function

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.function()


def state_of(trainer: PruningTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_a_step_equals_a_hand_written_one(tmp_path) -> None:
    run = make_trainer(tmp_path, schedule=AT_ONCE, optim="sgd", max_steps=1, max_grad_norm=0.01, learning_rate=0.5)
    model = zoo.without_dropout(zoo.build("bert")).train()
    gates = UnitGates(model, KINDS, seed=0)
    controller = BudgetController(parameter_costs(model), 0.5)
    weights = dict(model.named_parameters())
    run.train()
    batch = default_data_collator(rows()[:8])
    labels = batch.pop("labels")
    loss = functional.cross_entropy(model(**batch).logits, labels) + controller.loss(gates, 0)
    # The multipliers are 0 at first, so that only the task moves the gates.
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights.values(), 0.01)
    assert run.state.log_history[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    trained = state_of(run)
    with torch.no_grad():
        for name, parameter in weights.items():
            if parameter.grad is not None:
                assert torch.allclose(trained[name], parameter - 0.5 * parameter.grad, atol=1e-5), name
        for name, parameter in gates.named_parameters():
            wanted = (parameter - 0.1 * parameter.grad).clamp(-controller_limit(), controller_limit())
            assert torch.allclose(trained[f"unit_gates.{name}"], wanted, atol=1e-5), name
        assert float(gates.get_submodule("neurons").logits.grad.abs().max()) > 0
        error = float(controller.expected_sparsity(gates)) - 0.5
    assert float(trained["budget_controller.lambda_1"]) == pytest.approx(0.1 * error, rel=1e-4)
    assert float(trained["budget_controller.lambda_2"]) == pytest.approx(0.1 * error**2, rel=1e-4)


def controller_limit() -> float:
    return float(torch.log(torch.tensor(100.0)))


def test_gradient_accumulation_changes_nothing(tmp_path) -> None:
    results = []
    for size, steps in ((8, 1), (2, 4)):
        run = make_trainer(
            tmp_path, schedule=AT_ONCE, optim="sgd", max_steps=2, per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )  # fmt: skip
        # Each micro-batch draws its own gates; with fixed ones the rest must be the same.
        run.gates.fix(run.gates.values())
        run.train()
        results.append(state_of(run))
    for name, tensor in results[0].items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, results[1][name], atol=2e-5), name
    assert float(results[0]["budget_controller.lambda_1"]) != 0.0


def test_the_first_phase_is_a_plain_training_and_the_second_starts_anew(tmp_path) -> None:
    run = make_trainer(tmp_path / "run", kinds=("heads", "neurons"), optim="adamw_torch")
    rates, seen, ages = [], [], []

    def watch() -> None:
        groups = run.optimizer.param_groups
        rates.append([group["lr"] for group in groups])
        seen.append(state_of(run))
        ages.append(float(run.optimizer.state[run.model.bert.pooler.dense.weight]["step"]))

    run.add_callback(Watch(watch))
    run.train()
    steps = 3 * EPOCH
    plain = [1e-2 * (1 - step / steps) for step in range(EPOCH)]
    anew = [1e-2 * (1 - step / (steps - EPOCH)) for step in range(steps - EPOCH)]
    assert [rate[0] for rate in rates] == pytest.approx(plain + anew)
    assert [rate[1] for rate in rates] == pytest.approx(plain + anew)
    assert {rate[2:] for rate in map(tuple, rates)} == {(0.1, 0.1)}
    assert [group.get("maximize", False) for group in run.optimizer.param_groups] == [False, False, False, True]
    assert ages == [*range(1, EPOCH + 1), *range(1, steps - EPOCH + 1)]
    # Gates and multipliers rest until then, but for the clamp.
    first, before, after = seen[0], seen[EPOCH - 1], seen[-1]
    for name in first:
        if name.startswith(("unit_gates", "budget")):
            assert torch.equal(first[name], before[name]), name
    assert float(before["unit_gates.heads.logits"].max()) == pytest.approx(controller_limit())
    assert float(before["budget_controller.lambda_1"]) == 0.0 != float(after["budget_controller.lambda_1"])
    assert not torch.equal(before["unit_gates.neurons.logits"], after["unit_gates.neurons.logits"])
    stock = DistillingTrainer(
        model=zoo.without_dropout(zoo.build("bert")), args=arguments(tmp_path / "stock", optim="adamw_torch"),
        train_dataset=rows(), data_collator=default_data_collator,
    )  # fmt: skip
    weights = []
    stock.add_callback(Watch(lambda: weights.append(state_of(stock))))
    stock.train()
    for name, tensor in weights[EPOCH - 1].items():
        assert torch.allclose(before[name], tensor, atol=1e-6), name
    # What is logged.
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert "expected_sparsity" not in logged[0]
    assert [entry["target_sparsity"] for entry in logged[EPOCH:]] == pytest.approx(
        [0.5 * min(1, step / EPOCH) for step in range(1, steps - EPOCH + 1)]
    )
    assert logged[-1]["expected_sparsity"] == pytest.approx(run.expected_sparsity())


def check_training(folder: Path, name: str, kinds: tuple[str, ...]) -> None:
    """Train two steps, evaluate, meet the target, extract, reload: the same logits as with gates."""
    run = make_trainer(folder, name, kinds, target=0.15, schedule=AT_ONCE, max_steps=2)
    before = state_of(run)
    run.train()
    changed = {key for key, tensor in state_of(run).items() if not torch.equal(tensor, before[key])}
    assert all(f"unit_gates.{kind}.logits" in changed for kind in kinds)
    assert any(not key.startswith(("unit_gates", "budget")) for key in changed)
    assert torch.isfinite(torch.tensor(run.evaluate()["eval_loss"]))
    gates, model = run.gates, run.model.eval()
    values = project(gates, run.controller.costs, 0.15)
    gates.fix(values)
    inputs = zoo.inputs_for(model)
    wanted = zoo.logits(model, inputs)
    assert run.release() is model and "unit_gates.draws" not in model.state_dict()
    sub_network = values.sub_network(describe(model))
    assert run.controller.costs.sparsity(sub_network) >= 0.15
    assert sub_network != type(sub_network).full(describe(model))
    save_extracted(extract(fold(model, values), sub_network), sub_network, folder / "small")
    small = type(model).from_pretrained(folder / "small")
    result = zoo.logits(small, inputs)
    assert (result - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
def test_any_kinds_train_evaluate_extract_and_reload(kinds: tuple[str, ...], tmp_path) -> None:
    check_training(tmp_path, "bert", kinds)


@pytest.mark.parametrize("name", ["roberta", "distilbert", "llama", "bart"])
@pytest.mark.parametrize("kinds", [subset for subset in SUBSETS if "hidden" not in subset], ids="+".join)
def test_any_family(name: str, kinds: tuple[str, ...], tmp_path) -> None:
    check_training(tmp_path, name, kinds)


def test_a_run_goes_on_from_any_checkpoint_as_if_nothing_had_happened(tmp_path) -> None:
    whole = make_trainer(tmp_path / "whole", version=6, save_strategy="steps", save_steps=3)
    whole.train()
    wanted = state_of(whole)
    assert int(wanted["unit_gates.draws"]) == 2 * EPOCH
    # In the first phase, where the second begins, while the target rises, and at the end.
    for checkpoint in (3, 6, 9, 18):
        run = make_trainer(tmp_path / str(checkpoint), version=6)
        run.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{checkpoint}"))
        resumed = state_of(run)
        assert resumed.keys() == wanted.keys() and run.is_pruning
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in resumed.items())


def test_two_processes_have_the_same_gates(tmp_path) -> None:
    settings = '{"max_steps": 13, "per_device_train_batch_size": 4, "ddp_backend": "gloo", "version": 5}'
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    done = subprocess.run(
        [*command, "-m", "tests.trainer_plugins.pruning_world", str(tmp_path), settings],
        cwd=ROOT, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert any(name.startswith("drawn.") for name in first) and int(first["unit_gates.draws"]) == 13 - EPOCH
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_one_process_with_the_joined_batch_draws_the_same_gates(tmp_path) -> None:
    """Draws depend on seed and number alone, not on the batch."""
    runs = [make_trainer(tmp_path, schedule=AT_ONCE, max_steps=1, per_device_train_batch_size=n) for n in (4, 8)]
    drawn = []
    for run in runs:
        run.train()
        drawn.append(run.gates.current)
    assert all(torch.equal(gate, drawn[1].units[name]) for name, gate in drawn[0].units.items())


def test_checkpoints_hold_the_gates_and_the_released_model_does_not(tmp_path) -> None:
    run = make_trainer(tmp_path, version=4, max_steps=13, save_strategy="steps", save_steps=13)
    run.train()
    saved = load_file(tmp_path / "checkpoint-13" / "model.safetensors")
    ours = {name.split(".")[0] for name in saved} - {"bert", "classifier"}
    assert ours == {"unit_gates", "budget_controller", "layer_distillation"}
    transform = run.layer_distillation["encoder"].transform.weight
    assert not torch.equal(transform, torch.eye(32))
    model = run.release()
    model.save_pretrained(tmp_path / "plain")
    assert load_file(tmp_path / "plain" / "model.safetensors").keys() == zoo.build("bert").state_dict().keys()
    assert AutoConfig.from_pretrained(tmp_path / "plain").to_dict().keys() == model.config.to_dict().keys()
    assert not any(hasattr(module, "_forward_pre_hooks") and module._forward_pre_hooks for module in model.modules())


def test_layers_and_logits_of_the_teacher_are_learnt_as_written_by_hand(tmp_path) -> None:
    model = zoo.without_dropout(zoo.build("bert"))
    student, teacher = copy.deepcopy(model), zoo.build("bert", seed=5)
    run = PruningTrainer(
        model=model, args=arguments(tmp_path, max_steps=1), teacher=teacher, train_dataset=rows(),
        data_collator=default_data_collator, objective=DistillationObjective(),
        layer_distillation={"encoder": LayerDistillation(32, 32)},
    )  # fmt: skip
    run.train()
    batch = default_data_collator(rows()[:8])
    batch.pop("labels")
    with torch.no_grad():
        ours, theirs = (model(**batch, output_hidden_states=True) for model in (student, teacher))
    teaching = [0, 1, 2]  # of three layers, the ends of the quarters
    distances = torch.stack(
        [
            torch.stack([(ours.hidden_states[j + 1] - theirs.hidden_states[i + 1]).square().mean() for j in range(3)])
            for i in teaching
        ]
    )
    matches = match_layers(distances, torch.ones(3, dtype=torch.bool), 4)
    layer = sum(distances[i, j] for i, j in enumerate(matches.tolist()) if j >= 0)
    soft = (theirs.logits / 2).softmax(-1)
    divergence = (soft * (soft.log() - (ours.logits / 2).log_softmax(-1))).sum(-1).mean()
    loss = 0.9 * layer + 0.1 * 4 * divergence
    assert run.state.log_history[0]["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_logits_kept_on_disk_teach_the_same(tmp_path) -> None:
    results = []
    for cached in (False, True):
        teacher, data, options = zoo.build("bert", seed=5), rows(), {}
        teacher.config.id2label = {0: "c", 1: "a", 2: "b"}
        if cached:
            logits = cache_teacher_logits(teacher, data, tmp_path / "logits", default_data_collator)
            data, options = logits.attach(data), {"teacher_logits": logits}
            teacher.forward = None  # is asked no more
        model = zoo.without_dropout(zoo.build("bert"))
        model.config.id2label = {0: "a", 1: "b", 2: "c"}
        run = PruningTrainer(
            model=model, args=arguments(tmp_path, max_steps=4), teacher=teacher, train_dataset=data,
            data_collator=default_data_collator, objective=DistillationObjective(layer_weight=0.0), **options,
        )  # fmt: skip
        run.train()
        results.append(model.state_dict())
    assert all(torch.allclose(tensor, results[1][name], atol=1e-5) for name, tensor in results[0].items())


def test_only_evaluations_that_meet_the_target_can_be_the_best(tmp_path) -> None:
    run = make_trainer(tmp_path, metric_for_best_model="accuracy", schedule=PruningSchedule(0, 0, 0.1, epsilon=0.05))
    run._start = 0
    better = {"eval_accuracy": 0.9}
    run.gates.active = False
    assert not run._determine_best_metric(better, None)
    run.gates.active = True
    assert run.expected_sparsity() < 0.4 and not run._determine_best_metric(better, None)
    assert run.state.best_metric is None
    set_sparsity(run, 0.46)
    assert run._determine_best_metric({"eval_accuracy": 0.5}, None) and run.state.best_metric == 0.5
    assert not run._determine_best_metric({"eval_accuracy": 0.4}, None)
    set_sparsity(run, 0.44)
    assert not run._determine_best_metric(better, None)


def set_sparsity(run: PruningTrainer, wanted: float) -> None:
    """Give all gates the logit with which this sparsity is expected, by bisection."""
    low, high = -4.6, 4.6
    for _ in range(50):
        middle = (low + high) / 2
        with torch.no_grad():
            for parameter in run.gates.parameters():
                parameter.fill_(middle)
        low, high = (middle, high) if run.expected_sparsity() > wanted else (low, middle)
    assert run.expected_sparsity() == pytest.approx(wanted, abs=1e-4)


def test_the_best_model_is_loaded_with_its_gates(tmp_path) -> None:
    run = make_trainer(
        tmp_path, target=0.05, save_strategy="steps", eval_strategy="steps", save_steps=3, eval_steps=3,
        load_best_model_at_end=True, metric_for_best_model="accuracy",
    )  # fmt: skip
    run.train()
    assert run.state.best_global_step > EPOCH
    best = load_file(Path(run.state.best_model_checkpoint) / "model.safetensors")
    state = state_of(run)
    assert all(torch.equal(state[name].reshape(tensor.shape), tensor) for name, tensor in best.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train_epochs": 2}, "num_train_epochs is 2, but pruning begins after epoch 1 and its target is reached"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}, "choose linear, cosine or constant"),
        ({"ddp_find_unused_parameters": True}, "ddp_find_unused_parameters is True"),
        ({"target": 0.9, "kinds": ("heads",)}, "target sparsity 0.9 cannot be reached by pruning heads"),
    ],
)
def test_what_cannot_work_is_refused_at_once(settings: dict, message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **settings)


def test_too_few_steps_and_other_optimizers_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="The training has 12 steps, but pruning begins after 6 and .* 6 steps later"):
        make_trainer(tmp_path, max_steps=12).train()
    with pytest.raises(ValueError, match="optim is 'adafactor', which cannot maximise .* choose adamw_torch_fused"):
        make_trainer(tmp_path, optim="adafactor").train()
    with pytest.raises(ValueError, match="prepruning_epochs of the pruning is -1; give a number of at least 0"):
        PruningSchedule(prepruning_epochs=-1)
    with pytest.raises(ValueError, match="learning rate of the gates is 0; give a number above 0"):
        PruningSchedule(learning_rate=0)


def test_the_name_of_the_best_metric_is_checked_by_the_first_evaluation(tmp_path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    run = make_trainer(tmp_path, load_best_model_at_end=True, metric_for_best_model="f1", **settings)
    with pytest.raises(ValueError, match="metric_for_best_model is 'f1', which is not measured; .* accuracy, loss"):
        run.train()
    assert run.state.global_step == 2  # the gates do not act by then


def test_layers_that_count_are_those_that_the_gates_left_open(tmp_path, monkeypatch) -> None:
    run = make_trainer(tmp_path, kinds=("attention", "feed_forward"), version=4, schedule=AT_ONCE, max_steps=1)
    run.train()
    structure = describe(run.model)
    for closed, expected in (
        (("encoder.0.attention", "encoder.0.feed_forward"), [False, True, True]),
        (("encoder.1.attention",), [True, True, True]),
        (("encoder.1.attention", "encoder.1.feed_forward", "encoder.2.feed_forward"), [True, False, True]),
    ):
        sub_layers = {s.name: torch.tensor(0.0 if s.name in closed else 0.5) for s in structure}
        current = dataclasses.replace(run.gates.current, sub_layers=sub_layers)
        monkeypatch.setattr(run.gates._attachment, "current", current)
        assert run._unpruned("encoder").tolist() == expected


def test_regression_with_a_teacher_follows_its_values(tmp_path) -> None:
    model, teacher = (zoo.without_dropout(zoo.build("bert", num_labels=1, seed=seed)) for seed in (0, 5))
    for each in (model, teacher):
        each.config.problem_type = "regression"
    data = [{**row, "labels": float(row["labels"])} for row in rows()]
    run = PruningTrainer(
        model=model, args=arguments(tmp_path, max_steps=1, learning_rate=0.0), teacher=teacher,
        objective=DistillationObjective(layer_weight=0.0, soft_label_weight=1.0), train_dataset=data,
        data_collator=default_data_collator,
    )  # fmt: skip
    run.train()
    inputs = default_data_collator(data[:8])
    inputs.pop("labels")
    with torch.no_grad():
        wanted = functional.mse_loss(model.eval()(**inputs).logits, teacher.eval()(**inputs).logits)
    assert run.state.log_history[0]["loss"] == pytest.approx(float(wanted), rel=1e-4)


def test_a_compiled_model_and_teacher_train_the_same(tmp_path) -> None:
    found = []
    for name, settings in (("plain", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": "eager"})):
        run = make_trainer(tmp_path / name, version=4, schedule=AT_ONCE, max_steps=2, **settings)
        run.train()
        found.append(state_of(run))
    assert found[0].keys() == found[1].keys()
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, rtol=0, atol=1e-6)


def test_gradient_checkpointing_trains_the_same(tmp_path) -> None:
    found = []
    for settings in ({}, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}):
        run = make_trainer(tmp_path, version=4, schedule=AT_ONCE, max_steps=2, **settings)
        run.train()
        found.append(state_of(run))
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, rtol=0, atol=1e-6)


def test_distillation_without_its_parts_is_refused(tmp_path) -> None:
    model, teacher = zoo.build("bert"), zoo.build("bert", seed=5)
    maps = {"encoder": LayerDistillation(32, 32)}
    for options, message in (
        ({"objective": DistillationObjective()}, "there is no teacher; give a model fine-tuned on the task"),
        ({"objective": DistillationObjective(), "teacher": teacher}, "there is no layer_distillation; give one"),
        ({"layer_distillation": maps, "teacher": teacher}, "no objective with a layer_weight above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            PruningTrainer(model=copy.deepcopy(model), args=arguments(tmp_path), train_dataset=rows(), **options)


def test_rows_without_their_numbers_are_refused(tmp_path) -> None:
    teacher, data = zoo.build("bert", seed=5), rows_for("bert")
    logits = cache_teacher_logits(teacher, data, tmp_path / "logits", default_data_collator)
    run = PruningTrainer(
        model=zoo.build("bert"), args=arguments(tmp_path, max_steps=1), teacher=teacher, teacher_logits=logits,
        train_dataset=data, data_collator=default_data_collator, objective=DistillationObjective(layer_weight=0.0),
    )  # fmt: skip
    with pytest.raises(ValueError, match="The batch has no column 'teacher_row'; train on what TeacherLogits.attach"):
        run.train()
    shutil.rmtree(tmp_path / "logits")
