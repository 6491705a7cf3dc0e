"""Train an encoder-decoder to translate (fine-tune one, or a new one from scratch), and shrink it.

The flags are those of the script of the same name in transformers, and without others this does the same. With
`--sampling_strategy` a super-network is trained instead; `--do_search` searches it and hands over a smaller model.
With `--pruning_method` heads are pruned (DSP, Voita, Michel), with `--pruning_type` other units too (CoFi).
With `--model_type` or `--config_name` in place of `--model_name_or_path` the model starts with random weights.
"""

import logging
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import evaluate
import numpy as np
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
)
from transformers.utils import check_min_version

from arguments import DataTrainingArguments, ModelArguments, set_generation
from data import IGNORED_LABEL, encode, load_data, split_selection
from hf_nas.files import write_text
from scratch import FOLDER, make_model
from trainer_plugins import NasArguments, TranslationPruningTrainer, apply_config, check_arguments, run_search
from trainer_plugins.run_state import Run
from trainer_plugins.scripts.arguments import parse_arguments
from trainer_plugins.scripts.checks import check_best_metric, needed_splits
from trainer_plugins.scripts.steps import (
    hold_out,
    set_up,
    show_search,
    take,
    token_limit,
    train_or_prune,
    write_card,
)
from trainer_plugins.tasks.translation import (
    SEARCH_METRICS,
    CandidateScores,
    TranslationRows,
    TranslationTrainer,
    check_search_metric,
)


check_min_version("5.14.0")

logger = logging.getLogger(__name__)

METRICS = Path(__file__).resolve().parent / "metrics"


