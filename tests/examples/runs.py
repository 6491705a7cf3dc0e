"""Runs of the example scripts in this process, runs that are killed, and reading what they leave."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from hf_nas.search import SuperNetworkEvaluator


# What the prunings here have in common.
PRUNING_TRAINING = {
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 8,
    "save_strategy": "no",
    "logging_steps": 8,
    "seed": 7,
    "use_cpu": True,
    "report_to": "none",
}

# After which the tiny model answers the tiny questions.
QA_TRAINING = {
    "learning_rate": 5e-3,
    "max_steps": 96,
    "per_device_train_batch_size": 16,
    "save_strategy": "steps",
    "save_steps": 32,
    "logging_steps": 16,
    "seed": 7,
    "use_cpu": True,
}


@dataclass(frozen=True)
class Script:
    """An example script, which a call runs from its flags.

    Args:
        module: of the script.
        settings: the flags of every run with their values, if the call has no others; those that are None are left
            out.
    """

    module: ModuleType
    settings: Mapping[str, Any]

    def __call__(self, output_dir: Path, *flags: str, **changes: Any) -> None:
        settings = {**self.settings, "output_dir": output_dir, **changes}
        given = [text for key, value in settings.items() if value is not None for text in (f"--{key}", str(value))]
        self.run(*given, *flags)

    def run(self, *arguments: str) -> None:
        """Run it from these arguments alone."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{self.module.__name__}.py", *arguments])
            self.module.main()


@contextmanager
def counted_steps(trainer_class: type[Trainer], killed_at: int | None = None) -> Iterator[list[int]]:
    """The steps that a trainer begins; as it begins step `killed_at`, it is killed."""
    training_step, steps = trainer_class.training_step, []

    def count(self, *args, **kwargs):
        if self.state.global_step == killed_at:
            raise KeyboardInterrupt
        steps.append(self.state.global_step)
        return training_step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_class, "training_step", count)
        yield steps


@contextmanager
def counted_evaluations(killed_at: int | None = None) -> Iterator[list]:
    """The sub-networks that a search evaluates; after so many of them it is killed."""
    evaluate, calls = SuperNetworkEvaluator.__call__, []

    def count(self, sub_network):
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        calls.append(sub_network)
        return evaluate(self, sub_network)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SuperNetworkEvaluator, "__call__", count)
        yield calls


def read(folder: Path, name: str = "all_results.json") -> Any:
    """The content of a JSON file."""
    return json.loads((folder / name).read_text())


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Those of a saved model."""
    return load_file(Path(folder) / "model.safetensors")


def evaluations(folder: Path) -> list[dict]:
    """Everything of a search but how long the evaluations took."""
    with open(folder / "search" / "evaluations.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def assert_same_weights(one: str | Path, other: str | Path) -> None:
    """Two saved models have the same weights."""
    found, wanted = weights(one), weights(other)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6)
