"""Latency: the arithmetic with clocks that only move when they are told to, and little of real time."""

import gc
import json
import statistics

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMultipleChoice

from hf_nas.profiling.latency import (
    Latency,
    evaluation_mode,
    example_inputs,
    levelled_medians,
    measure_latencies,
    measure_latency,
    time_interleaved,
)
from tests import zoo


class Machine:
    """A clock, and calls that take the time they are said to."""

    def __init__(self):
        self.now = 100.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float):
        """A call that takes each of these times in turn, and the last one from then on."""
        left = list(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_calls_take_turns() -> None:
    machine = Machine()
    calls = [machine.work("a", 1.0), machine.work("b", 2.0)]
    seconds = time_interleaved(calls, repeats=3, warm_up=2, clock=machine.clock)
    assert seconds == [[1.0] * 3, [2.0] * 3]
    # Two calls each to warm up; then turns of a call that does not count and one that does.
    assert "".join(machine.log) == "aabb" + "aabb" * 3


def test_the_first_call_of_a_turn_does_not_count() -> None:
    machine = Machine()
    cold_and_warm = [5.0, 1.0, 9.0, 3.0, 9.0, 4.0]
    (seconds,) = time_interleaved([machine.work("a", *cold_and_warm)], repeats=2, warm_up=2, clock=machine.clock)
    assert seconds == [3.0, 4.0]


@pytest.mark.parametrize("one, calls", [(1.0, 1), (0.01, 1), (0.004, 3), (1e-9, 100), (0.0, 100)])
def test_short_calls_are_repeated(one: float, calls: int) -> None:
    machine = Machine()
    (seconds,) = time_interleaved([machine.work("a", one)], repeats=1, warm_up=1, clock=machine.clock)
    assert len(machine.log) == 1 + 1 + calls
    assert seconds == pytest.approx([one], abs=1e-12)


def test_rubbish_is_collected_before_and_after_but_not_within() -> None:
    seen = []
    time_interleaved([lambda: seen.append(gc.isenabled())], repeats=1, warm_up=1)
    assert not any(seen) and gc.isenabled()

    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        time_interleaved([fail])
    assert gc.isenabled()


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warm_up": 0}])
def test_nothing_to_measure_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="give 1 or more of both"):
        time_interleaved([lambda: None], **options)
    with pytest.raises(ValueError, match="No model is given"):
        measure_latencies([])


def test_median_quartiles_and_ratio() -> None:
    slow = Latency((4.0, 1.0, 2.0, 3.0, 100.0), 8, 64, None, {"threads": 1})
    fast = Latency((1.0, 1.5, 2.0), 8, 64)
    assert slow.median == 3.0 and slow.quartiles == (2.0, 4.0) and slow.spread == pytest.approx(2 / 3)
    assert fast.speed_up_over(slow) == 2.0 and slow.speed_up_over(fast) == 0.5
    found = json.loads(json.dumps(slow.to_dict()))
    assert found["median"] == 3.0 and found["seconds"] == list(slow.seconds) and found["machine"] == {"threads": 1}
    assert (found["batch_size"], found["sequence_length"], found["decoder_length"]) == (8, 64, None)


def test_levelled_medians_undo_the_speed_of_rounds() -> None:
    rng = np.random.default_rng(0)
    true, rounds = rng.uniform(1, 9, 6), np.array([1.0, 3.0, 1.0, 1.0, 2.0])
    latencies = [Latency(tuple(value * rounds), 1, 8) for value in true]
    assert levelled_medians(latencies) == pytest.approx(true)
    # One model disturbed in one round changes none of the others.
    seconds = [list(latency.seconds) for latency in latencies]
    seconds[2][1] *= 50
    assert levelled_medians([Latency(tuple(own), 1, 8) for own in seconds]) == pytest.approx(true)


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name != "vit"])
def test_inputs_of_every_family(name: str) -> None:
    model = zoo.build(name)
    inputs = example_inputs(model, 3, 12)
    assert inputs["input_ids"].shape == (3, 12) and bool(inputs["attention_mask"].all())
    special = {model.config.pad_token_id, model.config.eos_token_id} - {None}
    last = name == "bart-classification"  # whose classifier reads the last end-of-sequence token
    ordinary = inputs["input_ids"][:, :-1] if last else inputs["input_ids"]
    assert not special & set(ordinary.flatten().tolist())
    assert inputs.get("use_cache") in (None, False)
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
    again = example_inputs(model, 3, 12)
    assert torch.equal(inputs["input_ids"], again["input_ids"])


