"""A language pair that a tiny model learns in seconds, the flags of its training, and translations by saved models."""

import json
import random
from pathlib import Path

from sacrebleu import corpus_bleu
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer


WORDS = {
    "red": "rot", "blue": "blau", "green": "grün", "cat": "Katze", "dog": "Hund", "cow": "Kuh", "big": "groß",
    "small": "klein", "and": "und", "sees": "sieht",
}  # fmt: skip
SIZES = (
    "d_model=32,encoder_layers=2,decoder_layers=2,encoder_attention_heads=4,decoder_attention_heads=4,"
    "encoder_ffn_dim=24,decoder_ffn_dim=24,max_position_embeddings=24,dropout=0.0,init_std=0.1"
)
NEW = {"model_type": "marian", "config_overrides": SIZES, "vocab_size": 330}
TRAINING = {
    "learning_rate": 4e-3,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "max_steps": 8,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "save_steps": 4,
    "logging_steps": 4,
    "seed": 7,
    "use_cpu": True,
}


def sentences(count: int, seed: int) -> list[dict]:
    """Word by word translations of three to five words."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        words = generator.choices(list(WORDS), k=generator.randint(3, 5))
        rows.append({"translation": {"en": " ".join(words), "de": " ".join(WORDS[word] for word in words)}})
    return rows


def pairs(path: str) -> list[dict[str, str]]:
    return [json.loads(line)["translation"] for line in Path(path).read_text().splitlines()]


def translate_with(folder: Path, texts: list[str], **options) -> list[str]:
    """What a user of a saved model gets, text by text."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    translations = []
    for text in texts:
        tokens = model.generate(**tokenizer(text, return_tensors="pt"), **options)
        translations.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    return translations


def bleu(translations: list[str], rows: list[dict[str, str]]) -> float:
    return corpus_bleu(translations, [[row["de"] for row in rows]]).score
