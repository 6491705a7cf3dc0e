"""The speed of models that take turns, by a clock that only goes as it is told to."""

import pytest
import torch
from torch import nn

from hf_nas.cli.speed import ReadingTime, measure_reading


class Timed(nn.Module):
    """A model whose passes take as long as it is told, by a clock of its own."""

    device = torch.device("cpu")

    def __init__(self, name: str, seconds: float, clock: list, log: list):
        super().__init__()
        self.name, self.seconds, self.clock, self.log = name, seconds, clock, log

    def forward(self, input_ids: torch.Tensor) -> None:
        assert not self.training and torch.is_inference_mode_enabled()
        self.log.append((self.name, len(input_ids)))
        # One pass in seven is disturbed.
        disturbed = 10 if len(self.log) % 7 == 0 else 1
        self.clock[0] += self.seconds * len(input_ids) * disturbed


def test_models_take_turns_and_medians_count() -> None:
    clock, log = [0.0], []
    models = [Timed("small", 1.0, clock, log), Timed("dense", 3.0, clock, log)]
    batches = [{"input_ids": torch.zeros(rows, 4), "token_type_ids": torch.zeros(rows, 4)} for rows in (8, 8, 2)]
    small, dense = measure_reading(models, batches, passes=9, clock=lambda: clock[0])
    assert small.seconds_per_example == 1.0 and dense.seconds_per_example == 3.0 and small.examples == 18
    assert small.speed_up_over(dense) == 3.0 and len(small.seconds) == 3
    assert small.speed_up_quartiles(dense) == (3.0, 3.0)
    one, other = ReadingTime(((1.0, 2.0, 1.0, 1.0, 1.0),), 8), ReadingTime(((4.0, 4.0, 5.0, 6.0, 7.0),), 8)
    assert one.speed_up_over(other) == 5.0 and one.speed_up_quartiles(other) == (4.0, 6.0)
    assert models[0].training
    turns = [name for name, rows in log if rows == 2]
    assert turns == ["small", "dense"] + 9 * ["small", "small", "dense", "dense"]
    with pytest.raises(ValueError, match="no batch to measure on"):
        measure_reading(models, [])
