"""The arguments of `run_qa.py` on models and data: those of the script of the same name, and a few more."""

from dataclasses import dataclass, field

from trainer_plugins.scripts.arguments import DataFileArguments, PretrainedArguments


@dataclass
class ModelArguments(PretrainedArguments):
    """Which model is fine-tuned, and from where."""


@dataclass
class DataTrainingArguments(DataFileArguments):
    """Which data the model is trained and evaluated on, and how they are prepared."""

    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Tokenize with so many processes; by default in this one."}
    )
    max_seq_length: int = field(
        default=384, metadata={"help": "Length of a window in tokens: question, piece of the context, special tokens."}
    )
    doc_stride: int = field(
        default=128, metadata={"help": "By how many tokens the windows of a longer context overlap."}
    )
    pad_to_max_length: bool = field(
        default=True,
        metadata={
            "help": "Pad all windows to max_seq_length, as the script of the same name in transformers does. False "
            "pads to the longest of each batch, which gives the same model and is faster on CPU and GPU."
        },
    )
    version_2_with_negative: bool = field(
        default=False, metadata={"help": "Some questions have no answer, as in SQuAD v2."}
    )
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={
            "help": "With --version_2_with_negative, a question counts as unanswerable if the score of no answer "
            "exceeds that of the best answer by more than this."
        },
    )
    n_best_size: int = field(
        default=20,
        metadata={"help": "How many answers to a question are kept, and starts and ends of each window considered."},
    )
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer in tokens."})

    def __post_init__(self) -> None:
        self.check_source(self.given_sources())
        self.check_counts("preprocessing_num_workers", "max_seq_length", "n_best_size", "max_answer_length")
        if not 0 <= self.doc_stride < self.max_seq_length:
            raise ValueError(
                f"--doc_stride is {self.doc_stride} and --max_seq_length {self.max_seq_length}; windows must overlap "
                "by 0 tokens or more and by fewer than they have."
            )
