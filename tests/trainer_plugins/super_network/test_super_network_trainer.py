"""The trainer does what a hand-written loop over the same sub-networks does, whatever the Trainer's settings."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import Trainer, TrainingArguments, default_data_collator

from hf_nas import SuperNetwork, register_strategy
from hf_nas.elastic import Pass, TrainingStrategy
from tests import zoo
from tests.trainer_plugins.worlds import rows, trainer
from trainer_plugins import SuperNetworkArguments, SuperNetworkTrainer


ROOT = Path(__file__).resolve().parents[3]


def distance(first: dict, second: dict) -> float:
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


def capture_gradients(run: SuperNetworkTrainer) -> list[dict]:
    """Record the gradients before each optimizer step."""
    captured: list[dict] = []

    from transformers import TrainerCallback

    class Capture(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            captured.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    run.add_callback(Capture())
    return captured


def reference_loss(logits, labels, teacher, temperature: float) -> torch.Tensor:
    """The loss of one pass, written out."""
    task = functional.cross_entropy(logits, labels)
    if teacher is None:
        return task
    student = (logits / temperature).log_softmax(-1)
    target = (teacher / temperature).softmax(-1)
    divergence = (target * (target.log() - student)).sum(-1).mean()
    return temperature**2 * divergence + task


@pytest.mark.parametrize("strategy", ["standard", "random", "linear_random", "one_shot", "sandwich", "kd"])
def test_a_step_equals_a_hand_written_one(strategy: str, tmp_path) -> None:
    run = trainer(
        tmp_path, strategy, max_steps=3, max_grad_norm=0.0, learning_rate=0.0, importance="none", temperature=4.0,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    captured = capture_gradients(run)
    model = copy.deepcopy(zoo.without_dropout(zoo.build("bert")).train())
    structure = run.super_network.structure
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(captured) == 3
    for step in range(3):
        batch = default_data_collator(rows()[8 * step : 8 * step + 8])
        labels = batch.pop("labels")
        teacher = model(**batch).logits.detach()
        model.zero_grad()
        total = 0.0
        passes = run.passes_of_step(step)
        for each in passes:
            # Zeroed weights instead of slices: the oracle's gradients, masked in the same way, are those of the model.
            oracle = zoo.dense_oracle(model, each.sub_network)
            loss = reference_loss(oracle(**batch).logits, labels, teacher if each.distill else None, 4.0)
            total += loss.item()
            with SuperNetwork(model) as super_network:
                super_network.activate(each.sub_network)
                reference_loss(model(**batch).logits, labels, teacher if each.distill else None, 4.0).backward()
        assert losses[step] == pytest.approx(total, rel=1e-4)
        for name, parameter in model.named_parameters():
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(captured[step].get(name, torch.zeros_like(wanted)), wanted, atol=1e-5, rtol=1e-4)
    full = SuperNetwork(model).full
    kinds = [p.sub_network == full for p in passes]
    assert len(passes) == {"standard": 1, "random": 2, "one_shot": 4, "sandwich": 4}.get(strategy, len(passes))
    if strategy in ("standard", "sandwich", "one_shot"):
        assert kinds[-1] and passes[-1].distill is False
    if strategy == "one_shot":
        assert [p.distill for p in passes] == [True, True, True, False]
    assert structure == super_network.structure


def test_probability_of_random_sub_networks_grows_from_none_to_all(tmp_path) -> None:
    run = trainer(tmp_path, "linear_random", max_steps=400)
    run.state.max_steps = 400
    full = run.super_network.full
    random = [run.passes_of_step(step)[-1].sub_network != full for step in range(400)]
    assert not any(random[:3]) and all(random[-3:])
    assert 0.4 < sum(random) / 400 < 0.6


@pytest.mark.parametrize("model", ["bert", "llama", "t5"])
@pytest.mark.parametrize("strategy", ["sandwich", "one_shot"])
def test_gradient_accumulation_changes_nothing(model: str, strategy: str, tmp_path) -> None:
    results = []
    for size, steps in ((8, 1), (2, 4)):
        run = trainer(
            tmp_path / str(size), strategy, model, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            max_steps=2, learning_rate=1e-3, optim="sgd",
        )  # fmt: skip
        # Unequal numbers of counted tokens in the micro-batches: equal ones would hide a wrong weighting.
        if model != "bert":
            for number, row in enumerate(run.train_dataset):
                row["labels"] = [-100] * (number % 5) + row["labels"][number % 5 :]
        gradients = capture_gradients(run)
        run.train()
        logged = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        results.append((gradients, logged))
    (whole, whole_loss), (parts, parts_loss) = results
    assert whole_loss == pytest.approx(parts_loss, rel=1e-4)
    for step in range(2):
        scale = max(float(gradient.abs().max()) for gradient in whole[step].values())
        assert distance(whole[step], parts[step]) <= 1e-4 * scale  # a wrong weighting differs by a tenth and more


def test_activation_checkpointing_changes_nothing(tmp_path) -> None:
    results = []
    for checkpointing in (False, True):
        run = trainer(tmp_path, "one_shot", gradient_checkpointing=checkpointing, max_steps=3)
        run.train()
        results.append(run.model.state_dict())
    assert distance(*results) < 1e-5


def test_same_seed_same_result_and_two_seeds_differ(tmp_path) -> None:
    results = []
    for seed in (0, 0, 1):
        run = trainer(tmp_path, "sandwich", seed=seed, data_seed=0, max_steps=3)
        torch.manual_seed(torch.randint(1000, ()).item())
        run.train()
        results.append(run.model.state_dict())
    assert distance(results[0], results[1]) == 0.0
    assert distance(results[0], results[2]) > 0.0


def test_without_a_strategy_it_is_the_stock_trainer(tmp_path) -> None:
    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=8, max_steps=5, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    results = []
    for kind in (Trainer, SuperNetworkTrainer):
        run = kind(
            model=zoo.without_dropout(zoo.build("bert")),
            args=arguments,
            train_dataset=rows(),
            data_collator=default_data_collator,
        )
        run.train()
        results.append(run.model.state_dict())
    assert distance(*results) < 1e-6


def test_units_are_put_in_order_once(tmp_path) -> None:
    run = trainer(tmp_path, "standard", max_steps=1, learning_rate=0.0)
    inputs = zoo.inputs_for(run.model)
    wanted = zoo.logits(run.model.eval(), inputs)
    run.train()
    assert torch.allclose(zoo.logits(run.model.eval(), inputs), wanted, atol=1e-5)
    assert run.model.config.hf_nas_reordered_by == "magnitude"
    before = copy.deepcopy(run.model.state_dict())
    run.train()
    assert distance(before, run.model.state_dict()) == 0.0


def test_a_strategy_of_ones_own(tmp_path) -> None:
    class OnlySmallest(TrainingStrategy):
        def passes(self, generator, progress):
            return [Pass(self.smallest)]

    register_strategy("only_smallest", OnlySmallest)
    run = trainer(tmp_path, "only_smallest", max_steps=2, importance="none")
    before = copy.deepcopy(run.model.state_dict())
    run.train()
    changed = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("layer.0" in name for name in changed)
    assert not any("layer.1" in name or "layer.2" in name for name in changed)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sampling_strategy": "sandwhich"}, "Unknown sampling strategy 'sandwhich'; choose one of standard, random"),
        ({"sampling_strategy": "sandwich", "search_space": "huge"}, "huge"),
        ({"sampling_strategy": "sandwich", "sub_network_sampling": "often"}, "often"),
        (
            {"sampling_strategy": "sandwich", "importance": "luck"},
            "Unknown importance 'luck'; choose none, movement or one of",
        ),
    ],
)
def test_unknown_names_are_refused_at_once(arguments: dict, message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        SuperNetworkTrainer(
            model=zoo.build("bert"),
            args=TrainingArguments(tmp_path, use_cpu=True),
            super_network=SuperNetworkArguments(**arguments),
            train_dataset=rows(),
        )


def start(command: list[str], output_dir: Path, **settings) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "tests.trainer_plugins.worlds", str(output_dir), json.dumps(settings)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-3000:]


@pytest.mark.parametrize("strategy", ["one_shot", "random"])
def test_two_processes_equal_one_with_the_joined_batch(strategy: str, tmp_path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    torchrun += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    settings = {"strategy": strategy, "max_steps": 3, "optim": "sgd", "train_sampling_strategy": "sequential"}
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    two = start(torchrun, tmp_path / "two", per_device_train_batch_size=4, ddp_backend="gloo", **settings)
    finish(two)
    finish(start([sys.executable], tmp_path / "one", per_device_train_batch_size=8, **settings))
    drawn = [(tmp_path / "two" / f"drawn_{rank}.json").read_text() for rank in (0, 1)]
    assert drawn[0] == drawn[1] == (tmp_path / "one" / "drawn_0.json").read_text()
    first, second = (load_file(tmp_path / "two" / f"final_{rank}.safetensors") for rank in (0, 1))
    assert distance(first, second) == 0.0
    assert distance(first, load_file(tmp_path / "one" / "final_0.safetensors")) < 1e-4


def test_killed_in_mid_training_and_resumed(tmp_path) -> None:
    settings = {"strategy": "one_shot", "max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    finish(start([sys.executable], whole, **settings))
    process = start([sys.executable], killed, slow=True, **settings)
    deadline = time.time() + 200
    while not (killed / "checkpoint-4" / "trainer_state.json").exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "final_0.safetensors").exists()
    finish(start([sys.executable], killed, resume=True, **settings))
    wanted, resumed = load_file(whole / "final_0.safetensors"), load_file(killed / "final_0.safetensors")
    assert distance(wanted, resumed) == 0.0
