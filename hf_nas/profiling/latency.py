"""How long a forward pass takes, measured so that what else the machine does cancels out."""

import gc
import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_nas.main_input import MainInput
from hf_nas.profiling.machine import describe_machine


__all__ = [
    "Clock",
    "Latency",
    "evaluation_mode",
    "example_inputs",
    "levelled_medians",
    "measure_latencies",
    "measure_latency",
    "time_interleaved",
]

Clock = Callable[[], float]

# A turn shorter than this is repeated, so that neither the clock nor the loop around it counts.
_TURN_SECONDS = 0.01
_MOST_CALLS = 100


@dataclass(frozen=True)
class Latency:
    """The time of a forward pass of one model.

    Args:
        seconds: one measurement for each round.
        batch_size: sequences of a pass.
        sequence_length: tokens of a sequence, of the encoder if there is one.
        decoder_length: tokens of the decoder of an encoder-decoder, else None.
        machine: on what it was measured.
    """

    seconds: tuple[float, ...]
    batch_size: int
    sequence_length: int
    decoder_length: int | None = None
    machine: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def median(self) -> float:
        """Seconds of a pass."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Seconds that a quarter of the passes stay below, and that a quarter exceed."""
        lower, upper = np.quantile(self.seconds, (0.25, 0.75))
        return float(lower), float(upper)

    @property
    def spread(self) -> float:
        """The distance between the quartiles as a fraction of the median."""
        lower, upper = self.quartiles
        return (upper - lower) / self.median

    def speed_up_over(self, other: "Latency") -> float:
        """How many times as fast as the other one this is, by the medians."""
        return other.median / self.median

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "median": self.median,
            "quartiles": list(self.quartiles),
            "spread": self.spread,
            "seconds": list(self.seconds),
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
            "decoder_length": self.decoder_length,
            "machine": dict(self.machine),
        }


def measure_latency(model: PreTrainedModel, **options: Any) -> Latency:
    """Measure one model; see [`measure_latencies`] for the options and for comparing several."""
    return measure_latencies([model], **options)[0]


def measure_latencies(
    models: Sequence[PreTrainedModel],
    *,
    batch_size: int = 1,
    sequence_length: int = 128,
    decoder_length: int | None = None,
    repeats: int = 10,
    warm_up: int = 2,
    clock: Clock = time.perf_counter,
    description: str | None = None,
) -> list[Latency]:
    """Measure models side by side, each on the device where it is, in evaluation and inference mode.

    One pass reads a batch of whole sequences without padding; a decoder reads its sequence at once and keeps no cache.
    The models take turns (A B C A B C ...), so that a machine that becomes slower does so for all of them: compare
    the medians of one call with each other, not those of different calls.

    Args:
        models: any models that read token ids or images; their modes are as before afterwards.
        batch_size: sequences of a pass.
        sequence_length: tokens of a sequence, of the encoder if there is one.
        decoder_length: tokens of the decoder of an encoder-decoder, by default the same.
        repeats: rounds, of which the median counts.
        warm_up: passes of each model before the first round.
        clock: returns seconds. On a CPU that other programs use too, and with one thread, `time.process_time` counts
            this process alone; the default is the clock on the wall.
        description: of a progress bar; by default there is none.

    Raises:
        ValueError: if nothing is to be measured, or a model cannot read such a batch.
    """
    if not models:
        raise ValueError("No model is given whose latency could be measured; give one or more.")
    inputs = [example_inputs(model, batch_size, sequence_length, decoder_length) for model in models]
    calls = [_forward(model, given) for model, given in zip(models, inputs)]
    with evaluation_mode(*models), torch.inference_mode():
        seconds = time_interleaved(calls, repeats=repeats, warm_up=warm_up, clock=clock, description=description)
    decoder_lengths = [
        given["decoder_input_ids"].shape[-1] if "decoder_input_ids" in given else None for given in inputs
    ]
    return [
        Latency(tuple(own), batch_size, sequence_length, length, describe_machine(model))
        for model, own, length in zip(models, seconds, decoder_lengths)
    ]


def levelled_medians(latencies: Sequence[Latency]) -> list[float]:
    """Median seconds of models measured in one call, each round brought to the same speed of the machine.

    The speed of a round is the median over the models of their time relative to their own median, so this is for many
    models: with few, plain medians say the same.
    """
    seconds = np.array([latency.seconds for latency in latencies])
    relative = seconds / np.median(seconds, axis=1, keepdims=True)
    return np.median(seconds / np.median(relative, axis=0), axis=1).tolist()


