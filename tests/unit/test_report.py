"""The report: its sections, what it says of odd results, and that it needs nothing but itself."""

import dataclasses
import html
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from report_example import draw, environment, example

from benchmarks import plot_style, plots, report_pictures, report_tables
from benchmarks.plots import write_tome_figure, write_tome_grid
from benchmarks.report import TOPICS, write_report
from benchmarks.schema import Backend, Latency, Results, Rung, Throughput, TomeRow, read, write
from utils.errors import UserError

LISTS = [topic.name for topic in TOPICS]
EVIL = "<script>alert('1')</script>\"&$x^2$ #010110"
needs_matplotlib = pytest.mark.skipif(not plot_style.available(), reason=plot_style.ADVICE)


class Page(HTMLParser):
    """Start tags with their attributes, and the text, of a page; style and script are kept apart."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.code, self._inside = [], "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._inside = tag
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside in ("style", "script"):
            self.code += data
        else:
            self.text += data

    def values(self, attribute, tag=None):
        return [found[attribute] for name, found in self.tags if attribute in found and tag in (None, name)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def results(base):
    return example(base)


@pytest.fixture(scope="module")
def text(results, base):
    return write_report(results, base, base / "report").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def bare(**lists):
    return Results(environment(), {"steps": 20}, **lists)


def page_of(results, base):
    return Page(write_report(results, base, base / "report").read_text(encoding="utf-8"))


def sections(page):
    return page.values("id", "section")


# --- sections ---


def test_all_sections_are_there(page):
    assert sections(page) == [*LISTS, "environment", "traces"]
    links = [link for link in page.values("href", "a") if link.startswith("#")]
    assert links == [f"#{name}" for name in [*LISTS, "environment"]]


@pytest.mark.parametrize("name", LISTS)
def test_a_section_stands_alone_and_the_others_are_gone(results, tmp_path, name):
    page = page_of(bare(**{name: getattr(results, name)}), tmp_path)
    assert sections(page) == [name, "environment"]


def test_without_any_results_there_is_the_environment(tmp_path):
    page = page_of(bare(), tmp_path)
    assert sections(page) == ["environment"] and "Platinum 8481C" in page.text and "steps" in page.text
    assert page.values("data-switch") == []


@needs_matplotlib
def test_each_resolution_has_a_plot_of_its_own(results, tmp_path):
    large = [dataclasses.replace(row, resolution="1024x1024") for row in results.latency]
    page = page_of(bare(latency=[*results.latency, *large]), tmp_path)
    assert "Pictures by time, 512x512" in page.text and "Pictures by time, 1024x1024" in page.text
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_the_file_of_results_gives_the_same_report(results, base, text):
    write(results, base / "benchmark.json")
    again = write_report(read(base / "benchmark.json"), base, base / "report")
    assert again.read_text(encoding="utf-8") == text
    assert [path.name for path in again.parent.iterdir()] == ["index.html"]


def test_tables_have_the_figures(page):
    facts = ("2026-11-22 04:08 UTC", "not installed: pip install onnxruntime", "exit code 1", "0.9994")
    figures = ("312.4", "3.44 GB", "8 × 4096 × 77 × 40", "F(4x4)", "Fréchet distance", "93.0", "amx_bf16", "ec8ae82+")
    assert [word for word in (*facts, *figures) if word not in page.text] == []


def test_traces_are_links_relative_to_the_report(page, base):
    assert [link for link in page.values("href", "a") if "traces" in link] == ["../traces/512x512.json"]


# --- one file, and safe ---


def test_nothing_is_fetched(page):
    for attribute in ("src", "href", "xlink:href", "srcset", "action", "data"):
        assert [v for v in page.values(attribute) if not re.match(r"data:image/png;base64,|#|\.\./traces/", v)] == []
    styles = page.code + " ".join(value or "" for _, found in page.tags for value in found.values())
    assert "@import" not in styles and [u for u in re.findall(r"url\((.*?)\)", styles) if not u.startswith("#")] == []
    assert "default-src 'none'" in " ".join(page.values("content", "meta"))
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}


def evil(value):
    """Return results with every text of theirs replaced."""
    if isinstance(value, str):
        return EVIL
    if isinstance(value, list):
        return [evil(each) for each in value]
    if isinstance(value, dict):
        return {f"{EVIL}{i}": evil(each) for i, each in enumerate(value.values())}
    if dataclasses.is_dataclass(value):
        return type(value)(**{f.name: evil(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


def test_text_of_the_results_is_escaped(results, tmp_path):
    text = write_report(evil(results), tmp_path, tmp_path / "report").read_text(encoding="utf-8")
    page = Page(text)
    assert "<script>alert" not in text and text.count("<script>") == 1 and html.escape(EVIL)[:20] in text
    assert EVIL in page.text and sections(page) == [*LISTS, "environment"]
    assert [found for _, found in page.tags if any(name.startswith("on") for name in found)] == []


def test_figures_that_are_no_numbers_are_dashes(results, tmp_path):
    nan, inf = float("nan"), float("inf")
    odd = [nan, inf]
    strange = bare(
        backends=[
            *results.backends[:2],
            Backend("empty"),
            Backend("odd", total_seconds=odd, unet_seconds=[nan], ratio=nan, ratio_interval=odd, psnr=inf),
        ],
        ladder=[*results.ladder[:2], Rung("odd", odd, odd, nan, nan, 0, 0, inf)],
        attention=[results.attention[0], dataclasses.replace(results.attention[1], gflops=nan, psnr=inf)],
        winograd=[results.winograd[0], dataclasses.replace(results.winograd[1], gflop=nan, seconds=odd)],
        throughput=[Throughput("a", "8x8", [1, 2], [1.0, nan], nan, 0.0, odd, nan)],
        latency=[Latency("a", "8x8", [1.0, nan], nan, nan, inf)],
        tome_sweep=[
            *results.tome_sweep[:2],
            TomeRow("a", "8x8", 0.5, "flash", [], odd, nan, [1.0, nan], inf, None, nan, odd, None),
            TomeRow("a", "8x8", nan, "flash", [], [], inf, [], None, nan, None, None, None),
        ],
    )
    page = page_of(strange, tmp_path)
    assert re.findall(r"\b(nan|NaN|inf|None)\b", page.text) == []
    drawn = " ".join(found.get("d", "") for _, found in page.tags) + " ".join(page.values("style"))
    assert "nan" not in drawn and "inf" not in drawn


# --- pictures ---


def test_pictures_are_embedded(page, results):
    count = sum(bool(row.picture) for row in [*results.backends, *results.tome_sweep])
    assert len(page.values("src", "img")) == count + 4  # differences to the first of five
    assert "at most" in page.text


def test_a_missing_or_broken_picture_is_told(results, tmp_path):
    draw(tmp_path / "0.png", 0)
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (tmp_path / "2.png").mkdir()
    page = page_of(bare(backends=results.backends, tome_sweep=results.tome_sweep), tmp_path)
    assert len(page.values("src", "img")) == 1
    assert "1.png is missing" in page.text and "2.png is missing" in page.text and "tome-flash-0.5.png is" in page.text


def test_differences_are_amplified_and_sizes_may_differ(tmp_path):
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (1, 20, 200))
    apart = report_pictures.difference(grey, black)
    assert np.asarray(apart)[0, 0].tolist() == [8, 160, 255]
    assert np.array_equal(np.asarray(apart), np.asarray(report_pictures.difference(black, grey)))
    black.save(tmp_path / "a.png")
    Image.new("RGB", (8, 4)).save(tmp_path / "b.png")
    page = page_of(bare(backends=[Backend("a", picture="a.png"), Backend("b", picture="b.png")]), tmp_path)
    assert "of another size" in page.text


def test_the_grid_of_token_merging_is_a_picture(results, base, tmp_path):
    write_tome_grid(results, base, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        assert image.format == "PNG" and image.width > 5 * 256 and image.height > 2 * 256
    with pytest.raises(UserError, match="no pictures"):
        write_tome_grid(results, tmp_path, tmp_path / "none.png")


# --- switches ---


def test_switches_name_what_they_hide(page, results):
    boxes = [found for tag, found in page.tags if tag == "input"]
    for kind, names in (("backend", results.backends), ("rung", results.ladder)):
        switches = {found["value"] for found in boxes if found["data-switch"] == kind}
        rows = set(page.values(f"data-{kind}", "tr"))
        assert switches == {row.name for row in names} == rows
        assert set(page.values(f"data-{kind}")) <= switches
    assert all("checked" in found for found in boxes)
    assert set(page.values("data-backend", "figure")) == {row.name for row in results.backends if row.picture}


@needs_matplotlib
def test_switches_find_the_marks_of_plots(page, results):
    measured = {row.name for row in results.backends if row.total_seconds}
    assert set(page.values("data-backend", "g")) == measured
    assert set(page.values("data-rung", "g")) == {row.name for row in results.ladder if row.unet_seconds}


# --- plots ---


@needs_matplotlib
def test_plots_follow_the_colour_scheme(text, page):
    assert [tag for tag, _ in page.tags].count("svg") == len(LISTS)
    plots_only = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", plots_only) == []
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    assert used <= set(plot_style.LIGHT) == set(plot_style.DARK)
    ids = page.values("id")
    assert {v[1:] for v in page.values("xlink:href")} <= set(ids)


@needs_matplotlib
@pytest.mark.parametrize("name", ["tome.svg", "tome.png"])
def test_the_figure_of_token_merging_is_a_file(results, tmp_path, name):
    write_tome_figure(results, tmp_path / name)
    assert (tmp_path / name).stat().st_size > 5000
    with pytest.raises(UserError, match="no sweep"):
        write_tome_figure(bare(), tmp_path / name)


@needs_matplotlib
def test_token_merging_is_drawn_by_psnr_where_there_is_no_frechet_distance(results):
    rows = [dataclasses.replace(row, frechet=None, frechet_interval=None) for row in results.tome_sweep]
    assert "PSNR" in plot_style.inline("a", plots.tome, rows) and "Fréchet" in plot_style.inline("b", plots.tome, [
        *rows, results.tome_sweep[0]])  # fmt: skip


def test_without_matplotlib_there_are_tables_and_one_line_of_advice(results, base, tmp_path, no_matplotlib):
    page = Page(write_report(results, base, tmp_path).read_text(encoding="utf-8"))
    assert sections(page) == [*LISTS, "environment", "traces"] and "svg" not in {tag for tag, _ in page.tags}
    assert page.text.count("pip install -r requirements-bench.txt") == 1
    with pytest.raises(UserError, match="requirements-bench"):
        write_tome_figure(results, tmp_path / "tome.svg")


# --- units of a column ---


@pytest.mark.parametrize(
    ("columns", "unit", "texts"),
    [
        ([[57.67], [144.13]], "s", ["57.7", "144.1"]),
        ([[1.17, 1.17], [2.7]], "s", ["1.17", "2.70"]),
        ([[0.0402], [0.015]], "ms", ["40.2", "15.0"]),
        ([[0.1], [0.5]], "ms", ["100", "500"]),
        ([[0.04], [57.7]], "s", ["0.04", "57.70"]),
        ([[], []], "s", ["–", "–"]),
    ],
)
def test_a_column_has_one_unit(columns, unit, texts):
    found = report_tables.Unit.of(columns)
    assert found.name == unit and [found.cell(each).text for each in columns] == texts


def test_the_interval_is_below_the_median():
    cell = report_tables.Unit.of([[1.0, 2.0, 3.0]]).cell([1.0, 2.0, 3.0])
    assert (cell.text, cell.small) == ("2.00", "1.00–3.00")
