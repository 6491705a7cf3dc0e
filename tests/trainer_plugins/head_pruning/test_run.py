"""Heads pruned under Trainer: steps written by hand, what a run leaves, and that a kill changes nothing.

Usage: python -m tests.trainer_plugins.head_pruning.test_run OUTPUT_DIR JSON_OF_FLAGS JSON_OF_SETTINGS
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    default_data_collator,
)

from hf_nas.gates import Gates, SubsetGates, TemperatureSchedule, VoitaGates, binary_gates, head_rows
from hf_nas.importance.head_gradient import michel_order
from hf_nas.profiling import SizeTable
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork, kept_ids
from tests import zoo
from tests.trainer_plugins.pruning_world import EPOCH, accuracy, arguments
from tests.trainer_plugins.worlds import rows
from trainer_plugins import (
    HeadPruningArguments,
    PruningArguments,
    PruningOutcome,
    PruningSchedule,
    PruningTrainer,
    run_head_pruning,
)
from trainer_plugins.head_pruning import front as head_front
from trainer_plugins.head_pruning import run as head_pruning
from trainer_plugins.head_pruning.front import heads_of_front
from trainer_plugins.pruning.schedule import training_steps


ROOT = Path(__file__).resolve().parents[3]
AT_ONCE = PruningSchedule(prepruning_epochs=0, warmup_epochs=0, learning_rate=0.5, decay=True, gate_gradient_norm=1.0)
DSP = {"pruning_method": "dsp", "num_of_heads": 5, "annealing": True, "initial_temperature": 10.0}
VOITA = {"pruning_method": "voita", "num_of_heads": 5, "pruning_lr": 0.3}
MICHEL = {"pruning_method": "michel", "num_of_heads": 5, "heads_per_step": 4}


def bert(**changes) -> PreTrainedModel:
    return zoo.without_dropout(zoo.build("bert", **changes))


def total_heads(model: PreTrainedModel) -> int:
    return sum(row.units for row in head_rows(describe(model)))


def heads_of(sub_network: SubNetwork) -> int:
    structure = describe(zoo.build("bert"))
    return sum(len(kept_ids(sub_network[row.name])) for row in head_rows(structure))


def trainer_of(folder: Path, gates, model: PreTrainedModel, schedule=AT_ONCE, **settings) -> PruningTrainer:
    return PruningTrainer(
        model=model, args=arguments(folder, **settings), gates=gates, schedule=schedule, train_dataset=rows(),
        data_collator=default_data_collator,
    )  # fmt: skip


def prune(
    folder: Path,
    heads: dict,
    model: PreTrainedModel | None = None,
    final: dict | None = None,
    count: int = 48,
    evaluated: int = 16,
    teacher: PreTrainedModel | None = None,
    **settings,
) -> PruningOutcome:
    """A whole run on a tiny BERT."""
    data = rows()[:count]
    return run_head_pruning(
        bert() if model is None else model,
        arguments(folder, **{"num_train_epochs": 1, "do_train": True, "max_grad_norm": 1.0, **settings}),
        HeadPruningArguments(**heads),
        sequence_length=8,
        final=PruningArguments(final_finetune_epochs=1.0, **(final or {})),
        teacher=teacher,
        record={"seed": 0},
        train_dataset=data,
        eval_dataset=data[:evaluated],
        data_collator=default_data_collator,
        compute_metrics=accuracy,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


# Steps of the training.


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.01])
def test_gates_are_clipped_apart_from_the_weights(max_grad_norm: float, tmp_path) -> None:
    schedule = PruningSchedule(0, 0, learning_rate=1.0, gate_gradient_norm=0.001)
    model = bert()
    gates = SubsetGates(model, 5, schedule=TemperatureSchedule(1.0, 0.5, 8))
    run = trainer_of(
        tmp_path, gates, model, schedule, optim="sgd", max_steps=1, max_grad_norm=max_grad_norm,
        lr_scheduler_type="constant", learning_rate=1.0,
    )  # fmt: skip
    other = bert()
    theirs = SubsetGates(other, 5, schedule=TemperatureSchedule(1.0, 0.5, 8))
    batch = default_data_collator(rows()[:8])
    functional.cross_entropy(other.train()(**batch).logits, batch["labels"]).backward()
    assert float(theirs.w.grad.norm()) > 0.002
    w = theirs.w.detach() - theirs.w.grad * (0.001 / theirs.w.grad.norm())
    norm = torch.stack([p.grad.norm() for p in other.parameters() if p.grad is not None]).norm()
    scale = min(1.0, max_grad_norm / float(norm)) if max_grad_norm else 1.0
    run.train()
    assert torch.allclose(gates.w, w, atol=1e-7)
    named = dict(model.named_parameters())
    for name, parameter in other.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(named[name], parameter - scale * parameter.grad, atol=1e-5), name


def test_the_rate_of_the_gates_falls_and_the_temperature_goes_by_optimizer_steps(tmp_path) -> None:
    model = bert()
    gates = SubsetGates(model, 5, schedule=TemperatureSchedule(10.0, 0.1, 3))
    run = trainer_of(tmp_path, gates, model, gradient_accumulation_steps=2, num_train_epochs=2)
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append((gates.temperature, [group["lr"] for group in run.optimizer.param_groups]))

    run.add_callback(Watch())
    run.train()
    assert [temperature for temperature, _ in seen] == pytest.approx(
        [10, 10 ** (1 / 3), 10 ** (-1 / 3), 0.1, 0.1, 0.1]
    )
    factors = [1 - step / 6 for step in range(6)]
    assert [rates for _, rates in seen] == [pytest.approx([0.01 * f, 0.01 * f, 0.5 * f]) for f in factors]
    assert int(gates.draws) == 12 and int(gates.steps) == 6


def test_the_penalty_is_in_the_loss_of_the_training_alone(tmp_path) -> None:
    losses = []
    for penalty in (0.0, 0.3):
        model = bert()
        gates = VoitaGates(model, penalty)
        run = trainer_of(tmp_path, gates, model, max_steps=1, learning_rate=1e-12,
                         schedule=PruningSchedule(0, 0, 1e-12))  # fmt: skip
        probability = torch.sigmoid(gates.heads.logits.detach() + 0.791305).sum()
        run.train()
        losses.append((run.state.log_history[0]["loss"], run.evaluate(rows()[:8])["eval_loss"]))
    assert losses[1][0] - losses[0][0] == pytest.approx(0.3 * float(probability), rel=1e-4)
    assert losses[1][1] == pytest.approx(losses[0][1], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "rows_"),
    [
        ({"num_train_epochs": 3}, 48), ({"num_train_epochs": 1.5}, 45), ({"max_steps": 7}, 48),
        ({"gradient_accumulation_steps": 4, "num_train_epochs": 2}, 48), ({"dataloader_drop_last": True}, 45),
    ],
    ids=str,
)  # fmt: skip
def test_steps_are_counted_as_trainer_does(settings: dict, rows_: int, tmp_path) -> None:
    run = PruningTrainer(
        model=bert(), args=arguments(tmp_path, **settings), train_dataset=rows()[:rows_],
        data_collator=default_data_collator,
    )  # fmt: skip
    run.train()
    assert training_steps(run.args, rows_) == run.state.global_step


# Whole runs with gates.


def check_small(outcome: PruningOutcome, heads: int, dense: PreTrainedModel) -> dict:
    """Number of heads, report and size fit together; what the report says."""
    report = json.loads((outcome.folder / "pruning.json").read_text())
    small = AutoModelForSequenceClassification.from_pretrained(outcome.folder)
    assert report["heads"] == heads == heads_of(outcome.sub_network)
    assert report["dense_heads"] == total_heads(dense)
    assert small.num_parameters() == report["parameters"] == SizeTable(dense).parameters(outcome.sub_network)
    assert report["dense_parameters"] == dense.num_parameters()
    assert not any("gates" in key or "controller" in key for key in weights(outcome.folder))
    assert f"{heads} of {report['dense_heads']} heads are left" in outcome.summary()
    return report


@pytest.mark.parametrize(
    "heads",
    [DSP, {"pruning_method": "dsp", "num_of_heads": 5, "use_ste": True}, VOITA, {**VOITA, "l0_penalty": 0.01}],
    ids=["dsp", "ste", "voita", "voita with penalty"],
)
def test_gates_alone_leave_the_weights_as_they_are(heads: dict, tmp_path) -> None:
    dense = bert()
    outcome = prune(tmp_path, heads)
    check_small(outcome, 5, dense)
    # The weights being those from before, gates of 0 and 1 on them say what the small model computes.
    inputs = zoo.inputs_for(dense)
    with Gates(dense, binary_gates(describe(dense), outcome.sub_network)):
        wanted = zoo.logits(dense, inputs)
    small = AutoModelForSequenceClassification.from_pretrained(outcome.folder)
    assert (zoo.logits(small, inputs) - wanted).abs().max() <= 1e-5
    assert outcome.trainer.evaluate()["eval_accuracy"] >= 0
    history = json.loads((tmp_path / "pruning" / "trainer_state.json").read_text())["log_history"]
    multipliers = {entry["lambda_1"] for entry in history if "lambda_1" in entry}
    assert bool(multipliers) == (heads == VOITA) and len(multipliers) in (0, EPOCH)


def test_weights_and_gates_together(tmp_path, monkeypatch) -> None:
    trained = []
    monkeypatch.setattr(
        head_pruning, "_write",
        lambda run, model, *args, write=head_pruning._write: trained.append(model) or write(run, model, *args),
    )  # fmt: skip
    outcome = prune(tmp_path, {**DSP, "joint_pruning": True}, final={"do_final_finetune": True}, do_eval=True)
    assert outcome.folder == tmp_path / "finetuned"
    report = check_small(outcome, 5, bert())
    assert report["method"] == "dsp" and report["settings"]["joint_pruning"]
    # 68 percent of 6 steps are 4.
    assert report["temperature"] == pytest.approx(1e-8) and report["checkpoint"] == "last"
    before, after = dict(bert().named_parameters()), dict(trained[0].named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # A key's bias adds the same to all scores of a query, so that it has no gradient but rounding.
    assert {name for name in before if "key.bias" not in name and "position" not in name} <= changed
    pruned, finetuned = weights(tmp_path / "pruned"), weights(tmp_path / "finetuned")
    assert pruned.keys() == finetuned.keys() and not same(pruned, finetuned)
    with Gates(trained[0], binary_gates(describe(trained[0]), outcome.sub_network)):
        wanted = zoo.logits(trained[0].eval(), zoo.inputs_for(trained[0]))
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
    assert (zoo.logits(small, zoo.inputs_for(small)) - wanted).abs().max() <= 1e-5
    assert json.loads((tmp_path / "pruned" / "eval_results.json").read_text())["eval_accuracy"] >= 0
    # The same command trains nothing, another one is refused.
    monkeypatch.setattr(PruningTrainer, "train", None)
    (tmp_path / "pruned" / "eval_results.json").write_text("{}")  # of another evaluation
    again = prune(tmp_path, {**DSP, "joint_pruning": True}, final={"do_final_finetune": True}, do_eval=True)
    assert json.loads((tmp_path / "pruned" / "eval_results.json").read_text())["eval_accuracy"] >= 0
    assert again.sub_network == outcome.sub_network and same(weights(again.folder), finetuned)
    with pytest.raises(ValueError, match="holds another run .num_of_heads was 5 and is 6.; choose another"):
        prune(tmp_path, {**DSP, "joint_pruning": True, "num_of_heads": 6})


@pytest.mark.parametrize("how", [DSP, {"pruning_method": "dsp", "use_ste": True}])
def test_with_room_for_all_heads_it_is_plain_fine_tuning(how: dict, tmp_path) -> None:
    heads = {**how, "num_of_heads": total_heads(bert()), "joint_pruning": True}
    prune(tmp_path / "pruned", heads, model=zoo.build("bert"))
    plain = Trainer(
        model=zoo.build("bert"),
        args=arguments(tmp_path / "plain", num_train_epochs=1, max_grad_norm=1.0),
        train_dataset=rows(),
        data_collator=default_data_collator,
    )
    plain.train()
    plain.save_model()
    assert same(weights(tmp_path / "pruned" / "pruned"), weights(tmp_path / "plain"))


def test_the_gates_decide_and_without_a_number_voita_keeps_the_open_ones(tmp_path) -> None:
    outcome = prune(tmp_path, {"pruning_method": "voita", "pruning_lr": 1.0, "l0_penalty": 10.0}, num_train_epochs=2)
    report = check_small(outcome, 0, bert())
    assert report["open_heads"] == 0 and report["expected_heads"] < 2


def test_multipliers_drive_the_gates_to_the_number(tmp_path, caplog) -> None:
    heads = {**VOITA, "num_of_heads": 3, "pruning_lr": 0.2}
    outcome = prune(tmp_path, heads, max_steps=200, per_device_train_batch_size=1)
    # About 0.69 of them are open at first.
    assert outcome.report["expected_heads"] == pytest.approx(3, abs=1.0) and total_heads(bert()) * 0.6 > 4
    assert "The gates were trained to" not in caplog.text


def test_a_training_that_is_too_short_is_warned_of(tmp_path, caplog) -> None:
    prune(tmp_path / "dsp", {**DSP, "cooldown_steps": 100}, max_steps=1)
    assert "temperature falls over 100 steps, but the training has 1" in caplog.text
    prune(tmp_path / "voita", {**VOITA, "num_of_heads": 1}, max_steps=1)
    assert "The gates were trained to" in caplog.text and "open heads and 1 is to stay" in caplog.text


@pytest.mark.parametrize(("folder", "step"), [("pruning", 3), ("finetuned", 3)])
def test_killed_and_continued(folder: str, step: int, tmp_path, monkeypatch) -> None:
    def start(name: str) -> None:
        prune(
            tmp_path / name, {**DSP, "joint_pruning": True}, final={"do_final_finetune": True}, save_strategy="steps",
            save_steps=2,
        )  # fmt: skip

    training_step = PruningTrainer.training_step

    def die(self, *args, **kwargs):
        if self.state.global_step == step and Path(self.args.output_dir).name == folder:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PruningTrainer, "training_step", die)
        with pytest.raises(KeyboardInterrupt):
            start("killed")
    saved = load_file(tmp_path / "killed" / "pruning" / "checkpoint-2" / "model.safetensors")
    assert saved["unit_gates.w"].dtype == torch.float32 and int(saved["unit_gates.steps"]) == 2
    start("killed")
    start("whole")
    for name in ("pruned", "finetuned"):
        assert same(weights(tmp_path / "killed" / name), weights(tmp_path / "whole" / name))


# Importance.


def read_front(folder: Path) -> dict:
    return json.loads((folder / "front.json").read_text())


def test_the_front_of_an_order(tmp_path, monkeypatch) -> None:
    dense = bert()
    outcome = prune(tmp_path, MICHEL, do_train=False, do_eval=True)
    check_small(outcome, 5, dense)
    batches = [default_data_collator(rows()[start : start + 8]) for start in range(0, 48, 8)]
    order = michel_order(dense, describe(dense), batches, 4)
    front = read_front(tmp_path)
    assert [tuple(head) for head in front["removed"]] == list(order.removed)
    assert outcome.sub_network == order.keeping(5)
    total = total_heads(dense)
    assert [point["heads"] for point in front["points"]] == heads_of_front(total, 4, 5)
    # The metric of each point is that of the dense model with gates of 0 and 1.
    batch = default_data_collator(rows()[:16])
    for point in front["points"]:
        with Gates(dense, binary_gates(describe(dense), order.keeping(point["heads"]))), torch.no_grad():
            loss = float(dense.eval()(**batch).loss)
        assert point["eval_loss"] == pytest.approx(loss, abs=1e-5)
        assert point["parameters"] == SizeTable(dense).parameters(order.keeping(point["heads"]))
    with open(tmp_path / "front.csv", encoding="utf-8", newline="") as file:
        read = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert read == [pytest.approx(point) for point in front["points"]]
    assert set(read[0]) == {"heads", "parameters", "macs", "eval_loss", "eval_accuracy"}
    # Again: nothing is computed.
    monkeypatch.setattr(head_front, "michel_order", None)
    monkeypatch.setattr(head_pruning, "write_front", None)
    assert prune(tmp_path, MICHEL, do_train=False, do_eval=True).sub_network == outcome.sub_network


def test_fine_tuned_first_ordered_exactly_and_fine_tuned_again(tmp_path, monkeypatch) -> None:
    heads = {**MICHEL, "exact_pruning": True, "importance_per_example": True, "heads_per_step": None}
    with monkeypatch.context() as patch:  # killed when the order is known
        patch.setattr(head_pruning, "write_front", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, heads, final={"do_final_finetune": True})
    assert not (tmp_path / "pruned").exists()
    with monkeypatch.context() as patch:
        patch.setattr(head_front, "michel_order", None)
        outcome = prune(tmp_path, heads, final={"do_final_finetune": True})
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    assert not same(trained.state_dict(), bert().state_dict())
    batches = [default_data_collator(rows()[start : start + 24]) for start in range(0, 48, 24)]
    order = michel_order(trained, describe(trained), batches, 1, exact=True, per_example=True)
    assert outcome.sub_network == order.keeping(5) and outcome.folder == tmp_path / "finetuned"
    front = read_front(tmp_path)
    assert front["heads_per_step"] == 1 and len(front["points"]) == total_heads(trained) + 1
    assert set(front["points"][0]) == {"heads", "parameters", "macs"}
    # Metrics come when they are asked for.
    prune(tmp_path, heads, final={"do_final_finetune": True}, do_eval=True)
    assert all(0 <= point["eval_accuracy"] <= 1 for point in read_front(tmp_path)["points"])


def test_two_processes_find_what_one_does(tmp_path) -> None:
    """Batches are as large as those of one process; 44 rows leave a smaller one to one of the two."""
    heads, settings = {**MICHEL, "exact_pruning": True}, {"do_train": False, "do_eval": True}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    command += ["-m", "tests.trainer_plugins.head_pruning.test_run"]
    done = subprocess.run(
        [*command, str(tmp_path / "two"), json.dumps(heads), json.dumps({**settings, "ddp_backend": "gloo"})],
        cwd=ROOT, text=True, timeout=240, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    prune(tmp_path / "one", heads, count=44, **settings)
    ours, theirs = read_front(tmp_path / "two"), read_front(tmp_path / "one")
    assert ours["removed"] == theirs["removed"]
    for point, other in zip(ours["points"], theirs["points"], strict=True):
        assert point == pytest.approx(other, abs=1e-5)


def test_numbers_of_heads_on_the_front() -> None:
    assert heads_of_front(12, 4, 5) == [12, 8, 5, 4, 0]
    assert heads_of_front(12, 5, 7) == [12, 7, 2, 0]
    assert heads_of_front(3, 1, 2) == [3, 2, 1, 0]


if __name__ == "__main__":
    prune(Path(sys.argv[1]), json.loads(sys.argv[2]), count=44, **json.loads(sys.argv[3]))