def load_model(
    arguments: ModelArguments, source: str, data: DataTrainingArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder-decoder and its tokenizer, for the languages of the data."""
    options = arguments.options()
    config_source, tokenizer_source = arguments.sources(source)
    config = AutoConfig.from_pretrained(config_source, **options)
    if not config.is_encoder_decoder:
        raise ValueError(f"The model '{source}' is a {config.model_type} and no encoder-decoder; give one that is.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, use_fast=arguments.use_fast_tokenizer, **options)
    except TypeError as error:  # what opening a file of no name gives
        raise ValueError(f"'{tokenizer_source}' has no tokenizer; add its files, or give --tokenizer_name.") from error
    model = AutoModelForSeq2SeqLM.from_pretrained(source, config=config, **options)
    # A larger table than there are tokens stays: it often is one on purpose.
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    if hasattr(tokenizer, "src_lang"):
        language_token(tokenizer, data.source_lang, "--source_lang")
        start = language_token(tokenizer, data.target_lang, "--target_lang")
        tokenizer.src_lang, tokenizer.tgt_lang = data.source_lang, data.target_lang
        if model.config.decoder_start_token_id is None:
            model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
    if model.config.decoder_start_token_id is None:
        raise ValueError(
            f"The configuration of '{source}' has no decoder_start_token_id, with which a translation begins; add it."
        )
    if model.generation_config.decoder_start_token_id is None:
        # Else `generate` would begin with the bos token, which the decoder was not trained to begin with.
        model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id
    if data.forced_bos_token is not None:
        model.generation_config.forced_bos_token_id = token_of(tokenizer, data.forced_bos_token, "--forced_bos_token")
    return model, tokenizer


def language_token(tokenizer: PreTrainedTokenizerBase, language: str, flag: str) -> int:
    """The number of the token of a language, which multilingual tokenizers put before or behind a text.

    Without this check they would put their token for unknown ones there.
    """
    tokens = getattr(tokenizer, "lang_code_to_token", {})  # those of M2M100 have other names than its languages
    return token_of(tokenizer, tokens.get(language, language), flag)


def token_of(tokenizer: PreTrainedTokenizerBase, token: str, flag: str) -> int:
    """The number of a token that a flag names."""
    number = tokenizer.convert_tokens_to_ids(token)
    if number is None or number == tokenizer.unk_token_id:
        raise ValueError(f"{flag} is '{token}', which the tokenizer does not know; give one of its tokens.")
    return number


def complete_generation(
    training: Seq2SeqTrainingArguments, model: PreTrainedModel, data: DataTrainingArguments
) -> None:
    """Let a `--generation_config`, which takes the place of the model's, know what translations begin with."""
    if training.generation_config is None:
        return
    config = TranslationTrainer.load_generation_config(training.generation_config)
    if config.decoder_start_token_id is None:
        config.decoder_start_token_id = model.generation_config.decoder_start_token_id
    if data.forced_bos_token is not None:
        config.forced_bos_token_id = model.generation_config.forced_bos_token_id
    training.generation_config = config


def decode(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> list[str]:
    """The texts of translations, filled up with -100 or not."""
    tokens = np.where(tokens == IGNORED_LABEL, tokenizer.pad_token_id, tokens)
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def metrics_of(
    tokenizer: PreTrainedTokenizerBase, cache_dir: str | None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """The function by which Trainer and search score translations; their references are texts."""
    metric = evaluate.load(str(METRICS / "bleu"), cache_dir=cache_dir, keep_in_memory=True)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        tokens = prediction.predictions
        references = [[text.strip()] for text in prediction.label_ids]
        result = metric.compute(predictions=decode(tokenizer, tokens), references=references)
        lengths = (~np.isin(tokens, (IGNORED_LABEL, tokenizer.pad_token_id))).sum(axis=1)
        return {**result, "gen_len": float(lengths.mean())}

    return compute_metrics


def length_limits(
    data: DataTrainingArguments,
    training: Seq2SeqTrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, int, int]:
    """Longest source texts, target texts in training and in evaluation, which the model can read; longest translation.

    Raises:
        ValueError: if translations would be longer than the model can write.
    """
    read, written = positions_of(model.config, "encoder"), positions_of(model.config, "decoder")
    if written is not None and training.predict_with_generate and training.generation_max_length > written:
        raise ValueError(
            f"Translations may have {training.generation_max_length} tokens and the model has {written} positions; "
            "lower --generation_max_length, --val_max_target_length or --max_target_length."
        )
    positions = {"max_source_length": read, "max_target_length": written, "val_max_target_length": written}
    lengths = []
    for name, count in positions.items():
        length = getattr(data, name)
        if count is not None:
            length = token_limit(length, min(count, tokenizer.model_max_length), logger, name=name)
        lengths.append(length)
    return tuple(lengths)


def positions_of(config: PreTrainedConfig, side: str) -> int | None:
    """How many tokens the encoder or the decoder has positions for; None where they are relative, as those of T5.

    The tokenizer's `model_max_length` is no limit there, but only the length that such a model was pretrained with.
    """
    for each in (config, getattr(config, side, None)):
        for name in (f"max_{side}_position_embeddings", "max_position_embeddings"):
            if (count := getattr(each, name, None)) is not None:
                return count
    return None


def padding_multiple(
    training: Seq2SeqTrainingArguments, model: PreTrainedModel, lengths: tuple[int, int, int]
) -> int | None:
    """8 in half precision, in which such lengths are fast, if the model has positions for them; else None."""
    if not (training.fp16 or training.bf16):
        return None
    counts = [positions_of(model.config, side) for side in ("encoder", "decoder", "decoder")]
    fits = all(count is None or -(-length // 8) * 8 <= count for length, count in zip(lengths, counts))
    return 8 if fits else None


def check_search(nas: NasArguments, training: Seq2SeqTrainingArguments, metric_name: str) -> None:
    """Refuse a search that cannot score sub-networks as it is asked to."""
    if not nas.search.do_search:
        return
    check_search_metric(metric_name, training)
    if nas.search.race:
        raise ValueError(
            f"--race needs a metric that is a mean over examples, which {metric_name} is not, as it counts tokens; "
            "leave out --race."
        )


def check_new(training: Seq2SeqTrainingArguments, nas: NasArguments) -> None:
    """Refuse what a new model, whose weights are random, is no good for."""
    if not training.do_train:
        raise ValueError("A new model has random weights, which translate nothing; add --do_train.")
    if nas.heads.needs_fine_tuned:
        raise ValueError(
            f"--pruning_method {nas.heads.pruning_method} takes the weights as they are, but those of a new model are "
            "random; add --joint_pruning, or give a trained model by --model_name_or_path."
        )
    if nas.pruning.prunes and nas.pruning.freeze_embeddings:
        raise ValueError(
            "--pruning_type trains no embeddings by default, but those of a new model are random; add "
            "--freeze_embeddings False."
        )


def translate(trainer: TranslationTrainer, rows: TranslationRows, folder: str) -> None:
    """Predict, and write the translations, one a line."""
    output = trainer.predict(rows, metric_key_prefix="predict")
    metrics = {**output.metrics, "predict_samples": len(rows)}
    trainer.log_metrics("predict", metrics)
    trainer.save_metrics("predict", metrics)
    if trainer.is_world_process_zero():
        # Each in one line, whatever the model has learnt.
        lines = [" ".join(text.split()) for text in decode(trainer.processing_class, output.predictions)]
        write_text(Path(folder) / "generated_predictions.txt", "".join(f"{line}\n" for line in lines))


def main() -> None:
    """Train, search, evaluate and translate, as the flags say."""
    # NAS 1 of 4: more arguments, whose defaults change nothing.
    model_args, data_args, training_args, nas = parse_arguments(
        ModelArguments, DataTrainingArguments, Seq2SeqTrainingArguments
    )
    metric = SEARCH_METRICS[data_args.search_metric]
    apply_config(nas, model_args, metric_scale=metric.scale)
    # The flag says by which metric is searched; a configuration may say the same.
    metric_name = nas.metric_name(data_args.search_metric, (data_args.search_metric,))
    needed = needed_splits(training_args, nas)
    check_search(nas, training_args, metric_name)
    # End of NAS 1 of 4.
    if training_args.do_predict and not training_args.predict_with_generate:
        raise ValueError("--do_predict writes translations; add --predict_with_generate.")
    set_generation(training_args, data_args)
    set_up(training_args, __name__, "data", "scratch")

    # A new model is made once, in the output folder; from then on it is like a pretrained one.
    is_new = model_args.is_new
    if is_new:
        check_new(training_args, nas)
        initial = Path(training_args.output_dir) / FOLDER
        model_args.model_name_or_path = str(initial)
    # The same command again continues: from the last checkpoint, or with what comes after the training.
    run = Run.begin(model_args, data_args, training_args, nas)
    data = load_data(data_args, needed, model_args.cache_dir, model_args.token)
    if is_new:
        with training_args.main_process_first(desc="making the model"):
            make_model(
                initial, model_args, chain(data.train["source"], data.train["target"]), seed=training_args.seed,
                max_length=training_args.generation_max_length, num_beams=training_args.generation_num_beams or 1,
            )  # fmt: skip
        model_args.config_name = model_args.tokenizer_name = None
    model, tokenizer = load_model(model_args, run.source, data_args)

    complete_generation(training_args, model, data_args)

    # NAS 2 of 4: check the arguments; split the set off on which sub-networks are compared; train a super-network.
    check_arguments(
        nas, model, metric_name=metric_name, greater_is_better=metric.greater_is_better, metric_scale=metric.scale
    )
    check_best_metric(training_args, ("bleu", "gen_len") if training_args.predict_with_generate else ("loss",))
    train_examples, selection_examples = hold_out(nas, data.train, split_selection, data_args.dataset_seed)
    # End of NAS 2 of 4.

    source_length, target_length, eval_target_length = length_limits(data_args, training_args, model, tokenizer)

    def prepare(examples: Dataset | None, limit: int | None, max_target_length: int) -> TranslationRows | None:
        if examples is None:
            return None
        examples = take(examples, limit)
        with training_args.main_process_first(desc="tokenizing"):
            rows = encode(
                examples,
                tokenizer,
                max_source_length=source_length,
                max_target_length=max_target_length,
                source_prefix=data_args.source_prefix or "",
                pad_to_max_length=data_args.pad_to_max_length,
                ignore_padding=data_args.ignore_pad_token_for_loss,
                num_proc=data_args.preprocessing_num_workers,
                load_from_cache_file=not data_args.overwrite_cache,
                desc="Tokenizing",
            )
        return TranslationRows(rows, examples["target"][:] if "target" in examples.column_names else None)

    train_dataset = None
    if training_args.do_train or nas.heads.is_active:
        train_dataset = prepare(train_examples, data_args.max_train_samples, target_length).rows
    selection = prepare(selection_examples, None, eval_target_length)
    validation = prepare(data.validation, data_args.max_eval_samples, eval_target_length)
    test = prepare(data.test, data_args.max_predict_samples, eval_target_length)

    # With the model it shifts the labels to what the decoder reads, which label smoothing and the search need.
    data_collator = DataCollatorForSeq2Seq(
        tokenizer,
        model=model,
        label_pad_token_id=IGNORED_LABEL if data_args.ignore_pad_token_for_loss else tokenizer.pad_token_id,
        pad_to_multiple_of=padding_multiple(training_args, model, (source_length, target_length, eval_target_length)),
    )
    # NAS 3 of 4: without our flags this is the plain training. Importance, search space and stages of a super-network
    # come before its training; a pruning trains and shrinks the model in folders of its own.
    trained = train_or_prune(
        nas,
        run,
        training_args,
        model,
        model_args,
        pretrained=lambda: load_model(model_args, model_args.model_name_or_path, data_args)[0],
        auto_class=AutoModelForSeq2SeqLM,
        trainer_class=TranslationTrainer,
        pruning_class=TranslationPruningTrainer,
        sequence_length=source_length,
        decoder_length=target_length,
        data_collator=data_collator,
        train_dataset=train_dataset,
        # A checkpoint chosen during the training of a super-network must not be chosen on the validation set either.
        eval_dataset=selection if nas.needs_selection_set else validation,
        compute_metrics=metrics_of(tokenizer, model_args.cache_dir) if training_args.predict_with_generate else None,
        processing_class=tokenizer,
    )
    if trained is None:  # importance was all that was asked for
        return
    trainer, folder = trained
    # End of NAS 3 of 4.

    if training_args.do_eval:
        metrics = trainer.evaluate(validation)
        metrics["eval_samples"] = len(validation)
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if training_args.do_predict:
        translate(trainer, test, training_args.output_dir)

    # NAS 4 of 4: search the super-network; the validation set only measures what was found.
    if nas.search.do_search:
        scores = CandidateScores(trainer, metric_name)
        outcome = run_search(
            trainer,
            nas.search,
            config=nas.config,
            selection_dataset=scores.rows(selection),
            metric_name=metric_name,
            greater_is_better=metric.greater_is_better,
            metric_scale=metric.scale,
            predictions=scores.tokens,
            report_datasets={"validation": scores.rows(validation, is_report=True)},
            output_dir=training_args.output_dir,
        )
        show_search(trainer, outcome)
    # End of NAS 4 of 4.

    card = {"tasks": "translation", "language": [data_args.source_lang, data_args.target_lang]}
    if not is_new:
        card["finetuned_from"] = model_args.model_name_or_path
    write_card(trainer, run, folder, **card, **data_args.card())


if __name__ == "__main__":
    main()
