"""Super-networks that translate: trained, killed, searched and extracted by the script, and how they are scored."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu import corpus_bleu
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, Seq2SeqTrainingArguments

from hf_nas.extraction import extract
from hf_nas.search import SuperNetworkEvaluator
from hf_nas.space import get_search_space
from tests.examples.conftest import write_lines
from tests.examples.runs import assert_same_weights, counted_steps, evaluations, read
from tests.examples.translations import NEW, bleu, pairs, translate_with
from trainer_plugins.tasks.translation import CandidateScores, TranslationRows, TranslationTrainer


SANDWICH = ("--sampling_strategy", "sandwich", "--search_space", "small")
SEARCH = ("--selection_split", "0.2", "--do_search", "--num_samples", "4")


@pytest.fixture(scope="module")
def super_network(translate, translator, tmp_path_factory) -> Path:
    """Folder of a run that translator a super-network from that model, searched it and extracted a sub-network."""
    folder = tmp_path_factory.mktemp("runs") / "super_network"
    flags = ("--do_train", "--do_eval", "--predict_with_generate", *SANDWICH, *SEARCH)
    translate(folder, *flags, model_name_or_path=translator, max_steps=40, save_steps=20)
    return folder


def test_search_and_extraction(super_network, pair_files):
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
    rows = pairs(pair_files["validation_file"])
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


def test_search_by_bleu_measures_what_the_trainer_would(
    translate, run_translation, super_network, pair_files, tmp_path
):
    flags = ("--checkpoint_dir_model", str(super_network), "--predict_with_generate", *SEARCH)
    translate(tmp_path / "bleu", *flags, "--search_metric", "bleu", "--max_selection_samples", "16")
    trials = read(tmp_path / "bleu" / "search", "result.json")["trials"]
    for trial in trials:
        assert trial["costs"][0] == pytest.approx(1 - trial["metrics"]["bleu"] / 100)
    # The first is the largest; what it translates the script evaluates as well, given the same rows.
    _, selection = split(run_translation, pair_files)
    rows = [{"translation": {"en": row["source"], "de": row["target"]}} for row in selection.select(range(16))]
    file = write_lines(tmp_path / "selection.json", rows)
    translate(
        tmp_path / "eval", "--do_eval", "--predict_with_generate", validation_file=file,
        model_name_or_path=super_network,
    )  # fmt: skip
    found = read(tmp_path / "eval")
    assert trials[0]["metrics"]["bleu"] == pytest.approx(found["eval_bleu"])
    assert trials[0]["metrics"]["loss"] == pytest.approx(found["eval_loss"], rel=1e-4)
    translate(tmp_path / "loss", *flags, "--search_metric", "loss", "--max_selection_samples", "16")
    trial = read(tmp_path / "loss" / "search", "result.json")["trials"][0]
    assert trial["costs"][0] == pytest.approx(found["eval_loss"], rel=1e-4) and "bleu" not in trial["metrics"]


def split(run_translation, pair_files):
    arguments = run_translation.DataTrainingArguments(source_lang="en", target_lang="de", **pair_files)
    return run_translation.split_selection(run_translation.load_data(arguments, ["train"]).train, 0.2, 128)


def test_candidates_are_scored_as_their_extracted_models(translator, pair_files, tmp_path):
    """Accuracy, loss and BLEU of a sub-network, by hand on the small model."""
    tokenizer = AutoTokenizer.from_pretrained(translator)
    rows = pairs(pair_files["validation_file"])
    data = [
        {**tokenizer(row["en"]), "labels": tokenizer(text_target=row["de"])["input_ids"]} for row in rows
    ]  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_pretrained(translator)
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


def test_killed_training_continues(translate, tmp_path):
    flags = ("--train_tokenizer", "--do_train", *SANDWICH)
    translate(tmp_path / "whole", *flags, **NEW)
    with pytest.raises(KeyboardInterrupt), counted_steps(TranslationTrainer, killed_at=6):
        translate(tmp_path / "killed", *flags, **NEW)
    with counted_steps(TranslationTrainer) as steps:
        translate(tmp_path / "killed", *flags, **NEW)
    assert steps == [4, 5, 6, 7]
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    # Once more, and it is done.
    with counted_steps(TranslationTrainer) as steps:
        translate(tmp_path / "killed", *flags, **NEW)
    assert steps == []
    with pytest.raises(ValueError, match="holds another new model .vocab_size was 330 and is 340"):
        translate(tmp_path / "killed", *flags, **NEW | {"vocab_size": 340})
    with pytest.raises(ValueError, match="holds another run"):
        translate(tmp_path / "killed", *flags, **NEW | {"source_lang": "de", "target_lang": "en"})


def test_trainer_refuses_other_arguments(translator, tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(translator)
    with pytest.raises(ValueError, match="of type NoneType; give Seq2SeqTrainingArguments"):
        TranslationTrainer(model)
    with pytest.raises(ValueError, match="--batch_eval_metrics is True; BLEU is that of all translations"):
        TranslationTrainer(model, Seq2SeqTrainingArguments(str(tmp_path), batch_eval_metrics=True))
    trainer = TranslationTrainer(model, Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match="'bleu' of the search needs translations"):
        CandidateScores(trainer, "bleu")
    with pytest.raises(ValueError, match="1 references for 2 rows"):
        TranslationRows([{}, {}], ["x"])
