"""The report in headless Chromium, as a phone and a desk show it, by day and by night."""

import pytest

from mpamatch.cli import main
from mpamatch.engine.loop import train
from tests.tiny import make_set, silent, tiny_config
from tests.tools.browser import Page, chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium"),
]
PHONE, DESK = 390, 1280
FIGURES = ("dice", "reliability", "threshold", "losses", "validation", "shares", "prototypes", "similarity")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    root = make_set(folder / "tissue").root
    for method in ("mpamatch", "supervised"):
        train(tiny_config(root, method, {"engine.steps": 3}), folder / method, console=silent())
    assert main(["report", str(folder / "mpamatch"), "--device", "cpu"]) == 0
    words = [str(folder / "mpamatch"), str(folder / "supervised")]
    assert main(["report", *words, "--out", str(folder / "both"), "--device", "cpu"]) == 0
    return {"one": folder / "mpamatch" / "report.html", "several": folder / "both" / "report.html"}


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("which", ["one", "several"])
def test_the_browser_has_no_complaint_and_nothing_sticks_out(pages, which, width, dark):
    with Page(pages[which], width=width, dark=dark) as page:
        assert page.run("innerWidth") == width
        assert page.run("document.documentElement.scrollWidth") <= width
        page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.run("document.documentElement.scrollWidth") <= width
        ground = page.run("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
        assert page.complaints == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_every_figure_and_picture_is_there_and_of_a_size(pages, width):
    with Page(pages["one"], width=width) as page:
        for key in FIGURES:
            shown = page.run(f"document.querySelector('#figure-{key} svg').getBoundingClientRect().width")
            assert shown > 250, key
        drawn = "[...document.images].map(i => [i.complete && i.naturalWidth, i.getBoundingClientRect().width])"
        sizes = page.run(drawn)
        assert len(sizes) > 20
        assert all(natural > 0 and width > 20 for natural, width in sizes)


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_no_words_of_a_chart_are_cut_off(pages, width):
    with Page(pages["one"], width=width) as page:
        cut = page.run(
            "[...document.querySelectorAll('svg.chart')].flatMap(s => { const b = s.getBoundingClientRect();"
            "return [...s.querySelectorAll('text')].filter(t => { const r = t.getBoundingClientRect();"
            "return r.left < b.left - 1 || r.right > b.right + 1 || r.top < b.top - 1 || r.bottom > b.bottom + 1; })"
            ".map(t => t.textContent); })"
        )
        assert cut == []
