"""Search spaces: sets of sub-networks of one model, and how points of them are drawn."""

from collections.abc import Callable
from pathlib import Path

from hf_nas.space.base import Dimension, Encoding, SearchSpace
from hf_nas.space.custom import CustomSpace
from hf_nas.space.generated import GeneratedSpace, generate_space
from hf_nas.space.named import LargeSpace, LayerSpace, MediumSpace, SmallSpace
from hf_nas.space.sampling import PublishedSampler, Sampler, SizeStratifiedSampler, get_sampler
from hf_nas.structures import ModelStructure


__all__ = [
    "CustomSpace",
    "Dimension",
    "GeneratedSpace",
    "Encoding",
    "LargeSpace",
    "LayerSpace",
    "MediumSpace",
    "PublishedSampler",
    "Sampler",
    "SearchSpace",
    "SizeStratifiedSampler",
    "SmallSpace",
    "generate_space",
    "get_sampler",
    "get_search_space",
    "known_search_spaces",
    "register_search_space",
]

_SPACES: dict[str, Callable[[ModelStructure], SearchSpace]] = {
    "small": SmallSpace,
    "medium": MediumSpace,
    "layer": LayerSpace,
    "large": LargeSpace,
}


def known_search_spaces() -> tuple[str, ...]:
    """The name of every known search space, in the order they became known."""
    return tuple(_SPACES)


def register_search_space(name: str, factory: Callable[[ModelStructure], SearchSpace]) -> None:
    """Make a search space known by name, so that it can be given wherever the name of a space is.

    Args:
        name: of the space. A space that is already known is replaced.
        factory: makes the space for the structure of a model, e.g. a subclass of [`SearchSpace`].
    """
    _SPACES[name] = factory


def get_search_space(name_or_path: str | Path, structure: ModelStructure) -> SearchSpace:
    """The search space of this name, or the one written down in a JSON file.

    Args:
        name_or_path: `"small"`, `"medium"`, `"layer"`, `"large"`, a registered name, or a path that ends in `.json`
            (see [`CustomSpace`]).
        structure: of the model.

    Raises:
        ValueError: if there is no such space or file, or it does not fit the model.
    """
    if name_or_path in _SPACES:
        return _SPACES[name_or_path](structure)
    if str(name_or_path).endswith(".json"):
        return CustomSpace.load(name_or_path, structure)
    raise ValueError(
        f"There is no search space {str(name_or_path)!r}; choose from {', '.join(map(repr, _SPACES))}, or give the "
        "path of a JSON file."
    )
