"""Fine-tune a model on a text-classification task (GLUE, or data of your own), and shrink it.

The flags are those of the script of the same name in transformers, and without others this does the same. With
`--sampling_strategy` a super-network is trained instead; `--do_search` searches it and hands over a smaller model.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import evaluate
import numpy as np
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.utils import check_min_version

from arguments import DataTrainingArguments, ModelArguments
from data import TextData, label_order, load_data, split_selection, take, tokenize
from demo import answer, demo_model
from trainer_plugins import SearchArguments, SuperNetworkArguments, SuperNetworkTrainer, check_arguments, run_search
from trainer_plugins.run_state import check_same_split, describe_run, prepare_output_folder, write_run


check_min_version("5.14.0")

logger = logging.getLogger(__name__)

METRICS = Path(__file__).resolve().parent / "metrics"


def parse_arguments() -> tuple:
    """The arguments of the command line, or of its single argument if that is a JSON file."""
    # NAS 1 of 3: two more sets of arguments; their defaults change nothing.
    parser = HfArgumentParser(
        (ModelArguments, DataTrainingArguments, TrainingArguments, SuperNetworkArguments, SearchArguments)
    )
    # End of NAS 1 of 3.
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        return parser.parse_json_file(json_file=os.path.abspath(sys.argv[1]))
    return parser.parse_args_into_dataclasses()


def needed_splits(training: TrainingArguments, search: SearchArguments) -> list[str]:
    """What the run cannot do without; refuses flags that contradict each other."""
    if not (training.do_train or training.do_eval or training.do_predict or search.do_search):
        raise ValueError("There is nothing to do; add --do_train, --do_eval, --do_predict or --do_search.")
    if search.checkpoint_dir_model is not None and (training.do_train or not search.do_search):
        raise ValueError(
            f"--checkpoint_dir_model '{search.checkpoint_dir_model}' names a trained super-network for --do_search "
            "without --do_train; leave out either of them."
        )
    if search.do_search and not training.do_train and search.checkpoint_dir_model is None:
        raise ValueError("--do_search without --do_train needs a trained super-network; add --checkpoint_dir_model.")
    if search.checkpoint_dir_model is not None and not Path(search.checkpoint_dir_model).is_dir():
        raise ValueError(
            f"--checkpoint_dir_model '{search.checkpoint_dir_model}' is no folder; give that of a super-network."
        )
    needed = {
        "train": training.do_train or search.do_search,
        "validation": training.do_eval or search.do_search or training.eval_strategy != "no",
        "test": training.do_predict,
    }
    return [role for role, is_needed in needed.items() if is_needed]


def set_up_logging(training_args: TrainingArguments) -> None:
    """Let the libraries log at Trainer's level and our own modules tell what they do."""
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s",
        datefmt="%m/%d/%Y %H:%M:%S",
        handlers=[logging.StreamHandler(sys.stdout)],
    )
    level = training_args.get_process_log_level()
    for library in (datasets.utils.logging, transformers.utils.logging):
        library.set_verbosity(level)
    if training_args.should_log and training_args.log_level == "passive":
        level = logging.INFO
    for name in (__name__, "demo", "hf_nas", "trainer_plugins"):
        logging.getLogger(name).setLevel(level)
    transformers.utils.logging.enable_default_handler()
    transformers.utils.logging.enable_explicit_format()
    logger.debug("Training/evaluation parameters %s", training_args)


