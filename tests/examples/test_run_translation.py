"""The translation script from its flags to its files, in one process, with a model that it makes itself."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    DataCollatorForSeq2Seq,
    EncoderDecoderConfig,
    GenerationConfig,
    LEDConfig,
    MarianConfig,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    set_seed,
)

from tests.examples.conftest import write_lines
from tests.examples.runs import assert_same_weights, read, weights
from tests.examples.translations import NEW, TRAINING, bleu, pairs, translate_with


def test_a_new_model_learns_to_translate(translator, pair_files):
    results = read(translator)
    assert results["train_samples"] == 200 and results["eval_samples"] == 20 and results["predict_samples"] == 10
    assert results["eval_bleu"] > 60 and 4 < results["eval_gen_len"] < 15
    # Length and beams of the evaluation are those of the model that was saved, so that nobody has to give them.
    rows = pairs(pair_files["validation_file"])
    translations = translate_with(translator, [row["en"] for row in rows])
    assert results["eval_bleu"] == pytest.approx(bleu(translations, rows))
    settings = read(translator, "generation_config.json")
    assert settings["num_beams"] == 2 and settings["max_length"] == 20
    test = pairs(pair_files["test_file"])
    lines = (translator / "generated_predictions.txt").read_text().splitlines()
    assert lines == translate_with(translator, [row["en"] for row in test])
    assert results["predict_bleu"] == pytest.approx(bleu(lines, test))
    card = (translator / "README.md").read_text()
    assert "base_model" not in card and "- de" in card and "- en" in card


def test_without_our_flags_it_is_plain_training(translate, pair_files, tmp_path):
    translate(tmp_path / "ours", "--train_tokenizer", "--do_train", **NEW, label_smoothing_factor=0.1)
    initial = tmp_path / "ours" / "initial"
    tokenizer, model = AutoTokenizer.from_pretrained(initial), AutoModelForSeq2SeqLM.from_pretrained(initial)
    data = [
        {"input_ids": tokenizer(row["en"])["input_ids"], "labels": tokenizer(row["de"])["input_ids"]}
        for row in pairs(pair_files["train_file"])
    ]
    settings = TRAINING | {"output_dir": str(tmp_path / "plain"), "label_smoothing_factor": 0.1}
    arguments = Seq2SeqTrainingArguments(**settings)
    set_seed(arguments.seed)
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=data, data_collator=collator)
    trainer.train()
    trainer.save_model()
    assert_same_weights(tmp_path / "ours", tmp_path / "plain")
    embeddings = weights(tmp_path / "ours")["model.shared.weight"]
    assert not torch.equal(embeddings, weights(initial)["model.shared.weight"])


def test_references_are_the_texts_and_not_cut_labels(translate, translator, pair_files, tmp_path):
    rows = pairs(pair_files["validation_file"])
    # Room for all translations, but not for the labels of these references.
    long = [{"translation": {"en": row["en"], "de": f"{row['de']} {'und ' * 20}und"}} for row in rows]
    translate(
        tmp_path, "--do_eval", "--predict_with_generate", model_name_or_path=translator,
        validation_file=write_lines(tmp_path / "long.json", long),
    )  # fmt: skip
    translations = translate_with(translator, [row["en"] for row in rows])
    expected = bleu(translations, [row["translation"] for row in long])
    assert read(tmp_path)["eval_bleu"] == pytest.approx(expected) and expected < 20


def test_a_test_set_without_translations(translate, translator, pair_files, tmp_path):
    rows = [{"translation": {"en": row["en"]}} for row in pairs(pair_files["test_file"])]
    translate(
        tmp_path, "--do_predict", "--predict_with_generate", "--num_beams", "2", model_name_or_path=translator,
        test_file=write_lines(tmp_path / "bare.json", rows),
    )  # fmt: skip
    assert "predict_bleu" not in read(tmp_path) and read(tmp_path)["predict_samples"] == 10
    written = (tmp_path / "generated_predictions.txt").read_text()
    assert written == (translator / "generated_predictions.txt").read_text()


def test_batches_of_like_lengths_are_for_the_training_alone(translate, translator, tmp_path):
    results = []
    for strategy in ("random", "group_by_length"):
        flags = ("--do_eval", "--predict_with_generate", "--train_sampling_strategy", strategy)
        translate(tmp_path / strategy, *flags, model_name_or_path=translator, per_device_eval_batch_size=2)
        results.append(read(tmp_path / strategy)["eval_bleu"])
    assert results[0] == pytest.approx(results[1])


def test_all_rows_are_translated_where_the_training_drops_the_last_ones(translate, translator, tmp_path):
    flags = ("--do_eval", "--do_predict", "--predict_with_generate")
    for name, more in (("all", ()), ("dropped", ("--dataloader_drop_last",))):
        translate(tmp_path / name, *flags, *more, model_name_or_path=translator, per_device_eval_batch_size=3)
    assert read(tmp_path / "dropped")["eval_bleu"] == pytest.approx(read(tmp_path / "all")["eval_bleu"])
    lines = [(tmp_path / name / "generated_predictions.txt").read_text() for name in ("all", "dropped")]
    assert lines[0] == lines[1] and lines[0].count("\n") == 10


def test_evaluation_without_translations_has_a_loss_alone(translate, translator, tmp_path):
    translate(tmp_path, "--do_eval", model_name_or_path=translator)
    results = read(tmp_path)
    assert "eval_bleu" not in results and results["eval_loss"] == pytest.approx(
        read(translator)["eval_loss"], rel=1e-5
    )


def test_padding_to_the_longest_and_a_prefix(translate, translator, tmp_path):
    translate(tmp_path / "padded", "--do_eval", "--pad_to_max_length", model_name_or_path=translator)
    assert read(tmp_path / "padded")["eval_loss"] == pytest.approx(read(translator)["eval_loss"], rel=1e-4)
    translate(tmp_path / "prefix", "--do_eval", "--source_prefix", "small cow: ", model_name_or_path=translator)
    assert read(tmp_path / "prefix")["eval_loss"] > 1.5 * read(translator)["eval_loss"]


def test_the_first_token_can_be_forced(translate, translator, tmp_path):
    token = next(token for token in AutoTokenizer.from_pretrained(translator).get_vocab() if token.endswith("sieht"))
    flags = ("--do_predict", "--predict_with_generate", "--forced_bos_token", token)
    translate(tmp_path, *flags, model_name_or_path=translator)
    lines = (tmp_path / "generated_predictions.txt").read_text().splitlines()
    assert len(lines) == 10 and all(line.startswith("sieht") for line in lines)


def test_a_teacher(translate, translator, tmp_path):
    translate(
        tmp_path, "--do_train", "--kd_teacher_model", str(translator), "--kd_task_weight", "0.0",
        model_name_or_path=translator, max_steps=1,
    )  # fmt: skip
    # Who agrees with the teacher has nothing to learn.
    assert read(tmp_path)["train_loss"] == pytest.approx(0, abs=1e-5)


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
        (("--do_train",), {"model_name_or_path": "x", "vocab_size": 330}, "--vocab_size 330 is that of a tokenizer"),
        (("--do_train", "--tokenizer_name", "x"), NEW, "--vocab_size 330 .*; add --train_tokenizer, or leave it out"),
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
def test_refused_before_training(translate, run_translation, tmp_path, monkeypatch, flags, changes, message):
    monkeypatch.setattr(run_translation.TranslationTrainer, "train", None)
    with pytest.raises(ValueError, match=message):
        translate(tmp_path / "out", *flags, **changes)
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_configuration_that_searches_by_another_metric_is_refused(translate, tmp_path):
    search = {"algorithm": "NSGA2", "num_evals": 4, "population": 2, "eval_metric_name": "eval_f1"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"input_info": [{"sample_size": [1, 8]}], "bootstrapNAS": {"search": search}}))
    with pytest.raises(ValueError, match="'eval_metric_name' 'eval_f1', which .*; choose one of token_accuracy, or"):
        translate(tmp_path / "out", "--do_train", "--nncf_config", str(path), model_name_or_path="x")


@pytest.mark.parametrize("start", [None, 2])
def test_translations_begin_with_the_token_of_the_training(translation_modules, pair_files, tmp_path, start):
    tokenizer = MBartTokenizer()
    sizes = {f"{stack}_{name}": value for stack in ("encoder", "decoder")
             for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 8))}  # fmt: skip
    config = MBartConfig(vocab_size=len(tokenizer), d_model=16, decoder_start_token_id=start, **sizes)
    model = MBartForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    arguments = translation_modules["arguments"]
    data = arguments.DataTrainingArguments(
        train_file=pair_files["train_file"], source_lang="en_XX", target_lang="de_DE"
    )
    given = arguments.ModelArguments(model_name_or_path=str(tmp_path))
    model, tokenizer = translation_modules["run_translation"].load_model(given, str(tmp_path), data)
    # Without one in the configuration, the language's, which labels are shifted to; `generate` reads its own.
    wanted = tokenizer.convert_tokens_to_ids("de_DE") if start is None else start
    assert (model.config.decoder_start_token_id, model.generation_config.decoder_start_token_id) == (wanted, wanted)
    tokens = model.generate(**tokenizer("en_XX", return_tensors="pt"), max_new_tokens=3)
    assert int(tokens[0, 0]) == wanted != model.generation_config.bos_token_id


def test_languages_that_the_tokenizer_lacks(translation_modules, pair_files, tmp_path):
    tokenizer = MBartTokenizer()
    config = MBartConfig(vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1,
                         encoder_attention_heads=2, decoder_attention_heads=2, decoder_start_token_id=2)  # fmt: skip
    MBartForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    arguments = translation_modules["arguments"]
    given = arguments.ModelArguments(model_name_or_path=str(tmp_path))
    for source, target, flag in (("en", "de_DE", "--source_lang is 'en'"), ("en_XX", "de", "--target_lang is 'de'")):
        data = arguments.DataTrainingArguments(
            train_file=pair_files["train_file"], source_lang=source, target_lang=target
        )
        # Their texts would begin or end with the token for what is not known.
        with pytest.raises(ValueError, match=f"{flag}, which the tokenizer does not know"):
            translation_modules["run_translation"].load_model(given, str(tmp_path), data)


def test_beams_and_first_tokens_of_the_generation_configuration(translate, translator, pair_files, tmp_path):
    rows = [row["en"] for row in pairs(pair_files["test_file"])]
    flags = ("--do_predict", "--predict_with_generate")
    for name, changes in (("model", {}), ("flag", {"num_beams": 1})):
        translate(tmp_path / name, *flags, model_name_or_path=translator, max_source_length=6, **changes)
        found = (tmp_path / name / "generated_predictions.txt").read_text().splitlines()
        assert found == cut_translations(translator, rows, 6, **changes)
    folder = tmp_path / "config"
    GenerationConfig(num_beams=3, max_length=20, pad_token_id=1, eos_token_id=0).save_pretrained(folder)
    token = next(token for token in AutoTokenizer.from_pretrained(translator).get_vocab() if token.endswith("sieht"))
    flags += ("--generation_config", str(folder), "--forced_bos_token", token)
    translate(tmp_path / "forced", *flags, model_name_or_path=translator)
    lines = (tmp_path / "forced" / "generated_predictions.txt").read_text().splitlines()
    assert len(lines) == 10 and all(line.startswith("sieht") for line in lines)


def cut_translations(folder, texts: list[str], length: int, **options) -> list[str]:
    """Translations of cut texts, with the beams of the model unless told otherwise."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokens = [
        model.generate(**tokenizer(text, return_tensors="pt", truncation=True, max_length=length), **options)[0]
        for text in texts
    ]
    return [" ".join(tokenizer.decode(each, skip_special_tokens=True).split()) for each in tokens]


