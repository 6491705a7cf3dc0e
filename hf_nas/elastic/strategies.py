"""Training strategies: which sub-networks one optimizer step trains, in which order, and how each is taught.

A new strategy is a small class with one method, made known with [`register_strategy`]. Wherever the full network is
part of a step it comes last: that is the one order that is right under gradient checkpointing and data parallelism
(the gradients of the passes before it are held back until it has touched every parameter).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hf_nas.subnetwork import SubNetwork


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step.

    Args:
        sub_network: what to activate.
        distill: whether the full network teaches it (else it learns from the labels alone).
    """

    sub_network: SubNetwork
    distill: bool = False


class TrainingStrategy(ABC):
    """Chooses the passes of each step.

    Args:
        largest: the full network.
        smallest: the smallest sub-network worth training.
        draw: draws a random sub-network with a generator.
        num_random_sub_nets: how many to draw, where a strategy draws.
    """

    def __init__(
        self,
        largest: SubNetwork,
        smallest: SubNetwork,
        draw: Callable[[np.random.Generator], SubNetwork],
        num_random_sub_nets: int,
    ):
        self.largest = Pass(largest)
        self.smallest = smallest
        self.draw = draw
        self.num_random_sub_nets = num_random_sub_nets

    @abstractmethod
    def passes(self, generator: np.random.Generator, progress: float) -> list[Pass]:
        """The passes of one step, in order.

        Args:
            generator: the only source of randomness; the trainer seeds it with the step, alike in every process.
            progress: share of the training that is done, 0 in the first step and 1 in the last.
        """

    def random(self, generator: np.random.Generator, distill: bool = False) -> list[Pass]:
        """`num_random_sub_nets` passes of random sub-networks."""
        return [Pass(self.draw(generator), distill) for _ in range(self.num_random_sub_nets)]


class Standard(TrainingStrategy):
    """The full network only: plain fine-tuning."""

    def passes(self, generator: np.random.Generator, progress: float) -> list[Pass]:
        return [self.largest]


class Random(TrainingStrategy):
    """Random sub-networks only."""

    def passes(self, generator: np.random.Generator, progress: float) -> list[Pass]:
        return self.random(generator)


class LinearRandom(TrainingStrategy):
    """Random sub-networks with a probability that grows from 0 to 1 over the training, else the full network."""

    def passes(self, generator: np.random.Generator, progress: float) -> list[Pass]:
        return self.random(generator) if generator.random() <= progress else [self.largest]


class Sandwich(TrainingStrategy):
    """The smallest, random ones and the full network in every step, each on the labels (Yu et al., 2019)."""

    def passes(self, generator: np.random.Generator, progress: float) -> list[Pass]:
        return [Pass(self.smallest), *self.random(generator), self.largest]


class OneShot(TrainingStrategy):
    """The sandwich, with the smallest and the random ones taught by the full network (Klein et al., 2024)."""

    def passes(self, generator: np.random.Generator, progress: float) -> list[Pass]:
        return [Pass(self.smallest, distill=True), *self.random(generator, distill=True), self.largest]


class InPlaceDistillation(TrainingStrategy):
    """As [`LinearRandom`], with the random ones taught by the full network."""

    def passes(self, generator: np.random.Generator, progress: float) -> list[Pass]:
        return self.random(generator, distill=True) if generator.random() <= progress else [self.largest]


_STRATEGIES: dict[str, type[TrainingStrategy]] = {
    "standard": Standard,
    "random": Random,
    "linear_random": LinearRandom,
    "one_shot": OneShot,
    "sandwich": Sandwich,
    "kd": InPlaceDistillation,
}


def register_strategy(name: str, strategy: type[TrainingStrategy]) -> None:
    """Make a training strategy known under a name; a known one of that name is replaced."""
    _STRATEGIES[name] = strategy


def get_strategy(name: str) -> type[TrainingStrategy]:
    """The strategy of this name.

    Raises:
        ValueError: if it is not known.
    """
    if name not in _STRATEGIES:
        raise ValueError(
            f"Unknown sampling strategy {name!r}; choose one of {', '.join(_STRATEGIES)} or make yours known with "
            "hf_nas.register_strategy()."
        )
    return _STRATEGIES[name]
