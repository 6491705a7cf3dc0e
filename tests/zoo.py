"""Tiny random models of every family, with inputs, and a dense oracle for their sub-networks."""

import copy

import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from hf_nas.structures import describe
from hf_nas.subnetwork import NORM_ONLY, SubNetwork, kept_ids


_ENCODER = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "pad_token_id": 0,
}
_DECODER = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SEQ2SEQ = {
    "vocab_size": 50,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_T5 = {
    "vocab_size": 50,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}

# Layers of both kinds; the window is shorter than the inputs.
_GEMMA = {
    **_DECODER,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 5,
    "attention_bias": True,
}
_DEBERTA = {
    **_ENCODER,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}

MODELS = {
    "bert": (BertForSequenceClassification, BertConfig, _ENCODER),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, {**_ENCODER, "pad_token_id": 1}),
    "xlm-roberta": (XLMRobertaForSequenceClassification, XLMRobertaConfig, {**_ENCODER, "pad_token_id": 1}),
    "camembert": (CamembertForSequenceClassification, CamembertConfig, {**_ENCODER, "pad_token_id": 1}),
    "electra": (ElectraForSequenceClassification, ElectraConfig, {**_ENCODER, "embedding_size": 16}),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig,
        {"vocab_size": 50, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 24, "num_labels": 3,
         "max_position_embeddings": 40},
    ),
    "mpnet": (MPNetForSequenceClassification, MPNetConfig, {**_ENCODER, "pad_token_id": 1}),
    "deberta-v2": (DebertaV2ForSequenceClassification, DebertaV2Config, _DEBERTA),
    "albert": (AlbertForSequenceClassification, AlbertConfig, {**_ENCODER, "embedding_size": 16}),
    "modernbert": (
        ModernBertForSequenceClassification,
        ModernBertConfig,
        {**_ENCODER, "layer_types": ["full_attention", "sliding_attention", "full_attention"], "local_attention": 4,
         "attention_bias": True, "mlp_bias": True, "norm_bias": True, "bos_token_id": 1, "eos_token_id": 2,
         "cls_token_id": 1, "sep_token_id": 2},
    ),
    "vit": (
        ViTForImageClassification,
        ViTConfig,
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24,
         "image_size": 12, "patch_size": 4, "num_labels": 3},
    ),
    "llama": (LlamaForCausalLM, LlamaConfig, _DECODER),
    "mistral": (MistralForCausalLM, MistralConfig, {**_DECODER, "sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {k: v for k, v in _DECODER.items() if k != "head_dim"}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, _DECODER),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, _GEMMA),
    "gemma3_text": (Gemma3ForCausalLM, Gemma3TextConfig, _GEMMA),
    "phi3": (Phi3ForCausalLM, Phi3Config, {k: v for k, v in _DECODER.items() if k != "head_dim"}),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {"vocab_size": 50, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "bart": (BartForConditionalGeneration, BartConfig, _SEQ2SEQ),
    "mbart": (MBartForConditionalGeneration, MBartConfig, _SEQ2SEQ),
    "marian": (MarianMTModel, MarianConfig, _SEQ2SEQ),
    "t5": (T5ForConditionalGeneration, T5Config, _T5),
    "t5-gated": (T5ForConditionalGeneration, T5Config, {**_T5, "feed_forward_proj": "gated-gelu"}),
    # One projection for tokens and positions, and the convolution behind the first layer.
    "deberta-v2-shared": (
        DebertaV2ForSequenceClassification,
        DebertaV2Config,
        {**_DEBERTA, "share_att_key": True, "conv_kernel_size": 3, "pos_att_type": ["p2c"]},
    ),
    "llama-classification": (LlamaForSequenceClassification, LlamaConfig, {**_DECODER, "num_labels": 3}),
    "bart-classification": (BartForSequenceClassification, BartConfig, {**_SEQ2SEQ, "num_labels": 3}),
}  # fmt: skip
FAMILIES = tuple(name for name, entry in MODELS.items() if entry[1].model_type == name)

EAGER_ONLY = ("mpnet", "deberta-v2", "deberta-v2-shared", "gemma2")  # transformers has no sdpa for them


def attentions(name: str) -> tuple[str, ...]:
    """The attention implementations that transformers has for a model, the usual one first."""
    return ("eager",) if name in EAGER_ONLY else ("sdpa", "eager")


def build(
    name: str, attention: str | None = None, seed: int = 0, head: type[PreTrainedModel] | None = None, **changes
) -> PreTrainedModel:
    """A tiny random model in eval mode, in which every weight, biases and norms included, differs from its default.

    `head` is its class, if not the one in `MODELS`.
    """
    model_class, config_class, values = MODELS[name]
    model_class = head or model_class
    torch.manual_seed(seed)
    config = config_class(**{**values, **changes})
    config._attn_implementation = attention or attentions(name)[0]
    model = model_class(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # Marian's sinusoidal positions are recomputed at loading and must keep their values.
            if parameter.requires_grad and "embed_positions" not in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Set every dropout probability to zero, whether a module's or an attribute of an attention or layer."""
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def inputs_for(model: PreTrainedModel, batch: int = 3, length: int = 9, labels: bool = False) -> dict:
    """A right-padded batch, with decoder inputs or labels for an encoder-decoder; images for a model of images."""
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        inputs = {"pixel_values": torch.randn(batch, model.config.num_channels, size, size, generator=generator)}
        return {**inputs, "labels": torch.randint(0, 3, (batch,), generator=generator)} if labels else inputs
    ids = torch.randint(3, 50, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, length - 2 * row :] = 0
    pad = model.config.pad_token_id if model.config.pad_token_id is not None else 0
    ids = ids.masked_fill(mask == 0, pad)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "MultipleChoice" in type(model).__name__:  # the rows again, in another order, as second choices
        inputs = {key: torch.stack([value, value.flip(0)], dim=1) for key, value in inputs.items()}
    classifies = "Classification" in type(model).__name__
    if model.config.is_encoder_decoder and not classifies:
        targets = torch.randint(3, 50, (batch, 7), generator=generator)
        inputs["labels" if labels else "decoder_input_ids"] = targets
    elif labels:
        inputs["labels"] = torch.randint(0, 3, (batch,), generator=generator) if classifies else ids
    if classifies and model.config.is_encoder_decoder:  # it reads the last end-of-sequence token
        ids[:, -1] = model.config.eos_token_id
        inputs["attention_mask"] = torch.ones_like(ids)
    return inputs


def logits(model: PreTrainedModel, inputs: dict) -> torch.Tensor:
    """Logits at the positions that are not padding."""
    with torch.no_grad():
        result = model(**inputs).logits
    if result.dim() == 3 and not model.config.is_encoder_decoder:
        return result[inputs["attention_mask"].bool()]
    return result


def corner_cases(model: PreTrainedModel) -> dict[str, SubNetwork]:
    """The sub-networks at which implementations break."""
    structure = describe(model)
    generator = torch.Generator().manual_seed(7)

    def some(units: int) -> list[int]:
        count = int(torch.randint(1, units, (1,), generator=generator))
        return torch.randperm(units, generator=generator)[:count].tolist()

    def pick(condition, value) -> dict:
        return {s.name: value(s) if callable(value) else value for s in structure if condition(s)}

    attention = lambda s: s.layout.is_attention  # noqa: E731
    feed_forward = lambda s: not s.layout.is_attention  # noqa: E731
    cases = {
        "full": {},
        "uniform half": pick(lambda s: True, lambda s: s.units // 2),
        "one head left": pick(attention, 1),
        "no head left, bias stays": pick(attention, 0),
        "no head left in one layer": pick(lambda s: attention(s) and s.layer == 0, 0),
        "one neuron left": pick(feed_forward, 1),
        "no neuron left, bias stays": pick(feed_forward, 0),
        "attention of the first layer gone": pick(lambda s: attention(s) and s.layer == 0, None),
        "attention of a middle layer gone": pick(lambda s: attention(s) and s.layer == 1, None),
        "all attention gone": pick(attention, None),
        "feed-forward gone": pick(lambda s: feed_forward(s) and s.layer == 1, None),
        "attention gone but its norm": pick(lambda s: attention(s) and s.layer == 0, NORM_ONLY),
        "feed-forward gone but its norm": pick(lambda s: feed_forward(s) and s.layer == 1, NORM_ONLY),
        "nothing but norms": pick(lambda s: True, NORM_ONLY),
        "first layer gone": pick(lambda s: s.layer == 0, None),
        "a layer of the first stack gone": pick(
            lambda s: s.stack == structure.sub_layers[0].stack and s.layer == 1, None
        ),
        "middle layer gone": pick(lambda s: s.layer == 1, None),
        "all layers gone": pick(lambda s: True, None),
        "other units in every layer": pick(lambda s: True, lambda s: some(s.units)),
        "everything at once": {
            **pick(lambda s: s.layer == 0, lambda s: some(s.units)),
            **pick(lambda s: s.layer == 1 and attention(s), None),
            **pick(lambda s: s.layer == 2 and feed_forward(s), 0),
        },
    }
    return {name: SubNetwork.of(structure, kept) for name, kept in cases.items()}


class _Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def dense_oracle(model: PreTrainedModel, sub_network: SubNetwork) -> PreTrainedModel:
    """The same function without any slicing: a full-size copy in which the weights that read removed units are zero.

    Written apart from the library: skipped sub-layers get a zero output projection and an identity for their norm.
    """
    oracle = copy.deepcopy(model)
    base = oracle.base_model
    for sub_layer in describe(model):
        kept = sub_network[sub_layer.name]
        reader = sub_layer.module(base, sub_layer.layout.reader)
        mask = torch.zeros(sub_layer.units)
        mask[list(kept_ids(kept))] = 1
        mask = mask.repeat_interleave(sub_layer.features)
        with torch.no_grad():
            reader.weight.mul_(mask if isinstance(reader, nn.Linear) else mask[:, None])
            if kept in (None, NORM_ONLY) and getattr(reader, "bias", None) is not None:
                reader.bias.zero_()
        if kept is None:
            for path in sub_layer.layout.norms:
                base.get_submodule(sub_layer.path).set_submodule(path, _Lambda(lambda x: x))
    return oracle
