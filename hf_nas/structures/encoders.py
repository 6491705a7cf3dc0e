"""Layouts of encoder families."""

from dataclasses import replace

from hf_nas.structures.layouts import Family, HeadLayout, HiddenLayout, StackLayout, SubLayerLayout


def _bert_hidden(
    prefix: str, classifier: tuple[str, ...], transform: str, norm: str, language: tuple[str, ...]
) -> HiddenLayout:
    """Hidden dimensions of BERT and RoBERTa, which differ in the heads of single sequences and of language models."""
    readers = {
        "SequenceClassification": classifier,
        "TokenClassification": ("classifier",),
        "QuestionAnswering": ("qa_outputs",),
        "MultipleChoice": (),  # it reads the pooler, whose output keeps its width
    }
    return HiddenLayout(
        size="hidden_size",
        tables=tuple(f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")),
        norms=("embeddings.LayerNorm",),
        readers=("pooler.dense",),
        heads=(
            *(HeadLayout(f"{prefix}For{task}", paths) for task, paths in readers.items()),
            *(HeadLayout(f"{prefix}For{task}", (transform,), (transform,), (norm,)) for task in language),
        ),
    )


def _bert_like(model_type: str, hidden: HiddenLayout | None = None) -> Family:
    # Residual and norm sit inside `attention` and `output`, so skipping replaces these modules as a whole.
    attention = SubLayerLayout(
        kind="attention",
        writers=("attention.self.query", "attention.self.key", "attention.self.value"),
        reader="attention.output.dense",
        norms=("attention.output.LayerNorm",),
        bypass=(("attention", "attention_identity"),),
        norm_only=(("attention.self", "attention_identity"), ("attention.output.dense", "zeros")),
        sizes=("num_attention_heads",),
        core="attention.self",
        head_size="attention_head_size",
        attributes=("num_attention_heads", "all_head_size"),
    )
    feed_forward = SubLayerLayout(
        kind="feed_forward",
        writers=("intermediate.dense",),
        reader="output.dense",
        norms=("output.LayerNorm",),
        bypass=(("intermediate", "identity"), ("output", "residual")),
        norm_only=(("intermediate", "identity"), ("output.dense", "zeros")),
        sizes=("intermediate_size",),
    )
    return Family(
        model_type,
        (StackLayout("encoder", "encoder.layer", "num_hidden_layers", (attention, feed_forward)),),
        hidden=hidden,
    )


def _distilbert() -> Family:
    attention = SubLayerLayout(
        kind="attention",
        writers=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        reader="attention.out_lin",
        norms=("sa_layer_norm",),
        bypass=(("attention", "attention_zeros"), ("sa_layer_norm", "identity")),
        norm_only=(("attention", "attention_zeros"),),
        sizes=("n_heads",),
        core="attention",
        head_size="attention_head_size",
        attributes=("n_heads",),
    )
    feed_forward = SubLayerLayout(
        kind="feed_forward",
        writers=("ffn.lin1",),
        reader="ffn.lin2",
        norms=("output_layer_norm",),
        bypass=(("ffn", "zeros"), ("output_layer_norm", "identity")),
        norm_only=(("ffn", "zeros"),),
        sizes=("hidden_dim",),
    )
    return Family("distilbert", (StackLayout("encoder", "transformer.layer", "n_layers", (attention, feed_forward)),))


def _mpnet() -> Family:
    attention = SubLayerLayout(
        kind="attention",
        writers=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        reader="attention.attn.o",
        norms=("attention.LayerNorm",),
        bypass=(("attention", "attention_identity"),),
        norm_only=(("attention.attn", "attention_zeros"),),
        sizes=("num_attention_heads",),
        core="attention.attn",
        head_size="attention_head_size",
        attributes=("num_attention_heads", "all_head_size"),
        position_bias="stack",
    )
    (bert,) = _bert_like("bert").stacks
    return Family("mpnet", (replace(bert, sub_layers=(attention, bert.sub_layers[1])),))


def _deberta() -> Family:
    (bert,) = _bert_like("bert").stacks
    attention, feed_forward = bert.sub_layers
    disentangled = replace(
        attention,
        writers=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        # Without share_att_key positions have projections of their own.
        optional_writers=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        disentangled=True,
    )
    # The convolution that some models have reads what enters and leaves the first layer.
    return Family("deberta-v2", (replace(bert, sub_layers=(disentangled, feed_forward), pinned_by="encoder.conv"),))


def _albert() -> Family:
    attention = SubLayerLayout(
        kind="attention",
        writers=("attention.query", "attention.key", "attention.value"),
        reader="attention.dense",
        norms=("attention.LayerNorm",),
        bypass=(("attention", "attention_identity"),),
        # What is left of the module still adds the residual and normalises.
        norm_only=(
            ("attention.query", "identity"),
            ("attention.key", "identity"),
            ("attention.value", "identity"),
            ("attention.dense", "zeros"),
        ),
        sizes=("num_attention_heads",),
        core="attention",
        head_size="attention_head_size",
        attributes=("num_attention_heads", "all_head_size"),
    )
    feed_forward = SubLayerLayout(
        kind="feed_forward",
        writers=("ffn",),
        reader="ffn_output",
        norms=("full_layer_layer_norm",),
        bypass=(("ffn", "identity"), ("ffn_output", "zeros"), ("full_layer_layer_norm", "identity")),
        norm_only=(("ffn", "identity"), ("ffn_output", "zeros")),
        sizes=("intermediate_size",),
    )
    shared = StackLayout(
        name="encoder",
        path="encoder.albert_layer_groups.0.albert_layers",
        depth="inner_group_num",
        sub_layers=(attention, feed_forward),
        repeats="num_hidden_layers",
    )
    return Family("albert", (shared,), requires=(("num_hidden_groups", 1), ("inner_group_num", 1)))


def _modernbert() -> Family:
    attention = SubLayerLayout(
        kind="attention",
        writers=("attn.Wqkv",),
        reader="attn.Wo",
        norms=("attn_norm",),
        bypass=(("attn", "attention_zeros"), ("attn_norm", "identity")),
        sizes=("num_attention_heads",),
        core="attn",
        head_size="head_dim",
        # Stated, the rotary embedding does not read the number of heads, which differs from layer to layer.
        head_size_field="head_dim",
        fused=3,
    )
    feed_forward = SubLayerLayout(
        kind="feed_forward",
        writers=("mlp.Wi",),
        reader="mlp.Wo",
        norms=("mlp_norm",),
        bypass=(("mlp", "zeros"), ("mlp_norm", "identity")),
        sizes=("intermediate_size",),
        fused=2,
    )
    # The first layer of the list never has a norm before its attention, whichever layer that is.
    stack = StackLayout("encoder", "layers", "num_hidden_layers", (attention, feed_forward), pinned_by="layers.0")
    return Family("modernbert", (stack,))


def _vit() -> Family:
    attention = SubLayerLayout(
        kind="attention",
        writers=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        reader="attention.o_proj",
        norms=("layernorm_before",),
        bypass=(("attention", "attention_zeros"), ("layernorm_before", "identity")),
        sizes=("num_attention_heads",),
        core="attention",
        head_size="head_dim",
        head_size_field="head_dim",
        attributes=("num_attention_heads",),
    )
    feed_forward = SubLayerLayout(
        kind="feed_forward",
        writers=("mlp.fc1",),
        reader="mlp.fc2",
        norms=("layernorm_after",),
        bypass=(("mlp", "zeros"), ("layernorm_after", "identity")),
        sizes=("intermediate_size",),
    )
    return Family("vit", (StackLayout("encoder", "layers", "num_hidden_layers", (attention, feed_forward)),))


_BERT_HIDDEN = _bert_hidden(
    "Bert", (), "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", ("MaskedLM", "PreTraining")
)


def _roberta_like(model_type: str, prefix: str) -> Family:
    hidden = _bert_hidden(prefix, ("classifier.dense",), "lm_head.dense", "lm_head.layer_norm", ("MaskedLM",))
    return _bert_like(model_type, hidden)


FAMILIES = (
    _bert_like("bert", _BERT_HIDDEN),
    _roberta_like("roberta", "Roberta"),
    _roberta_like("xlm-roberta", "XLMRoberta"),
    _roberta_like("camembert", "Camembert"),
    _bert_like("electra"),
    _distilbert(),
    _mpnet(),
    _deberta(),
    _albert(),
    _modernbert(),
    _vit(),
)
