"""Fine-tune a model on a text-classification task (GLUE, or data of your own), and shrink it.

The flags are those of the script of the same name in transformers, and without others this does the same. With
`--sampling_strategy` a super-network is trained instead; `--do_search` searches it and hands over a smaller model.
With `--do_search --nas_type standard` no super-network is trained, but every candidate of the search for itself.
With `--pruning_type` the model is pruned by trained gates (CoFi) instead, with `--pruning_method` its heads are (DSP,
Voita, Michel); `--do_final_finetune` fine-tunes what is left.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import evaluate
import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)
from transformers.utils import check_min_version

from arguments import DataTrainingArguments, ModelArguments
from data import TASKS, TextData, label_order, load_data, split_selection, tokenize
from demo import answer, demo_model
from trainer_plugins import (
    PruningTrainer,
    SuperNetworkTrainer,
    apply_config,
    check_arguments,
    run_search,
    run_standard_nas,
)
from trainer_plugins.run_state import Run
from trainer_plugins.scripts.arguments import parse_arguments
from trainer_plugins.scripts.checks import check_best_metric, is_standard_nas, needed_splits
from trainer_plugins.scripts.steps import (
    hold_out,
    set_up,
    show_search,
    take,
    token_limit,
    train_or_prune,
    write_card,
)


check_min_version("5.14.0")

logger = logging.getLogger(__name__)

METRICS = Path(__file__).resolve().parent / "metrics"


def load_model(
    arguments: ModelArguments, source: str, data: TextData
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int] | None]:
    """The model with a head for the labels of the data, its tokenizer, and the order in which it has the labels."""
    options = arguments.options()
    config_source, tokenizer_source = arguments.sources(source)
    num_labels = len(data.labels) or 1
    saved = AutoConfig.from_pretrained(config_source, **options)
    has_head = any(name.endswith("ForSequenceClassification") for name in saved.architectures or ())
    if has_head and saved.num_labels != num_labels and not arguments.ignore_mismatched_sizes:
        raise ValueError(
            f"The model '{source}' has a head for {saved.num_labels} labels and the data have {num_labels}; give the "
            "model of these data, or add --ignore_mismatched_sizes to start with a new head."
        )
    config = AutoConfig.from_pretrained(config_source, num_labels=num_labels, **options)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source, use_fast=arguments.use_fast_tokenizer, **options)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, config=config, ignore_mismatched_sizes=arguments.ignore_mismatched_sizes, **options
    )
    order = label_order(config, data.labels)
    if order is None and data.labels:
        model.config.label2id = {label: number for number, label in enumerate(data.labels)}
        model.config.id2label = dict(enumerate(data.labels))
    return model, tokenizer, order


def metrics_of(data: TextData, task_name: str | None, cache_dir: str | None) -> Callable[[EvalPrediction], dict]:
    """The function by which Trainer and search score predictions."""
    metric = evaluate.load(str(METRICS / data.metric), task_name, cache_dir=cache_dir, keep_in_memory=True)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        outputs = prediction.predictions
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        outputs = outputs.reshape(-1) if data.is_regression else np.argmax(outputs, axis=1)
        result = metric.compute(predictions=outputs, references=prediction.label_ids)
        if len(result) > 1:
            result["combined_score"] = float(np.mean(list(result.values())))
        return result

    return compute_metrics


def predict(trainer: SuperNetworkTrainer, data: TextData, tokenized: dict, folder: str, task_name: str | None) -> None:
    """Write the predictions of each test set, one a line with its number."""
    for name, dataset in tokenized.items():
        outputs = trainer.predict(dataset, metric_key_prefix="predict").predictions
        suffix = (task_name or "text-classification") + ("-mm" if name.endswith("_mismatched") else "")
        if not trainer.is_world_process_zero():
            continue
        names = trainer.model.config.id2label
        with open(Path(folder) / f"predict_results_{suffix}.txt", "w", encoding="utf-8") as writer:
            writer.write("index\tprediction\n")
            for index, output in enumerate(outputs):
                answer = f"{output.item():3.3f}" if data.is_regression else names[int(output.argmax())]
                writer.write(f"{index}\t{answer}\n")


def main() -> None:
    """Train, search, evaluate and predict, as the flags say."""
    # NAS 1 of 4: more arguments, whose defaults change nothing.
    model_args, data_args, training_args, nas = parse_arguments(ModelArguments, DataTrainingArguments)
    apply_config(nas, model_args)
    needed = needed_splits(training_args, nas, ("weight_sharing", "standard"))
    trains_candidates = is_standard_nas(nas)
    # End of NAS 1 of 4.
    if data_args.demo and model_args.model_name_or_path is None:
        model_args.model_name_or_path = demo_model()
    set_up(training_args, __name__, "demo")

    # The same command again continues: from the last checkpoint, or with what comes after the training.
    run = Run.begin(model_args, data_args, training_args, nas)
    data = load_data(data_args, needed, model_args.cache_dir, model_args.token)
    model, tokenizer, order = load_model(model_args, run.source, data)

    # NAS 2 of 4: check the arguments; split the set off on which sub-networks are compared; train a super-network.
    metric_name = nas.metric_name(data.search_metric, data.metric_names)
    check_arguments(
        nas, model, metric_name=metric_name, greater_is_better=data.greater_is_better, metric_scale=1.0
    )  # fmt: skip
    check_best_metric(training_args, data.metric_names)
    train_dataset, selection_dataset = hold_out(nas, data.train, split_selection, data_args.dataset_seed)
    # End of NAS 2 of 4.

    max_length = token_limit(data_args.max_seq_length, tokenizer.model_max_length, logger)

    def prepare(dataset: datasets.Dataset | None, limit: int | None) -> datasets.Dataset | None:
        if dataset is None:
            return None
        with training_args.main_process_first(desc="tokenizing"):
            return tokenize(
                take(dataset, limit),
                tokenizer,
                data.columns,
                max_length,
                data_args.pad_to_max_length,
                order,
                data_args.overwrite_cache,
            )

    trains = training_args.do_train or trains_candidates or nas.heads.is_active
    train_dataset = prepare(train_dataset, data_args.max_train_samples) if trains else None
    selection_dataset = prepare(selection_dataset, None)
    validation_datasets = {name: prepare(each, data_args.max_eval_samples) for name, each in data.validation.items()}
    test_datasets = {name: prepare(each, data_args.max_predict_samples) for name, each in data.test.items()}

    compute_metrics = metrics_of(data, data_args.task_name, model_args.cache_dir)
    if data_args.pad_to_max_length:
        data_collator = default_data_collator
    else:
        half = training_args.fp16 or training_args.bf16
        data_collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if half else None)

    # A checkpoint chosen during the training of a super-network must not be chosen on the validation set either.
    eval_dataset = selection_dataset if nas.needs_selection_set else next(iter(validation_datasets.values()), None)
    # NAS 3 of 4: without our flags this is the plain training. Importance, search space and stages of a super-network
    # come before its training; a pruning trains and shrinks the model in folders of its own.
    trained = train_or_prune(
        nas,
        run,
        training_args,
        model,
        model_args,
        pretrained=lambda: load_model(model_args, model_args.model_name_or_path, data)[0],
        auto_class=AutoModelForSequenceClassification,
        trainer_class=SuperNetworkTrainer,
        pruning_class=PruningTrainer,
        sequence_length=max_length,
        data_collator=data_collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
    )
    if trained is None:  # importance was all that was asked for
        return
    trainer, folder = trained
    # End of NAS 3 of 4.

    if trains_candidates:
        if training_args.do_eval:
            logger.info("Before the search no model is trained; --do_eval measures the chosen one after it.")
    elif training_args.do_eval:
        combined = {}
        for name, dataset in validation_datasets.items():
            metrics = trainer.evaluate(eval_dataset=dataset)
            metrics["eval_samples"] = len(dataset)
            if name.endswith("_mismatched"):
                metrics = {f"{key}_mm": value for key, value in metrics.items()}
            combined |= metrics
            trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", combined)

    if training_args.do_predict:
        predict(trainer, data, test_datasets, training_args.output_dir, data_args.task_name)

    # NAS 4 of 4: search; the validation set only measures what was found.
    if nas.search.do_search:
        search = run_standard_nas if trains_candidates else partial(run_search, config=nas.config)
        outcome = search(
            trainer,
            nas.search,
            selection_dataset=selection_dataset,
            compute_metrics=compute_metrics,
            metric_name=metric_name,
            greater_is_better=data.greater_is_better,
            report_datasets=validation_datasets,
            output_dir=training_args.output_dir,
        )
        show_search(trainer, outcome)
        if data_args.demo and trainer.is_world_process_zero():
            answer(outcome.chosen_folder)
    # End of NAS 4 of 4.

    card = {"finetuned_from": model_args.model_name_or_path, "tasks": "text-classification"}
    if data_args.task_name is not None:
        name, configuration = TASKS[data_args.task_name].hub
        card |= {"dataset": data_args.task_name.upper(), "dataset_tags": name, "dataset_args": configuration}
    write_card(trainer, run, folder, **card)


if __name__ == "__main__":
    main()
