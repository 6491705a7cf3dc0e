"""The page in a real browser: what mouse and keyboard do, both colour schemes, and texts that are no markup."""

import json
import re
from html import unescape

import pytest

from hf_nas.report import FrontRow, FrontTable
from hf_nas.report.page import Chart, PageData, Series, draw_structure, render_page
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork
from tests import zoo
from tests.report.browser import open_page


EVIL = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>\'&'

# What a person does, in the page's own language; what is found is written into the document.
VISIT = """
<script>
const found = {errors: []};
addEventListener("error", (event) => found.errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => found.errors.push(event.violatedDirective));
addEventListener("load", () => {
  const tip = document.getElementById("tip");
  const state = () => tip.hidden ? null : tip.textContent;
  const points = Array.from(document.querySelectorAll("#front circle"));
  const chosen = document.querySelector("circle.chosen");
  found.before = state();
  chosen.dispatchEvent(new PointerEvent("pointerenter"));
  found.hovered = state();
  const box = tip.getBoundingClientRect();
  found.inside = box.left >= 0 && box.right <= document.documentElement.clientWidth && box.top >= 0;
  chosen.dispatchEvent(new PointerEvent("pointerleave"));
  found.left = state();
  const stops = points.filter((point) => point.tabIndex === 0);
  found.stops = stops.map((point) => point.getAttribute("class"));
  found.focused = stops.map((point) => { point.focus(); return state(); });
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  found.escaped = state();
  const visible = () => Array.from(document.querySelectorAll("#networks tbody tr"))
    .filter((row) => getComputedStyle(row).display !== "none").map((row) => row.cells[0].textContent);
  found.few = visible();
  const all = document.getElementById("all");
  all.click();
  found.all = visible();
  found.pressed = all.getAttribute("aria-pressed");
  const sort = document.querySelectorAll("#networks th button")[4];
  sort.click();
  found.rising = visible();
  sort.click();
  found.falling = visible();
  found.sorted = sort.parentElement.getAttribute("aria-sort");
  all.click();
  found.again = visible();
  found.evil = window.evil === undefined ? null : window.evil;
  found.foreign = document.querySelectorAll("main img, main script").length;
  const style = getComputedStyle(document.body);
  found.colors = [style.backgroundColor, style.color];
  found.line = getComputedStyle(document.querySelector("polyline.s0")).stroke;
  found.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  const text = document.createElement("pre");
  text.id = "found";
  text.textContent = JSON.stringify(found);
  document.body.append(text);
});
</script></body>
"""


def page() -> str:
    rows = (
        FrontRow(3, 100, 0.1, 0.1, 0.5, None, on_front=True),
        FrontRow(1, 150, 0.5, 0.4, None),
        FrontRow(4, 170, 0.55, 0.4, 0.4),
        FrontRow(2, 200, 0.6, 0.5, 0.75, 0.7, on_front=True, chosen=True),
        FrontRow(0, 300, 1.0, 1.0, 0.8, 0.72, on_front=True),
    )
    model = zoo.build("bert")
    data = PageData(
        title=EVIL,
        facts=((EVIL, EVIL), ("long", "x" * 300)),
        front=FrontTable(rows, EVIL),
        hypervolume=Chart(EVIL, EVIL, (Series(EVIL, ((0, 0.0), (1, 1.0))),), steps=True),
        structure=draw_structure(SubNetwork.of(describe(model), {"encoder.0.attention": (1, 2)})),
        curves=(Chart("loss", "step", (Series("loss", ((0, 1.0), (1, 0.5))), Series("eval_loss", ((0, 2.0),)))),),
    )
    return render_page(data)


def visit(tmp_path, *options: str) -> dict:
    dom = open_page(page().replace("</body>", VISIT), tmp_path, *options)
    match = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert match is not None, dom[-2000:]
    return json.loads(unescape(match.group(1)))


@pytest.mark.timeout(600)
def test_a_visit(tmp_path) -> None:
    found = visit(tmp_path)
    assert found["errors"] == [] and found["evil"] is None and found["foreign"] == 0
    assert found["before"] is None and found["left"] is None and found["escaped"] is None
    assert found["hovered"].startswith("Sub-network 2 (chosen, on the front): 200 parameters") and found["inside"]
    assert f"{EVIL} 0.7500 (selection), 0.7000 (validation)" in found["hovered"]
    assert found["stops"] == ["front", "largest", "chosen"]
    assert [text.split(":")[0] for text in found["focused"]] == [
        "Sub-network 3 (on the front)", "Sub-network 0 (largest, on the front)", "Sub-network 2 (chosen, on the front)"
    ]  # fmt: skip
    assert found["few"] == found["again"][::-1] == ["3", "2", "0"]
    assert found["all"] == ["3", "1", "4", "2", "0"] and found["pressed"] == "true"
    assert found["rising"] == ["1", "4", "3", "2", "0"] and found["falling"] == found["rising"][::-1]
    assert found["sorted"] == "descending" and not found["wide"]
    dark = visit(tmp_path, "--blink-settings=preferredColorScheme=0")
    assert dark["errors"] == []
    for light, night in zip((*found["colors"], found["line"]), (*dark["colors"], dark["line"])):
        assert light != night
    background, ink = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in dark["colors"])
    assert background < 150 < 500 < ink


@pytest.mark.timeout(600)
def test_a_narrow_screen(tmp_path) -> None:
    assert not visit(tmp_path, "--window-size=500,900")["wide"]
