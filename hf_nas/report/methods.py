"""The methods in words: what a model card says of how a model was made, and whom it cites."""

from dataclasses import dataclass

from hf_nas.report.run_folder import RunFolder


__all__ = ["Method", "method_of"]


@dataclass(frozen=True)
class Method:
    """One published method.

    Args:
        tag: on the Hub.
        text: what it does, as the end of "The model was made by ...".
        paper: who published it.
        link: to the paper; one to arXiv becomes a tag on the Hub.
    """

    tag: str
    text: str
    paper: str = ""
    link: str = ""


_SEARCH = Method(
    "neural-architecture-search",
    "weight-sharing neural architecture search: the dense model was fine-tuned as a super-network, its sub-networks "
    "were compared, and one of them was extracted",
    "Klein et al. (2024), Structural Pruning of Pre-trained Language Models via Neural Architecture Search",
    "https://arxiv.org/abs/2405.02267",
)
_STANDARD_SEARCH = Method(
    "neural-architecture-search",
    "neural architecture search in which every candidate was extracted and fine-tuned by itself",
    _SEARCH.paper,
    _SEARCH.link,
)
_MOVEMENT = Method(
    "movement-pruning",
    "movement sparsity, which ordered the units before the search",
    "Sanh et al. (2020), Movement Pruning: Adaptive Sparsity by Fine-Tuning",
    "https://arxiv.org/abs/2005.07683",
)
_PRUNING = {
    "cofi": Method(
        "cofi",
        "CoFi pruning: gates on coarse and fine units were trained together with the weights under a budget",
        "Xia et al. (2022), Structured Pruning Learns Compact and Accurate Models",
        "https://arxiv.org/abs/2204.00408",
    ),
    "dsp": Method(
        "differentiable-subset-pruning",
        "differentiable subset pruning: gates that keep a given number of heads were trained",
        "Li et al. (2021), Differentiable Subset Pruning of Transformer Heads",
        "https://arxiv.org/abs/2108.04657",
    ),
    "voita": Method(
        "head-pruning",
        "pruning of heads by trained hard concrete gates",
        "Voita et al. (2019), Analyzing Multi-Head Self-Attention",
        "https://arxiv.org/abs/1905.09418",
    ),
    "michel": Method(
        "head-pruning",
        "pruning of heads by the importance that gradients give them",
        "Michel et al. (2019), Are Sixteen Heads Really Better than One?",
        "https://arxiv.org/abs/1905.10650",
    ),
}


def method_of(run: RunFolder) -> tuple[Method, ...]:
    """The methods that a run used, the main one first; none if the folder does not tell."""
    if run.outcome is not None:
        # Only there every candidate has a folder.
        main = _STANDARD_SEARCH if (run.folder / "candidates").is_dir() else _SEARCH
        learns_order = (
            "movement" == run.arguments.get("importance") or run.arguments.get("search_space") == "generated"
        )
        return (main, _MOVEMENT) if learns_order else (main,)
    if "method" in run.pruning:
        name = str(run.pruning["method"])
        return (_PRUNING.get(name, Method(name, f"the pruning method {name}")),)
    return (_PRUNING["cofi"],) if "pruning_type" in run.pruning else ()
