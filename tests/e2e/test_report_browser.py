"""The report in headless Chromium: no error, no scrolling sideways on a phone, both colour schemes, switches."""

import os
import shutil
from pathlib import Path

import pytest
from report_example import example

from benchmarks import plot_style
from benchmarks.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is on PATH")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("results")
    return write_report(example(base), base, base / "report")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="it needs playwright: pip install playwright")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium has none for root
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, report):
    """Return a function that opens the report; at the end there must have been no error and no request."""
    faults = []

    def open_page(viewport=DESK, scheme="light"):
        page = browser.new_page(viewport=viewport, color_scheme=scheme)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if request.url[:4] == "http" else None)
        page.goto(report.as_uri())
        return page

    yield open_page
    assert faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_never_scrolls_sideways(opened, viewport, scheme):
    page = opened(viewport, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    assert page.locator("table").count() == 13 and page.locator("table").first.is_visible()
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.locator("svg").count() == (8 if plot_style.available() else 0)


def test_the_colours_follow_the_scheme(opened):
    def colours(page):
        script = "e => { const s = getComputedStyle(e); return [s.backgroundColor, s.color, s.fill] }"
        found = [page.locator("html").evaluate(script)]
        return found + [mark.evaluate(script) for mark in page.locator("svg text").all()[:3]]

    def rgb(colour):
        return "rgb({}, {}, {})".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))

    light, dark = colours(opened(scheme="light")), colours(opened(scheme="dark"))
    assert light[0][:2] == [rgb(plot_style.LIGHT["surface"]), rgb(plot_style.LIGHT["ink"])]
    assert dark[0][:2] == [rgb(plot_style.DARK["surface"]), rgb(plot_style.DARK["ink"])]
    assert all(a[2] != b[2] for a, b in zip(light[1:], dark[1:], strict=True))


@pytest.mark.parametrize(("kind", "name"), [("backend", "openvino"), ("rung", "winograd")])
def test_a_switch_hides_and_shows_its_rows_bars_and_pictures(opened, kind, name):
    page = opened()
    box = page.locator(f'input[data-switch="{kind}"][value="{name}"]')
    marks, others = page.locator(f'[data-{kind}="{name}"]'), page.locator(f'[data-{kind}]:not([data-{kind}="{name}"])')
    shown = others.count()
    box.uncheck()
    assert marks.count() > 0 and not any(mark.is_visible() for mark in marks.all())
    assert page.locator(f"[data-{kind}]:not([hidden])").count() == shown
    box.check()
    assert page.locator("[hidden]").count() == 0 and marks.first.is_visible()


def test_a_grid_without_pictures_left_is_hidden_with_its_caption(opened):
    page = opened()
    caption = page.get_by_text("tvm, flash attention", exact=True)
    assert caption.is_visible()
    page.locator('input[value="tvm"]').uncheck()
    assert not caption.is_visible()


@pytest.mark.skipif(not plot_style.available(), reason=plot_style.ADVICE)
def test_no_label_of_a_plot_is_cut(opened):
    script = """svg => { const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter(text => { const b = text.getBoundingClientRect();
            return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1;
        }).map(text => text.textContent) }"""
    for viewport in (PHONE, DESK):
        assert [svg.evaluate(script) for svg in opened(viewport).locator("svg").all()] == [[]] * 8
