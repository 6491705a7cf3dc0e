"""Layouts of decoder families. Under grouped-query attention the unit is a key-value head with its query heads."""

from dataclasses import replace

from hf_nas.structures.layouts import Family, StackLayout, SubLayerLayout


def _decoder(model_type: str, *sub_layers: SubLayerLayout) -> Family:
    return Family(model_type, (StackLayout("decoder", "layers", "num_hidden_layers", sub_layers),))


def _llama_like(model_type: str) -> Family:
    attention = SubLayerLayout(
        kind="attention",
        writers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        reader="self_attn.o_proj",
        norms=("input_layernorm",),
        bypass=(("self_attn", "attention_zeros"), ("input_layernorm", "identity")),
        sizes=("num_key_value_heads", "num_attention_heads"),
        core="self_attn",
        head_size="head_dim",
        head_size_field="head_dim",
    )
    feed_forward = SubLayerLayout(
        kind="feed_forward",
        writers=("mlp.gate_proj", "mlp.up_proj"),
        reader="mlp.down_proj",
        norms=("post_attention_layernorm",),
        bypass=(("mlp", "zeros"), ("post_attention_layernorm", "identity")),
        sizes=("intermediate_size",),
    )
    return _decoder(model_type, attention, feed_forward)


def _sandwiched(layout: SubLayerLayout, before: str, after: str) -> SubLayerLayout:
    """The same between two normalisations; the second one makes zeros of zeros and multiplies by 1 + weight."""
    return replace(
        layout,
        norms=(before, after),
        bypass=(layout.bypass[0], (before, "identity"), (after, "identity")),
        output_norm=after,
        output_norm_offset=1.0,
    )


def _gemma_like(model_type: str) -> Family:
    attention, feed_forward = _llama_like("llama").stacks[0].sub_layers
    return _decoder(
        model_type,
        _sandwiched(attention, "input_layernorm", "post_attention_layernorm"),
        _sandwiched(feed_forward, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    )


def _phi3() -> Family:
    attention, feed_forward = _llama_like("llama").stacks[0].sub_layers
    return _decoder(
        "phi3",
        replace(
            attention,
            writers=("self_attn.qkv_proj",),
            fused=3,
            attributes=("num_key_value_heads",),
            config_attributes=("num_attention_heads",),
        ),
        replace(feed_forward, writers=("mlp.gate_up_proj",), fused=2),
    )


def _gpt2() -> Family:
    attention = SubLayerLayout(
        kind="attention",
        writers=("attn.c_attn",),
        reader="attn.c_proj",
        norms=("ln_1",),
        bypass=(("attn", "attention_zeros"), ("ln_1", "identity")),
        sizes=("n_head",),
        core="attn",
        head_size="head_dim",
        attributes=("num_heads", "split_size"),
        fused=3,
    )
    feed_forward = SubLayerLayout(
        kind="feed_forward",
        writers=("mlp.c_fc",),
        reader="mlp.c_proj",
        norms=("ln_2",),
        bypass=(("mlp", "zeros"), ("ln_2", "identity")),
        sizes=("n_inner",),
    )
    return Family("gpt2", (StackLayout("decoder", "h", "n_layer", (attention, feed_forward)),))


FAMILIES = (
    _llama_like("llama"),
    _llama_like("mistral"),
    _llama_like("qwen2"),
    _llama_like("qwen3"),
    _gemma_like("gemma2"),
    _gemma_like("gemma3_text"),
    _phi3(),
    _gpt2(),
)
