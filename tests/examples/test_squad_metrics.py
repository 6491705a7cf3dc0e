"""The metrics of SQuAD v1.1 and v2, against cases worked by hand."""

from pathlib import Path

import evaluate
import pytest

from trainer_plugins.tasks.answer_scores import best_scores, exact, f1, words


METRICS = Path(__file__).resolve().parents[2] / "examples" / "question-answering" / "metrics"


@pytest.fixture(scope="module")
def squad():
    return evaluate.load(str(METRICS / "squad"), keep_in_memory=True)


@pytest.fixture(scope="module")
def squad_v2():
    return evaluate.load(str(METRICS / "squad_v2"), keep_in_memory=True)


def reference(name: str, *texts: str) -> dict:
    return {"id": name, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}


def predict(texts: dict[str, str], **no_answer: float) -> list[dict]:
    return [
        {"id": name, "prediction_text": text, **({"no_answer_probability": no_answer[name]} if no_answer else {})}
        for name, text in texts.items()
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Denver Broncos!", ("denver", "broncos")),
        ("a an the", ()),
        ("U.S. Army's", ("us", "armys")),
        ("Athena, an owl", ("athena", "owl")),
        ("well-known", ("wellknown",)),
        ("the-end", ("theend",)),
        ("20–30 years", ("20–30", "years")),
        ("", ()),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("prediction", "truth", "expected_exact", "expected_f1"),
    [
        ("the Broncos", "Broncos", 1, 1),
        # 2 of 3 words right, 2 of 4 found: 2 * 2/3 * 1/2 / (2/3 + 1/2)
        ("New York city", "old New York state", 0, 4 / 7),
        # "no" counts twice here and once there.
        ("no no no", "no no yes", 0, 2 / 3),
        ("cat", "dog", 0, 0),
        ("", "dog", 0, 0),
        ("", "", 1, 1),
        ("the", ".", 1, 1),
    ],
)
def test_scores_of_one_answer(prediction, truth, expected_exact, expected_f1):
    assert exact(prediction, truth) == expected_exact
    assert f1(prediction, truth) == pytest.approx(expected_f1)
    assert f1(truth, prediction) == pytest.approx(expected_f1)


def test_the_best_reference_counts():
    assert best_scores("red fox", ["fox", "a red fox", "dog"]) == (1, 1)
    assert best_scores("red fox", ["fox", "dog"]) == (0, pytest.approx(2 / 3))


def test_squad(squad):
    references = [reference("1", "red fox", "fox"), reference("2", "dog"), reference("3", "owl")]
    # Another order than that of the references, and no prediction for 3.
    predictions = predict({"2": "a dog", "1": "red cat"})
    metrics = squad.compute(predictions=predictions + predict({"3": ""}), references=references)
    assert metrics == {"exact_match": pytest.approx(100 / 3), "f1": pytest.approx(100 * (0.5 + 1 + 0) / 3)}
    assert all(type(value) is float for value in metrics.values())


def test_squad_refuses_questions_without_an_answer(squad):
    with pytest.raises(ValueError, match="Question '7' has no right answer; use the metric squad_v2"):
        squad.compute(predictions=predict({"7": ""}), references=[reference("7")])


def test_squad_v2_by_hand(squad_v2):
    references = [reference("a", "red fox"), reference("b", "dog"), reference("c"), reference("d")]
    texts = {"a": "fox", "b": "dog", "c": "cat", "d": "cow"}
    metrics = squad_v2.compute(
        predictions=predict(texts, a=0.1, b=0.2, c=0.6, d=0.3), references=references, no_answer_threshold=0.5
    )
    # a: F1 2/3; b: right; c: above the threshold, so right; d: wrong.
    assert metrics == {
        "exact": 50.0,
        "f1": pytest.approx(100 * (2 / 3 + 1 + 1 + 0) / 4),
        "total": 4,
        "HasAns_exact": 50.0,
        "HasAns_f1": pytest.approx(100 * (2 / 3 + 1) / 2),
        "HasAns_total": 2,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
        # With b's 0.2 a and b are answered, c and d not.
        "best_exact": 75.0,
        "best_exact_thresh": pytest.approx(0.2),
        "best_f1": pytest.approx(100 * (2 / 3 + 1 + 1 + 1) / 4),
        "best_f1_thresh": pytest.approx(0.2),
    }


def test_squad_v2_by_default_no_probability_exceeds_the_threshold(squad_v2):
    references = [reference("a", "dog"), reference("b")]
    metrics = squad_v2.compute(predictions=predict({"a": "dog", "b": ""}, a=1.0, b=0.0), references=references)
    assert metrics["exact"] == metrics["f1"] == 100


def test_squad_v2_best_threshold(squad_v2):
    references = [reference("a", "dog"), reference("b"), reference("c")]
    # No threshold answers a without b, as they have the same odds; so it is best to answer nothing.
    predictions = predict({"a": "dog", "b": "x", "c": "y"}, a=0.5, b=0.5, c=3.0)
    metrics = squad_v2.compute(predictions=predictions, references=references, no_answer_threshold=0.0)
    assert (metrics["best_exact"], metrics["best_exact_thresh"]) == (pytest.approx(200 / 3), -0.5)
    # With other odds answering a alone is best, and that threshold gives that score.
    predictions = predict({"a": "dog", "b": "x", "c": "y"}, a=-8.0, b=0.5, c=-3.0)
    best = squad_v2.compute(predictions=predictions, references=references)
    assert (best["best_f1"], best["best_f1_thresh"]) == (100, -8)
    again = squad_v2.compute(predictions=predictions, references=references, no_answer_threshold=-8.0)
    assert again["f1"] == 100


def test_squad_v2_of_one_kind_only(squad_v2):
    only = squad_v2.compute(predictions=predict({"a": "dog"}, a=0.0), references=[reference("a", "dog")])
    assert "NoAns_exact" not in only and only["HasAns_total"] == 1
    none = squad_v2.compute(predictions=predict({"a": ""}, a=0.0), references=[reference("a")])
    assert "HasAns_exact" not in none and none["NoAns_exact"] == 100


def test_squad_v2_names_the_question_without_a_prediction(squad_v2):
    references = [reference("a", "dog"), reference("b")]
    predictions = predict({"a": "dog", "x": ""}, a=0.0, x=0.0)
    with pytest.raises(ValueError, match="Question 'b' has no prediction"):
        squad_v2.compute(predictions=predictions, references=references)
