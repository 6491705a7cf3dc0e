"""How fast models read the batches of a data set, measured in turns."""

import inspect
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_nas.profiling import time_interleaved
from hf_nas.profiling.latency import Clock, evaluation_mode


__all__ = ["ReadingTime", "accepted_inputs", "measure_reading"]

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ReadingTime:
    """How long one model takes to read a data set.

    Args:
        seconds: by batch, one measurement a pass.
        examples: in these batches.
    """

    seconds: tuple[tuple[float, ...], ...]
    examples: int

    @property
    def total(self) -> float:
        """Seconds of one pass: the sum over the batches of their medians."""
        return sum(map(statistics.median, self.seconds))

    @property
    def seconds_per_example(self) -> float:
        """Seconds of one pass over the number of examples."""
        return self.total / self.examples

    def speed_up_over(self, other: "ReadingTime") -> float:
        """How many times as fast as the other one this is, by the medians."""
        return other.total / self.total

    def speed_up_quartiles(self, other: "ReadingTime") -> tuple[float, float]:
        """The same by single turns: what a quarter of them stay below, and what a quarter exceed.

        Not by passes: a disturbed batch would disturb the whole pass, but hardly moves the medians.
        """
        ratios = np.array(other.seconds) / np.array(self.seconds)
        lower, upper = np.quantile(ratios, (0.25, 0.75))
        return float(lower), float(upper)


def measure_reading(
    models: Sequence[PreTrainedModel],
    batches: Sequence[Batch],
    *,
    passes: int = 5,
    clock: Clock = time.perf_counter,
) -> list[ReadingTime]:
    """Measure models on the same batches, each on the device where it is, in evaluation and inference mode.

    The models take turns batch by batch (A B A B ...), so that a machine that becomes slower does so for all of them.
    Copying a batch to the device does not count.

    Args:
        models: any models that read these batches.
        batches: model inputs with `input_ids` of shape (examples, tokens).
        passes: measurements of each batch, of which the median counts.
        clock: returns seconds.

    Raises:
        ValueError: for no batch or fewer than one pass.
    """
    if not batches:
        raise ValueError("There is no batch to measure on; give one or more.")
    inputs_of = [accepted_inputs(model) for model in models]
    measured: list[list[tuple[float, ...]]] = [[] for _ in models]
    with evaluation_mode(*models), torch.inference_mode():
        for number, batch in enumerate(tqdm(batches, desc="Measuring speed", unit="batch")):
            calls = [_reading(model, pick(batch)) for model, pick in zip(models, inputs_of)]
            # The first batch warms up allocators and kernels; later ones find them warm.
            turns = time_interleaved(calls, repeats=passes, warm_up=1 if number else 3, clock=clock)
            for own, seconds in zip(measured, turns):
                own.append(tuple(seconds))
    examples = sum(len(batch["input_ids"]) for batch in batches)
    return [ReadingTime(tuple(own), examples) for own in measured]


def accepted_inputs(model: PreTrainedModel) -> Callable[[Batch], dict[str, Any]]:
    """A function from a batch to those inputs that a model takes, on its device."""
    accepted = inspect.signature(type(model).forward).parameters

    def pick(batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {name: each.to(model.device) for name, each in batch.items() if name in accepted}
        if "use_cache" in accepted:
            inputs["use_cache"] = False
        return inputs

    return pick


def _reading(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Callable[[], None]:
    def call() -> None:
        model(**inputs)
        if model.device.type != "cpu":
            torch.accelerator.synchronize(model.device)

    return call