@pytest.mark.parametrize("positions, multiple", [(24, 8), (20, None)])
def test_half_precision_pads_within_the_positions(translate, translation_modules, tmp_path, positions, multiple):
    model = SimpleNamespace(config=MarianConfig(max_position_embeddings=positions))
    training = SimpleNamespace(fp16=False, bf16=True)
    found = translation_modules["run_translation"].padding_multiple(training, model, (positions, positions, positions))
    assert found == multiple
    sizes = NEW["config_overrides"].replace("max_position_embeddings=24", f"max_position_embeddings={positions}")
    flags = ("--train_tokenizer", "--do_train", "--bf16", "--source_prefix", "and and and and and and and and: ")
    translate(tmp_path, *flags, **NEW | {"config_overrides": sizes, "vocab_size": 262}, max_steps=2)
    assert read(tmp_path)["train_loss"] > 0


def limits(modules: dict, config, tokenizer_limit: int, max_length: int = 20, **lengths) -> tuple[int, int, int]:
    data = SimpleNamespace(
        **{"max_source_length": 1024, "max_target_length": 128, "val_max_target_length": 128} | lengths
    )
    training = SimpleNamespace(generation_max_length=max_length, predict_with_generate=True)
    model, tokenizer = SimpleNamespace(config=config), SimpleNamespace(model_max_length=tokenizer_limit)
    return modules["run_translation"].length_limits(data, training, model, tokenizer)


