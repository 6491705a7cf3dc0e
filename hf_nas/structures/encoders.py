"""Layouts of encoder families."""

from dataclasses import replace

from hf_nas.structures.base import Family, HeadLayout, HiddenLayout, StackLayout, SubLayerLayout


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


_BERT_HIDDEN = _bert_hidden(
    "Bert", (), "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", ("MaskedLM", "PreTraining")
)
_ROBERTA_HIDDEN = _bert_hidden("Roberta", ("classifier.dense",), "lm_head.dense", "lm_head.layer_norm", ("MaskedLM",))

FAMILIES = (
    _bert_like("bert", _BERT_HIDDEN),
    _bert_like("roberta", _ROBERTA_HIDDEN),
    _bert_like("electra"),
    _distilbert(),
    _mpnet(),
)
