"""Where pairs of texts come from, what is refused, and how tokenizer, metric and limits treat them."""

import json
from pathlib import Path

import evaluate
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sacrebleu
from datasets import Dataset, DatasetDict, Features, Translation
from transformers import AutoTokenizer

from tests.examples.conftest import EXAMPLES, write_csv, write_lines
from trainer_plugins.scripts import data as script_data


MULTI30K = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "multi30k"
ROWS = [{"en": f"a small dog {number}", "de": f"ein kleiner Hund {number}"} for number in range(6)]


@pytest.fixture
def load(translation_modules, tmp_path):
    def load(needed=("train",), **changes):
        settings = {"source_lang": "en", "target_lang": "de", **changes}
        arguments = translation_modules["arguments"].DataTrainingArguments(**settings)
        return translation_modules["data"].load_data(arguments, needed, cache_dir=str(tmp_path / "cache"))

    return load


@pytest.fixture(scope="module")
def bleu():
    return evaluate.load(str(EXAMPLES / "translation" / "metrics" / "bleu"), keep_in_memory=True)


def texts(dataset: Dataset) -> list[tuple[str, str]]:
    return list(zip(dataset["source"], dataset["target"]))


EXPECTED = [(row["en"], row["de"]) for row in ROWS]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_the_layout_of_the_hub_in_json_lines(load, tmp_path, suffix):
    path = write_lines(tmp_path / f"train.{suffix}", [{"id": 1, "translation": row} for row in ROWS])
    train = load(train_file=path).train
    assert train.column_names == ["source", "target"] and texts(train) == EXPECTED
    assert texts(load(train_file=path, source_lang="de", target_lang="en").train) == [(b, a) for a, b in EXPECTED]


def test_two_columns_in_every_type_of_file(load, tmp_path):
    pq.write_table(pa.Table.from_pylist([{"other": 1, **row} for row in ROWS]), tmp_path / "train.parquet")
    assert texts(load(train_file=str(tmp_path / "train.parquet")).train) == EXPECTED
    assert texts(load(train_file=write_lines(tmp_path / "train.json", ROWS)).train) == EXPECTED
    rows = [{"en": "NA", "de": "null"}, *ROWS]
    assert texts(load(train_file=write_csv(tmp_path / "train.csv", rows)).train) == [("NA", "null"), *EXPECTED]


def test_a_folder(load, tmp_path):
    for role, rows in (("train", ROWS), ("validation", ROWS[:2]), ("test", [{"en": "a"}])):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{role}.parquet")
    data = load(("train", "validation", "test"), data_dir=str(tmp_path))
    assert texts(data.train) == EXPECTED and len(data.validation) == 2
    # Only a test set may lack what is to be predicted.
    assert data.test.column_names == ["source"]
    with pytest.raises(ValueError, match="test split has no language 'de' but en; name languages"):
        load(("test",), data_dir=str(tmp_path), source_lang="de", target_lang="en")


def test_a_data_set_of_the_hub(load, translation_modules, monkeypatch):
    asked = []

    def load_dataset(*names, **options):
        asked.append(names)
        features = Features({"translation": Translation(languages=["de", "en"])})
        rows = [{"translation": row} for row in ROWS]
        return DatasetDict({"train": Dataset.from_list(rows, features=features)})

    monkeypatch.setattr(script_data, "load_dataset", load_dataset)
    data = load(dataset_name="bbaaaa/iwslt14-de-en", dataset_config_name="de-en", source_lang="en_XX")
    assert asked == [("bbaaaa/iwslt14-de-en", "de-en")] and texts(data.train) == EXPECTED
    with pytest.raises(ValueError, match="needs a validation split and the data have only train; add it"):
        load(("train", "validation"), dataset_name="x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"translation": {"en": "a", "fr": "b"}}\n', "no language 'de' but en, fr"),
        ('{"text": "a"}\n', "no language 'en' but text"),
        ('{"translation": "a"}\n', "'translation' of the train split does not have the same languages"),
        ('{"en": "a", "de": "b"}\n{"en": "a", "de": null}\n', "Row 1 of the train split has no text in 'de'"),
        (
            '{"translation": {"en": "a", "de": "b"}}\n{"translation": {"en": "a"}}\n',
            "does not have the same languages",
        ),
        ('{"translation": {"en": "a", "de": null}}\n{"translation": {"en": "a", "de": "b"}}\n', "Row 0 .* in 'de'"),
        ('{"en": 1, "de": "b"}\n', "'en' in the train split is .*int64.* and not text"),
        ('{"en": "a", \n', "cannot be read as JSON"),
        ("", "has no rows; give a file that does"),
    ],
)
def test_bad_files(load, tmp_path, content, message):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load(train_file=str(tmp_path / "train.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("en,de\nyes, he said,ja\nred,rot\n", r"more values in its first row than names in its header \(en, de\)"),
        ("en,de\nred,rot\nyes, he said,ja\n", "cannot be read as CSV .* Expected 2 fields in line 3, saw 3"),
        ("", "cannot be read as CSV"),
    ],
)
def test_commas_without_quotes(load, tmp_path, content, message):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load(train_file=str(tmp_path / "train.csv"))


