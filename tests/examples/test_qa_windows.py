"""Windows for which there is no room, in their own length or in the positions of a model."""

import pytest
import torch
from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING, AutoTokenizer, GPTJConfig, NystromformerConfig

from tests.zoo import MODELS, build


TABLES = {
    "bert": 64,
    "roberta": 62,
    "xlm-roberta": 62,
    "camembert": 62,
    "electra": 64,
    "distilbert": 64,
    "mpnet": 62,
    "albert": 64,
    "gpt2": 64,
    "bart": 64,
    "mbart": 64,
}
ENDLESS = ("deberta-v2", "modernbert", "llama", "mistral", "qwen2", "qwen3", "t5")
SMALL = {"vocab_size": 50, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def windows(qa_modules):
    return qa_modules["windows"]


def build_reader(name: str):
    """A tiny model of the family that answers questions."""
    config_class = MODELS[name][1]
    size = {} if name in ENDLESS else {"n_positions" if name == "gpt2" else "max_position_embeddings": 64}
    return build(name, head=MODEL_FOR_QUESTION_ANSWERING_MAPPING[config_class], num_labels=2, **size)


def read_tokens(model, length: int) -> torch.Size:
    ids = torch.full((2, length), 7)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).start_logits.shape


def check_limit(windows, model, limit: int) -> None:
    """As many tokens can be read, and one more neither can nor is let through."""
    windows.check_positions(model, limit)
    assert read_tokens(model, limit) == (2, limit)
    with pytest.raises((IndexError, RuntimeError)):
        read_tokens(model, limit + 1)
    message = f"max_seq_length is {limit + 1} and the model has {limit} positions; give a --max_seq_length of at most"
    with pytest.raises(ValueError, match=message):
        windows.check_positions(model, limit + 1)


@pytest.mark.parametrize("name", TABLES)
def test_no_more_tokens_than_positions(windows, name):
    check_limit(windows, build_reader(name), TABLES[name])


@pytest.mark.parametrize(
    "config",
    [
        # A table that is no module, and one with more rows than are numbered.
        GPTJConfig(n_embd=32, n_layer=1, n_head=4, rotary_dim=4, vocab_size=50, n_positions=64),
        NystromformerConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24, **SMALL),
    ],
    ids=["gptj", "nystromformer"],
)
def test_other_tables(windows, config):
    check_limit(windows, MODEL_FOR_QUESTION_ANSWERING_MAPPING[type(config)](config).eval(), 64)


@pytest.mark.parametrize("name", ENDLESS)
def test_relative_and_rotary_positions_have_no_end(windows, name):
    model = build_reader(name)
    windows.check_positions(model, 10**6)
    # Llama's config has 64 positions, DeBERTa's 40.
    assert read_tokens(model, 100) == (2, 100)


def test_an_overlap_as_long_as_the_window_is_refused(windows, tiny_qa_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_qa_model)
    assert windows.WindowMaker(tokenizer, 48, 44, True).room == 45
    for stride in (45, 47):
        message = f"doc_stride is {stride} and max_seq_length 48, which leaves 45 tokens beside the 3 special ones"
        with pytest.raises(ValueError, match=message):
            windows.WindowMaker(tokenizer, 48, stride, True)
