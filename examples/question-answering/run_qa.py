"""Fine-tune a model on questions that are answered with a span of a text (SQuAD, or data of your own), and shrink it.

The flags are those of the script of the same name in transformers, and without others this does the same. With
`--sampling_strategy` a super-network is trained instead; `--do_search` searches it and hands over a smaller model.
With `--pruning_type` the model is pruned by trained gates (CoFi) instead, with `--pruning_method` its heads are (DSP,
Voita, Michel); `--do_final_finetune` fine-tunes what is left.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)
from transformers.utils import check_min_version

from answers import SpanReader, write_answers
from arguments import DataTrainingArguments, ModelArguments
from data import load_data, split_selection
from trainer_plugins import (
    QuestionAnsweringPruningTrainer,
    apply_config,
    check_arguments,
    run_search,
)
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
from trainer_plugins.search.run import ScoredRows
from trainer_plugins.tasks.question_answering import QuestionAnsweringTrainer, span_logits
from windows import READING_COLUMNS, WindowMaker, check_positions


check_min_version("5.14.0")

logger = logging.getLogger(__name__)

METRICS = Path(__file__).resolve().parent / "metrics"
# Those by which a search may go, of SQuAD 1.1 and 2.
METRIC_NAMES = (
    ("exact_match", "f1"),
    ("exact", "f1", "best_exact", "best_f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1"),
)


def load_model(arguments: ModelArguments, source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with a head for the start and the end of answers, and its tokenizer."""
    options = arguments.options()
    config_source, tokenizer_source = arguments.sources(source)
    config = AutoConfig.from_pretrained(config_source, **options)
    if config.num_labels != 2:
        # Of the task that the model was trained on; here they are start and end.
        config.num_labels = 2
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, **options)
    return AutoModelForQuestionAnswering.from_pretrained(source, config=config, **options), tokenizer


@dataclass(frozen=True)
class Questions:
    """A data set to be answered.

    Args:
        examples: with the standard columns of `data.py`.
        windows: of them, for the model and for reading answers off.
        settings: the arguments on data, for how answers are found.
        is_labelled: whether the right answers are known.
        is_numbered: whether rows are known by their numbers: those of a training set may have no ids, or the same.
    """

    examples: Dataset
    windows: Dataset
    settings: DataTrainingArguments
    is_labelled: bool = True
    is_numbered: bool = False

    @cached_property
    def inputs(self) -> Dataset:
        """What the model reads."""
        return self.windows.remove_columns(list(READING_COLUMNS))

    @cached_property
    def ids(self) -> list[str]:
        """One of its own for each example, by which the metrics look its prediction up."""
        return [f"row {index}" for index in range(len(self.examples))] if self.is_numbered else self.examples["id"][:]

    @cached_property
    def references(self) -> list[dict[str, Any]] | None:
        """The right answers as the metrics take them."""
        if not self.is_labelled:
            return None
        return [{"id": name, "answers": answers} for name, answers in zip(self.ids, self.examples["answers"])]

    @cached_property
    def digest(self) -> str:
        """What scores depend on beside the windows."""
        settings = self.settings
        fixed = [self.references, settings.n_best_size, settings.max_answer_length, settings.null_score_diff_threshold]
        return hashlib.blake2b(json.dumps(fixed).encode(), digest_size=16).hexdigest()

    @cached_property
    def reader(self) -> SpanReader:
        """Finds answers in logits."""
        settings = self.settings
        contexts = self.examples["context"][:]
        return SpanReader(contexts, self.windows, settings.n_best_size, settings.max_answer_length)

    def answer(
        self, logits: tuple[np.ndarray, np.ndarray], folder: str | None = None, stage: str = ""
    ) -> EvalPrediction:
        """Predictions and references for the metric; the answers are written to the folder, if one is given."""
        answers = self.reader(*logits)
        is_v2, threshold = self.settings.version_2_with_negative, self.settings.null_score_diff_threshold
        if folder is not None:
            shown = threshold if is_v2 else None
            write_answers(folder, stage, self.ids, answers, shown, self.settings.n_best_size)
        # The metric of v2 applies the threshold itself, and so can tell the best one.
        predictions = [{"id": name, "prediction_text": text} for name, text in zip(self.ids, answers.texts())]
        if is_v2:
            for prediction, odds in zip(predictions, answers.null_odds().tolist()):
                prediction["no_answer_probability"] = odds
        return EvalPrediction(predictions=predictions, label_ids=self.references)

    def scored(self, compute_metrics: Callable[[EvalPrediction], dict[str, float]]) -> ScoredRows:
        """For a search."""
        return ScoredRows(
            self.inputs, lambda prediction: compute_metrics(self.answer(prediction.predictions)), self.digest
        )


