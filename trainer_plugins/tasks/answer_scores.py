"""How well a text answers a question: exact match and F1 of SQuAD (Rajpurkar et al., 2016), of one answer."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


# A search scores the same references for each sub-network.
@lru_cache(maxsize=1 << 17)
def words(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without punctuation (of ASCII) and without articles."""
    return tuple(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact(prediction: str, reference: str) -> float:
    """1 if both have the same words in the same order, else 0."""
    return float(words(prediction) == words(reference))


def f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, each counted as often as it occurs.

    Of two texts, one of which has no words, it is 1 if the other has none either, and else 0. (The published script of
    v1.1 gives 0 to two texts without words, that of v2 gives 1.)
    """
    predicted, wanted = words(prediction), words(reference)
    if predicted == wanted:
        return 1.0
    common = (Counter(predicted) & Counter(wanted)).total()
    # 2PR / (P + R) with P = common / predicted and R = common / wanted.
    return 2.0 * common / (len(predicted) + len(wanted))


def best_scores(prediction: str, references: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 with that reference which gives the most, each on its own.

    Args:
        prediction: the answer.
        references: the right answers, at least one.
    """
    return max(exact(prediction, each) for each in references), max(f1(prediction, each) for each in references)
