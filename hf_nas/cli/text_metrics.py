"""The metrics of text classification and regression, by which `hf-nas search` compares sub-networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef
from transformers import EvalPrediction, PreTrainedConfig


__all__ = ["METRICS", "TextMetric", "default_metric", "get_metric", "positive_number"]


@dataclass(frozen=True)
class TextMetric:
    """One metric.

    Args:
        name: in files and tables.
        score: of the labels and the predictions: numbers of labels, or values in a regression.
        is_regression: whether it is of values.
        greater_is_better: whether a larger one is better.
    """

    name: str
    score: Callable[[np.ndarray, np.ndarray], float]
    is_regression: bool = False
    greater_is_better: bool = True

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metric of logits of shape (examples, labels), as `Trainer` calls a `compute_metrics`."""
        logits, labels = prediction.predictions, prediction.label_ids
        logits = logits[0] if isinstance(logits, tuple) else logits
        predicted = logits.reshape(-1) if self.is_regression else logits.argmax(-1)
        return {self.name: float(self.score(labels, predicted))}


def _f1(positive: int) -> Callable[[np.ndarray, np.ndarray], float]:
    # Of two labels made one, so that the positive one may be missing among labels and predictions.
    return lambda labels, predicted: f1_score(labels == positive, predicted == positive, zero_division=0)


def _correlation(measure: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
    def score(labels: np.ndarray, predicted: np.ndarray) -> float:
        # What is constant has no correlation with anything; the search counts that as error 1.
        if np.ptp(labels) == 0 or np.ptp(predicted) == 0:
            return float("nan")
        return measure(predicted, labels).statistic

    return score


METRICS = {
    metric.name: metric
    for metric in (
        TextMetric("accuracy", lambda labels, predicted: np.mean(labels == predicted)),
        TextMetric("f1", _f1(1)),
        TextMetric(
            "f1_macro", lambda labels, predicted: f1_score(labels, predicted, average="macro", zero_division=0)
        ),
        TextMetric("matthews_correlation", matthews_corrcoef),
        TextMetric("pearson", _correlation(pearsonr), is_regression=True),
        TextMetric("spearmanr", _correlation(spearmanr), is_regression=True),
        TextMetric(
            "mse",
            lambda labels, predicted: np.mean((labels - predicted) ** 2),
            is_regression=True,
            greater_is_better=False,
        ),
    )
}


def default_metric(num_labels: int) -> str:
    """The metric of data of which nothing else is known."""
    return "spearmanr" if num_labels == 1 else "accuracy"


def positive_number(config: PreTrainedConfig, names: Sequence[str]) -> int:
    """The model's number of the label that `f1` is of: the second one of a task, by its name where the model knows it.

    Args:
        config: of the model.
        names: of the labels of the task, in its order.
    """
    known = {str(name).lower(): int(number) for number, name in config.id2label.items()}
    return known.get(names[1], 1) if len(names) == 2 else 1


def get_metric(name: str, num_labels: int, positive: int = 1) -> TextMetric:
    """The metric of this name.

    Args:
        name: one of [`METRICS`].
        num_labels: that the model tells apart; 1 in a regression.
        positive: the model's number of the label that `f1` is of.

    Raises:
        ValueError: for an unknown name, or a metric that does not fit the model.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}; choose from {', '.join(METRICS)}.")
    metric, is_regression = METRICS[name], num_labels == 1
    fitting = [each.name for each in METRICS.values() if each.is_regression == is_regression]
    if num_labels > 2:
        fitting.remove("f1")
    if name not in fitting:
        kind = "is a regression" if is_regression else f"tells {num_labels} labels apart"
        raise ValueError(f"The metric {name!r} does not fit a model that {kind}; choose from {', '.join(fitting)}.")
    return replace(metric, score=_f1(positive)) if name == "f1" else metric
