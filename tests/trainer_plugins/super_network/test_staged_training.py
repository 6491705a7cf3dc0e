"""Training in stages: each with its spaces and learning rates, exactly as long as they say, and resumed exactly."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments, default_data_collator

from hf_nas import SubNetwork, describe
from hf_nas.elastic import Stage, StageSchedule
from hf_nas.space import CustomSpace
from tests import zoo
from tests.trainer_plugins.worlds import rows
from trainer_plugins import SuperNetworkArguments, SuperNetworkTrainer
from trainer_plugins.super_network.staged_training import PublishedAdamW, StagedTraining


WIDE, NARROW = {"*.attention": [3, 4], "*": [20, 24]}, {"*.attention": [1, 2, 3, 4], "*": [0, 8, 24]}


def staged(model, *stages: Stage, spaces=(WIDE, NARROW), **options) -> StagedTraining:
    stages = stages or (Stage(("width",), epochs=1, init_lr=1e-2), Stage(("width",), epochs=2, init_lr=2e-3))
    structure = describe(model)
    chosen = tuple(CustomSpace({"sub_layers": space}, structure) for space in spaces)[: len(stages)]
    return StagedTraining(StageSchedule(stages), chosen, **options)


def trainer(folder, *stages: Stage, training=None, model=None, **settings) -> SuperNetworkTrainer:
    model = model or zoo.without_dropout(zoo.build("bert"))
    arguments = TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 8, "learning_rate": 1.0, "logging_steps": 1, "save_strategy": "no",
            "report_to": [], "use_cpu": True, "disable_tqdm": True, "num_train_epochs": 50, **settings,
        },
    )  # fmt: skip
    return SuperNetworkTrainer(
        model=model, args=arguments, train_dataset=rows(), data_collator=default_data_collator,
        super_network=SuperNetworkArguments(sampling_strategy="sandwich", importance="none"),
        stages=training or staged(model, *stages),
    )  # fmt: skip


def watch(run: SuperNetworkTrainer) -> list[list[SubNetwork]]:
    """Record the sub-networks of each step."""
    seen: list[list[SubNetwork]] = []
    passes_of_step = run.passes_of_step

    def record(step):
        passes = passes_of_step(step)
        seen.append([each.sub_network for each in passes])
        return passes

    run.passes_of_step = record
    return seen


@pytest.mark.parametrize("compat, wanted", [(False, 1.0), (True, 3.5e-6)])
def test_a_stage_without_a_learning_rate_has_that_of_the_training(compat: bool, wanted: float, tmp_path) -> None:
    stages = staged(zoo.build("bert"), Stage(("width",), epochs=1), spaces=(WIDE,), compat=compat)
    run = trainer(tmp_path, training=stages, max_grad_norm=0.0)
    run.create_optimizer_and_scheduler(6)
    assert run.lr_scheduler.get_last_lr() == pytest.approx([wanted] * len(run.optimizer.param_groups))
    # As Trainer does it with smaller batches where the memory is too small: the same optimizer, a new schedule.
    for group in run.optimizer.param_groups:
        group["lr"] = 0.125
    again = stages.learning_rates(run.optimizer, 6)
    assert again.get_last_lr() == pytest.approx([wanted] * len(run.optimizer.param_groups))


def test_stages_decide_length_spaces_and_learning_rates(tmp_path) -> None:
    run = trainer(tmp_path)
    seen = watch(run)
    run.train()
    assert run.state.global_step == 3 * 6 and run.args.num_train_epochs == 3
    first, second = run.stages.spaces
    for step, sub_networks in enumerate(seen):
        space = first if step < 6 else second
        assert sub_networks[0] == space.smallest and sub_networks[-1] == space.largest == run.super_network.full
        assert space.encode(sub_networks[1])
    assert any(2 in sub_networks[1].counts() for sub_networks in seen[6:])
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    cosine = lambda rate, step, length: 0.5 * rate * (1 + torch.cos(torch.tensor(torch.pi * step / length)).item())  # noqa: E731
    wanted = [cosine(1e-2, step, 6) for step in range(6)] + [cosine(2e-3, step, 12) for step in range(12)]
    assert rates == pytest.approx(wanted, rel=1e-5)
    assert run.searched_space() is second


def test_the_published_learning_rates_lag_behind(tmp_path) -> None:
    model = zoo.without_dropout(zoo.build("bert"))
    stage = Stage(("width",), epochs=3, init_lr=2e-3)
    run = trainer(tmp_path, training=staged(model, stage, compat=True), model=model, per_device_train_batch_size=16)
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    published = [2.0, 1.93969, 1.76604, 1.5, 1.5, 1.17365, 0.826352, 0.826352, 0.5]
    assert rates == pytest.approx([1e-3 * rate for rate in published], rel=1e-4)
    assert isinstance(run.optimizer.optimizer, PublishedAdamW)


def test_the_optimizer_of_transformers_4(tmp_path) -> None:
    """Against its formula: the denominator is sqrt(v) + epsilon, and the step carries both bias corrections."""
    generator = torch.Generator().manual_seed(0)
    # Small gradients, beside which the epsilon matters.
    gradients = [1e-7 * torch.randn(5, generator=generator).double() for _ in range(4)]
    parameter = torch.nn.Parameter(torch.ones(5, dtype=torch.double))
    optimizer = PublishedAdamW([parameter], lr=0.1, weight_decay=0.0)
    wanted, first, second = torch.ones(5, dtype=torch.double), 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
        parameter.grad = gradient.clone()
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        size = 0.1 * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
        wanted = wanted - size * first / (second.sqrt() + 1e-8)
        assert torch.allclose(parameter, wanted, atol=1e-10)
    assert optimizer.param_groups[0]["eps"] == 1e-8
    plain = torch.nn.Parameter(torch.ones(5, dtype=torch.double))
    other = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.0)
    for gradient in gradients:
        plain.grad = gradient.clone()
        other.step()
    assert not torch.allclose(plain, wanted, atol=1e-3)


def test_a_random_sub_network_stays_for_as_many_steps_as_the_stage_says(tmp_path) -> None:
    run = trainer(tmp_path, Stage(("width",), epochs=2, init_lr=1e-3, sample_rate=3))
    watched = watch(run)
    run.train()
    seen = [sub_networks[1] for sub_networks in watched]
    assert all(len(set(seen[start : start + 3])) == 1 for start in range(0, 12, 3))
    assert len(set(seen)) >= 3


def test_a_stage_that_reorders_sorts_weights_and_moments_once(tmp_path) -> None:
    stages = (
        Stage(("width",), epochs=1, init_lr=1e-2),
        Stage(("width",), epochs=1, init_lr=1e-2, reorg_weights=True),
    )
    model = zoo.without_dropout(zoo.build("bert"))
    run = trainer(tmp_path, *stages, model=model, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    recorded = []
    sort = run._reorder_for_stage

    def record():
        step = run.state.global_step
        before = model.bert.encoder.layer[0].intermediate.dense.weight
        moments = run.optimizer.state.get(before, {}).get("exp_avg")
        pair = before.detach().clone(), None if moments is None else moments.clone()
        sort()
        if not torch.equal(pair[0], before):
            recorded.append((step, pair, (before.detach().clone(), run.optimizer.state[before]["exp_avg"].clone())))

    run._reorder_for_stage = record
    run.train()
    assert [step for step, _, _ in recorded] == [6]
    (_, before, after) = recorded[0]
    norms = after[0].norm(dim=1)
    matches = (after[0][:, None] == before[0][None]).all(-1)
    assert torch.all(matches.sum(0) == 1)
    order = matches.float().argmax(1)
    assert order.tolist() != sorted(order.tolist()) and len(norms) == 24
    assert torch.equal(after[1], before[1][order])


@pytest.mark.parametrize("checkpoint", [4, 6, 9])
def test_a_resumed_run_ends_in_the_same_weights(checkpoint: int, tmp_path) -> None:
    stages = (
        Stage(("width",), epochs=1, init_lr=1e-2),
        Stage(("width",), epochs=1, init_lr=1e-2, reorg_weights=True, sample_rate=2),
    )
    run = trainer(tmp_path / "whole", *stages, save_strategy="steps", save_steps=checkpoint)
    run.train()
    run.save_model()
    folder = tmp_path / "resumed"
    name = f"checkpoint-{checkpoint}"
    shutil.copytree(tmp_path / "whole" / name, folder / name)
    again = trainer(folder, *stages, save_strategy="no")
    again.train(resume_from_checkpoint=str(folder / name))
    again.save_model()
    files = [load_file(each / "model.safetensors") for each in (tmp_path / "whole", folder)]
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])


def test_what_stages_cannot_do_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="max_steps is 5, but the stages .* take|takes \\(3 epochs\\)"):
        trainer(tmp_path, max_steps=5)
    with pytest.raises(ValueError, match="'reorg_interval' is 2, but the importance is learnt once"):
        staged(zoo.build("bert"), Stage(("width",), epochs=4, init_lr=1e-3, reorg_interval=2), spaces=(WIDE,))


def test_scores_for_another_order_are_refused(tmp_path) -> None:
    model = zoo.without_dropout(zoo.build("bert"))
    model.config.hf_nas_reordered_by = "magnitude"
    structure = describe(model)
    run = SuperNetworkTrainer(
        model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=1),
        train_dataset=rows(), data_collator=default_data_collator,
        super_network=SuperNetworkArguments(sampling_strategy="sandwich", importance="movement"),
        scores={s.name: torch.zeros(s.units) for s in structure},
    )  # fmt: skip
    with pytest.raises(ValueError, match="put in order of magnitude before, so scores from elsewhere do not belong"):
        run.train()
