"""The arguments of `run_translation.py`: those of the script of the same name, and a few more."""

from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments

from trainer_plugins.scripts.arguments import DataFileArguments, PretrainedArguments
from trainer_plugins.tasks.translation import SEARCH_METRICS


@dataclass
class ModelArguments(PretrainedArguments):
    """Which model is trained, and from where; or how a new one is made."""

    use_fast_tokenizer: bool = field(
        default=True, metadata={"help": "Use a tokenizer of the tokenizers library where there is one."}
    )
    model_type: str | None = field(
        default=None,
        metadata={
            "help": "Train a new model of this type from scratch, such as marian, bart or t5; instead of "
            "--model_name_or_path. So does --config_name without --model_name_or_path."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Sizes of the new model where they are not the defaults of its type, such as "
            "d_model=512,encoder_layers=6,encoder_attention_heads=4."
        },
    )
    train_tokenizer: bool = field(
        default=False,
        metadata={"help": "Train a tokenizer for the new model on the texts of both languages of the training set."},
    )
    vocab_size: int = field(default=8000, metadata={"help": "Tokens of the tokenizer of --train_tokenizer."})

    @property
    def is_new(self) -> bool:
        """Whether the model is made here instead of loaded."""
        return self.model_name_or_path is None and (self.model_type is not None or self.config_name is not None)

    def __post_init__(self) -> None:
        if self.is_new:
            if self.model_type is not None and self.config_name is not None:
                raise ValueError(
                    f"--model_type {self.model_type} and --config_name '{self.config_name}' are two configurations of "
                    "one new model; give one of them."
                )
            if self.train_tokenizer == (self.tokenizer_name is not None):
                found = "two tokenizers" if self.train_tokenizer else "no tokenizer"
                raise ValueError(
                    f"The new model has {found}; give either --train_tokenizer or --tokenizer_name, of a tokenizer "
                    "that is there."
                )
            self._check_vocab_size()
            return
        given = {
            "--model_type": self.model_type is not None,
            "--config_overrides": self.config_overrides is not None,
            "--train_tokenizer": self.train_tokenizer,
        }
        for flag, is_given in given.items():
            if is_given:
                raise ValueError(
                    f"{flag} belongs to a new model, which takes --model_type or --config_name, and no "
                    f"--model_name_or_path; leave out {flag} to train the model '{self.model_name_or_path}'."
                )
        self._check_vocab_size()

    def _check_vocab_size(self) -> None:
        if not self.train_tokenizer and self.vocab_size != type(self).vocab_size:
            raise ValueError(
                f"--vocab_size {self.vocab_size} is that of a tokenizer that is trained here, and none is; add "
                "--train_tokenizer, or leave it out."
            )


@dataclass
class DataTrainingArguments(DataFileArguments):
    """Which data the model is trained and evaluated on, and how they are prepared and translated."""

    source_lang: str | None = field(default=None, metadata={"help": "Language to translate from, such as de."})
    target_lang: str | None = field(default=None, metadata={"help": "Language to translate into, such as en."})
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Tokenize with so many processes; by default in this one."}
    )
    max_source_length: int = field(
        default=1024, metadata={"help": "Longest source text in tokens; longer ones are cut."}
    )
    max_target_length: int = field(
        default=128, metadata={"help": "Longest target text in tokens in training; longer ones are cut."}
    )
    val_max_target_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest target text in evaluation and prediction, and longest translation unless "
            "--generation_max_length is given; by default --max_target_length."
        },
    )
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad all texts to the longest allowed instead of the longest of the batch."}
    )
    num_beams: int | None = field(
        default=None,
        metadata={
            "help": "Beams of the search for translations; by default --generation_num_beams, or else those "
            "of the model (1 of a new one)."
        },
    )
    ignore_pad_token_for_loss: bool = field(
        default=True, metadata={"help": "Padding of the target texts does not count in the loss."}
    )
    source_prefix: str | None = field(
        default=None, metadata={"help": "Put before every source text, as T5 wants: 'translate English to German: '."}
    )
    forced_bos_token: str | None = field(
        default=None,
        metadata={"help": "First token of every translation, for multilingual models that need the language there."},
    )
    search_metric: str = field(
        default="token_accuracy",
        metadata={
            "help": "What a search compares sub-networks by: token_accuracy (share of the right next tokens, in one "
            "forward pass), loss (one more pass), or bleu (translates the selection set with every candidate; needs "
            "--predict_with_generate)."
        },
    )

    def __post_init__(self) -> None:
        self.check_source(self.given_sources())
        if self.source_lang is None or self.target_lang is None or self.source_lang == self.target_lang:
            raise ValueError(
                f"The languages are {self.source_lang!r} and {self.target_lang!r}; name two different ones by "
                "--source_lang and --target_lang, as the data do."
            )
        if self.val_max_target_length is None:
            self.val_max_target_length = self.max_target_length
        self.check_counts(
            "preprocessing_num_workers", "max_source_length", "max_target_length", "val_max_target_length", "num_beams"
        )
        if self.search_metric not in SEARCH_METRICS:
            raise ValueError(f"--search_metric is {self.search_metric!r}; choose one of {', '.join(SEARCH_METRICS)}.")


def set_generation(training: Seq2SeqTrainingArguments, data: DataTrainingArguments) -> None:
    """Let every translation, in training or after it, be as long and have as many beams as the flags say.

    Without flags it has the beams of the model's generation configuration.
    """
    training.generation_max_length = training.generation_max_length or data.val_max_target_length
    training.generation_num_beams = data.num_beams or training.generation_num_beams
