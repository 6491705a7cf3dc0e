"""Importance learnt in a Trainer: as in a hand-written loop, stopped in time, resumed exactly, thrown away after."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.utils.data import IterableDataset
from transformers import AutoModelForSequenceClassification, TrainingArguments, default_data_collator
from transformers.trainer_utils import get_last_checkpoint

from hf_nas import describe, extract
from hf_nas.importance.movement import MovementScores, MovementSettings, MovementSparsity, unit_scores
from tests import zoo
from tests.trainer_plugins.worlds import rows
from trainer_plugins.eftnas.movement_trainer import SCORES_FILE, MovementSparsityTrainer, learn_importance


EPOCHS, STEPS = 3.0, 6  # an epoch of 48 rows in batches of 8 has 6 steps


def arguments(folder, **settings) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 8, "num_train_epochs": 6, "learning_rate": 1e-2, "logging_steps": 1,
            "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "save_strategy": "no", "report_to": [],
            "use_cpu": True, "disable_tqdm": True, "train_sampling_strategy": "sequential", **settings,
        },
    )  # fmt: skip


def settings(model) -> MovementSettings:
    return MovementSettings.for_model(model, warmup_start_epoch=1, warmup_end_epoch=EPOCHS)


def trainer(folder, name: str = "bert", **options) -> MovementSparsityTrainer:
    model = zoo.without_dropout(zoo.build(name))
    return MovementSparsityTrainer(
        model=model, args=arguments(folder, **options), settings=settings(model), train_dataset=rows(),
        data_collator=default_data_collator,
    )  # fmt: skip


def test_it_equals_a_hand_written_loop_and_stops_when_the_scores_are_final(tmp_path) -> None:
    run = trainer(tmp_path)
    run.train()
    assert run.state.global_step == EPOCHS * STEPS + 1 and run.sparsity.frozen
    model = zoo.without_dropout(zoo.build("bert")).train()
    sparsity = MovementSparsity(model, settings(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for step in range(int(EPOCHS * STEPS) + 1):
        sparsity.set_step(step, STEPS)
        batch = default_data_collator(rows()[8 * (step % STEPS) : 8 * (step % STEPS) + 8])
        labels = batch.pop("labels")
        loss = functional.cross_entropy(model(**batch).logits, labels) + sparsity.regularization()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logged] == pytest.approx(losses, rel=1e-3)
    assert logged[-1]["importance_threshold"] == 0.0
    assert logged[10]["importance_factor"] == pytest.approx(0.02 * (1 - (1 - 4 / 12) ** 3))
    for path, scores in sparsity.scores().weights.items():
        assert torch.allclose(run.sparsity.scores().weights[path], scores, atol=1e-4)
        assert float(scores.abs().max()) > 0.01


@pytest.mark.parametrize("name", ["roberta", "distilbert", "llama-classification"])
def test_other_families(name: str, tmp_path) -> None:
    run = trainer(tmp_path, name)
    run.train()
    scores = run.sparsity.scores()
    run.sparsity.detach()
    structure = describe(run.model)
    units = unit_scores(scores, structure)
    assert set(units) == set(structure.names)
    assert all(len(set(units[name].tolist())) > 1 for name in structure.names)


def test_weights_decay_and_scores_do_not(tmp_path) -> None:
    run = trainer(tmp_path, weight_decay=0.1)
    decayed = set(run.get_decay_parameter_names(run.model))
    assert "bert.encoder.layer.0.intermediate.dense.weight" in decayed
    assert not any("importance" in name for name in decayed)


def learn(folder, **options) -> MovementScores:
    return learn_importance(
        lambda: zoo.without_dropout(zoo.build("bert")), settings, arguments("unused", **options), folder,
        num_train_epochs=6, train_dataset=rows(), data_collator=default_data_collator,
    )  # fmt: skip


@pytest.mark.parametrize("steps", [4, 9])
def test_a_run_goes_on_from_any_checkpoint_as_if_nothing_had_happened(steps: int, tmp_path) -> None:
    saving = {"save_strategy": "steps", "save_steps": steps}
    whole = learn(tmp_path / "whole", **saving)
    last = (int(EPOCHS * STEPS) // steps) * steps
    assert get_last_checkpoint(tmp_path / "whole").endswith(f"checkpoint-{last}")
    for checkpoint in range(steps, last + 1, steps):
        folder = tmp_path / str(checkpoint)
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{checkpoint}", folder / f"checkpoint-{checkpoint}")
        resumed = learn(folder, **saving)
        for path in whole.weights:
            assert torch.equal(resumed.weights[path], whole.weights[path])
            assert torch.equal(resumed.biases[path], whole.biases[path])
        files = [load_file(each / SCORES_FILE) for each in (folder, tmp_path / "whole")]
        assert all(torch.equal(files[0][name], files[1][name]) for name in files[1])
        assert (folder / "structured_sparsity.csv").read_text() == (
            tmp_path / "whole" / "structured_sparsity.csv"
        ).read_text()


def test_the_warm_up_may_begin_in_the_first_epoch(tmp_path) -> None:
    model = zoo.without_dropout(zoo.build("bert"))
    early = MovementSettings.for_model(model, warmup_start_epoch=0.5, warmup_end_epoch=1.0)
    run = MovementSparsityTrainer(
        model=model,
        args=arguments(tmp_path),
        settings=early,
        train_dataset=rows(),
        data_collator=default_data_collator,
    )
    run.train()
    assert run.state.global_step == STEPS + 1 and run.sparsity.frozen
    factors = [entry["importance_factor"] for entry in run.state.log_history if "importance_factor" in entry]
    assert factors[:3] == [0, 0, 0] and factors[3:6] == sorted(factors[3:6]) and factors[5] > 0


class Stream(IterableDataset):
    """Rows of which nobody knows how many there are."""

    def __iter__(self):
        return iter(rows())


@pytest.mark.parametrize("checkpoint", [STEPS, STEPS + 3])
def test_steps_that_were_counted_outlive_a_kill(checkpoint: int, tmp_path) -> None:
    def run(folder) -> MovementSparsityTrainer:
        model = zoo.without_dropout(zoo.build("bert"))
        given = arguments(folder, max_steps=60, save_strategy="steps", save_steps=STEPS // 2)
        given.train_sampling_strategy = "random"  # Trainer asks, though it does not sample a stream
        return MovementSparsityTrainer(
            model=model, args=given, settings=settings(model), train_dataset=Stream(),
            data_collator=default_data_collator,
        )  # fmt: skip

    whole = run(tmp_path)
    whole.train()
    assert whole.state.global_step == EPOCHS * STEPS + 1
    resumed = run(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert resumed.state.global_step == EPOCHS * STEPS + 1
    if checkpoint == STEPS:  # into the second epoch of a stream Trainer does not find its way back
        ours, theirs = resumed.sparsity.scores(), whole.sparsity.scores()
        assert all(torch.equal(ours.weights[path], theirs.weights[path]) for path in theirs.weights)


def test_scores_that_are_there_are_not_learnt_again(tmp_path) -> None:
    first = learn(tmp_path)
    before = (tmp_path / SCORES_FILE).stat().st_mtime_ns
    second = learn(tmp_path)
    assert (tmp_path / SCORES_FILE).stat().st_mtime_ns == before
    assert all(torch.equal(first.weights[path], second.weights[path]) for path in first.weights)


def test_a_checkpoint_is_one_of_the_stock_model_too(tmp_path) -> None:
    run = trainer(tmp_path, save_strategy="steps", save_steps=4)
    run.train()
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in stock.state_dict().items())
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert "sparsity" in state["stateful_callbacks"]["MovementSparsityCallback"]["attributes"]
    run.sparsity.detach()
    extract(run.model, zoo.corner_cases(run.model)["uniform half"])


def test_too_short_a_training_is_refused(tmp_path) -> None:
    with pytest.raises(
        ValueError, match="num_train_epochs is 3, but the warm-up of movement sparsity ends after epoch 3"
    ):
        trainer(tmp_path, num_train_epochs=3)
    with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint is True"):
        trainer(tmp_path, restore_callback_states_from_checkpoint=True)


def test_steps_that_do_not_reach_the_end_of_the_warm_up_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="has 18 optimizer steps, but .* ends after epoch 3, which takes 19"):
        trainer(tmp_path, max_steps=18).train()
    run = trainer(tmp_path, max_steps=19)
    run.train()
    assert run.sparsity.frozen
    model = zoo.build("bert")
    given = arguments(tmp_path, max_steps=18)
    given.train_sampling_strategy = "random"
    stream = MovementSparsityTrainer(
        model=model, args=given, settings=settings(model), train_dataset=Stream(), data_collator=default_data_collator
    )
    with pytest.raises(ValueError, match="has 18 optimizer steps"):
        stream.train()
    assert stream.state.global_step == STEPS  # known only once an epoch has been counted


def test_smaller_batches_after_one_too_many_for_the_memory_begin_the_schedule_anew(tmp_path) -> None:
    class SmallMemory(MovementSparsityTrainer):
        def training_step(self, model, inputs, *others):
            if len(inputs["labels"]) > 4:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *others)

    model = zoo.without_dropout(zoo.build("bert"))
    run = SmallMemory(
        model=model, args=arguments(tmp_path, auto_find_batch_size=True), settings=settings(model),
        train_dataset=rows(), data_collator=default_data_collator,
    )  # fmt: skip
    run.train()
    steps = -(-len(rows()) // run._train_batch_size)
    assert run._train_batch_size <= 4 and run.sparsity.schedule.steps_per_epoch == steps
    assert run.state.global_step == EPOCHS * steps + 1 and run.sparsity.frozen


def test_evaluation_of_the_main_training_is_none_of_this_one(tmp_path) -> None:
    assert learn(tmp_path, eval_strategy="epoch", eval_on_start=True).weights
