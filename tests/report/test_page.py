"""The page of a run: its numbers as values, its pictures as markup, its texts as text."""

import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from hf_nas.files import write_json
from hf_nas.report import PAGE_FILE, FrontRow, FrontTable, RunFolder, find_run_folder, find_small_model, write_page
from hf_nas.report.page import Chart, PageData, Series, draw_structure, render_page
from hf_nas.report.page.charts import draw_chart, draw_front, nice_ticks
from hf_nas.report.page.data import learning_curves
from hf_nas.report.page.structure import draw_structure_table
from hf_nas.structures import describe
from hf_nas.subnetwork import NORM_ONLY, SubNetwork
from tests import zoo
from tests.report.runs import log, make_pruning, make_search


VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = "<script>alert(1)</script>\"'&"


class Reader(HTMLParser):
    """Checks that tags are balanced and collects them with their attributes."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def points(svg: str) -> list[ElementTree.Element]:
    return [each for each in ElementTree.fromstring(svg).iter() if each.tag == "circle"]


@pytest.fixture
def table() -> FrontTable:
    rows = (
        FrontRow(3, 100, 0.1, 0.1, 0.5, None, on_front=True),
        FrontRow(1, 150, 0.5, 0.4, None),
        FrontRow(4, 170, 0.55, 0.4, 0.4),
        FrontRow(2, 200, 0.6, 0.5, 0.75, 0.7, on_front=True, chosen=True),
        FrontRow(0, 300, 1.0, 1.0, 0.8, 0.72, on_front=True),
    )
    return FrontTable(rows, "f1")


def test_the_front(table) -> None:
    found = points(draw_front(table))
    # Not the one without a metric; the chosen one on top.
    assert [each.get("class") for each in found] == ["evaluated", "front", "largest", "chosen"]
    tip = found[-1].get("data-tip")
    assert tip == found[-1].get("aria-label")
    assert tip == (
        "Sub-network 2 (chosen, on the front): 200 parameters, 60.0% of those in the layers, 50.0% of the "
        "operations, f1 0.7500 (selection), 0.7000 (validation)"
    )
    assert [each.get("tabindex") for each in found] == [None, "0", "0", "0"]
    places = {each.get("class"): (float(each.get("cx")), float(each.get("cy"))) for each in found}
    # Larger is to the right, better is up, in proportion.
    left, middle, right = places["front"], places["chosen"], places["largest"]
    assert (middle[0] - left[0]) / (right[0] - left[0]) == pytest.approx(0.5 / 0.9, abs=1e-3)
    assert (left[1] - middle[1]) / (left[1] - right[1]) == pytest.approx(0.25 / 0.3, abs=1e-3)
    assert draw_front(replace(table, rows=table.rows[1:2])) == "" == draw_front(replace(table, rows=()))


def test_one_point_alone_is_drawn(table) -> None:
    only = draw_front(replace(table, rows=table.rows[:1]))
    assert len(points(only)) == 1 and "nan" not in only


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.61, 0.89, [0.65, 0.7, 0.75, 0.8, 0.85]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
        (0, 7e-5, [0, 2e-5, 4e-5, 6e-5]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_a_chart() -> None:
    chart = Chart("both", "step", (Series("one", ((0, 1.0), (10, 3.0))), Series("two", ((5, 2.0),))))
    svg = ElementTree.fromstring(draw_chart(chart))
    lines = [each.get("points").split() for each in svg.iter() if each.tag == "polyline"]
    assert [len(line) for line in lines] == [2, 1]
    (x0, y0), (x1, y1) = (tuple(map(float, place.split(","))) for place in lines[0])
    x2, y2 = map(float, lines[1][0].split(","))
    assert x2 == pytest.approx((x0 + x1) / 2, abs=0.02) and y2 == pytest.approx((y0 + y1) / 2, abs=0.02) and y1 < y0
    assert {"one", "two"} <= {each.text for each in svg.iter() if each.tag == "text"}
    steps = draw_chart(replace(chart, series=chart.series[:1], steps=True))
    corner = re.search(r'points="([^"]+)"', steps).group(1).split()
    assert len(corner) == 3 and corner[1].split(",")[1] == corner[0].split(",")[1]


def test_structure() -> None:
    model = zoo.build("bert")
    kept = {
        "encoder.0.attention": (1, 3), "encoder.0.feed_forward": 6, "encoder.1.attention": None,
        "encoder.1.feed_forward": NORM_ONLY, "encoder.2.attention": 0,
    }  # fmt: skip
    layers = draw_structure(SubNetwork.of(describe(model), kept))
    assert [layer.name for layer in layers] == ["encoder 0", "encoder 1", "encoder 2"]
    heads, neurons = layers[0].sub_layers
    assert (heads.kind, heads.total, heads.kept, heads.note) == ("heads", 4, (1, 3), "")
    assert (neurons.kind, neurons.total, neurons.kept) == ("neurons", 24, tuple(range(6)))
    assert [each.note for each in layers[1].sub_layers] == ["gone", "only its normalisation is left"]
    root = ElementTree.fromstring(draw_structure_table(layers))
    rows = [row for row in root.iter("tr")][1:]
    squares = [[rect.get("class") for rect in cell.iter("rect")] for cell in rows[0].iter("td")]
    assert squares[0] == ["gone", "kept", "gone", "kept"] and squares[1].count("kept") == 6
    assert [["".join(cell.itertext()) for cell in row] for row in rows] == [
        ["encoder 0", "2 of 4", "6 of 24"],
        ["encoder 1", "0 of 4 (gone)", "0 of 24 (only its normalisation is left)"],
        ["encoder 2", "0 of 4", "24 of 24"],
    ]


def test_structure_of_many_units_and_of_a_decoder() -> None:
    layers = draw_structure(SubNetwork("x", ("decoder.0.feed_forward",), (1000,), (tuple(range(0, 1000, 2)),)))
    root = ElementTree.fromstring(draw_structure_table(layers))
    kept = [rect for rect in root.iter("rect") if rect.get("class") == "kept"]
    # Half of every part is left, wherever in the layer.
    assert len(kept) == 64 and all(float(rect.get("height")) == pytest.approx(5.5, abs=0.4) for rect in kept)
    t5 = draw_structure(SubNetwork.full(describe(zoo.build("t5"))))
    kinds = [each.kind for each in t5[-1].sub_layers]
    assert kinds == ["heads", "cross-attention heads", "neurons"] and t5[-1].name.startswith("decoder")


def test_curves() -> None:
    charts = learning_curves("training", log())
    assert [chart.title for chart in charts] == ["training: loss", "training: eval_f1", "training: learning_rate"]
    assert charts[0].series == (
        Series("loss", tuple((step, 1 / step) for step in range(1, 5))), Series("eval_loss", ((2, 1.0), (4, 0.5)))
    )  # fmt: skip
    assert learning_curves("x", []) == []
    odd = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": "1"}, {"loss": 1.0}, {"step": 3, "loss": True}]
    assert learning_curves("x", odd) == []
    (long,) = learning_curves("x", [{"step": step, "loss": step} for step in range(5000)])
    line = long.series[0].points
    assert len(line) == 400 and line[0] == (0, 0) and line[-1] == (4999, 4999)


def test_the_page_of_a_search(tmp_path, monkeypatch) -> None:
    folder = make_search(tmp_path / "my run", monkeypatch)
    # Written by the handover.
    page = (folder / PAGE_FILE).read_text(encoding="utf-8")
    assert write_page(folder / "extracted") == folder / PAGE_FILE
    assert (folder / PAGE_FILE).read_text(encoding="utf-8") == page
    reader = read(page)
    assert [attrs["id"] for tag, attrs in reader.tags if tag == "section"] == ["front", "structure", "curves", "table"]
    rows = [attrs for tag, attrs in reader.tags if tag == "tr" and "class" in attrs]
    # Of four that were fully evaluated one is on no front and is shown on demand.
    assert sorted(attrs["class"] for attrs in rows) == ["", "shown", "shown", "shown chosen"]
    assert "hypervolume of the front, from half of its last value on" in reader.text
    assert "f1 (selection)" in reader.text and "0.8000 (largest 0.9000)" in reader.text
    assert "my run" in reader.text and "somebody/some-bert" in reader.text


def test_the_page_asks_nothing_of_anybody(tmp_path, monkeypatch) -> None:
    page = write_page(make_search(tmp_path / "run", monkeypatch)).read_text(encoding="utf-8")
    reader = read(page)
    assert not [attrs for _, attrs in reader.tags if {"src", "href", "data", "action"} & set(attrs) and
                not attrs.get("href", "").startswith("#")]  # fmt: skip
    assert not {tag for tag, _ in reader.tags} & {"link", "img", "iframe", "object", "embed", "form", "base"}
    assert "http" not in page.replace("http-equiv", "") and "url(" not in page and "@import" not in page
    policy = next(
        attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "prefers-color-scheme: dark" in page


def test_texts_stay_texts(tmp_path, monkeypatch, table) -> None:
    data = PageData(
        title=EVIL,
        facts=((EVIL, EVIL),),
        front=replace(table, metric_name=EVIL),
        hypervolume=Chart(EVIL, EVIL, (Series(EVIL, ((0, 0.0), (1, 1.0))), Series("b", ((0, 1.0),)))),
        structure=draw_structure(SubNetwork("x", (f"{EVIL.replace('.', '')}.0.{EVIL}",), (4,), (2,))),
    )
    page = render_page(data)
    reader = read(page)
    assert page.count("<script>") == 1 and "alert(1)</script>" not in page
    assert sum(text == EVIL for text in reader.text) >= 5
    assert all(name in ("class", "id") or not name.startswith("on") for _, attrs in reader.tags for name in attrs)
    # As the whole way through the files of a run, too.
    folder = make_search(
        tmp_path / "run", monkeypatch, metric=EVIL, arguments={"model_name_or_path": EVIL, "task_name": EVIL}
    )
    write_json(folder / "trainer_state.json", {"log_history": [{"step": s, f"eval_{EVIL}": s} for s in (1, 2)]})
    page = write_page(folder).read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "alert(1)</script>" not in page
    assert sum(EVIL in text for text in read(page).text) >= 6


def test_the_page_of_a_pruning(tmp_path) -> None:
    folder = make_pruning(tmp_path / "pruned run")
    reader = read(write_page(folder / "finetuned").read_text(encoding="utf-8"))
    assert (folder / PAGE_FILE).is_file() and not (folder / "finetuned" / PAGE_FILE).exists()
    assert [attrs["id"] for tag, attrs in reader.tags if tag == "section"] == ["structure", "curves"]
    assert {"pruning: loss", "fine-tuning: loss", "10 of 20", "0.5100 in parameters (target 0.5)"} <= set(reader.text)
    assert "0.7500" in reader.text


def test_which_folder_is_that_of_the_run(tmp_path, monkeypatch) -> None:
    folder = make_pruning(tmp_path / "run")
    assert find_run_folder(folder / "finetuned") == find_run_folder(folder) == folder
    assert find_small_model(folder) == find_small_model(folder / "finetuned") == folder / "finetuned"
    # A folder of that name that no run wrote is what it is.
    alone = tmp_path / "alone" / "extracted"
    shutil.copytree(folder / "finetuned", alone)
    assert find_run_folder(alone) == find_small_model(alone) == alone
    assert find_small_model(tmp_path) is None
    # A small model that was searched itself is a run of its own.
    make_search(folder / "finetuned", monkeypatch)
    assert find_run_folder(folder / "finetuned") == folder / "finetuned"
    assert find_small_model(folder / "finetuned") == folder / "finetuned" / "extracted"


def test_a_training_alone_has_its_curves(tmp_path) -> None:
    write_json(tmp_path / "trainer_state.json", {"log_history": log()})
    reader = read(write_page(tmp_path).read_text(encoding="utf-8"))
    assert [attrs["id"] for tag, attrs in reader.tags if tag == "section"] == ["curves"]


def test_refusals(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="There is no folder"):
        RunFolder.read(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no finished run"):
        write_page(tmp_path)
    assert not (tmp_path / PAGE_FILE).exists()
    folder = make_search(tmp_path / "run", monkeypatch)
    for name, text, reason in (
        ("run.json", "{", "is damaged"),
        ("run.json", "[1]", "holds a list instead of an object"),
        ("search/front.json", '{"format": "other"}', "is damaged"),
        ("search/result.json", "{}", "is damaged"),
        ("extracted/sub_network.json", "{}", "is damaged"),
    ):
        before = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=reason) as error:
            RunFolder.read(folder)
        assert str(error.value).count("\n") == 0
        (folder / name).write_text(before)
    assert RunFolder.read(folder).outcome is not None
    # A model that somebody put in the place of the chosen one is not that of which the search tells.
    other = RunFolder.read(folder).outcome.result.trials[0].sub_network
    other.save(folder / "extracted" / "sub_network.json")
    with pytest.raises(ValueError, match="is not sub-network 2, which the search chose"):
        RunFolder.read(folder)


def test_a_damaged_neighbour_does_not_end_a_search(tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "pruning").mkdir()
    (tmp_path / "pruning" / "trainer_state.json").write_text("{")
    folder = make_search(tmp_path, monkeypatch)
    assert (folder / "search" / "summary.json").is_file() and not (folder / PAGE_FILE).exists()
    assert "There is no report.html of the search" in caplog.text


def test_a_profile_of_another_sub_network_is_not_shown(tmp_path, monkeypatch) -> None:
    folder = make_search(tmp_path, monkeypatch)
    run = RunFolder.read(folder)
    profile = {"format": "hf_nas.profile/1", "sub_network": run.sub_network.to_dict(), "models": []}
    write_json(folder / "profile.json", profile)
    assert RunFolder.read(folder).profile == profile
    other = run.outcome.result.trials[0].sub_network
    write_json(folder / "profile.json", {**profile, "sub_network": other.to_dict()})
    assert RunFolder.read(folder).profile is None
