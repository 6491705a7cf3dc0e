from functools import cache

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_nas.profiling import SizeTable
from hf_nas.structures import ModelStructure


SPACES = ("small", "medium", "layer", "large")

# The tests count on these sizes: 3 layers (the decoder of t5: 4), 4 heads or key-value groups, 24 neurons.
MODELS = {
    "bert": (
        BertForSequenceClassification,
        BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24
        ),
    ),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
            head_dim=8, intermediate_size=24,
        ),
    ),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=4, num_heads=4),
    ),
    "bart": (
        BartForConditionalGeneration,
        BartConfig(
            vocab_size=50, d_model=32, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24,
        ),
    ),
}  # fmt: skip


def structure_of(name: str) -> ModelStructure:
    """Structure of a tiny model."""
    return table_of(name).structure


@cache
def table_of(name: str) -> SizeTable:
    """Sizes of a tiny model."""
    model_class, config = MODELS[name]
    with torch.device("meta"):
        return SizeTable(model_class(config))


@cache
def bert_base(**changes: int) -> SizeTable:
    """BERT-base-cased with two labels, the model of the published numbers."""
    with torch.device("meta"):
        return SizeTable(BertForSequenceClassification(BertConfig(vocab_size=28996, **changes)))