def test_empty_texts_are_warned_of(load, tmp_path, caplog):
    path = write_csv(tmp_path / "train.csv", [{"en": "a", "de": "b"}, {"en": "c", "de": ""}])
    assert texts(load(train_file=path).train) == [("a", "b"), ("c", "")]
    assert "1 texts of the train split in 'de' are empty" in caplog.text and "'en'" not in caplog.text


def test_one_column_for_both_languages(load, tmp_path):
    path = write_csv(tmp_path / "train.csv", [{"en": "a", "de": "b"}])
    with pytest.raises(ValueError, match="'en_US' and 'en_GB' are both the column 'en' of the train split"):
        load(train_file=path, source_lang="en_US", target_lang="en_GB")


def test_bad_folders(load, tmp_path):
    with pytest.raises(ValueError, match="has none of train.parquet, validation.parquet, test.parquet"):
        load(data_dir=str(tmp_path))
    (tmp_path / "train.parquet").write_text("no")
    with pytest.raises(ValueError, match="cannot be read as PARQUET"):
        load(data_dir=str(tmp_path))


def test_flags_that_name_different_data(translation_modules):
    arguments = translation_modules["arguments"].DataTrainingArguments
    with pytest.raises(ValueError, match="--dataset_name, --data_dir name different data"):
        arguments(source_lang="en", target_lang="de", dataset_name="x", data_dir="y")
    with pytest.raises(ValueError, match="No data are given"):
        arguments(source_lang="en", target_lang="de")
    assert arguments(source_lang="en", target_lang="de", data_dir="y", max_target_length=7).val_max_target_length == 7


def test_no_source_text_is_on_both_sides(translation_modules):
    rows = [{"source": f"text {number % 40}", "target": str(number)} for number in range(200)]
    split = translation_modules["data"].split_selection
    train, selection = split(Dataset.from_list(rows), 0.3, seed=1)
    assert sorted(int(text) for text in [*train["target"], *selection["target"]]) == list(range(200))
    assert not set(train["source"]) & set(selection["source"]) and len(selection) == 60
    assert selection["target"][:] == split(Dataset.from_list(rows), 0.3, seed=1)[1]["target"][:]
    assert selection["target"][:] != split(Dataset.from_list(rows), 0.3, seed=2)[1]["target"][:]
    # In random order: the first ones are a sample.
    assert selection["target"][:] != sorted(selection["target"][:], key=int)


@pytest.mark.parametrize(("share", "count"), [(0.0, 9), (1.0, 9), (0.3, 1)])
def test_selection_leaves_nothing_empty(translation_modules, share, count):
    rows = Dataset.from_list([{"source": str(number % count), "target": "x"} for number in range(9)])
    with pytest.raises(ValueError, match=f"--selection_split {share} of 9 training examples .* leaves one part empty"):
        translation_modules["data"].split_selection(rows, share, seed=0)
    if 0 < share < 1:
        return
    train, selection = translation_modules["data"].split_selection(rows, abs(share - 0.001), seed=0)
    assert min(len(train), len(selection)) == 1