def load_model(
    arguments: ModelArguments, source: str, data: TextData
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int] | None]:
    """The model with a head for the labels of the data, its tokenizer, and the order in which it has the labels."""
    options = {
        "cache_dir": arguments.cache_dir,
        "revision": arguments.model_revision,
        "token": arguments.token,
        "trust_remote_code": arguments.trust_remote_code,
    }
    # A model trained here comes with its configuration and tokenizer.
    is_given = source == arguments.model_name_or_path
    config_source = (is_given and arguments.config_name) or source
    tokenizer_source = (is_given and arguments.tokenizer_name) or source
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
    model_args, data_args, training_args, super_network_args, search_args = parse_arguments()
    needed = needed_splits(training_args, search_args)
    is_nas = super_network_args.sampling_strategy is not None or search_args.do_search
    if data_args.demo and model_args.model_name_or_path is None:
        model_args.model_name_or_path = demo_model()
    source = search_args.checkpoint_dir_model or model_args.model_name_or_path
    if source is None:
        raise ValueError("No model is given; add --model_name_or_path.")
    set_up_logging(training_args)
    set_seed(training_args.seed)

    # The same command again continues: from the last checkpoint, or with what comes after the training.
    run = describe_run(
        model_args,
        data_args,
        training_args,
        super_network_args if super_network_args.sampling_strategy else None,
        search_args if is_nas else None,
    )
    is_trained, checkpoint = False, None
    if training_args.do_train:
        is_trained, checkpoint = prepare_output_folder(training_args.output_dir, run)
        checkpoint = training_args.resume_from_checkpoint or checkpoint
        source = training_args.output_dir if is_trained else source
        logger.info("Training is %s.", "done" if is_trained else f"resumed from {checkpoint}" if checkpoint else "new")
    elif search_args.checkpoint_dir_model is not None:
        check_same_split(search_args.checkpoint_dir_model, data_args, search_args)

    data = load_data(data_args, needed, model_args.cache_dir, model_args.token)
    model, tokenizer, order = load_model(model_args, source, data)

    # NAS 2 of 3: check the arguments; split the set off on which sub-networks are compared; train a super-network.
    check_arguments(super_network_args, search_args, model)
    train_dataset, selection_dataset = data.train, None
    if is_nas and data.train is not None:
        train_dataset, selection_dataset = split_selection(
            data.train, search_args.selection_split, data_args.dataset_seed
        )
        selection_dataset = take(selection_dataset, search_args.max_selection_samples)
    # End of NAS 2 of 3, but for the class and `super_network` of the trainer.

    max_length = min(data_args.max_seq_length, tokenizer.model_max_length)
    if max_length < data_args.max_seq_length:
        logger.warning("max_seq_length %d is cut to the model's %d.", data_args.max_seq_length, max_length)

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

    train_dataset = prepare(train_dataset, data_args.max_train_samples) if training_args.do_train else None
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
    eval_dataset = selection_dataset if is_nas else next(iter(validation_datasets.values()), None)
    trainer = SuperNetworkTrainer(
        model=model,
        args=training_args,
        super_network=super_network_args,
        data_collator=data_collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
    )

    if training_args.do_train and not is_trained:
        if training_args.should_save:
            write_run(training_args.output_dir, run, finished=False)
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
        metrics["train_samples"] = len(train_dataset)
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
        if training_args.should_save:
            write_run(training_args.output_dir, run, finished=True)

    if training_args.do_eval:
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

    # NAS 3 of 3: search the super-network; the validation set only measures what was found.
    if search_args.do_search:
        outcome = run_search(
            trainer,
            search_args,
            selection_dataset=selection_dataset,
            compute_metrics=compute_metrics,
            metric_name=data.search_metric,
            greater_is_better=data.greater_is_better,
            report_datasets=validation_datasets,
            output_dir=training_args.output_dir,
        )
        trainer.log_metrics("search", outcome.metrics)
        trainer.save_metrics("search", outcome.metrics)
        if trainer.is_world_process_zero():
            print(f"\n{outcome.table.to_markdown()}\n\nThe chosen model is in {outcome.chosen_folder}.")
        if data_args.demo and trainer.is_world_process_zero():
            answer(outcome.chosen_folder)
    # End of NAS 3 of 3.

    if training_args.do_train and not is_trained:
        card = {"finetuned_from": model_args.model_name_or_path, "tasks": "text-classification"}
        if data_args.task_name is not None:
            card |= {"dataset": data_args.task_name.upper(), "dataset_args": data_args.task_name}
        if training_args.push_to_hub:
            trainer.push_to_hub(**card)
        else:
            trainer.create_model_card(**card)


if __name__ == "__main__":
    main()
