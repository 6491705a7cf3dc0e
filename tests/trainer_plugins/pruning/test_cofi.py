"""A whole pruning: what it leaves, that it meets its target, and that a kill at any moment changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hf_nas.gates import published_sparsity
from hf_nas.profiling import SizeTable, parameter_costs
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork
from tests import zoo
from tests.trainer_plugins.pruning_world import prune
from trainer_plugins import PruningTrainer
from trainer_plugins.pruning import cofi
from trainer_plugins.pruning.files import freeze_embeddings
from trainer_plugins.run_state import last_complete_checkpoint


ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("pruned", "finetuned")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(folder: Path, other: Path) -> None:
    for name in FOLDERS:
        ours, theirs = weights(folder / name), weights(other / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    prune(folder, do_eval=True)
    return folder


def test_what_a_run_leaves(whole: Path) -> None:
    dense = zoo.build("bert")
    report = json.loads((whole / "pruned" / "pruning.json").read_text())
    sub_network = SubNetwork.load(whole / "pruned", describe(dense))
    sparsity = parameter_costs(dense).sparsity(sub_network)
    assert report["sparsity"] == sparsity and 0.5 <= sparsity < 0.55
    assert report["target"] == 0.5 and report["budget"] == "params"
    assert report["published_sparsity"] == published_sparsity(dense, sub_network).to_dict()
    for name in FOLDERS:
        small = AutoModelForSequenceClassification.from_pretrained(whole / name)
        assert small.num_parameters() == report["parameters"] == SizeTable(dense).parameters(sub_network)
        assert report["dense_parameters"] == dense.num_parameters()
        assert not any("gates" in key or "layer_distillation" in key for key in weights(whole / name))
        assert json.loads((whole / name / "pruning.json").read_text()) == report
    before, after = weights(whole / "pruned"), weights(whole / "finetuned")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if "embeddings" not in key and before[key].numel()}
    assert json.loads((whole / "pruned" / "eval_results.json").read_text())["eval_accuracy"] >= 0
    # 2 epochs with gates, 1 without, of 6 steps each.
    steps = [json.loads((whole / name / "trainer_state.json").read_text()) for name in ("pruning", "finetuned")]
    assert [state["global_step"] for state in steps] == [12, 6]
    rates = [entry["learning_rate"] for entry in steps[1]["log_history"] if "loss" in entry]
    assert rates == [5e-3] * 6


def test_a_finished_run_is_not_repeated(whole: Path, monkeypatch) -> None:
    monkeypatch.setattr(PruningTrainer, "train", None)
    before = {name: weights(whole / name) for name in FOLDERS}
    outcome = prune(whole, do_eval=True)
    assert outcome.folder == whole / "finetuned" and outcome.trainer.args.output_dir == str(whole)
    assert all(torch.equal(tensor, weights(whole / "pruned")[key]) for key, tensor in before["pruned"].items())
    assert "Sparsity 0.5" in outcome.summary() and "as published in logs" in outcome.summary()
    assert 0 <= outcome.trainer.evaluate()["eval_accuracy"] <= 1


@pytest.mark.parametrize(
    ("folder", "step"), [("pruning", 1), ("pruning", 4), ("pruning", 9), ("finetuned", 3)], ids=str
)
def test_killed_in_any_phase_and_continued(whole: Path, tmp_path, monkeypatch, folder: str, step: int) -> None:
    training_step = PruningTrainer.training_step

    def die(self, *args, **kwargs):
        if self.state.global_step == step and Path(self.args.output_dir).name == folder:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PruningTrainer, "training_step", die)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path)
    steps = []

    def count(self, *args, **kwargs):
        steps.append((Path(self.args.output_dir).name, self.state.global_step))
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(PruningTrainer, "training_step", count)
    prune(tmp_path)
    assert steps[0] == (folder, step // 2 * 2) and steps[-1] == ("finetuned", 5)
    assert_same(tmp_path, whole)


def test_killed_with_checkpoints_of_weights_alone(whole: Path, tmp_path, monkeypatch) -> None:
    training_step = PruningTrainer.training_step

    def die(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PruningTrainer, "training_step", die)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, save_only_model=True)
    assert (tmp_path / "pruning" / "checkpoint-4" / "model.safetensors").is_file()
    prune(tmp_path, save_only_model=True)
    assert_same(tmp_path, whole)


def test_killed_while_the_small_model_is_written(whole: Path, tmp_path, monkeypatch) -> None:
    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cofi, "write_json", die)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path)
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
    prune(tmp_path)
    assert_same(tmp_path, whole)


def test_killed_by_the_system_and_continued(whole: Path, tmp_path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.trainer_plugins.pruning_world", str(tmp_path), '{"prune": true}'], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.time() + 200
    while last_complete_checkpoint(tmp_path / "pruning") is None:
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "pruned").exists()
    prune(tmp_path)
    assert_same(tmp_path, whole)


def test_a_second_command_fine_tunes_the_same(whole: Path, tmp_path) -> None:
    first = prune(tmp_path / "first", pruning={"do_final_finetune": False})
    assert first.folder == tmp_path / "first" / "pruned" and not (tmp_path / "first" / "finetuned").exists()
    second = prune(
        tmp_path / "second", model=AutoModelForSequenceClassification.from_pretrained(first.folder),
        pruning={"pruning_type": None, "pretrained_pruned_model": str(first.folder), "do_final_finetune": False,
                 "scheduler_type": "none"}, num_train_epochs=1, learning_rate=5e-3,
    )  # fmt: skip
    ours, theirs = weights(second.folder), weights(whole / "finetuned")
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert second.report == first.report and second.sub_network == first.sub_network


def test_layers_are_taught_in_both_trainings(tmp_path, caplog) -> None:
    distillation = {"do_distill": True, "do_layer_distill": True, "freeze_embeddings": False}
    outcome = prune(tmp_path, teacher=zoo.build("bert", seed=5), pruning=distillation, save_strategy="no")
    maps = load_file(tmp_path / "pruned" / "layer_distillation.safetensors")
    width = len(outcome.sub_network.hidden or range(32))
    assert maps["encoder.weight"].shape == (32, width) and not torch.equal(maps["encoder.bias"], torch.zeros(32))
    before, after = weights(tmp_path / "pruned"), weights(tmp_path / "finetuned")
    assert not torch.equal(before["bert.embeddings.LayerNorm.weight"], after["bert.embeddings.LayerNorm.weight"])
    assert "starts anew" not in caplog.text


def test_logits_of_the_teacher_are_asked_once(tmp_path) -> None:
    teacher = zoo.build("bert", seed=5)
    calls = []
    teacher.register_forward_hook(lambda *args: calls.append(1))
    prune(tmp_path, teacher=teacher, pruning={"do_distill": True, "cache_teacher_logits": True}, save_strategy="no")
    assert len(calls) == 6  # 48 rows in batches of 8, for 18 steps


def test_another_run_in_the_folder_is_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match="holds another run .target_sparsity was 0.5 and is 0.6.; choose another"):
        prune(whole, pruning={"target_sparsity": 0.6})
    with pytest.raises(ValueError, match="holds another run .*final_finetune_epochs was 1.0 and is 3.0"):
        prune(whole, pruning={"final_finetune_epochs": 3.0})
    with pytest.raises(ValueError, match="Nothing is to be pruned; set pruning_type"):
        prune(whole, pruning={"pruning_type": None})


def test_the_fine_tuning_has_a_schedule_of_its_own_and_may_change_until_it_has_begun(tmp_path, monkeypatch) -> None:
    kwargs = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    with pytest.MonkeyPatch.context() as patch:  # it dies before its first checkpoint
        patch.setattr(PruningTrainer, "release", die_after_pruning(PruningTrainer.release))
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, pruning={"final_finetune_scheduler_type": "linear"}, save_strategy="no", **kwargs)
    flags = {"final_finetune_scheduler_type": "constant_with_warmup", "final_finetune_warmup_steps": 4.0}
    outcome = prune(tmp_path, pruning=flags, save_strategy="no", **kwargs)
    log = json.loads((outcome.folder / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert rates == pytest.approx([0.0, 0.00125, 0.0025, 0.00375, 0.005, 0.005])


def die_after_pruning(release):
    """Lets the second training die when it is done."""
    calls = []

    def die(self):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return release(self)

    return die


@pytest.mark.parametrize("layers", [True, False])
def test_a_training_that_is_too_short_is_refused_before_the_teacher_is_asked(layers: bool, tmp_path) -> None:
    teacher = zoo.build("bert", seed=5)
    teacher.register_forward_hook(lambda *args: pytest.fail("the teacher was asked"))
    distillation = {"do_distill": True, "do_layer_distill": layers, "cache_teacher_logits": not layers}
    with pytest.raises(ValueError, match="The training has 6 steps, but pruning begins after 3 and .* 3 steps later"):
        prune(tmp_path, teacher=teacher, pruning=distillation, max_steps=6)
    assert not any(tmp_path.iterdir())


def test_two_processes_prune_and_fine_tune(tmp_path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "-m", "tests.trainer_plugins.pruning_world"]
    settings = {"prune": True, "save_strategy": "no", "ddp_backend": "gloo"}
    done = subprocess.run(
        [*command, str(tmp_path / "two"), json.dumps(settings | {"per_device_train_batch_size": 4})], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True, timeout=240,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    report = json.loads((tmp_path / "two" / "pruned" / "pruning.json").read_text())
    assert 0.5 <= report["sparsity"] < 0.55
    for folder in FOLDERS:
        small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "two" / folder)
        assert small.num_parameters() == report["parameters"]
    before, after = (weights(tmp_path / "two" / folder) for folder in FOLDERS)
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_an_incomplete_checkpoint_does_not_count(tmp_path) -> None:
    assert last_complete_checkpoint(tmp_path) is None
    for step, text in ((2, "{}"), (10, "{}"), (12, '{"half'), (14, None), (16, "{}")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
        if step < 16:
            (folder / "rng_state.pth").touch()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    shutil.rmtree(tmp_path / "checkpoint-10")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "bart", "t5", "llama"])
def test_embeddings_are_frozen_and_nothing_else(name: str) -> None:
    model = zoo.build(name)
    parameters = dict(model.named_parameters())
    trained = {key for key, parameter in parameters.items() if parameter.requires_grad}
    freeze_embeddings(model)
    frozen = {key for key in trained if not parameters[key].requires_grad}
    tables = (".wte.weight", ".wpe.weight", "shared.weight")
    assert frozen == {key for key in trained if "embed" in key or key.endswith(tables)}
    assert frozen and not any(".layer" in key and "layernorm_embedding" not in key for key in frozen)
