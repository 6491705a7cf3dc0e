"""The picture of what a model keeps: a square for every head, a bar for the neurons of every layer."""

from collections.abc import Sequence
from html import escape

from hf_nas.report.page.data import LayerPicture, SubLayerPicture


__all__ = ["draw_structure_table"]

# More squares than this in a row are a bar as well.
_MOST_SQUARES = 64
_SQUARE, _GAP, _BAR_WIDTH, _BAR_PARTS = 11, 3, 320, 64


def draw_structure_table(layers: Sequence[LayerPicture]) -> str:
    """A table with a row for each layer and a column for each kind of sub-layer; units that are left are filled.

    Args:
        layers: what is left.
    """
    kinds = list(dict.fromkeys(each.kind for layer in layers for each in layer.sub_layers))
    head = "".join(f'<th scope="col">{escape(kind)}</th>' for kind in kinds)
    rows = []
    for layer in layers:
        pictures = {each.kind: each for each in layer.sub_layers}
        cells = "".join(f"<td>{_draw(pictures[kind]) if kind in pictures else ''}</td>" for kind in kinds)
        rows.append(f'<tr><th scope="row">{escape(layer.name)}</th>{cells}</tr>')
    return f'<table class="structure"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _draw(picture: SubLayerPicture) -> str:
    text = f"{len(picture.kept):,} of {picture.total:,}"
    if picture.note:
        text = f"{text} ({picture.note})" if picture.total else picture.note
    squares = picture.kind != "neurons" and picture.total <= _MOST_SQUARES
    drawn = _squares(picture) if squares else _bar(picture)
    return f'{drawn}<span class="count">{escape(text)}</span>'


def _squares(picture: SubLayerPicture) -> str:
    kept, pitch = set(picture.kept), _SQUARE + _GAP
    width = max(picture.total * pitch - _GAP, 1)
    content = "".join(
        f'<rect class="{"kept" if unit in kept else "gone"}" x="{unit * pitch + 0.5}" y="0.5" rx="2" '
        f'width="{_SQUARE - 1}" height="{_SQUARE - 1}"/>'
        for unit in range(picture.total)
    )
    return f'<svg class="units" width="{width}" height="{_SQUARE}" aria-hidden="true">{content}</svg>'


def _bar(picture: SubLayerPicture) -> str:
    """The units in their order, cut into parts; the more of a part is left, the more of its height is filled."""
    parts = min(_BAR_PARTS, picture.total)
    frame = f'<rect class="gone" x="0.5" y="0.5" width="{_BAR_WIDTH - 1}" height="{_SQUARE - 1}" rx="2"/>'
    content = ""
    if parts:
        counts, sizes = [0] * parts, [0] * parts
        for unit in range(picture.total):
            sizes[unit * parts // picture.total] += 1
        for unit in picture.kept:
            counts[unit * parts // picture.total] += 1
        width = _BAR_WIDTH / parts
        for place, (count, size) in enumerate(zip(counts, sizes)):
            if count:
                height = _SQUARE * count / size
                content += (
                    f'<rect class="kept" x="{place * width:.2f}" y="{_SQUARE - height:.2f}" width="{width:.2f}" '
                    f'height="{height:.2f}"/>'
                )
    return f'<svg class="units" width="{_BAR_WIDTH}" height="{_SQUARE}" aria-hidden="true">{frame}{content}</svg>'
