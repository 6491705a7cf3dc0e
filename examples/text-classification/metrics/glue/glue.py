"""The metrics of the GLUE benchmark (Wang et al., 2019) as a local `evaluate` module, to be used offline.

metric = evaluate.load("<folder>/metrics/glue", "mrpc")
"""

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


DESCRIPTION = """
The metrics of the GLUE benchmark: accuracy for mnli, mnli_matched, mnli_mismatched, qnli, rte, sst2, wnli and hans;
accuracy and F1 of class 1 for mrpc and qqp; the Matthews correlation for cola; the Pearson and the Spearman
correlation for stsb, which are not a number for constant predictions.
"""

CITATION = """
@inproceedings{wang2019glue,
  title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle={International Conference on Learning Representations},
  year={2019}
}
"""


def accuracy(predictions, references) -> dict[str, float]:
    """Share of predictions that equal their reference."""
    return {"accuracy": float(accuracy_score(references, predictions))}


def accuracy_and_f1(predictions, references) -> dict[str, float]:
    """Accuracy, and the F1 score of class 1 (0 if it is neither predicted nor present)."""
    f1 = f1_score(references, predictions, zero_division=0.0)
    return accuracy(predictions, references) | {"f1": float(f1)}


def matthews(predictions, references) -> dict[str, float]:
    """Matthews correlation; 0 for constant predictions."""
    return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


def correlations(predictions, references) -> dict[str, float]:
    """Pearson and Spearman correlation; not a number where one side is constant, as there is none."""
    predictions, references = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return {"pearson": float("nan"), "spearmanr": float("nan")}
    return {
        "pearson": float(pearsonr(predictions, references).statistic),
        "spearmanr": float(spearmanr(predictions, references).statistic),
    }


SCORES = {
    "cola": matthews,
    "hans": accuracy,
    "mnli": accuracy,
    "mnli_matched": accuracy,
    "mnli_mismatched": accuracy,
    "mrpc": accuracy_and_f1,
    "qnli": accuracy,
    "qqp": accuracy_and_f1,
    "rte": accuracy,
    "sst2": accuracy,
    "stsb": correlations,
    "wnli": accuracy,
}


class Glue(evaluate.Metric):
    """The metrics of one GLUE task, which is the name of the configuration."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in SCORES:
            raise ValueError(f"GLUE has no task '{self.config_name}'; give evaluate.load one of {', '.join(SCORES)}.")
        value = datasets.Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            features=datasets.Features({"predictions": value, "references": value}),
            format="numpy",
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return SCORES[self.config_name](predictions, references)
