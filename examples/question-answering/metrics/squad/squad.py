"""The metric of SQuAD v1.1 as a local `evaluate` module, to be used offline.

metric = evaluate.load("<folder>/metrics/squad")
"""

import datasets
import evaluate
import numpy as np

from trainer_plugins.tasks.answer_scores import best_scores


DESCRIPTION = """
Exact match and F1 of SQuAD v1.1, in percent: the mean over questions, each scored by the reference that fits best.
Predictions: {"id", "prediction_text"}; references: {"id", "answers": {"text": [...], "answer_start": [...]}}. A
question without a prediction counts as wrong; the order of the two lists does not matter.
"""

CITATION = """
@inproceedings{rajpurkar2016squad,
  title={{SQuAD}: 100,000+ Questions for Machine Comprehension of Text},
  author={Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy},
  booktitle={Proceedings of EMNLP},
  year={2016}
}
"""

TEXT = datasets.Value("string")


class Squad(evaluate.Metric):
    """Exact match and F1 of answers to questions that all have one."""

    def _info(self) -> evaluate.MetricInfo:
        answers = {"text": datasets.List(TEXT), "answer_start": datasets.List(datasets.Value("int32"))}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            features=datasets.Features(
                {
                    "predictions": {"id": TEXT, "prediction_text": TEXT},
                    "references": {"id": TEXT, "answers": answers},
                }
            ),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        texts = {each["id"]: each["prediction_text"] for each in predictions}
        scores = []
        for reference in references:
            right = reference["answers"]["text"]
            if not right:
                raise ValueError(
                    f"Question '{reference['id']}' has no right answer; use the metric squad_v2 for such questions."
                )
            found = reference["id"] in texts
            scores.append(best_scores(texts[reference["id"]], right) if found else (0.0, 0.0))
        exact, f1 = 100 * np.mean(scores, axis=0)
        return {"exact_match": float(exact), "f1": float(f1)}