def test_lengths_of_a_decoder() -> None:
    model = zoo.build("t5")
    assert example_inputs(model, 2, 12)["decoder_input_ids"].shape == (2, 12)
    assert example_inputs(model, 2, 12, 5)["decoder_input_ids"].shape == (2, 5)
    assert measure_latency(model, sequence_length=8, decoder_length=3, repeats=1, warm_up=1).decoder_length == 3
    for name in ("bert", "bart-classification"):
        with pytest.raises(ValueError, match="has no decoder input"):
            example_inputs(zoo.build(name), 2, 12, 5)


def test_inputs_of_multiple_choice() -> None:
    torch.manual_seed(0)
    model = BertForMultipleChoice(BertConfig(**zoo.MODELS["bert"][2]))
    inputs = example_inputs(model, 3, 6)
    assert inputs["input_ids"].shape == (3, 1, 6)
    assert model(**inputs).logits.shape == (3, 1)


def test_images() -> None:
    model = zoo.build("vit")
    (name, images), = example_inputs(model, 3, 10).items()  # fmt: skip
    assert name == "pixel_values" and images.shape == (3, 3, 12, 12)
    assert model(pixel_values=images).logits.shape == (3, 3)
    assert measure_latency(model, sequence_length=10, repeats=1, warm_up=1).sequence_length == 10
    assert example_inputs(zoo.build("vit", image_size=[8, 12], patch_size=[2, 4]), 1, 13)["pixel_values"].shape[2] == 8
    with pytest.raises(ValueError, match="images of 12 x 12 reads 10 tokens, not 128; give the sequence_length 10"):
        example_inputs(model, 3, 128)
    with pytest.raises(ValueError, match="ViTForImageClassification has no decoder input of a length of its own"):
        example_inputs(model, 3, 10, 10)
    model.main_input_name = "input_values"
    with pytest.raises(ValueError, match="reads neither token ids nor images of one size"):
        example_inputs(model, 3, 10)


def test_inputs_that_do_not_exist() -> None:
    model = zoo.build("bert")
    with pytest.raises(ValueError, match="batch_size is 0"):
        example_inputs(model, 0, 8)
    with pytest.raises(ValueError, match="sequence_length is -1"):
        example_inputs(model, 1, -1)
    with pytest.raises(
        ValueError, match="41 tokens are asked for, but BertForSequenceClassification has 40 positions"
    ):
        example_inputs(model, 1, 41)


def test_modes_are_restored() -> None:
    model = zoo.build("bert").train()
    model.classifier.eval()
    modes = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    measure_latencies([model], sequence_length=4, repeats=1, warm_up=1)
    assert [module.training for module in model.modules()] == modes


def test_models_are_measured_in_evaluation_mode_and_in_turns() -> None:
    models = [zoo.build("bert").train(), zoo.build("bert", num_hidden_layers=1).train()]
    log = []
    for index, model in enumerate(models):
        model.register_forward_hook(
            lambda module, *_, index=index: log.append((index, module.training, torch.is_inference_mode_enabled()))
        )
    ticks = iter(range(10**6))
    found = measure_latencies(
        models, batch_size=2, sequence_length=5, repeats=3, warm_up=1, clock=lambda: float(next(ticks))
    )
    assert [latency.seconds for latency in found] == [(1.0,) * 3] * 2  # one tick a turn
    assert [index for index, *_ in log] == [0, 1] + [0, 0, 1, 1] * 3
    assert not any(training for _, training, _ in log) and all(inference for *_, inference in log)
    assert found[0].batch_size == 2 and found[0].sequence_length == 5 and found[0].decoder_length is None


def test_real_time_is_positive_and_grows_with_a_hundredfold_of_work() -> None:
    model = zoo.build("bert", hidden_size=64, intermediate_size=512)
    small, large = (measure_latency(model, batch_size=b, sequence_length=40, repeats=2) for b in (1, 100))
    assert 0 < small.median < large.median
    assert small.median == statistics.median(small.seconds)
