"""Where questions come from, what is refused, and what is held out for a search."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from tests.examples.conftest import qa_dataset, qa_example, questions, write_csv, write_lines


SQUAD = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="module")
def qa_data(qa_modules):
    return qa_modules["data"]


def nested(rows: list[dict]) -> dict:
    """As SQuAD v2 was released; each context is a paragraph."""
    articles = {}
    for row in rows:
        texts = [
            {"text": t, "answer_start": s} for t, s in zip(row["answers"]["text"], row["answers"]["answer_start"])
        ]
        question = {"id": row["id"], "question": row["question"], "answers": texts, "is_impossible": not texts}
        question["plausible_answers"] = [{"text": "x", "answer_start": 0}]
        articles.setdefault(row["title"], []).append({"context": row["context"], "qas": [question]})
    return {"version": "v2.0", "data": [{"title": title, "paragraphs": each} for title, each in articles.items()]}


@pytest.mark.parametrize("kind", ["lines", "list", "data", "pairs", "released", "csv", "parquet", "numbered"])
def test_files_of_every_kind_are_the_same_data(load_questions, tmp_path, kind):
    rows = questions(20, seed=2, unanswerable=0.3)
    rows.sort(key=lambda row: row["title"])
    path = tmp_path / f"train.{kind if kind in ('csv', 'parquet') else 'json'}"
    if kind == "csv":
        write_csv(path, [{**row, "answers": json.dumps(row["answers"])} for row in rows])
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif kind in ("lines", "numbered"):
        rows = [{**row, "id": index} for index, row in enumerate(rows)] if kind == "numbered" else rows
        write_lines(path, rows)
    else:
        pairs = [
            {**row, "answers": [dict(zip(row["answers"], pair)) for pair in zip(*row["answers"].values())]}
            for row in rows
        ]
        contents = {"list": rows, "data": {"version": "1", "data": rows}, "pairs": pairs, "released": nested(rows)}
        path.write_text(json.dumps(contents[kind]))
    data = load_questions(("train",), train_file=str(path), version_2_with_negative=True)
    assert list(data.train) == [{**row, "id": str(row["id"])} for row in rows]


def test_a_changed_file_is_read_again(load_questions, tmp_path):
    rows = questions(6, seed=2)
    for count in (6, 4):
        path = write_lines(tmp_path / "train.json", rows[:count])
        assert len(load_questions(("train",), train_file=path).train) == count


def test_folder(load_questions, tmp_path):
    for name, count in (("train", 5), ("validation", 3)):
        Dataset.from_list(questions(count, seed=1)).to_parquet(tmp_path / f"{name}.parquet")
    data = load_questions(data_dir=str(tmp_path))
    assert (len(data.train), len(data.validation), data.test) == (5, 3, None)
    with pytest.raises(ValueError, match="needs a test split and the data have only train, validation; add it"):
        load_questions(("test",), data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="has none of train.parquet, validation.parquet, test.parquet"):
        load_questions(data_dir=str(tmp_path / "nowhere"))


def test_a_test_set_may_have_no_answers(load_questions, tmp_path):
    rows = questions(4, seed=1)
    path = write_lines(tmp_path / "a.json", [{k: v for k, v in row.items() if k != "answers"} for row in rows])
    data = load_questions(("test",), test_file=path)
    assert not data.test_is_labelled and len(data.test) == 4
    assert load_questions(("test",), test_file=write_lines(tmp_path / "b.json", rows)).test_is_labelled


def change(**changes):
    return lambda rows: [{**rows[0], **changes}, *rows[1:]]


BAD_ROWS = {
    "no context": (lambda rows: [{"id": "1", "question": "x"}], "Row 0 .* has no text 'context'; it has id, question"),
    "text as context": (change(context=3), "Row 0 of '.*' has no text 'context'"),
    "empty context": (change(context=" "), "Row 0 of the train split .id 'q1-0'. has an empty context"),
    "answers": (change(answers="x"), "The answers of row 0 of '.*' are 'x'; write them as"),
    "answers without places": (change(answers={"text": ["a"]}), "The answers of row 0"),
    "fewer places": (change(answers={"text": ["a"], "answer_start": []}), "The answers of row 0"),
    "no answer": (change(answers=None), "has no answer; add --version_2_with_negative"),
    "outside": (change(answers={"text": ["red"], "answer_start": [999]}), "has the answer 'red' at character 999"),
    "before": (change(answers={"text": ["red"], "answer_start": [-1]}), "has the answer 'red' at character -1"),
    "elsewhere": (change(answers={"text": ["zebra"], "answer_start": [0]}), "'zebra' at character 0 .* 'there' there"),
    "empty answer": (change(answers={"text": [""], "answer_start": [0]}), "has the answer '' at character 0"),
    "no rows": (lambda rows: [], "'.*' has no rows; give a file that does"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_refused(load_questions, tmp_path, name):
    edit, message = BAD_ROWS[name]
    path = write_lines(tmp_path / "train.json", edit(questions(4, seed=1)))
    with pytest.raises(ValueError, match=message):
        load_questions(("train",), train_file=path)


def test_bad_columns_are_refused(load_questions, tmp_path):
    rows = [{"id": row["id"], "text": row["context"], "question": row["question"]} for row in questions(4, seed=1)]
    path = write_csv(tmp_path / "train.csv", rows)
    with pytest.raises(
        ValueError, match="The train split has no column 'context'; it has id, text, question and needs"
    ):
        load_questions(("train",), train_file=path)
    path = write_csv(tmp_path / "numbers.csv", [{"context": 3, "question": "x", "answers": "[]"}])
    with pytest.raises(ValueError, match="Row 0 of the train split has no text as context"):
        load_questions(("train",), train_file=path)


def test_broken_files_are_refused(load_questions, tmp_path):
    (tmp_path / "train.json").write_text('{"context": "a"\n')
    with pytest.raises(ValueError, match="'.*train.json' is no JSON, nor are its lines"):
        load_questions(("train",), train_file=str(tmp_path / "train.json"))
    (tmp_path / "train.json").write_text('["a"]')
    with pytest.raises(ValueError, match="holds no list of rows"):
        load_questions(("train",), train_file=str(tmp_path / "train.json"))
    (tmp_path / "train.parquet").write_text("x")
    (tmp_path / "train.csv").write_text("")
    for kind in ("parquet", "csv"):
        with pytest.raises(ValueError, match=f"train.{kind}' cannot be read as {kind.upper()} .*; correct the file"):
            load_questions(("train",), train_file=str(tmp_path / f"train.{kind}"))
    Dataset.from_dict({"context": [], "question": [], "answers": []}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="train.parquet' cannot be read as PARQUET .*no data"):
        load_questions(("train",), train_file=str(tmp_path / "train.parquet"))


def test_ids_are_needed_for_predictions_only(load_questions, tmp_path):
    rows = questions(4, seed=1)
    twice = write_lines(tmp_path / "twice.json", [rows[0], rows[0]])
    without = write_lines(tmp_path / "without.json", [{k: v for k, v in row.items() if k != "id"} for row in rows])
    assert len(load_questions(("train",), train_file=twice).train) == 2
    assert len(load_questions(("train",), train_file=without).train) == 4
    with pytest.raises(ValueError, match="Row 1 of the validation split .id 'q1-0'. has an id that is there twice"):
        load_questions(("validation",), validation_file=twice)
    with pytest.raises(ValueError, match="Row 0 of the validation split has no id"):
        load_questions(("validation",), validation_file=without)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "No data are given; add --dataset_name, --data_dir or --train_file"),
        ({"dataset_name": "squad", "data_dir": "x"}, "--dataset_name, --data_dir name different data"),
        ({"train_file": "nowhere.json"}, "--train_file 'nowhere.json' does not exist"),
        ({"train_file": "x.txt"}, "--train_file 'x.txt' is none of .csv, .json, .jsonl, .parquet"),
        ({"data_dir": "x", "doc_stride": 384}, "--doc_stride is 384 and --max_seq_length 384"),
        ({"data_dir": "x", "doc_stride": -1}, "--doc_stride is -1"),
        ({"data_dir": "x", "n_best_size": 0}, "--n_best_size is 0; give at least 1"),
        ({"data_dir": "x", "max_answer_length": 0}, "--max_answer_length is 0"),
        ({"data_dir": "x", "max_eval_samples": 0}, "--max_eval_samples is 0"),
        ({"data_dir": "x", "preprocessing_num_workers": 0}, "--preprocessing_num_workers is 0"),
    ],
)
def test_bad_flags_are_refused(qa_modules, arguments, message):
    with pytest.raises(ValueError, match=message):
        qa_modules["arguments"].DataTrainingArguments(**arguments)


def test_selection_is_of_whole_articles(qa_data):
    rows = questions(200, seed=4)
    rows = qa_dataset(qa_data, *({**row, "context": f"{row['context']} {number}"} for number, row in enumerate(rows)))
    train, selection = qa_data.split_selection(rows, 0.3, seed=1)
    assert sorted([*train["id"], *selection["id"]]) == sorted(rows["id"])
    assert not set(train["title"]) & set(selection["title"])
    assert not set(train["context"]) & set(selection["context"])
    # An article has 25 rows.
    assert len(selection) in (50, 75)
    assert selection["id"][:] == qa_data.split_selection(rows, 0.3, seed=1)[1]["id"][:]
    assert selection["id"][:] != qa_data.split_selection(rows, 0.3, seed=2)[1]["id"][:]
    # In random order: the first half is not one article.
    assert len(set(selection["title"][:10])) > 1


def test_selection_without_titles_is_of_whole_contexts(qa_data):
    rows = [qa_example(f"the {number // 5} red", "red") for number in range(100)]
    train, selection = qa_data.split_selection(qa_dataset(qa_data, *rows), 0.2, seed=0)
    assert len(selection) == 20 and not set(train["context"]) & set(selection["context"])
    rows = [{**row, "title": "the same"} for row in rows]
    assert len(qa_data.split_selection(qa_dataset(qa_data, *rows), 0.2, seed=0)[1]) == 20


def test_a_context_with_several_titles_is_on_one_side(qa_data):
    rows = [
        {**qa_example(f"the {number % 20} red", "red"), "title": f"{number % 7}"[: number % 3]} for number in range(99)
    ]
    for seed in range(5):
        train, selection = qa_data.split_selection(qa_dataset(qa_data, *rows), 0.3, seed=seed)
        assert len(train) and len(selection)
        assert not set(train["context"]) & set(selection["context"])


def test_a_row_without_title_goes_with_the_article_of_its_context(qa_data):
    rows = [{**qa_example(f"the {number} red", "red"), "title": f"article {number % 5}"} for number in range(50)]
    rows += [{**row, "title": ""} for row in rows]
    train, selection = qa_data.split_selection(qa_dataset(qa_data, *rows), 0.4, seed=0)
    assert len(train) == 60 and len(selection) == 40 and not set(train["title"]) & set(selection["title"]) - {""}


@pytest.mark.parametrize(("share", "contexts"), [(0.0, 9), (1.0, 9), (-0.1, 9), (0.3, 1)])
def test_selection_leaves_nothing_empty(qa_data, share, contexts):
    rows = [qa_example(f"the {number % contexts} red", "red") for number in range(9)]
    with pytest.raises(ValueError, match=f"--selection_split {share} of 9 training examples .* leaves one part empty"):
        qa_data.split_selection(qa_dataset(qa_data, *rows), share, seed=0)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_extreme_shares_leave_one_article_each(qa_data, share):
    rows = qa_dataset(qa_data, *questions(64, seed=4))
    train, selection = qa_data.split_selection(rows, share, seed=0)
    assert min(len(set(train["title"])), len(set(selection["title"]))) == 1


def test_real_training_data_are_split_by_context(load_questions, qa_data):
    if not (SQUAD / "squad").is_dir():
        pytest.skip("the data set squad is not in the folder shared beside the repository")
    rows = load_questions(("train",), data_dir=str(SQUAD / "squad")).train
    train, selection = qa_data.split_selection(rows, 0.15, seed=128)
    assert abs(len(selection) / len(rows) - 0.15) < 0.02
    assert not set(train["context"]) & set(selection["context"])


def under_another_key(row: dict) -> dict:
    return {("answer" if name == "answers" else name): value for name, value in row.items()}


@pytest.mark.parametrize("role", ["train", "validation"])
@pytest.mark.parametrize("kind", ["lines", "released"])
def test_a_row_that_says_nothing_on_answers_is_refused(load_questions, tmp_path, role, kind):
    rows = questions(4, seed=1)
    if kind == "lines":
        path = write_lines(tmp_path / "rows.json", [*rows[:3], under_another_key(rows[3])])
    else:
        content = nested(rows)
        del content["data"][3]["paragraphs"][0]["qas"][0]["answers"]
        path = str(tmp_path / "rows.json")
        Path(path).write_text(json.dumps(content))
    for is_v2 in (True, False):
        with pytest.raises(
            ValueError, match="Row 3 of '.*rows.json' has neither 'answers' nor \"is_impossible\": true"
        ):
            load_questions((role,), version_2_with_negative=is_v2, **{f"{role}_file": path})
    # The same file as test set, and a split that is not needed.
    data = load_questions(("test",), version_2_with_negative=True, test_file=path, **{f"{role}_file": path})
    assert [len(each["text"]) for each in data.test["answers"]] == [1, 1, 1, 0]


def test_a_row_may_say_that_there_is_no_answer(load_questions, tmp_path):
    row = {name: value for name, value in questions(1, seed=1)[0].items() if name != "answers"}
    says = ({"is_impossible": True}, {"answers": None}, {"answers": []}, {"answers": {"text": [], "answer_start": []}})
    path = write_lines(tmp_path / "train.json", [{**row, **each} for each in says])
    data = load_questions(("train",), train_file=path, version_2_with_negative=True)
    assert data.train["answers"][:] == [{"text": [], "answer_start": []}] * len(says)
    path = write_lines(tmp_path / "train.json", [{**row, "is_impossible": False}])
    with pytest.raises(ValueError, match="Row 0 of .* has neither"):
        load_questions(("train",), train_file=path, version_2_with_negative=True)


def test_what_another_version_has_read_is_read_again(load_questions, qa_data, tmp_path, monkeypatch):
    path = write_lines(tmp_path / "train.json", questions(2, seed=1))
    load_questions(("train",), train_file=path)
    monkeypatch.setattr(qa_data, "READER_VERSION", qa_data.READER_VERSION + 1)
    monkeypatch.setattr(qa_data, "as_name", lambda value: "another")
    assert load_questions(("train",), train_file=path).train["id"][:] == ["another"] * 2


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085"])
def test_lines_end_at_line_ends_alone(load_questions, tmp_path, character, line_end):
    rows = [{**row, "question": f"which{character}colour"} for row in questions(3, seed=1)]
    text = "".join(json.dumps(row, ensure_ascii=False) + line_end for row in rows)
    (tmp_path / "train.json").write_bytes(text.encode())
    assert list(load_questions(("train",), train_file=str(tmp_path / "train.json")).train) == rows


@pytest.mark.parametrize("kind", ["lines", "list"])
def test_a_byte_order_mark_is_no_text(load_questions, tmp_path, kind):
    rows = questions(3, seed=1)
    text = "\n".join(map(json.dumps, rows)) if kind == "lines" else json.dumps(rows)
    (tmp_path / "train.json").write_text(text, encoding="utf-8-sig")
    assert list(load_questions(("train",), train_file=str(tmp_path / "train.json")).train) == rows


def test_other_encodings_are_refused(load_questions, tmp_path):
    row = {**questions(1, seed=1)[0], "title": "Orléans"}
    (tmp_path / "train.json").write_text(json.dumps(row, ensure_ascii=False), encoding="latin-1")
    with pytest.raises(ValueError, match="^'.*train.json' holds the byte 0xe9 where it is no UTF-8; save it as UTF-8"):
        load_questions(("train",), train_file=str(tmp_path / "train.json"))
