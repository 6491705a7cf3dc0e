"""The page about a run: the numbers (`data`), their pictures (`charts`, `structure`) and the file (`html`)."""

from hf_nas.report.page.data import Chart, LayerPicture, PageData, Series, SubLayerPicture, draw_structure
from hf_nas.report.page.html import PAGE_FILE, render_page, write_page


__all__ = [
    "PAGE_FILE",
    "Chart",
    "LayerPicture",
    "PageData",
    "Series",
    "SubLayerPicture",
    "draw_structure",
    "render_page",
    "write_page",
]
