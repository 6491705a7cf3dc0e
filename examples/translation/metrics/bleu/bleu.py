"""BLEU as sacrebleu computes it, as a local `evaluate` module: `evaluate.load("<folder>/metrics/bleu")`."""

import datasets
import evaluate
from sacrebleu.metrics import BLEU


DESCRIPTION = """
BLEU of a whole corpus in percent, with sacrebleu's defaults (mixed case, tokenization 13a, exponential smoothing), so
that numbers can be compared with published ones. Predictions: texts; references: for each a list of texts, at least
one. Texts are whole sentences as people write them, not tokens.
"""

CITATION = """
@inproceedings{post2018call,
  title={A Call for Clarity in Reporting {BLEU} Scores},
  author={Post, Matt},
  booktitle={Proceedings of the Third Conference on Machine Translation},
  year={2018}
}
"""

TEXT = datasets.Value("string")


class Bleu(evaluate.Metric):
    """BLEU of translations."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            features=datasets.Features({"predictions": TEXT, "references": datasets.List(TEXT)}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        for number, texts in enumerate(references):
            if not texts:
                raise ValueError(f"Prediction {number} has no reference to be compared with; give at least one.")
        # sacrebleu takes one list for each reference of a sentence, None where a sentence has fewer of them.
        most = max(map(len, references))
        documents = [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]
        return {"bleu": float(BLEU().corpus_score(predictions, documents).score)}
