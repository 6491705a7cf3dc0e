"""What can be pruned in which family, as the text of `docs/families.md`: read off the layouts, never written by hand.

python -m hf_nas.structures.table > docs/families.md
"""

from collections.abc import Callable

from hf_nas.structures import decoders, encoders, seq2seq
from hf_nas.structures.layouts import Family, StackLayout, SubLayerLayout


__all__ = ["families_document", "families_table"]

_TEXT = """# Families

What sub-networks of each model family can leave out. A family is the `model_type` of a configuration; its layers are
found under every task head that transformers has for it: classification of sequences, tokens and images, question
answering, multiple choice, and masked, causal and sequence-to-sequence language models.

This page is generated from the layouts in `hf_nas/structures/`:
`python -m hf_nas.structures.table > docs/families.md`.

{table}

* **attention**: what one unit is. A *key-value head* goes together with the query heads that read it. *fused*: one
  projection holds query, key and value, or both halves of a gated network, which are cut alike.
* **neurons**: of the feed-forward networks; *gated* ones have two projections into them.
* **norm stays**: whether a skipped sub-layer can keep its normalisation. Where the normalisation comes first, it would
  have nothing to do.
* **layers**: whether whole layers leave the list, so that the small model is a shallower one. Any sub-layer of any
  family can be skipped.
* **hidden dimensions**: whether the residual stream itself gets narrower, which CoFi does.

Another family is one entry of `hf_nas.structures.Family`, made known with `hf_nas.register_family`; it then has a
place in every method, in extraction and in loading. Gemma 3 is the model of text (`Gemma3ForCausalLM`). transformers
has only eager attention for MPNet, DeBERTa-v2 and Gemma 2.
"""


def _units(layouts: list[SubLayerLayout], say: Callable[[SubLayerLayout], str]) -> str:
    return "; ".join(dict.fromkeys(say(layout) for layout in layouts))


def _attention(layout: SubLayerLayout) -> str:
    head = "key-value heads" if "num_key_value_heads" in layout.sizes else "heads"
    return f"{head}, fused" if layout.fused > 1 else head


def _neurons(layout: SubLayerLayout) -> str:
    if layout.fused > 1:
        return "gated, fused"
    if layout.writers:
        return "gated" if len(layout.writers) > 1 else "plain"
    return "plain or gated"


def _layers(stack: StackLayout) -> str:
    if stack.repeats:
        return "share their weights: the same is kept of all, none can go alone"
    if not stack.pinned_by:
        return "any"
    if stack.pinned_by.startswith(stack.path):
        return "any; the first one stays in the list, bypassed"
    return f"any; where there is an `{stack.pinned_by}`, the first one stays in the list, bypassed"


def _row(family: Family) -> tuple[str, ...]:
    layouts = [layout for stack in family.stacks for layout in stack.sub_layers]
    attentions = [layout for layout in layouts if layout.is_attention]
    networks = [layout for layout in layouts if not layout.is_attention]
    crossed = any(layout.kind == "cross_attention" for layout in attentions)
    only = " and ".join(f"`{field}` {value}" for field, value in family.requires)
    return (
        f"`{family.model_type}`" + (f" with {only}" if only else ""),
        " + ".join(stack.name for stack in family.stacks),
        _units(attentions, _attention) + (", cross-attention apart" if crossed else ""),
        _units(networks, _neurons),
        "yes" if all(layout.norm_only for layout in layouts) else "no",
        _units(list(family.stacks), _layers),
        "no" if family.hidden is None else "yes",
    )


def families_table() -> str:
    """The table of the families that come with hf-nas, in Markdown."""
    header = ("family", "layers of", "attention", "neurons", "norm stays", "layers", "hidden dimensions")
    families = (*encoders.FAMILIES, *decoders.FAMILIES, *seq2seq.FAMILIES)
    rows = [header, ("---",) * len(header), *map(_row, families)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def families_document() -> str:
    """The text of `docs/families.md`."""
    return _TEXT.format(table=families_table())


if __name__ == "__main__":
    print(families_document(), end="")
