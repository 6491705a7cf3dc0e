"""The local `evaluate` modules against numbers computed by hand."""

import math
from pathlib import Path

import evaluate
import pytest
from sklearn.metrics import matthews_corrcoef

from tests.examples.conftest import EXAMPLES


METRICS: Path = EXAMPLES / "text-classification" / "metrics"


def glue(task: str, predictions: list, references: list) -> dict[str, float]:
    metric = evaluate.load(str(METRICS / "glue"), task, keep_in_memory=True)
    return metric.compute(predictions=predictions, references=references)


@pytest.mark.parametrize("task", ["mnli", "qnli", "rte", "sst2", "wnli"])
def test_accuracy_tasks(task):
    assert glue(task, [0, 1, 1, 0], [0, 1, 0, 0]) == {"accuracy": 0.75}


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_f1_tasks(task):
    # 2 true positives, 1 false positive, 1 false negative.
    scores = glue(task, [1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert scores == {"accuracy": pytest.approx(3 / 5), "f1": pytest.approx(2 * 2 / (2 * 2 + 1 + 1))}


def test_f1_without_positives_is_zero():
    assert glue("mrpc", [0, 0], [0, 1]) == {"accuracy": 0.5, "f1": 0.0}


def test_matthews():
    predictions, references = [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1]
    true_positives, true_negatives, wrong = 2, 2, 1
    expected = (true_positives * true_negatives - wrong * wrong) / math.sqrt(3 * 3 * 3 * 3)
    assert glue("cola", predictions, references)["matthews_correlation"] == pytest.approx(expected)
    assert matthews_corrcoef(references, predictions) == pytest.approx(expected)


def test_matthews_of_constant_predictions_is_zero():
    assert glue("cola", [1, 1, 1], [1, 0, 1]) == {"matthews_correlation": 0.0}


def test_correlations():
    # Same order, other spacing: the ranks correlate fully, the values do not.
    # Deviations (-1.5 -.5 .5 1.5), (-4 -3 -1 8).
    scores = glue("stsb", [1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 3.0, 12.0])
    assert scores["spearmanr"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx((6 + 1.5 - 0.5 + 12) / math.sqrt(5 * (16 + 9 + 1 + 64)))


def test_correlations_with_ties():
    # Ranks 1.5 1.5 3 and 1 2 3: covariance 1.5, variances 1.5 and 2.
    assert glue("stsb", [1.0, 1.0, 2.0], [1.0, 2.0, 3.0])["spearmanr"] == pytest.approx(1.5 / math.sqrt(1.5 * 2))


def test_correlations_of_constant_predictions_are_not_numbers():
    scores = glue("stsb", [2.5, 2.5, 2.5], [1.0, 2.0, 3.0])
    assert math.isnan(scores["pearson"]) and math.isnan(scores["spearmanr"])


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="GLUE has no task 'glu'; give evaluate.load one of cola"):
        glue("glu", [0], [0])


def test_metrics_of_own_data():
    accuracy = evaluate.load(str(METRICS / "accuracy"), keep_in_memory=True)
    assert accuracy.compute(predictions=[2, 1, 0, 0], references=[2, 1, 1, 1]) == {"accuracy": 0.5}
    mse = evaluate.load(str(METRICS / "mse"), keep_in_memory=True)
    assert mse.compute(predictions=[1.0, 2.0], references=[1.5, 4.0]) == {"mse": pytest.approx((0.25 + 4) / 2)}