def test_texts_are_cut_where_the_model_has_no_positions_for_more(translation_modules, caplog):
    t5 = limits(translation_modules, T5Config(), 512, max_length=600, max_target_length=700, val_max_target_length=600)
    assert t5 == (1024, 700, 600) and not caplog.records
    with caplog.at_level("WARNING"):
        assert limits(translation_modules, MarianConfig(max_position_embeddings=64), 512) == (64, 64, 64)
    flags = ("max_source_length 1024", "max_target_length 128", "val_max_target_length 128")
    assert [record.getMessage() for record in caplog.records] == [
        f"{flag} is cut to the model's 64." for flag in flags
    ]
    assert limits(translation_modules, MarianConfig(), 32) == (32, 32, 32)
    led = LEDConfig(max_encoder_position_embeddings=512, max_decoder_position_embeddings=100)
    assert limits(translation_modules, led, 10**30) == (512, 100, 100)
    parts = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(max_position_embeddings=40), BertConfig(max_position_embeddings=30)
    )
    assert limits(translation_modules, parts, 10**30) == (40, 30, 30)
    with pytest.raises(ValueError, match="Translations may have 31 tokens and the model has 30 positions; lower"):
        limits(translation_modules, parts, 10**30, max_length=31)


def test_models_that_do_not_fit(translate, translator, tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a bert and no encoder-decoder"):
        translate(tmp_path / "out", "--do_eval", model_name_or_path=tmp_path / "bert")
    translating = ("--do_eval", "--predict_with_generate")
    with pytest.raises(ValueError, match="Translations may have 128 tokens and the model has 24 positions"):
        translate(tmp_path / "out", *translating, model_name_or_path=translator, max_target_length=128)
    translate(tmp_path / "loss", "--do_eval", model_name_or_path=translator, max_target_length=128)
    assert read(tmp_path / "loss")["eval_loss"] == pytest.approx(read(translator)["eval_loss"], rel=1e-5)
    bare = shutil.copytree(translator, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))
    with pytest.raises((ValueError, OSError), match="tokenizer"):
        translate(tmp_path / "out", "--do_eval", model_name_or_path=bare)
    with pytest.raises(
        ValueError, match="metric_for_best_model is 'bleu', which .* does not have; choose one of loss"
    ):
        translate(
            tmp_path / "out", "--do_train", "--load_best_model_at_end", model_name_or_path=translator,
            metric_for_best_model="bleu", eval_strategy="steps", eval_steps=4,
        )  # fmt: skip
    with pytest.raises(ValueError, match="--forced_bos_token is 'de_DE', which the tokenizer does not know"):
        translate(tmp_path / "out", "--do_eval", "--forced_bos_token", "de_DE", model_name_or_path=translator)
