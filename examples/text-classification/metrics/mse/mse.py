"""Mean squared error as a local `evaluate` module, to be used offline: `evaluate.load("<folder>/metrics/mse")`."""

import datasets
import evaluate
from sklearn.metrics import mean_squared_error


class Mse(evaluate.Metric):
    """Mean of the squared differences of predictions and references."""

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="Mean of the squared differences of predictions and references.",
            citation="",
            features=datasets.Features({"predictions": value, "references": value}),
            format="numpy",
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"mse": float(mean_squared_error(references, predictions))}