def metrics_of(
    data_args: DataTrainingArguments, cache_dir: str | None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """The function by which Trainer and search score answers."""
    is_v2 = data_args.version_2_with_negative
    path = str(METRICS / ("squad_v2" if is_v2 else "squad"))
    metric = evaluate.load(path, cache_dir=cache_dir, keep_in_memory=True)
    options = {"no_answer_threshold": data_args.null_score_diff_threshold} if is_v2 else {}

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(predictions=prediction.predictions, references=prediction.label_ids, **options)

    return compute_metrics


def main() -> None:
    """Train, search, evaluate and predict, as the flags say."""
    # NAS 1 of 4: more arguments, whose defaults change nothing.
    model_args, data_args, training_args, nas = parse_arguments(ModelArguments, DataTrainingArguments)
    apply_config(nas, model_args, metric_scale=100.0)
    # End of NAS 1 of 4.
    needed = needed_splits(training_args, nas)
    if training_args.metric_for_best_model in ("loss", "eval_loss"):  # Trainer's default, which no answer has
        training_args.metric_for_best_model, training_args.greater_is_better = "f1", True
    set_up(training_args, __name__, "data")

    # The same command again continues: from the last checkpoint, or with what comes after the training.
    run = Run.begin(model_args, data_args, training_args, nas)
    data = load_data(data_args, needed, model_args.cache_dir, model_args.token)
    model, tokenizer = load_model(model_args, run.source)

    # NAS 2 of 4: check the arguments; split the set off on which sub-networks are compared; train a super-network.
    metric_name = nas.metric_name("f1", METRIC_NAMES[data_args.version_2_with_negative])
    check_arguments(nas, model, metric_name=metric_name, metric_scale=100.0)
    check_best_metric(training_args, METRIC_NAMES[data_args.version_2_with_negative])
    train_examples, selection_examples = hold_out(nas, data.train, split_selection, data_args.dataset_seed)
    # End of NAS 2 of 4.

    max_length = token_limit(data_args.max_seq_length, tokenizer.model_max_length, logger)
    check_positions(model, max_length)
    windows = WindowMaker(tokenizer, max_length, data_args.doc_stride, data_args.pad_to_max_length)
    mapping = {
        "num_proc": data_args.preprocessing_num_workers,
        "load_from_cache_file": not data_args.overwrite_cache,
        "desc": "Tokenizing",
    }

    def questions(examples: Dataset | None, limit: int | None = None, **options: bool) -> Questions | None:
        if examples is None:
            return None
        examples = take(examples, limit)
        with training_args.main_process_first(desc="tokenizing"):
            return Questions(examples, windows.reading_windows(examples, **mapping), data_args, **options)

    train_dataset = None
    if training_args.do_train or nas.heads.is_active:
        with training_args.main_process_first(desc="tokenizing"):
            examples = take(train_examples, data_args.max_train_samples)
            # The script of transformers takes so many examples, and then so many of their windows.
            train_dataset = take(windows.training_windows(examples, **mapping), data_args.max_train_samples)
    selection = questions(selection_examples, is_numbered=True)
    validation = questions(data.validation, data_args.max_eval_samples)
    test = questions(data.test, data_args.max_predict_samples, is_labelled=data.test_is_labelled)

    if data_args.pad_to_max_length:
        data_collator = default_data_collator
    else:
        half = training_args.fp16 or training_args.bf16
        data_collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if half else None)

    def post_process(examples: Questions, _: Dataset, logits: Any, stage: str) -> EvalPrediction:
        return examples.answer(logits, training_args.output_dir if training_args.should_save else None, stage)

    compute_metrics = metrics_of(data_args, model_args.cache_dir)

    # A checkpoint chosen during the training of a super-network must not be chosen on the validation set either.
    eval_questions = selection if nas.needs_selection_set else validation
    # NAS 3 of 4: without our flags this is the plain training. Importance, search space and stages of a super-network
    # come before its training; a pruning trains and shrinks the model in folders of its own.
    trained = train_or_prune(
        nas,
        run,
        training_args,
        model,
        model_args,
        pretrained=lambda: load_model(model_args, model_args.model_name_or_path)[0],
        auto_class=AutoModelForQuestionAnswering,
        trainer_class=QuestionAnsweringTrainer,
        pruning_class=QuestionAnsweringPruningTrainer,
        sequence_length=max_length,
        data_collator=data_collator,
        train_dataset=train_dataset,
        eval_dataset=eval_questions.inputs if eval_questions else None,
        eval_examples=eval_questions,
        post_process_function=post_process,
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
    )
    if trained is None:  # importance was all that was asked for
        return
    trainer, folder = trained
    # End of NAS 3 of 4.

    if training_args.do_eval:
        metrics = trainer.evaluate(validation.inputs, validation)
        metrics["eval_samples"] = len(validation.inputs)
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if training_args.do_predict:
        metrics = trainer.predict(test.inputs, test, metric_key_prefix="predict").metrics
        metrics["predict_samples"] = len(test.inputs)
        trainer.log_metrics("predict", metrics)
        trainer.save_metrics("predict", metrics)

    # NAS 4 of 4: search the super-network; the validation set only measures what was found.
    if nas.search.do_search:
        outcome = run_search(
            trainer,
            nas.search,
            config=nas.config,
            selection_dataset=selection.scored(compute_metrics),
            metric_name=metric_name,
            metric_scale=100.0,
            predictions=span_logits,
            report_datasets={"validation": validation.scored(compute_metrics)},
            output_dir=training_args.output_dir,
        )
        show_search(trainer, outcome)
    # End of NAS 4 of 4.

    card = {"finetuned_from": model_args.model_name_or_path, "tasks": "question-answering"}
    write_card(trainer, run, folder, **card, **data_args.card())


if __name__ == "__main__":
    main()
