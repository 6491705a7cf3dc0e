"""Layouts of encoder-decoder families. Cross-attention is a sub-layer of its own."""

from dataclasses import replace

from hf_nas.structures.layouts import Family, StackLayout, SubLayerLayout


def _bart_attention(kind: str, module: str, heads: str) -> SubLayerLayout:
    norm = f"{module}_layer_norm"
    return SubLayerLayout(
        kind=kind,
        writers=(f"{module}.q_proj", f"{module}.k_proj", f"{module}.v_proj"),
        reader=f"{module}.out_proj",
        norms=(norm,),
        bypass=((module, "attention_zeros"), (norm, "identity")),
        norm_only=((module, "attention_zeros"),),
        sizes=(heads,),
        core=module,
        head_size="head_dim",
        attributes=("num_heads",),
    )


def _bart_feed_forward(neurons: str) -> SubLayerLayout:
    return SubLayerLayout(
        kind="feed_forward",
        writers=("fc1",),
        reader="fc2",
        norms=("final_layer_norm",),
        bypass=(("fc1", "identity"), ("fc2", "zeros"), ("final_layer_norm", "identity")),
        norm_only=(("fc1", "identity"), ("fc2", "zeros")),
        sizes=(neurons,),
    )


def _bart_like(model_type: str) -> Family:
    encoder = (
        _bart_attention("attention", "self_attn", "encoder_attention_heads"),
        _bart_feed_forward("encoder_ffn_dim"),
    )
    decoder = (
        _bart_attention("attention", "self_attn", "decoder_attention_heads"),
        _bart_attention("cross_attention", "encoder_attn", "decoder_attention_heads"),
        _bart_feed_forward("decoder_ffn_dim"),
    )
    return Family(
        model_type,
        (
            StackLayout("encoder", "encoder.layers", "encoder_layers", encoder),
            StackLayout("decoder", "decoder.layers", "decoder_layers", decoder),
        ),
    )


def _t5_attention(kind: str, sub_layer: str, module: str) -> SubLayerLayout:
    core = f"{sub_layer}.{module}"
    return SubLayerLayout(
        kind=kind,
        writers=(f"{core}.q", f"{core}.k", f"{core}.v"),
        reader=f"{core}.o",
        norms=(f"{sub_layer}.layer_norm",),
        bypass=((core, "biased_attention_zeros"), (f"{sub_layer}.layer_norm", "identity")),
        sizes=("num_heads",),
        core=core,
        head_size="key_value_proj_dim",
        attributes=("n_heads", "inner_dim"),
        position_bias="first_layer" if kind == "attention" else "",
    )


def _t5_feed_forward(sub_layer: str) -> SubLayerLayout:
    module = f"{sub_layer}.DenseReluDense"
    return SubLayerLayout(
        kind="feed_forward",
        writers=(),
        # T5 v1.1 and Flan-T5 have a gated network under the same model type.
        optional_writers=(f"{module}.wi", f"{module}.wi_0", f"{module}.wi_1"),
        reader=f"{module}.wo",
        norms=(f"{sub_layer}.layer_norm",),
        bypass=((module, "zeros"), (f"{sub_layer}.layer_norm", "identity")),
        sizes=("d_ff",),
    )


def _t5() -> Family:
    encoder = (_t5_attention("attention", "layer.0", "SelfAttention"), _t5_feed_forward("layer.1"))
    decoder = (
        _t5_attention("attention", "layer.0", "SelfAttention"),
        _t5_attention("cross_attention", "layer.1", "EncDecAttention"),
        _t5_feed_forward("layer.2"),
    )
    return Family(
        "t5",
        (
            StackLayout("encoder", "encoder.block", "num_layers", encoder),
            StackLayout("decoder", "decoder.block", "num_decoder_layers", decoder),
        ),
        cache_stack="encoder",
    )


def _mbart() -> Family:
    """Bart with the normalisations before the sub-layers, where none stays without the rest."""
    stacks = [
        replace(stack, sub_layers=tuple(replace(layout, norm_only=()) for layout in stack.sub_layers))
        for stack in _bart_like("bart").stacks
    ]
    return Family("mbart", tuple(stacks))


FAMILIES = (_bart_like("bart"), _mbart(), _bart_like("marian"), _t5())
