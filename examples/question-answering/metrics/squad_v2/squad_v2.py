"""The metric of SQuAD v2 as a local `evaluate` module, to be used offline.

metric = evaluate.load("<folder>/metrics/squad_v2")
"""

import datasets
import evaluate
import numpy as np

from trainer_plugins.tasks.answer_scores import best_scores, words


DESCRIPTION = """
Exact match and F1 of SQuAD v2, in percent, where questions may have no answer.
Predictions: {"id", "prediction_text", "no_answer_probability"}; references: {"id", "answers": {"text": [...],
"answer_start": [...]}}, empty lists if there is no answer. A question counts as unanswered if its text is empty or its
no_answer_probability, which may be any number, is above `no_answer_threshold`; that is right if there is no answer.
- exact, f1, total: over all questions;
- HasAns_... and NoAns_...: over those with and without an answer, left out if there are none;
- best_exact, best_f1: with the best threshold, which is best_exact_thresh or best_f1_thresh.
"""

CITATION = """
@inproceedings{rajpurkar2018know,
  title={Know What You Don't Know: Unanswerable Questions for {SQuAD}},
  author={Rajpurkar, Pranav and Jia, Robin and Liang, Percy},
  booktitle={Proceedings of ACL},
  year={2018}
}
"""

TEXT = datasets.Value("string")


def best_threshold(scores, no_answer_scores, no_answer) -> tuple[float, float]:
    """The largest mean score that a threshold reaches, and the smallest such threshold.

    Args:
        scores: of each question if it is answered.
        no_answer_scores: of each question if it is not.
        no_answer: what the threshold is compared with.

    Returns:
        The mean, and the threshold: one of the values of `no_answer`, or 1 less than the smallest if it is best to
        answer nothing.
    """
    order = np.argsort(no_answer, kind="stable")
    values = no_answer[order]
    # With the threshold values[k], questions 0 to k are answered.
    totals = no_answer_scores.sum() + np.cumsum((scores - no_answer_scores)[order])
    last_of_its_value = np.append(values[1:] != values[:-1], True)
    totals = np.append(no_answer_scores.sum(), totals[last_of_its_value])
    thresholds = np.append(values[0] - 1.0, values[last_of_its_value])
    # Equal up to rounding is equal.
    best = int(np.argmax(totals > totals.max() - 1e-9))
    return float(totals[best] / len(scores)), float(thresholds[best])


class SquadV2(evaluate.Metric):
    """Exact match and F1 of answers to questions that may have none."""

    def _info(self) -> evaluate.MetricInfo:
        answers = {"text": datasets.List(TEXT), "answer_start": datasets.List(datasets.Value("int32"))}
        prediction = {"id": TEXT, "prediction_text": TEXT, "no_answer_probability": datasets.Value("float32")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            features=datasets.Features({"predictions": prediction, "references": {"id": TEXT, "answers": answers}}),
        )

    def _compute(self, predictions, references, no_answer_threshold=1.0) -> dict[str, float]:
        by_id = {each["id"]: each for each in predictions}
        missing = [each["id"] for each in references if each["id"] not in by_id]
        if missing:
            raise ValueError(f"Question '{missing[0]}' has no prediction; give one of each, an empty text at least.")
        # A right answer without words, such as "the", could not be told from none.
        right = [[text for text in each["answers"]["text"] if words(text)] or [""] for each in references]
        has_answer = np.array([bool(each["answers"]["text"]) for each in references])
        predictions = [by_id[each["id"]] for each in references]
        no_answer = np.array([each["no_answer_probability"] for each in predictions], dtype=float)
        answered = np.array(
            [best_scores(each["prediction_text"], texts) for each, texts in zip(predictions, right)], dtype=float
        )
        unanswered = (~has_answer).astype(float)
        scores = np.where((no_answer > no_answer_threshold)[:, None], unanswered[:, None], answered)
        metrics: dict[str, float] = {}
        groups = {"": np.ones_like(has_answer), "HasAns_": has_answer, "NoAns_": ~has_answer}
        for prefix, chosen in groups.items():
            if chosen.any():
                exact, f1 = 100 * scores[chosen].mean(axis=0)
                metrics |= {f"{prefix}exact": float(exact), f"{prefix}f1": float(f1)}
                metrics[f"{prefix}total"] = int(chosen.sum())
        for column, name in enumerate(("exact", "f1")):
            best, threshold = best_threshold(answered[:, column], unanswered, no_answer)
            metrics |= {f"best_{name}": 100 * best, f"best_{name}_thresh": threshold}
        return metrics
