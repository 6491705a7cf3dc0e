"""What a search space is: dimensions with choices, and the sub-network behind every combination of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from hf_nas.structures import ModelStructure
from hf_nas.subnetwork import NORM_ONLY, Kept, SubNetwork


__all__ = ["Dimension", "Encoding", "SearchSpace", "live_layers", "name_prefix"]

# One index into the choices of each dimension.
Encoding = tuple[int, ...]


@dataclass(frozen=True)
class Dimension:
    """One thing a search space chooses.

    Args:
        name: e.g. `"num_heads_3"`; unique in its space.
        choices: what can be chosen, ascending: mostly numbers of units or layers.
    """

    name: str
    choices: tuple[int, ...]

    def __post_init__(self):
        if not self.choices or any(first >= second for first, second in pairwise(self.choices)):
            raise ValueError(
                f"Dimension {self.name!r} has the choices {list(self.choices[:8])}; give at least one, in ascending "
                "order and each once."
            )


def live_layers(structure: ModelStructure) -> dict[str, tuple[int, ...]]:
    """The layers of each stack that have a sub-layer left, for the stacks that have such layers."""
    layers: dict[str, dict[int, None]] = {}
    for sub_layer in structure:
        if not sub_layer.skipped:
            layers.setdefault(sub_layer.stack, {})[sub_layer.layer] = None
    return {stack: tuple(indices) for stack, indices in layers.items()}


def name_prefix(structure: ModelStructure, stack: str) -> str:
    """What the names of a stack's dimensions start with: nothing, where there is only one stack."""
    return f"{stack}_" if len(structure.depths) > 1 else ""


