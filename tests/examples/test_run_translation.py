"""The translation script from its flags to its files, in one process, with a model that it makes itself."""

import csv
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu import corpus_bleu
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from hf_nas.extraction import extract
from hf_nas.search import SuperNetworkEvaluator
from hf_nas.space import get_search_space
from tests.examples.conftest import example_modules, write_lines
from trainer_plugins.translation import CandidateScores, TranslationRows, TranslationTrainer


WORDS = {
    "red": "rot", "blue": "blau", "green": "grün", "cat": "Katze", "dog": "Hund", "cow": "Kuh", "big": "groß",
    "small": "klein", "and": "und", "sees": "sieht",
}  # fmt: skip
SIZES = (
    "d_model=32,encoder_layers=2,decoder_layers=2,encoder_attention_heads=4,decoder_attention_heads=4,"
    "encoder_ffn_dim=24,decoder_ffn_dim=24,max_position_embeddings=24,dropout=0.0,init_std=0.1"
)
NEW = {"model_type": "marian", "config_overrides": SIZES, "vocab_size": 330}
TRAINING = {
    "learning_rate": 4e-3,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "max_steps": 8,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "save_steps": 4,
    "logging_steps": 4,
    "seed": 7,
    "use_cpu": True,
}
SANDWICH = ("--sampling_strategy", "sandwich", "--search_space", "small")
SEARCH = ("--selection_split", "0.2", "--do_search", "--num_samples", "4")


def sentences(count: int, seed: int) -> list[dict]:
    """Word by word translations of three to five words."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        words = generator.choices(list(WORDS), k=generator.randint(3, 5))
        rows.append({"translation": {"en": " ".join(words), "de": " ".join(WORDS[word] for word in words)}})
    return rows


def write_files(folder: Path) -> dict[str, str]:
    """Paths of a training, a validation and a test set."""
    sizes = {"train": 200, "validation": 20, "test": 10}
    return {
        f"{role}_file": write_lines(folder / f"{role}.json", sentences(count, seed))
        for seed, (role, count) in enumerate(sizes.items())
    }


@pytest.fixture(scope="module")
def modules():
    with example_modules("translation", "run_translation") as modules:
        yield modules


@pytest.fixture(scope="module")
def run_translation(modules):
    return modules["run_translation"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    return write_files(tmp_path_factory.mktemp("translation_files"))


def script(run_translation, files: dict[str, str], cache: str):
    """Runs the script on these files with a tiny training, unless the call says otherwise."""

    def start(output_dir: Path, *flags: str, **changes) -> None:
        settings = TRAINING | files | {"output_dir": output_dir, "cache_dir": cache}
        settings |= {"source_lang": "en", "target_lang": "de", "max_source_length": 20, "max_target_length": 20}
        settings |= changes
        arguments = [t for key, value in settings.items() if value is not None for t in (f"--{key}", str(value))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["run_translation.py", *arguments, *flags])
            run_translation.main()

    return start


@pytest.fixture(scope="module")
def start(run_translation, files, tmp_path_factory):
    """Run the script; data sets are cached in a folder that all tests share."""
    return script(run_translation, files, str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory) -> Path:
    """Folder of a new model that has learnt the task, and its test set translated."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    flags = "--train_tokenizer --do_train --do_eval --do_predict --predict_with_generate --num_beams 2".split()
    start(folder, *flags, **NEW, max_steps=260, save_steps=260)
    return folder


@pytest.fixture(scope="module")
def super_network(start, trained, tmp_path_factory) -> Path:
    """Folder of a run that trained a super-network from that model, searched it and extracted a sub-network."""
    folder = tmp_path_factory.mktemp("runs") / "super_network"
    flags = ("--do_train", "--do_eval", "--predict_with_generate", *SANDWICH, *SEARCH)
    start(folder, *flags, model_name_or_path=trained, max_steps=40, save_steps=20)
    return folder


