"""The page of a run: one file, no other assets, readable in light and dark, by mouse, keyboard and screen reader."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from hf_nas.files import write_text
from hf_nas.report.data import FrontRow, FrontTable
from hf_nas.report.page.assets import SCRIPT, STYLE
from hf_nas.report.page.charts import draw_chart, draw_front
from hf_nas.report.page.data import PageData
from hf_nas.report.page.structure import draw_structure_table
from hf_nas.report.run_folder import RunFolder
from hf_nas.version import __version__


__all__ = ["PAGE_FILE", "render_page", "write_page"]

PAGE_FILE = "report.html"
# Whatever gets into the page, it loads nothing and sends nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def write_page(folder: str | Path) -> Path:
    """Write `report.html` about a run into its output folder, atomically.

    Args:
        folder: the output folder of the run, or the one of its small model.

    Returns:
        The path of the page.

    Raises:
        ValueError: if there is no run in the folder, or a file of it is damaged.
    """
    run = RunFolder.read(folder)
    path = run.folder / PAGE_FILE
    write_text(path, render_page(PageData.of(run)))
    return path


def render_page(data: PageData) -> str:
    """The page as text; everything that is not our own markup is escaped.

    Args:
        data: what it shows.
    """
    sections = [section for section in (_front(data), _structure(data), _curves(data), _table(data)) if section]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    bodies = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>{body}'
        "</section>"
        for name, title, body in sections
    )
    facts = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in data.facts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="hf-nas {escape(__version__)}">'
        f"<title>{escape(data.title)}</title><style>{STYLE}</style></head>\n"
        f'<body><main><h1>{escape(data.title)}</h1><nav aria-label="Sections">{links}</nav><dl>{facts}</dl>\n'
        f'{bodies}</main><div id="tip" role="status" hidden></div>\n<script>{SCRIPT}</script></body></html>\n'
    )


_Section = tuple[str, str, str]


def _front(data: PageData) -> _Section | None:
    picture = draw_front(data.front) if data.front is not None else ""
    if not picture:
        return None
    looks = (
        ("background:var(--c1)", "chosen"), ("background:var(--c0)", "front"), ("background:var(--dot)", "evaluated"),
        ("border:2px solid var(--ink)", "largest"),
    )  # fmt: skip
    legend = "".join(f'<span><i style="{style}"></i>{name}</span>' for style, name in looks)
    note = "Point at a sub-network, or reach those on the front with the tabulator key, to read its numbers."
    body = (
        f'<p class="note">{note}</p><figure class="front">{picture}'
        f'<figcaption class="legend">{legend}</figcaption></figure>'
    )
    return "front", "Front", body


def _structure(data: PageData) -> _Section | None:
    if not data.structure:
        return None
    hidden = f" {data.hidden:,} hidden dimensions are left." if data.hidden is not None else ""
    note = f"What the chosen model keeps of the dense one: filled is left, empty is gone.{hidden}"
    table = draw_structure_table(data.structure)
    label = "Heads and neurons by layer"
    body = (
        f'<p class="note">{note}</p><div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>'
    )
    return "structure", "Structure of the chosen model", body


def _curves(data: PageData) -> _Section | None:
    charts = [*([data.hypervolume] if data.hypervolume is not None else []), *data.curves]
    if not charts:
        return None
    figures = "".join(
        f"<figure>{draw_chart(chart)}<figcaption>{escape(chart.title)}</figcaption></figure>" for chart in charts
    )
    title = "Search and training" if data.hypervolume is not None else "Training"
    return "curves", title, f'<div class="charts">{figures}</div>'


def _table(data: PageData) -> _Section | None:
    table = data.front
    if table is None or not table.rows:
        return None
    names = ["net", "parameters", "share in the layers", "share of MACs", f"{table.metric_name} (selection)"]
    has_reported = any(row.reported is not None for row in table.rows)
    names += [f"{table.metric_name} (validation)"] if has_reported else []
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in names)
    body = "".join(_row(row, table, has_reported) for row in table.rows)
    label = f"All {len(table.rows)} sub-networks"
    button = f'<button id="all" type="button" class="plain" aria-pressed="false">{label}</button>'
    return (
        "table",
        "Sub-networks",
        f'{button}<div class="scroll" tabindex="0" role="region" aria-label="Sub-networks">'
        f'<table id="networks" class="few"><thead><tr>{head}<td></td></tr></thead><tbody>{body}</tbody></table></div>',
    )


def _row(row: FrontRow, table: FrontTable, has_reported: bool) -> str:
    is_largest = row is table.largest
    classes = (("shown", row.on_front or row.chosen or is_largest), ("chosen", row.chosen))
    name = " ".join(name for name, is_so in classes if is_so)
    cells: Sequence[tuple[float | None, str]] = [
        (row.index, f"{row.index}"),
        (row.parameters, f"{row.parameters:,}"),
        (row.parameters_share, f"{row.parameters_share:.1%}"),
        (row.macs_share, f"{row.macs_share:.1%}"),
        (row.metric, "" if row.metric is None else f"{row.metric:.4f}"),
        *([(row.reported, "" if row.reported is None else f"{row.reported:.4f}")] if has_reported else []),
    ]
    drawn = "".join(f'<td data-value="{"" if value is None else value}">{text}</td>' for value, text in cells)
    return f'<tr class="{name}">{drawn}<td>{"chosen" if row.chosen else "largest" if is_largest else ""}</td></tr>'
