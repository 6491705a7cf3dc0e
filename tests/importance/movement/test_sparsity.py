"""Movement sparsity on whole models: attached, trained, frozen, resumed, detached."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_nas import SubNetwork, SuperNetwork, describe
from hf_nas.importance.movement import MovementSettings, MovementSparsity, kept_units
from hf_nas.importance.movement.resolution import groups_of
from hf_nas.subnetwork import NORM_ONLY
from tests import zoo


NAMES = [name for name in zoo.MODELS if name != "gpt2"]
STEPS_PER_EPOCH = 3


def settings_for(model, **others) -> MovementSettings:
    return MovementSettings.for_model(model, 1, 3, **others)


class Run:
    """A plain training loop: one epoch before the warm-up, two in it, one after it."""

    def __init__(self, name: str = "bert", **others):
        self.model = zoo.without_dropout(zoo.build(name)).train()
        self.sparsity = MovementSparsity(self.model, settings_for(self.model, **others))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.inputs = zoo.inputs_for(self.model, labels=True)
        self.losses: list[float] = []

    def train(self, first: int, last: int, forward=None) -> None:
        for step in range(first, last):
            self.sparsity.set_step(step, STEPS_PER_EPOCH if step >= STEPS_PER_EPOCH else None)
            loss = (forward or self.model)(**self.inputs).loss + self.sparsity.regularization()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())

    def save(self, path: Path) -> None:
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, path / "tensors.bin")
        (path / "state.json").write_text(json.dumps(self.sparsity.state_dict(), allow_nan=False))

    def load(self, path: Path) -> None:
        tensors = torch.load(path / "tensors.bin", weights_only=True)
        self.model.load_state_dict(tensors["model"])
        self.sparsity.load_state_dict(json.loads((path / "state.json").read_text()))
        self.optimizer.load_state_dict(tensors["optimizer"])


@pytest.mark.parametrize("name", NAMES)
def test_attach_and_detach_without_trace(name: str) -> None:
    model = zoo.without_dropout(zoo.build(name))
    inputs = zoo.inputs_for(model)
    wanted = zoo.logits(model, inputs)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modules = [(type(module), set(vars(module))) for module in model.modules()]
    settings = settings_for(model)
    with MovementSparsity(model, settings):
        assert set(state) < set(model.state_dict())
        added = set(model.state_dict()) - set(state)
        ends = ("weight_importance", "bias_importance", "weight_mask", "bias_mask")
        assert all(key.rsplit(".", 1)[1] in ends for key in added)
        assert torch.equal(zoo.logits(model, inputs), wanted)
        assert torch.equal(zoo.logits(model.train(), inputs), wanted)
        with pytest.raises(ValueError, match="attached to this .* already"):
            MovementSparsity(model, settings)
    model.eval()
    assert [(type(module), set(vars(module))) for module in model.modules()] == modules
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(zoo.logits(model, inputs), wanted)
    with SuperNetwork(model), pytest.raises(ValueError, match="attached to this .* already"):
        MovementSparsity(model, settings)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_frozen_model_computes_as_its_sub_network(name: str, masked: bool) -> None:
    """Masks of whole units leave what the super-network computes in slices."""
    model = zoo.without_dropout(zoo.build(name)).train()
    inputs = zoo.inputs_for(model)
    structure = describe(model)
    generator = torch.Generator().manual_seed(3)
    settings = MovementSettings.for_model(
        model, 0, 1, steps_per_epoch=2, init_importance_threshold=-0.5, enable_structured_masking=masked
    )
    sparsity = MovementSparsity(model, settings)
    kept: dict[str, list[int] | str | None] = {}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("_importance"):
                parameter.fill_(-1.0)
        linear = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
        for group, _ in groups_of(linear, structure):
            sub_layer = group.sub_layer
            count = int(torch.randint(0, sub_layer.units, (1,), generator=generator))
            units = torch.randperm(sub_layer.units, generator=generator)[:count].sort().values
            member = group.members[count % len(group.members)]
            scores = model.get_submodule(member).weight_importance
            rows = len(model.get_submodule(member).weight)
            last_block = sub_layer.units * sum(sub_layer.blocks(rows)[:-1]) * len(scores) // rows  # of a fused writer
            by_unit = (scores[0].view(sub_layer.units, -1) if member == group.reader
                       else scores[last_block:, 0].view(sub_layer.units, -1))  # fmt: skip
            by_unit[units, -1] = 1.0
            # With nothing kept the bias of the output goes too.
            nothing = None if sub_layer.layout.is_attention and not sub_layer.layout.norm_only else NORM_ONLY
            kept[sub_layer.name] = units.tolist() or nothing
    sparsity.set_step(0)
    model(**inputs)
    sparsity.set_step(2)
    assert sparsity.frozen
    found = kept_units(sparsity.masks(), structure)
    counts = {key: len(units) if isinstance(units, list) else 0 for key, units in kept.items()}
    assert {key: int(units.sum()) for key, units in found.items()} == counts
    assert any(counts.values()) and not all(
        count == structure[key].units for key, count in counts.items()
    )  # fmt: skip
    result = zoo.logits(model, inputs)
    sparsity.detach()
    model.eval()
    with SuperNetwork(model) as super_network:
        super_network.activate(SubNetwork.of(structure, kept))
        wanted = zoo.logits(model, inputs)
    difference = (result - wanted).abs().max()
    # Without the resolution only single rows or columns of the units are left.
    assert (difference <= 1e-5 * max(1.0, float(wanted.abs().max()))) == masked


def test_regularization_of_bert_base_and_its_mean() -> None:
    # All layers of BERT-base are alike, so one of them has the mean of all.
    model = zoo.build("bert", hidden_size=768, num_hidden_layers=1, num_attention_heads=12, intermediate_size=3072)
    sparsity = MovementSparsity(model, settings_for(model, init_importance_threshold=-1.0))
    assert sparsity.regularization().item() == 0.0  # before the warm-up
    layer = model.bert.encoder.layer[0]
    shapes = {
        layer.attention.self.query: ((24, 24), (24,)),
        layer.attention.output.dense: ((24, 24), (24,)),
        layer.intermediate.dense: ((3072, 1), (3072,)),
        layer.output.dense: ((1, 3072), (1,)),
    }
    for module, (weight, bias) in shapes.items():
        assert (module.weight_importance.shape, module.bias_importance.shape) == (weight, bias)
    sparsity.set_step(2, 1)
    # With all scores zero: 0.25 of the elements of a block and its rows; 32 x 32 four times, 1 x 768, and 768 x 1.
    mean = 0.25 * (4 * (1024 + 32) + (768 + 1) + (768 + 768)) / 6
    assert sparsity.regularization().item() == pytest.approx(sparsity.factor * mean, rel=1e-6)
    assert 0.02 * mean == pytest.approx(5.4408, abs=1e-4)
    sparsity.set_step(1, 1)
    assert sparsity.factor == 0 and sparsity.regularization().item() == 0.0  # the first step of the warm-up
    sparsity.set_step(3, 1)
    assert sparsity.frozen and sparsity.regularization().item() == 0.0


def test_stages_of_a_run() -> None:
    run = Run()
    scores = run.model.bert.encoder.layer[0].attention.self.value.weight_importance
    assert run.sparsity.total_steps(STEPS_PER_EPOCH) == 10
    run.train(0, 3)
    assert run.sparsity.threshold == -math.inf and run.sparsity.factor == 0
    assert not any(sum(counts) for counts in run.sparsity.masked_counts().values())
    assert scores.any()  # the scores move before the warm-up already
    run.train(3, 9)
    assert 0 > run.sparsity.threshold > run.sparsity.schedule.initial_threshold and not run.sparsity.frozen
    assert any(sum(counts) for counts in run.sparsity.masked_counts().values())
    run.train(9, 10)
    assert run.sparsity.frozen and (run.sparsity.threshold, run.sparsity.factor) == (0.0, 0.02)
    frozen, weight = scores.clone(), run.model.bert.encoder.layer[0].attention.self.value.weight.clone()
    counts = run.sparsity.masked_counts()
    assert not scores.requires_grad and scores.grad is None
    run.train(10, 12)
    assert torch.equal(scores, frozen) and run.sparsity.masked_counts() == counts
    assert not torch.equal(run.model.bert.encoder.layer[0].attention.self.value.weight, weight)
    masks = run.sparsity.masks()["bert.encoder.layer.0.attention.self.value"].weight
    assert torch.equal(masks, masks.all(dim=1, keepdim=True).expand_as(masks))  # whole rows
    with pytest.raises(ValueError, match="Optimizer step 8 lies before step 9"):
        run.sparsity.set_step(8)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="counted from 0"):
            run.sparsity.set_step(wrong)
    with pytest.raises(ValueError, match="An epoch has 4 optimizer steps, but it was 3"):
        run.sparsity.set_step(13, 4)


@pytest.mark.parametrize("stop", [2, 3, 5, 9, 10])
def test_a_resumed_run_equals_an_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    whole = Run()
    whole.train(0, 12)
    first = Run()
    first.train(0, stop)
    first.save(tmp_path)
    second = Run()
    second.load(tmp_path)
    assert second.sparsity.frozen == (stop == 10)
    assert second.sparsity.threshold == first.sparsity.threshold and second.sparsity.factor == first.sparsity.factor
    assert second.sparsity.masked_counts() == first.sparsity.masked_counts()
    second.train(stop, 12)
    assert first.losses + second.losses == whole.losses
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], tensor), key
    assert second.sparsity.state_dict() == whole.sparsity.state_dict()


def test_states_that_are_none() -> None:
    model = zoo.build("bert")
    sparsity = MovementSparsity(model, settings_for(model, steps_per_epoch=4))
    good = {"step": 5, "steps_per_epoch": 4, "initial_threshold": -0.5, "frozen": False}
    sparsity.load_state_dict(good)
    assert sparsity.state_dict() == good
    for changes, message in (
        ({"steps_per_epoch": 5}, "An epoch has 5 optimizer steps, but it was 4"),
        ({"initial_threshold": None}, "has no 'initial_threshold'"),
        ({"initial_threshold": "low"}, "'initial_threshold' 'low'"),
        ({"step": -1}, "the 'step' -1"),
        ({"frozen": 1}, "'frozen' 1; give true or false"),
        ({"more": 1}, "no state of movement sparsity"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsity.load_state_dict({**good, **changes})
    with pytest.raises(ValueError, match="no state of movement sparsity: it has list"):
        sparsity.load_state_dict([])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_checkpointing_changes_nothing(name: str, reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        run = Run(name)
        if checkpointing:
            run.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        run.train(0, 5)
        gradients.append({key: p.grad for key, p in run.model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert torch.equal(gradients[1][key], gradient), key


def test_autocast_and_half_precision_weights() -> None:
    for in_half in (False, True):
        run = Run()
        model = run.model
        if in_half:
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if not key.endswith("_importance"):
                        parameter.data = parameter.data.bfloat16()
        run.sparsity.set_step(4, 3)
        with torch.autocast("cpu", torch.bfloat16, enabled=not in_half):
            loss = model(**run.inputs).loss + run.sparsity.regularization()
        loss.backward()
        layer = model.bert.encoder.layer[0].intermediate.dense
        assert layer.weight_importance.grad.dtype == torch.float32 and layer.weight_importance.grad.any()
        assert layer.weight.grad.dtype == layer.weight.dtype


def test_distributed_data_parallel(tmp_path: Path) -> None:
    plain = Run()
    plain.train(0, 12)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        run = Run()
        wrapped = DistributedDataParallel(run.model, find_unused_parameters=True)
        run.train(0, 12, forward=wrapped)
    finally:
        dist.destroy_process_group()
    assert run.losses == pytest.approx(plain.losses, abs=1e-6)
    assert run.sparsity.masked_counts() == plain.sparsity.masked_counts()


def test_the_gradients_of_scores_can_be_scaled() -> None:
    gradients = []
    for multiplier in (None, 4.0):
        run = Run(compression_lr_multiplier=multiplier)
        run.train(0, 1)
        gradients.append({key: p.grad for key, p in run.model.named_parameters()})
    for key, gradient in gradients[0].items():
        factor = 4.0 if key.endswith("_importance") else 1.0
        torch.testing.assert_close(gradients[1][key], factor * gradient)


def test_a_quantile_keeps_something_of_every_layer() -> None:
    model = zoo.build("bert").train()
    settings = MovementSettings(0, 1, 0.02, steps_per_epoch=2, init_importance_threshold=9.0,
                                final_importance_threshold=10.0, enable_structured_masking=False)  # fmt: skip
    for quantile in (0.98, 1.0):
        with MovementSparsity(model, settings, quantile) as sparsity:
            for key, parameter in model.named_parameters():
                if key.endswith("_importance"):
                    parameter.data.normal_()
            sparsity.set_step(0)
            model(**zoo.inputs_for(model))
            assert all(bool(masks.weight.any()) == (quantile < 1) for masks in sparsity.masks().values())
    for wrong in (0, 1.5, None):
        with pytest.raises(ValueError, match="quantile of movement sparsity"):
            MovementSparsity(model, settings, wrong)


def test_other_projections_are_refused() -> None:
    model = zoo.build("gpt2")
    settings = MovementSettings(1, 3, 0.02)
    with pytest.raises(ValueError, match="'attn.c_attn' of this gpt2 model is a Conv1D"):
        MovementSparsity(model, settings)