def test_a_trained_tokenizer_loads_and_gives_back_what_it_reads(translation_modules, tmp_path):
    scratch = translation_modules["scratch"]
    trained = scratch.train_tokenizer((text for row in ROWS * 20 for text in row.values()), 300)
    trained.save_pretrained(tmp_path)
    # As beside a Marian, whose own tokenizer would be another one.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) <= 300 and tokenizer("a small dog")["input_ids"] == trained("a small dog")["input_ids"]
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer(text_target="a")["input_ids"] == tokenizer("a")["input_ids"]
    for text in ("Ein großer Hund, „der“ z. B. bellt .", "日本 ½", "two  blanks", "a\nb", "ein kleiner Hund"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    # It has learnt something.
    assert len(tokenizer("kleiner Hund")["input_ids"]) <= 4


def test_overrides(translation_modules):
    scratch, config = translation_modules["scratch"], translation_modules["scratch"].AutoConfig.for_model("marian")
    text = "d_model=64, dropout=0.3,scale_embedding=False,activation_function=relu,attention_dropout=0"
    assert scratch.parse_overrides(text, config) == {
        "d_model": 64, "dropout": 0.3, "scale_embedding": False, "activation_function": "relu", "attention_dropout": 0,
    }  # fmt: skip
    for wrong in ("d_model", "d_model=1.5", "d_model=-2", "d_model=True", "scale_embedding=1", "size=1"):
        with pytest.raises(ValueError, match=f"--config_overrides has '{wrong}'"):
            scratch.parse_overrides(wrong, config)


@pytest.mark.parametrize("model_type", ["marian", "bart", "t5"])
def test_new_models_know_their_tokens(translation_modules, tmp_path, model_type):
    scratch, arguments = (
        translation_modules["scratch"],
        translation_modules["arguments"].ModelArguments(model_type=model_type, train_tokenizer=True, vocab_size=280),
    )
    tokenizer = scratch.train_tokenizer([row["en"] for row in ROWS], 280)
    config = scratch.make_config(arguments, tokenizer)
    assert config.vocab_size == len(tokenizer) and config.pad_token_id == tokenizer.pad_token_id
    assert config.eos_token_id == tokenizer.eos_token_id and config.decoder_start_token_id == tokenizer.pad_token_id
    assert getattr(config, "decoder_vocab_size", len(tokenizer)) == len(tokenizer)
    if model_type == "marian":
        assert config.scale_embedding


def test_encoding(translation_modules):
    tokenizer = translation_modules["scratch"].train_tokenizer([text for row in ROWS for text in row.values()], 300)
    rows = Dataset.from_dict({"source": ["a dog", "a small dog 1 2 3"], "target": ["ein Hund", "klein"]})
    lengths = {"max_source_length": 6, "max_target_length": 12}
    encode, end, pad = translation_modules["data"].encode, tokenizer.eos_token_id, tokenizer.pad_token_id
    plain = encode(rows, tokenizer, **lengths)
    assert plain.column_names == ["input_ids", "attention_mask", "labels"]
    assert [len(row) for row in plain["input_ids"]][1] == 6 and plain["input_ids"][1][-1] == end
    assert tokenizer.decode(plain["labels"][0], skip_special_tokens=True) == "ein Hund"
    prefixed = encode(rows, tokenizer, source_prefix="small: ", **lengths)
    assert tokenizer.decode(prefixed["input_ids"][0][:-1]).startswith("small:")
    padded = encode(rows, tokenizer, pad_to_max_length=True, **lengths)
    assert {len(row) for row in padded["labels"]} == {12} and padded["labels"][0][-1] == -100
    counted = encode(rows, tokenizer, pad_to_max_length=True, ignore_padding=False, **lengths)
    assert counted["labels"][0][-1] == pad
    bare = encode(rows.select_columns(["source"]), tokenizer, **lengths)
    assert bare.column_names == ["input_ids", "attention_mask"]


PREDICTIONS = [
    "The cat sat on the mat, quietly.",
    "He doesn't know what to do now.",
    "Ein Hund läuft über die Wiese.",
]
REFERENCES = ["The cat is on the mat, quietly.", "He does not know what to do now.", "Ein Hund läuft auf die Wiese."]
OTHERS = ["A cat sat quietly on the mat.", "Today he doesn't know what to do.", "Ein Hund rennt über die Wiese."]


def test_the_metric_is_that_of_sacrebleu(bleu):
    found = bleu.compute(predictions=PREDICTIONS, references=[[text] for text in REFERENCES])
    assert found == {"bleu": pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score)}
    # By hand: all n-grams are right; the second one is a word short, which the brevity penalty is for.
    assert bleu.compute(predictions=["a b c d"], references=[["a b c d"]])["bleu"] == pytest.approx(100)
    short = bleu.compute(predictions=["a b c d"], references=[["a b c d e"]])["bleu"]
    assert short == pytest.approx(100 * 2.718281828459045 ** (1 - 5 / 4))


def test_several_references(bleu):
    found = bleu.compute(predictions=PREDICTIONS, references=[list(pair) for pair in zip(REFERENCES, OTHERS)])["bleu"]
    assert found == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES, OTHERS]).score)
    uneven = [[REFERENCES[0], OTHERS[0]], [REFERENCES[1]], [REFERENCES[2]]]
    expected = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES, [OTHERS[0], None, None]]).score
    assert bleu.compute(predictions=PREDICTIONS, references=uneven)["bleu"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="Prediction 1 has no reference"):
        bleu.compute(predictions=["a", "b"], references=[["a"], []])


def test_real_data(load, translation_modules):
    if not MULTI30K.is_dir():
        pytest.skip("the data set multi30k is not in the folder shared beside the repository")
    data = load(("validation", "test"), data_dir=str(MULTI30K), source_lang="de", target_lang="en")
    assert (len(data.validation), len(data.test)) == (1014, 1000)
    # German nouns have capitals, by which the source is the German side.
    capitals = [sum(map(str.isupper, "".join(data.validation[name]))) for name in ("source", "target")]
    assert capitals[0] > 2 * capitals[1]
    train, selection = translation_modules["data"].split_selection(data.validation, 0.15, seed=128)
    assert abs(len(selection) - 152) <= 1 and not set(train["source"]) & set(selection["source"])