def time_interleaved(
    calls: Sequence[Callable[[], object]],
    *,
    repeats: int = 10,
    warm_up: int = 2,
    clock: Clock = time.perf_counter,
    description: str | None = None,
) -> list[list[float]]:
    """Time anything that can be called, in turns.

    A turn is one call that does not count, since the others emptied the caches, and then as many calls as fill some
    milliseconds, by which the time is divided. A call must return only when its work is done.

    Args:
        calls: what is timed.
        repeats: turns of each.
        warm_up: calls of each before the first turn.
        clock: returns seconds.
        description: of a progress bar; by default there is none.

    Returns:
        For each call, seconds by turn.

    Raises:
        ValueError: for fewer than one turn or one warm-up call.
    """
    if repeats < 1 or warm_up < 1:
        raise ValueError(f"repeats is {repeats} and warm_up {warm_up}; give 1 or more of both.")
    collecting = gc.isenabled()
    seconds: list[list[float]] = [[] for _ in calls]
    total = (repeats + 1) * len(calls)
    gc.disable()
    try:
        with tqdm(total=total, desc=description, unit="turn", disable=description is None) as bar:
            counts = []
            for call in calls:
                for _ in range(warm_up - 1):
                    call()
                estimate = _seconds_of(call, 1, clock)
                wanted = _MOST_CALLS if estimate <= 0 else math.ceil(_TURN_SECONDS / estimate)
                counts.append(min(max(wanted, 1), _MOST_CALLS))
                bar.update()
            for _ in range(repeats):
                for call, count, own in zip(calls, counts, seconds):
                    call()
                    own.append(_seconds_of(call, count, clock) / count)
                    bar.update()
    finally:
        if collecting:
            gc.enable()
    return seconds


def _seconds_of(call: Callable[[], object], count: int, clock: Clock) -> float:
    start = clock()
    for _ in range(count):
        call()
    return clock() - start


def _forward(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Callable[[], None]:
    device = model.device
    if device.type == "cpu":
        return lambda: model(**inputs) and None

    def call() -> None:
        model(**inputs)
        torch.accelerator.synchronize(device)

    return call


def example_inputs(
    model: PreTrainedModel, batch_size: int, sequence_length: int, decoder_length: int | None = None
) -> dict[str, Any]:
    """A batch of random tokens without padding, on the model's device; always the same for the same model.

    Args:
        model: that reads token ids, or images. One for multiple choice gets one choice a question, so that rows are
            sequences.
        batch_size: number of rows.
        sequence_length: tokens a row, of the encoder if there is one; of images, which all have the size that the
            configuration states, the number of tokens that this makes.
        decoder_length: tokens a row of the decoder of an encoder-decoder, by default the same.

    Raises:
        ValueError: for sizes below 1, more tokens than the model has positions for or not those of an image, a model
            that reads neither token ids nor images of one size, or one that has no decoder of its own length.
    """
    class_name, config = type(model).__name__, model.config
    accepted = inspect.signature(type(model).forward).parameters
    for name, value in (
        ("batch_size", batch_size), ("sequence_length", sequence_length), ("decoder_length", decoder_length)
    ):  # fmt: skip
        if value is not None and value < 1:
            raise ValueError(f"The {name} is {value}; give 1 or more.")
    main_input = MainInput.of(model)
    main_input.check_length(sequence_length)
    reads_images = main_input.name == "pixel_values" and main_input.tokens is not None
    if not reads_images and ("input_ids" not in accepted or getattr(config, "vocab_size", None) is None):
        raise ValueError(f"{class_name} reads neither token ids nor images of one size; give a model that does.")
    # Bart and T5 make the input of the decoder themselves when they classify or look for answers.
    derived = any(word in class_name for word in ("SequenceClassification", "QuestionAnswering"))
    takes_decoder = config.is_encoder_decoder and "decoder_input_ids" in accepted and not derived
    if decoder_length is not None and not takes_decoder:
        raise ValueError(
            f"decoder_length is {decoder_length}, but {class_name} has no decoder input of a length of its own; leave "
            "it out."
        )
    if reads_images:
        return _example_images(model, batch_size)
    decoder_length = decoder_length or sequence_length
    positions = getattr(config, "max_position_embeddings", None)
    longest = max(sequence_length, decoder_length)
    if positions is not None and longest > positions:
        raise ValueError(f"{longest} tokens are asked for, but {class_name} has {positions} positions; choose fewer.")

    special = set()
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        value = getattr(config, name, None)
        special.update(value if isinstance(value, list) else [] if value is None else [value])
    ordinary = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    generator = torch.Generator().manual_seed(0)

    def rows(length: int) -> torch.Tensor:
        return ordinary[torch.randint(len(ordinary), (batch_size, length), generator=generator)]

    inputs: dict[str, Any] = {"input_ids": rows(sequence_length)}
    if derived and config.is_encoder_decoder and config.eos_token_id is not None:
        inputs["input_ids"][:, -1] = config.eos_token_id  # which the classifier reads
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if takes_decoder:
        inputs["decoder_input_ids"] = rows(decoder_length)
    if "MultipleChoice" in class_name:
        inputs = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items() if name in accepted}
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs


def _example_images(model: PreTrainedModel, batch_size: int) -> dict[str, Any]:
    size, channels = model.config.image_size, model.config.num_channels
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(batch_size, channels, height, width, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": images.to(model.device, model.dtype)}


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; each module has its own mode again after it."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
