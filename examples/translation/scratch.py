"""A new model with random weights and a tokenizer for it, as a folder that loads like a pretrained model."""

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)

from arguments import ModelArguments
from hf_nas.files import write_json


logger = logging.getLogger(__name__)

FOLDER = "initial"
RECORD = "scratch.json"
END, PADDING = "</s>", "<pad>"
# Where a new model hardly trains with the defaults of its type: Marian adds embeddings to sinusoidal positions of far
# larger norm, unless it scales them as all its published checkpoints do.
DEFAULTS = {"marian": {"scale_embedding": True}}


def make_model(
    folder: Path, arguments: ModelArguments, texts: Iterable[str], *, seed: int, max_length: int, num_beams: int
) -> None:
    """Write a new model and its tokenizer into a folder, unless the same are there.

    Args:
        folder: where to.
        arguments: the type of the model, its sizes and its tokenizer.
        texts: of both languages, on which the tokenizer is trained.
        seed: of the weights.
        max_length: longest translation in tokens, for `generate`.
        num_beams: beams of the search for it.

    Raises:
        ValueError: for sizes or a type that cannot be, or a folder with another model.
    """
    names = ("model_type", "config_name", "config_overrides", "tokenizer_name", "train_tokenizer", "vocab_size")
    record = {name: getattr(arguments, name) for name in names} | {"seed": seed}
    if (folder / RECORD).is_file():
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        differing = [
            f"{name} was {found.get(name)!r} and is {value!r}"
            for name, value in record.items()
            if found.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"The folder '{folder}' holds another new model ({'; '.join(differing)}); choose another --output_dir "
                "or delete it."
            )
        return
    if arguments.train_tokenizer:
        tokenizer = train_tokenizer(texts, arguments.vocab_size)
    else:
        options = {**arguments.options(), "revision": "main"}
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer_name, **options)
    config = make_config(arguments, tokenizer)
    if arguments.train_tokenizer and (positions := getattr(config, "max_position_embeddings", None)):
        tokenizer.model_max_length = positions
    set_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(config)
    generation = model.generation_config
    generation.max_length, generation.num_beams = max_length, num_beams
    # Never a label, so that nothing teaches the model not to predict it.
    generation.bad_words_ids = [[config.pad_token_id]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".incomplete-") as temporary:
        stage = Path(temporary) / folder.name
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        write_json(stage / RECORD, record)
        os.replace(stage, folder)
    logger.info("Made a %s of %d parameters and %d tokens.", config.model_type, model.num_parameters(), len(tokenizer))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Byte-pair encoding of the bytes of texts (Sennrich et al., 2016; Radford et al., 2019).

    Bytes leave no text without tokens, and `decode` gives back what was encoded, but for blanks at its ends and for
    composed characters, which become one code point.

    Args:
        texts: to train on.
        vocab_size: tokens at most, all bytes and two special ones among them.

    Raises:
        ValueError: for fewer tokens than that.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 2:
        raise ValueError(
            f"--vocab_size is {vocab_size}; the tokenizer needs {len(alphabet) + 2} or more, as all bytes are tokens."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END, PADDING], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PADDING)


def make_config(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration of a new model, with the tokens of its tokenizer.

    Raises:
        ValueError: if it is none of an encoder-decoder, or the overrides or the tokenizer do not fit.
    """
    if arguments.model_type is not None:
        if arguments.model_type not in CONFIG_MAPPING:
            raise ValueError(f"--model_type '{arguments.model_type}' is not known; choose marian, bart or t5.")
        config = AutoConfig.for_model(arguments.model_type)
    else:
        config = AutoConfig.from_pretrained(arguments.config_name, **arguments.options())
    if not config.is_encoder_decoder:
        raise ValueError(f"A {config.model_type} is no encoder-decoder; choose one that is, such as marian.")
    overrides = parse_overrides(arguments.config_overrides or "", config)
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer '{arguments.tokenizer_name}' has no token for padding or the end of a text; give one that "
            "has both."
        )
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    optional = {"decoder_vocab_size": len(tokenizer), "forced_eos_token_id": tokenizer.eos_token_id}
    tokens |= {name: value for name, value in optional.items() if hasattr(config, name)}
    if arguments.model_type is not None:
        # From the beginning, as some sizes follow from others: T5's decoder is as deep as its encoder.
        config = type(config).from_dict(DEFAULTS.get(config.model_type, {}) | overrides)
    return type(config).from_dict(config.to_dict() | overrides | tokens)


def parse_overrides(text: str, config: PreTrainedConfig) -> dict[str, Any]:
    """Values by name of `name=value,name=value`, of the types that the configuration has.

    Raises:
        ValueError: for a name that it does not have, or a value of another type.
    """
    overrides: dict[str, Any] = {}
    known: Mapping[str, Any] = config.to_dict()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not equals or name not in known:
            raise ValueError(
                f"--config_overrides has '{part}'; write name=value with a name that a {config.model_type} has, such "
                "as d_model=256."
            )
        try:
            parsed = json.loads(value.lower() if value in ("True", "False") else value)
        except json.JSONDecodeError:
            parsed = value
        wanted = type(known[name])
        fits = wanted is type(None) or type(parsed) is wanted or (wanted is float and type(parsed) is int)
        if not fits or (type(parsed) in (int, float) and parsed < 0):
            raise ValueError(
                f"--config_overrides has '{part}', and {name} of a {config.model_type} is a {wanted.__name__} such as "
                f"{known[name]}; give one of that kind."
            )
        overrides[name] = parsed
    return overrides