def read(folder: Path, name: str = "all_results.json") -> dict:
    return json.loads((folder / name).read_text())


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def evaluations(folder: Path) -> list[dict]:
    """Everything but how long they took."""
    with open(folder / "search" / "evaluations.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def pairs(path: str) -> list[dict[str, str]]:
    return [json.loads(line)["translation"] for line in Path(path).read_text().splitlines()]


def translate_with(folder: Path, texts: list[str], **options) -> list[str]:
    """What a user of a saved model gets, text by text."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    translations = []
    for text in texts:
        tokens = model.generate(**tokenizer(text, return_tensors="pt"), **options)
        translations.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    return translations


def bleu(translations: list[str], rows: list[dict[str, str]]) -> float:
    return corpus_bleu(translations, [[row["de"] for row in rows]]).score


def test_a_new_model_learns_to_translate(trained, files):
    results = read(trained)
    assert results["train_samples"] == 200 and results["eval_samples"] == 20 and results["predict_samples"] == 10
    assert results["eval_bleu"] > 60 and 4 < results["eval_gen_len"] < 15
    # Length and beams of the evaluation are those of the model that was saved, so that nobody has to give them.
    rows = pairs(files["validation_file"])
    translations = translate_with(trained, [row["en"] for row in rows])
    assert results["eval_bleu"] == pytest.approx(bleu(translations, rows))
    settings = read(trained, "generation_config.json")
    assert settings["num_beams"] == 2 and settings["max_length"] == 20
    test = pairs(files["test_file"])
    lines = (trained / "generated_predictions.txt").read_text().splitlines()
    assert lines == translate_with(trained, [row["en"] for row in test])
    assert results["predict_bleu"] == pytest.approx(bleu(lines, test))
    card = (trained / "README.md").read_text()
    assert "base_model" not in card and "- de" in card and "- en" in card


def test_without_our_flags_it_is_plain_training(start, files, tmp_path):
    start(tmp_path / "ours", "--train_tokenizer", "--do_train", **NEW, label_smoothing_factor=0.1)
    initial = tmp_path / "ours" / "initial"
    tokenizer, model = AutoTokenizer.from_pretrained(initial), AutoModelForSeq2SeqLM.from_pretrained(initial)
    data = [
        {"input_ids": tokenizer(row["en"])["input_ids"], "labels": tokenizer(row["de"])["input_ids"]}
        for row in pairs(files["train_file"])
    ]
    settings = TRAINING | {"output_dir": str(tmp_path / "plain"), "label_smoothing_factor": 0.1}
    arguments = Seq2SeqTrainingArguments(**settings)
    set_seed(arguments.seed)
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=data, data_collator=collator)
    trainer.train()
    trainer.save_model()
    ours, plain = weights(tmp_path / "ours"), weights(tmp_path / "plain")
    assert ours.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=0, atol=1e-6)
    assert not torch.equal(ours["model.shared.weight"], weights(initial)["model.shared.weight"])


def test_search_and_extraction(super_network, files):
    results = read(super_network)
    assert len(evaluations(super_network)) == 4
    result = read(super_network / "search", "result.json")
    for trial in result["trials"]:
        assert trial["costs"][0] == pytest.approx(1 - trial["metrics"]["token_accuracy"])
    # The report on the validation set translates.
    assert {f"chosen_validation_{name}" for name in ("token_accuracy", "loss", "bleu", "gen_len")} <= set(results)
    small = super_network / "extracted"
    model = AutoModelForSeq2SeqLM.from_pretrained(small)
    assert model.num_parameters() == results["chosen_parameters"]
    # As anybody translates with it: its own tokenizer, length and beams.
    rows = pairs(files["validation_file"])
    options = {"num_beams": 1, "max_length": 20}
    translations = translate_with(small, [row["en"] for row in rows], **options)
    assert results["chosen_validation_bleu"] == pytest.approx(bleu(translations, rows))
    assert translations == translate_with(small, [row["en"] for row in rows], **options, use_cache=False)


def test_the_largest_is_the_trained_model(super_network):
    results = read(super_network)
    with open(super_network / "search" / "front.csv", newline="") as file:
        table = {int(row["index"]): row for row in csv.DictReader(file)}
    trial = read(super_network / "search", "result.json")["trials"][0]
    assert trial["costs"][1] == 1.0 and trial["metrics"]["token_accuracy"] > 0.7
    assert float(table[0]["reported"]) > 0.7
    assert results["eval_bleu"] > 50


def test_search_by_bleu_measures_what_the_trainer_would(start, run_translation, super_network, files, tmp_path):
    flags = ("--checkpoint_dir_model", str(super_network), "--predict_with_generate", *SEARCH)
    start(tmp_path / "bleu", *flags, "--search_metric", "bleu", "--max_selection_samples", "16")
    trials = read(tmp_path / "bleu" / "search", "result.json")["trials"]
    for trial in trials:
        assert trial["costs"][0] == pytest.approx(1 - trial["metrics"]["bleu"] / 100)
    # The first is the largest; what it translates the script evaluates as well, given the same rows.
    _, selection = split(run_translation, files)
    rows = [{"translation": {"en": row["source"], "de": row["target"]}} for row in selection.select(range(16))]
    file = write_lines(tmp_path / "selection.json", rows)
    start(
        tmp_path / "eval", "--do_eval", "--predict_with_generate", validation_file=file,
        model_name_or_path=super_network,
    )  # fmt: skip
    found = read(tmp_path / "eval")
    assert trials[0]["metrics"]["bleu"] == pytest.approx(found["eval_bleu"])
    assert trials[0]["metrics"]["loss"] == pytest.approx(found["eval_loss"], rel=1e-4)
    start(tmp_path / "loss", *flags, "--search_metric", "loss", "--max_selection_samples", "16")
    trial = read(tmp_path / "loss" / "search", "result.json")["trials"][0]
    assert trial["costs"][0] == pytest.approx(found["eval_loss"], rel=1e-4) and "bleu" not in trial["metrics"]


def split(run_translation, files):
    arguments = run_translation.DataTrainingArguments(source_lang="en", target_lang="de", **files)
    return run_translation.split_selection(run_translation.load_data(arguments, ["train"]).train, 0.2, 128)


def test_candidates_are_scored_as_their_extracted_models(trained, files, tmp_path):
    """Accuracy, loss and BLEU of a sub-network, by hand on the small model."""
    tokenizer = AutoTokenizer.from_pretrained(trained)
    rows = pairs(files["validation_file"])
    data = [
        {**tokenizer(row["en"]), "labels": tokenizer(text_target=row["de"])["input_ids"]} for row in rows
    ]  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_pretrained(trained)
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), predict_with_generate=True, generation_max_length=20, generation_num_beams=3, use_cpu=True,
        per_device_eval_batch_size=len(rows), report_to=[],
    )  # fmt: skip

    def compute_metrics(prediction):
        texts = tokenizer.batch_decode(np.where(prediction.predictions < 0, 1, prediction.predictions), True)
        return {"bleu": corpus_bleu(texts, [prediction.label_ids]).score}

    trainer = TranslationTrainer(
        model, arguments, data_collator=DataCollatorForSeq2Seq(tokenizer, model=model), processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )  # fmt: skip
    network = trainer.create_super_network()
    space = get_search_space("medium", network.structure)
    sub_network = space.decode(space.sample(np.random.default_rng(3)))
    small = extract(model, sub_network).eval()
    scores = CandidateScores(trainer, "bleu")
    scored = scores.rows(TranslationRows(data, [row["de"] for row in rows]))
    evaluator = SuperNetworkEvaluator(
        network, scored.rows, trainer.data_collator, scored.compute_metrics, batch_size=7, predictions=scores.tokens
    )
    metrics = evaluator(sub_network)
    assert network.active == network.full and sub_network != network.full

    right = total = 0
    loss, texts = 0.0, []
    with torch.no_grad():
        for row, pair in zip(data, rows):
            labels = torch.tensor([row["labels"]])
            outputs = small(input_ids=torch.tensor([row["input_ids"]]), labels=labels)
            right += int((outputs.logits.argmax(-1) == labels).sum())
            total += labels.numel()
            loss += float(outputs.loss) * labels.numel()
            tokens = small.generate(**tokenizer(pair["en"], return_tensors="pt"), max_length=20, num_beams=3)
            texts.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    assert metrics["token_accuracy"] == pytest.approx(right / total)
    assert metrics["loss"] == pytest.approx(loss / total, rel=1e-4)
    assert metrics["bleu"] == pytest.approx(bleu(texts, rows))
    # Other references are another search.
    other = scores.rows(TranslationRows(data, [row["en"] for row in rows]))
    assert other.digest != scored.digest == scores.rows(scored.rows).digest


def test_references_are_the_texts_and_not_cut_labels(start, trained, files, tmp_path):
    rows = pairs(files["validation_file"])
    # Room for all translations, but not for the labels of these references.
    long = [{"translation": {"en": row["en"], "de": f"{row['de']} {'und ' * 20}und"}} for row in rows]
    start(
        tmp_path, "--do_eval", "--predict_with_generate", model_name_or_path=trained,
        validation_file=write_lines(tmp_path / "long.json", long),
    )  # fmt: skip
    translations = translate_with(trained, [row["en"] for row in rows], num_beams=1)
    expected = bleu(translations, [row["translation"] for row in long])
    assert read(tmp_path)["eval_bleu"] == pytest.approx(expected) and expected < 20


def test_a_test_set_without_translations(start, trained, files, tmp_path):
    rows = [{"translation": {"en": row["en"]}} for row in pairs(files["test_file"])]
    start(
        tmp_path, "--do_predict", "--predict_with_generate", "--num_beams", "2", model_name_or_path=trained,
        test_file=write_lines(tmp_path / "bare.json", rows),
    )  # fmt: skip
    assert "predict_bleu" not in read(tmp_path) and read(tmp_path)["predict_samples"] == 10
    written = (tmp_path / "generated_predictions.txt").read_text()
    assert written == (trained / "generated_predictions.txt").read_text()


def test_evaluation_without_translations_has_a_loss_alone(start, trained, tmp_path):
    start(tmp_path, "--do_eval", model_name_or_path=trained)
    results = read(tmp_path)
    assert "eval_bleu" not in results and results["eval_loss"] == pytest.approx(read(trained)["eval_loss"], rel=1e-5)


def test_padding_to_the_longest_and_a_prefix(start, trained, tmp_path):
    start(tmp_path / "padded", "--do_eval", "--pad_to_max_length", model_name_or_path=trained)
    assert read(tmp_path / "padded")["eval_loss"] == pytest.approx(read(trained)["eval_loss"], rel=1e-4)
    start(tmp_path / "prefix", "--do_eval", "--source_prefix", "small cow: ", model_name_or_path=trained)
    assert read(tmp_path / "prefix")["eval_loss"] > 1.5 * read(trained)["eval_loss"]


def test_the_first_token_can_be_forced(start, trained, tmp_path):
    token = next(token for token in AutoTokenizer.from_pretrained(trained).get_vocab() if token.endswith("sieht"))
    flags = ("--do_predict", "--predict_with_generate", "--forced_bos_token", token)
    start(tmp_path, *flags, model_name_or_path=trained)
    lines = (tmp_path / "generated_predictions.txt").read_text().splitlines()
    assert len(lines) == 10 and all(line.startswith("sieht") for line in lines)


def test_a_teacher(start, trained, tmp_path):
    start(
        tmp_path, "--do_train", "--kd_teacher_model", str(trained), "--kd_task_weight", "0.0",
        model_name_or_path=trained, max_steps=1,
    )  # fmt: skip
    # Who agrees with the teacher has nothing to learn.
    assert read(tmp_path)["train_loss"] == pytest.approx(0, abs=1e-5)


def test_killed_training_continues(start, tmp_path, monkeypatch):
    flags = ("--train_tokenizer", "--do_train", *SANDWICH)
    start(tmp_path / "whole", *flags, **NEW)
    training_step, steps = TranslationTrainer.training_step, []

    def die(self, *args, **kwargs):
        if self.state.global_step == 6 and len(steps) == 6:
            steps.append(None)
            raise KeyboardInterrupt
        steps.append(self.state.global_step)
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(TranslationTrainer, "training_step", die)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "killed", *flags, **NEW)
    start(tmp_path / "killed", *flags, **NEW)
    assert steps == [0, 1, 2, 3, 4, 5, None, 4, 5, 6, 7]
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name in whole:
        torch.testing.assert_close(killed[name], whole[name], rtol=0, atol=1e-6)
    # Once more, and it is done.
    start(tmp_path / "killed", *flags, **NEW)
    assert len(steps) == 11
    with pytest.raises(ValueError, match="holds another new model .vocab_size was 330 and is 340"):
        start(tmp_path / "killed", *flags, **NEW | {"vocab_size": 340})
    with pytest.raises(ValueError, match="holds another run"):
        start(tmp_path / "killed", *flags, **NEW, source_lang="de", target_lang="en")


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        ((), {}, "There is nothing to do"),
        (("--do_train",), {}, "No model is given"),
        (("--do_eval", "--train_tokenizer"), NEW, "has random weights, which translate nothing; add --do_train"),
        (("--do_train",), NEW, "has no tokenizer; give either --train_tokenizer or --tokenizer_name"),
        (("--do_train", "--train_tokenizer"), NEW | {"vocab_size": 100}, "vocab_size is 100; .* needs 258 or more"),
        (("--do_train", "--train_tokenizer"), NEW | {"model_type": "marion"}, "--model_type 'marion' is not known"),
        (("--do_train", "--train_tokenizer"), NEW | {"model_type": "bert", "config_overrides": None}, "A bert is no"),
        (
            ("--do_train", "--train_tokenizer"),
            NEW | {"config_overrides": "width=3"},
            "has 'width=3'; write name=value",
        ),
        (
            ("--do_train", "--train_tokenizer"),
            NEW | {"config_overrides": "d_model=big"},
            "d_model of a marian is a int",
        ),
        (("--do_train", "--train_tokenizer"), NEW | {"config_overrides": "d_model=30"}, "embed_dim must be divisible"),
        (("--do_train", "--train_tokenizer"), {"model_name_or_path": "x"}, "--train_tokenizer belongs to a new model"),
        (("--do_predict",), {"model_name_or_path": "x"}, "writes translations; add --predict_with_generate"),
        (("--do_train",), {"target_lang": None}, "languages are 'en' and None"),
        (("--do_train",), {"target_lang": "en"}, "languages are 'en' and 'en'"),
        (("--do_train",), {"max_source_length": 0}, "--max_source_length is 0"),
        (("--do_train",), {"num_beams": 0}, "--num_beams is 0"),
        (("--do_train",), {"search_metric": "chrf"}, "'chrf'; choose one of token_accuracy, loss, bleu"),
        (("--do_train", "--do_search"), {"search_metric": "bleu"}, "'bleu' .* needs translations; add --predict_with"),
        (("--do_train", "--do_search", "--race"), {}, "--race needs a metric that is a mean over examples"),
        (("--do_train", "--do_search", "--nas_type", "standard"), {}, "--nas_type standard is not for this task"),
    ],
)
def test_refused_before_training(start, run_translation, tmp_path, monkeypatch, flags, changes, message):
    monkeypatch.setattr(run_translation.TranslationTrainer, "train", None)
    with pytest.raises(ValueError, match=message):
        start(tmp_path / "out", *flags, **changes)
    assert not (tmp_path / "out" / "run.json").exists()


def test_models_that_do_not_fit(start, trained, tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a bert and no encoder-decoder"):
        start(tmp_path / "out", "--do_eval", model_name_or_path=tmp_path / "bert")
    with pytest.raises(ValueError, match="Translations may have 128 tokens and the model has 24 positions"):
        start(tmp_path / "out", "--do_eval", model_name_or_path=trained, max_target_length=128)
    with pytest.raises(ValueError, match="--forced_bos_token is 'de_DE', which the tokenizer does not know"):
        start(tmp_path / "out", "--do_eval", "--forced_bos_token", "de_DE", model_name_or_path=trained)


def test_trainer_refuses_other_arguments(trained, tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(trained)
    with pytest.raises(ValueError, match="of type NoneType; give Seq2SeqTrainingArguments"):
        TranslationTrainer(model)
    with pytest.raises(ValueError, match="--batch_eval_metrics is True; BLEU is that of all translations"):
        TranslationTrainer(model, Seq2SeqTrainingArguments(str(tmp_path), batch_eval_metrics=True))
    trainer = TranslationTrainer(model, Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match="'bleu' of the search needs translations"):
        CandidateScores(trainer, "bleu")
    with pytest.raises(ValueError, match="1 references for 2 rows"):
        TranslationRows([{}, {}], ["x"])