class SearchSpace(ABC):
    """A set of sub-networks of one model: the product of the choices of its dimensions.

    A point of the space is an *encoding*, a tuple with one index into the choices of each dimension. Different
    encodings may stand for the same sub-network (without any layer the number of heads does not matter); they decode
    to equal values.

    To define a space of your own, derive from this class, write [`SearchSpace.to_kept`] and
    [`SearchSpace.to_values`], and make it known with [`hf_nas.space.register_search_space`].

    Args:
        name: of the space.
        structure: of the model whose sub-networks it contains.
        dimensions: what is chosen.
        smallest_values: the choice in each dimension that makes the smallest *meaningful* sub-network; by default the
            first of each. The space may contain smaller ones, down to no layer at all.

    Raises:
        ValueError: if there is nothing to choose, two dimensions have the same name, or a smallest value is no choice.
    """

    def __init__(
        self,
        name: str,
        structure: ModelStructure,
        dimensions: Sequence[Dimension],
        smallest_values: Sequence[int] | None = None,
    ):
        self.name = name
        self.structure = structure
        self.dimensions = tuple(dimensions)
        names = [dimension.name for dimension in self.dimensions]
        if not names:
            raise ValueError(
                f"Search space {name!r} has nothing to choose from in this {structure.model_type} model; take a model "
                "that has units left."
            )
        if len(set(names)) < len(names):
            twice = next(each for each in names if names.count(each) > 1)
            raise ValueError(f"Search space {name!r} has two dimensions called {twice!r}; give each its own name.")
        self._num_choices = np.array([len(dimension.choices) for dimension in self.dimensions])
        self._starts = np.concatenate([[0], np.cumsum(self._num_choices)[:-1]])
        self._choices = np.concatenate([np.asarray(dimension.choices) for dimension in self.dimensions])
        # All choices of all dimensions as one ascending sequence, in which the index of a value can be looked up.
        self._lowest = int(self._choices.min())
        self._stride = int(self._choices.max()) - self._lowest + 1
        dimension_ids = np.repeat(np.arange(len(names)), self._num_choices)
        self._keys = dimension_ids * self._stride + self._choices - self._lowest
        self.largest_encoding: Encoding = tuple((self._num_choices - 1).tolist())
        self.smallest_encoding: Encoding = (
            (0,) * len(names) if smallest_values is None else self._to_indices(smallest_values)
        )

    @abstractmethod
    def to_kept(self, values: np.ndarray) -> Mapping[str, Kept]:
        """What the chosen values (one of each dimension's choices) keep, by sub-layer; full where not named."""

    @abstractmethod
    def to_values(self, sub_network: SubNetwork) -> Sequence[int]:
        """The values that come closest to a sub-network; the exact ones, where it belongs to the space."""

    @cached_property
    def largest(self) -> SubNetwork:
        """The sub-network with the largest choice in every dimension."""
        return self.decode(self.largest_encoding)

    @cached_property
    def smallest(self) -> SubNetwork:
        """The smallest meaningful sub-network, the lower end of the sandwich rule."""
        return self.decode(self.smallest_encoding)

    def decode(self, encoding: Sequence[int]) -> SubNetwork:
        """The sub-network behind an encoding.

        Raises:
            ValueError: if it has the wrong length, an entry that is no integer, or an index beyond the choices.
        """
        indices = self._check(encoding)
        return SubNetwork.of(self.structure, self.to_kept(self._choices[self._starts + indices]))

    def encode(self, sub_network: SubNetwork) -> Encoding:
        """An encoding that decodes to this sub-network.

        Raises:
            ValueError: if it belongs to another model or is not in this space, as one with fewer hidden dimensions.
        """
        sub_network.check(self.structure)
        sub_network.require_full_width(f"an encoding in search space {self.name!r}")
        encoding = self._to_indices(self.to_values(sub_network))
        for (name, closest), (_, kept) in zip(self.decode(encoding).items(), sub_network.items()):
            if closest != kept:
                raise ValueError(
                    f"Search space {self.name!r} does not contain this sub-network: it keeps {_shorten(kept)} of "
                    f"sub-layer {name!r}, the closest in the space {_shorten(closest)}; take a sub-network or a space "
                    "that fits the other."
                )
        return encoding

    def sample(self, rng: np.random.Generator) -> Encoding:
        """Draw every dimension uniformly and independently, as the published search does."""
        return tuple(rng.integers(0, self._num_choices).tolist())

    def mutate(self, encoding: Sequence[int], rng: np.random.Generator) -> Encoding:
        """Change one random dimension to another choice.

        Raises:
            ValueError: if the encoding is not of this space, or the space has a single point.
        """
        indices = self._check(encoding)
        open_dimensions = np.flatnonzero(self._num_choices > 1)
        if not len(open_dimensions):
            raise ValueError(
                f"Search space {self.name!r} has one choice in every dimension, so nothing can be mutated; give at "
                "least one dimension two choices."
            )
        dimension = open_dimensions[rng.integers(len(open_dimensions))]
        other = rng.integers(self._num_choices[dimension] - 1)
        indices[dimension] = other + (other >= indices[dimension])
        return tuple(indices.tolist())

    def crossover(self, first: Sequence[int], second: Sequence[int], rng: np.random.Generator) -> Encoding:
        """Take every dimension from one of two encodings, either with probability 1/2.

        Raises:
            ValueError: if one of them is not an encoding of this space.
        """
        parents = self._check(first), self._check(second)
        from_first = rng.integers(0, 2, size=len(self.dimensions)) == 0
        return tuple(np.where(from_first, *parents).tolist())

    def neighbours(self, encoding: Sequence[int]) -> Iterator[Encoding]:
        """The encodings that differ in one dimension by one step, downward first.

        Raises:
            ValueError: if the encoding is not of this space.
        """
        encoding = tuple(self._check(encoding).tolist())
        for dimension, (index, count) in enumerate(zip(encoding, self._num_choices.tolist())):
            for step in (index - 1, index + 1):
                if 0 <= step < count:
                    yield *encoding[:dimension], step, *encoding[dimension + 1 :]

    def _check(self, encoding: Sequence[int]) -> np.ndarray:
        """The encoding as a new array of indices."""
        if len(encoding) != len(self.dimensions):
            raise ValueError(
                f"An encoding of search space {self.name!r} has {len(self.dimensions)} entries but {len(encoding)} "
                "are given; give one index for each dimension."
            )
        indices = np.array(encoding)
        if indices.dtype.kind not in "iu" or indices.ndim != 1:
            wrong = next((entry for entry in encoding if not isinstance(entry, int)), encoding[0])
            raise ValueError(
                f"An encoding of search space {self.name!r} has the entry {wrong!r}; give indices, which are integers."
            )
        wrong = np.flatnonzero((indices < 0) | (indices >= self._num_choices))
        if len(wrong):
            dimension = self.dimensions[wrong[0]]
            raise ValueError(
                f"Dimension {dimension.name!r} of search space {self.name!r} has {len(dimension.choices)} choices but "
                f"index {indices[wrong[0]]} is given; choose 0 to {len(dimension.choices) - 1}."
            )
        return indices

    def _to_indices(self, values: Sequence[int]) -> Encoding:
        values = np.asarray(values)
        if len(values) != len(self.dimensions):
            raise ValueError(
                f"Search space {self.name!r} has {len(self.dimensions)} dimensions but {len(values)} values are "
                "given; give one for each."
            )
        inside = (values >= self._lowest) & (values < self._lowest + self._stride)
        keys = np.arange(len(values)) * self._stride + np.where(inside, values - self._lowest, 0)
        positions = np.searchsorted(self._keys, keys)
        found = inside & (self._keys[np.minimum(positions, len(self._keys) - 1)] == keys)
        if not found.all():
            wrong = int(np.argmin(found))
            dimension = self.dimensions[wrong]
            raise ValueError(
                f"Search space {self.name!r} does not contain this sub-network: dimension {dimension.name!r} would be "
                f"{values[wrong]} but has the choices {_shorten(dimension.choices)}; take a sub-network or a space "
                "that fits the other."
            )
        return tuple((positions - self._starts).tolist())


def _shorten(kept: Kept) -> str:
    if kept is None:
        return "nothing (skipped)"
    if kept == NORM_ONLY:
        return "nothing but the norm"
    if isinstance(kept, int):
        return str(kept)
    return str(list(kept)) if len(kept) <= 8 else f"[{', '.join(map(str, kept[:4]))}, ..., {kept[-1]}]"
