"""Every link inside the pages leads somewhere, as GitHub sees it: relative paths, anchors of headings."""

import re
from pathlib import PurePosixPath
from urllib.parse import unquote

import pytest

from tests.docs import pages
from tests.docs.pages import PAGES, ROOT, Link

INDEX = "docs/README.md"


def fault(link: Link) -> str | None:
    """What is wrong with a link; None if it is right or leads outside."""
    if re.match(r"[a-z]+:", link.target):
        return None if link.target.startswith("https://") else "leads outside without https"
    name, _, anchor = unquote(link.target).partition("#")
    path = (PAGES[link.page].parent / name).resolve() if name else PAGES[link.page]
    if not path.is_relative_to(ROOT) or not path.exists():
        return "there is no such file in the repository"
    page = str(path.relative_to(ROOT))
    if anchor and page not in PAGES:
        return "an anchor in what is no page"
    if anchor and anchor not in pages.anchors(page):
        return f"{page} has no heading with this anchor"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    faults = {f"{page}:{link.line}: {link.target}": fault(link) for link in pages.links(page)}
    assert {place: why for place, why in faults.items() if why} == {}


def test_a_link_that_leads_nowhere_is_found():
    """Of the kinds that there are, right and wrong ones."""

    def says(target: str) -> str | None:
        return fault(Link("docs/SLIDES.md", 1, target))

    assert (
        says("OWN_DATA.md")
        is says("../README.md")
        is says("https://example.org")
        is says("#6-open-it-in-qupath")
        is None
    )
    assert says("OWN_DATA.md#a-folder") is says("figures/study-terms.png") is None
    assert says("README") == says("../../README.md") == "there is no such file in the repository"
    assert says("#7-nothing") == "docs/SLIDES.md has no heading with this anchor"
    assert says("OWN_DATA.md#6-open-it-in-qupath") == "docs/OWN_DATA.md has no heading with this anchor"
    assert says("figures/study-terms.png#top") == "an anchor in what is no page"
    assert says("http://example.org") == "leads outside without https"


def test_equal_headings_have_anchors_of_their_own():
    assert {"what-a-mask-means"} < pages.anchors("docs/OWN_DATA.md")
    assert {"four-methods-two-label-budgets-five-seeds", "how-the-settings-were-chosen-1"} < pages.anchors(
        "docs/RESULTS.md"
    )


def test_the_index_names_every_page():
    """A new page is one line in docs/README.md, from which the site takes its table of contents."""
    named = {PurePosixPath(link.target).name for link in pages.links(INDEX) if link.target.endswith(".md")}
    missing = {page for page in PAGES if page != INDEX and PurePosixPath(page).name not in named}
    assert missing == set(), f"{INDEX} needs a line for each"
