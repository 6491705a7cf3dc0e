"""The style and the script of the page. Both are part of it: it asks no other file and no server for anything."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { color-scheme: light dark;
  --page: #ffffff; --ink: #1f2328; --soft: #57606a; --line: #d8dee4; --card: #f6f8fa; --link: #0757a8;
  --c0: #0072b2; --c1: #c24e00; --c2: #00795a; --c3: #a3417c; --c4: #8a6d00; --c5: #4a4f55;
  --dot: #9aa4ae; --kept: #0072b2; --focus: #c24e00; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0f1419; --ink: #e6edf3; --soft: #9aa7b4; --line: #2b333c; --card: #171d24; --link: #79b8f2;
  --c0: #56b4e9; --c1: #f0883e; --c2: #3fc494; --c3: #e092c2; --c4: #e3c64a; --c5: #aab4be;
  --dot: #5d6975; --kept: #56b4e9; --focus: #f0883e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
section, figure { min-width: 0; }
main { max-width: 1040px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; }
p.note { color: var(--soft); margin: 4px 0 12px; max-width: 75ch; }
a { color: var(--link); }
nav a { margin-right: 14px; }
dl { display: grid; grid-template-columns: fit-content(40%) minmax(0, 1fr); gap: 4px 18px; margin: 14px 0 0; }
dt { color: var(--soft); overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0; }
figure.front { max-width: 760px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px; }
.charts figure, figure.front, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px; }
figcaption { color: var(--soft); font-size: .85rem; }
svg { display: block; max-width: 100%; height: auto; }
svg.units { display: inline-block; vertical-align: middle; overflow: visible; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .label { fill: var(--ink); font-size: 12px; }
svg .series { fill: none; stroke-width: 1.8; }
svg .s0 { stroke: var(--c0); } svg .s1 { stroke: var(--c1); stroke-dasharray: 6 3; }
svg .s2 { stroke: var(--c2); stroke-dasharray: 2 3; } svg .s3 { stroke: var(--c3); stroke-dasharray: 8 3 2 3; }
svg .s4 { stroke: var(--c4); stroke-dasharray: 4 4; } svg .s5 { stroke: var(--c5); }
svg circle.dot { stroke-dasharray: none; fill: var(--card); }
svg circle.evaluated { fill: var(--dot); } svg circle.front { fill: var(--c0); }
svg circle.largest { fill: var(--card); stroke: var(--ink); stroke-width: 2; }
svg circle.chosen { fill: var(--c1); stroke: var(--page); stroke-width: 2; }
svg circle[data-tip] { cursor: pointer; }
svg circle:focus { outline: none; stroke: var(--focus); stroke-width: 3; }
.legend span { margin-right: 16px; white-space: nowrap; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 5px; }
.scroll { overflow-x: auto; padding: 0; }
.scroll:focus-visible, button:focus-visible, a:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; } tbody tr:last-child > * { border-bottom: 0; }
table.structure th, table.structure td { text-align: left; }
table.structure .count { margin-left: 10px; color: var(--soft); font-size: .85rem; }
rect.kept { fill: var(--kept); } rect.gone { fill: none; stroke: var(--dot); }
tr.chosen > * { font-weight: 600; } tr.chosen td:last-child { color: var(--c1); }
table.few tbody tr:not(.shown) { display: none; }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
button.plain { border: 1px solid var(--line); background: var(--card); border-radius: 6px; padding: 4px 12px;
  margin-bottom: 10px; }
th button { font-weight: 600; } th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
#tip { position: absolute; z-index: 2; max-width: 300px; padding: 6px 10px; border-radius: 6px; font-size: .85rem;
  background: var(--ink); color: var(--page); pointer-events: none; overflow-wrap: anywhere; }
#tip[hidden] { display: none; }
@media print { button.plain, nav { display: none; } table.few tbody tr:not(.shown) { display: table-row; } }
"""

# Texts reach the page by textContent alone, so that nothing in them is ever read as markup.
SCRIPT = """
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const show = (point) => {
    tip.textContent = point.dataset.tip;
    tip.hidden = false;
    const box = point.getBoundingClientRect();
    const most = scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8;
    const left = Math.min(box.left + scrollX + 12, most);
    tip.style.left = Math.max(left, 8) + "px";
    const above = box.top + scrollY - tip.offsetHeight - 8;
    tip.style.top = (above > scrollY ? above : box.bottom + scrollY + 8) + "px";
  };
  const hide = () => { tip.hidden = true; };
  for (const point of document.querySelectorAll("[data-tip]")) {
    point.addEventListener("pointerenter", () => show(point));
    point.addEventListener("pointerleave", hide);
    point.addEventListener("focus", () => show(point));
    point.addEventListener("blur", hide);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  const table = document.getElementById("networks");
  if (!table) return;
  const all = document.getElementById("all");
  all.addEventListener("click", () => {
    const few = table.classList.toggle("few");
    all.setAttribute("aria-pressed", String(!few));
  });
  const body = table.tBodies[0];
  for (const button of table.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const header = button.parentElement;
      const column = header.cellIndex;
      const falling = header.getAttribute("aria-sort") === "ascending";
      for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const value = (row) => {
        const text = row.cells[column].dataset.value;
        return text === "" ? -Infinity : Number(text);
      };
      const rows = Array.from(body.rows).sort((a, b) => (falling ? -1 : 1) * (value(a) - value(b)));
      body.append(...rows);
    });
  }
})();
"""
