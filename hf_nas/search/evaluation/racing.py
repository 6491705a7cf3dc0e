"""Racing: giving up sub-networks that will not reach the front, after a part of the selection set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import EvalPrediction

from hf_nas.subnetwork import SubNetwork


__all__ = ["Racing", "Rejected", "Rival", "accuracy_scores", "log_evidence"]

Scores = Callable[[EvalPrediction], np.ndarray]

# Bets, as fractions of the largest that can never lose all. Small ones find small differences after many examples.
_BETS = np.array([0.02, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 0.9])


class Rival(Protocol):
    """A sub-network that was evaluated on all examples; [`hf_nas.search.Evaluated`] is one."""

    @property
    def sub_network(self) -> SubNetwork: ...

    @property
    def metrics(self) -> Mapping[str, float]: ...

    @property
    def costs(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class Rejected:
    """What is known of a sub-network that was given up.

    Args:
        metric: the metric of the race.
        estimate: its value on the examples that were evaluated, of the same scale as the full one.
        examples: number of examples that were evaluated.
        total: number of examples of a full evaluation.
        rival: place, in the given front, of the sub-network that is at least as good in everything.
    """

    metric: str
    estimate: float
    examples: int
    total: int
    rival: int


def accuracy_scores(prediction: EvalPrediction) -> np.ndarray:
    """1 for each example whose largest logit is the label's and 0 for the others.

    Raises:
        ValueError: unless there are one vector of logits and one label an example.
    """
    logits, labels = prediction.predictions, prediction.label_ids
    if not isinstance(logits, np.ndarray) or logits.ndim != 2 or np.shape(labels) != logits.shape[:1]:
        raise ValueError(
            f"Racing on accuracy needs logits of shape (examples, classes) and one label each, not {np.shape(logits)} "
            f"and {np.shape(labels)}; give Racing a function `scores` for this task."
        )
    return (logits.argmax(-1) == labels).astype(float)


@dataclass(frozen=True)
class Racing:
    """How early candidates are rejected.

    A candidate that the front's best member of no larger known costs leads by more than chance is not evaluated to the
    end. The examples come in one random order, in parts that double; after each part but the last the hypothesis
    "the candidate's metric on the whole selection set is better than the rival's" is tested by betting without
    replacement ([`log_evidence`]). A candidate that is better, chosen independently of the order, is rejected with a
    probability of at most `error_probability`, over all parts together. The rival's metric is known exactly, so its
    predictions play no part. The order is not stratified, since the bound rests on examples drawn uniformly.

    Only metrics that are means of scores from 0 to 1 over the examples can race: of F1, correlations and the like a
    part tells nothing with certainty.

    Args:
        metric: its name, as compute_metrics returns it; greater must be better.
        scores: of the examples; their mean must be the metric. By default those of accuracy.
        error_probability: of rejecting a candidate that is better.
        parts: number of parts, of which the last is half of the examples.
        seed: of the random order.
        scale: the metric's value of a perfect model: 100 for one in percent.

    Raises:
        ValueError: for a metric without known scores, a probability outside 0 to 1, or less than 2 parts.
    """

    metric: str = "accuracy"
    scores: Scores | None = None
    error_probability: float = 0.05
    parts: int = 4
    seed: int = 0
    scale: float = 1.0

    def __post_init__(self):
        if self.scores is None and self.metric.rpartition("_")[2] != "accuracy":
            raise ValueError(
                f"Racing compares means over examples, and {self.metric!r} is not known to be one; race by accuracy, "
                "give a function `scores` whose mean the metric is, or evaluate without racing."
            )
        if not 0 < self.error_probability < 1:
            raise ValueError(f"The error_probability {self.error_probability} is none; give one above 0 and below 1.")
        if self.parts < 2:
            raise ValueError(f"A race over {self.parts} parts cannot end early; give 2 or more.")

    def example_scores(self, prediction: EvalPrediction) -> np.ndarray:
        """One score an example.

        Raises:
            ValueError: unless there is one from 0 to 1 for each.
        """
        scores = np.asarray((self.scores or accuracy_scores)(prediction), dtype=float)
        rows = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        if scores.shape != (len(rows),) or not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(
                f"The scores for racing have shape {scores.shape} and values from {scores.min(initial=np.inf)} to "
                f"{scores.max(initial=-np.inf)}; give one from 0 to 1 for each of the {len(rows)} examples."
            )
        return scores

    def parts_of(self, count: int) -> list[np.ndarray]:
        """The examples in random order, in parts; fewer parts, where there are too few examples for them."""
        order = np.random.default_rng(self.seed).permutation(count)
        ends = {max(1, round(count / 2**part)) for part in range(self.parts)}
        return np.split(order, sorted(ends)[:-1])

    def check(self, scores: np.ndarray, metrics: Mapping[str, float]) -> None:
        """Raise a `ValueError` unless the metric of a full evaluation is the mean of the scores."""
        if self.metric not in metrics:
            raise ValueError(
                f"The evaluation returned no metric {self.metric!r} to race by but {sorted(metrics)}; race by one of "
                "these."
            )
        if not np.isclose(scores.mean() * self.scale, metrics[self.metric], rtol=1e-5, atol=1e-6 * self.scale):
            raise ValueError(
                f"The metric {self.metric!r} is {metrics[self.metric]:g} but the mean of the scores is "
                f"{scores.mean() * self.scale:g}; give Racing the scores and the scale that belong to it."
            )

    def rival_of(self, known_costs: Sequence[float], front: Sequence[Rival]) -> int | None:
        """Place in the front of the best by the metric among those that are nowhere larger in known costs.

        Whatever dominates the candidate shows in this one alone.

        Raises:
            ValueError: if the costs of the front are not the error by the metric and as many known costs.
        """
        best: int | None = None
        for place, rival in enumerate(front):
            if len(rival.costs) != 1 + len(known_costs):
                raise ValueError(
                    f"The front has costs {rival.costs}, the candidate the known costs {tuple(known_costs)}; give all "
                    "costs but the error."
                )
            metric = rival.metrics[self.metric]
            if not np.isclose(rival.costs[0], 1 - metric / self.scale, rtol=0, atol=1e-6):
                raise ValueError(
                    f"The first cost of the front is {rival.costs[0]:g}, but the error by {self.metric!r} is "
                    f"{1 - metric / self.scale:g}; race by the metric that is searched by."
                )
            smaller = all(own <= other for own, other in zip(rival.costs[1:], known_costs))
            if smaller and (best is None or metric > front[best].metrics[self.metric]):
                best = place
        return best

    def is_lost(self, scores: np.ndarray, total: int, rival: Rival) -> bool:
        """Whether a candidate with these scores on the first examples is not better than a rival on all of them."""
        evidence = log_evidence(scores, rival.metrics[self.metric] / self.scale, total)
        return evidence >= -np.log(self.error_probability)


def log_evidence(scores: np.ndarray, mean: float, total: int) -> float:
    """Evidence that the mean over all examples is not above `mean`, from the first ones in random order.

    The logarithm of the largest wealth of a gambler who bets, example by example, that the next score is below what
    the rest would be on average if the mean were `mean`. If the true mean is that or larger, the wealth is a
    supermartingale, and exceeds 1/p at any time with a probability of at most p (Ville's inequality): no correction
    for looking often is due. The wealth is the average over gamblers with different bets (Waudby-Smith and Ramdas,
    "Estimating means of bounded random variables by betting", 2023, sampling without replacement).

    Args:
        scores: from 0 to 1, in a uniformly random order.
        mean: to compare with.
        total: number of all examples.

    Returns:
        At least 0; infinity, where the mean would not be above `mean` with perfect scores for all that is left.
    """
    before = np.concatenate([[0.0], np.cumsum(scores)])
    left = total - np.arange(len(scores) + 1)
    needed = np.where(left > 0, (total * mean - before) / np.maximum(left, 1), -np.inf)
    # All that is left being perfect, the candidate would be equal at best. Rounding must not decide.
    if (total * mean - before - left >= -1e-9 * total).any():
        return float("inf")
    needed = needed[:-1]
    bets = np.where(needed > 0, _BETS[:, None] / (1 - np.minimum(needed, 1 - 1e-12)), 0.0)
    wealth = np.cumsum(np.log1p(bets * (needed - scores)), axis=1)
    total_wealth = np.logaddexp.reduce(wealth, axis=0) - np.log(len(_BETS))
    return max(0.0, float(total_wealth.max(initial=0.0)))
