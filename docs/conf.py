"""The site that `make docs` builds of the Markdown pages: README.md, CONTRIBUTING.md, CHANGELOG.md and docs/.

The root of the repository is the source folder, so that a link means here what it means on GitHub.
"""

import re
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent

project = "mpamatch"
author = "The mpamatch authors"
version = release = installed_version("mpamatch")

root_doc = "docs/README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "csrc/README.md", "docs/*.md"]
extensions = ["myst_parser"]
myst_heading_anchors = 6  # the anchors that GitHub gives headings
suppress_warnings = ["myst.header"]  # RESULTS.md has an appendix with a title of its own

html_theme = "furo"
html_title = f"mpamatch {version}"
html_extra_path = ["site"]  # index.html, which leads to root_doc
html_show_sphinx = html_show_copyright = False
html_copy_source = False


def add_contents(_: Sphinx, name: str, source: list[str]) -> None:
    """Gives the first page a table of contents for the margin: its own links, by its headings."""
    if name != root_doc:
        return
    for caption, section in re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", source[0], re.MULTILINE):
        pages = re.findall(r"^- \[[^]]+\]\(([^)]+\.md)\)", section, re.MULTILINE)
        source[0] += "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```\n"])


def open_pages(_: Sphinx, document: nodes.document) -> None:
    """Lets a link to an HTML file of the repository open it, where it would be downloaded."""
    for link in list(document.findall(addnodes.download_reference)):
        if link["reftarget"].endswith(".html"):
            link.replace_self(nodes.reference("", "", *link.children, refuri=link["reftarget"], internal=True))


def copy_report(app: Sphinx, error: Exception | None) -> None:
    """Copies the example of a report, which is a page of its own, to where the links lead."""
    if error is None:
        target = Path(app.outdir) / "docs" / "report"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / "docs" / "report" / "index.html", target)


def setup(app: Sphinx) -> dict[str, bool]:
    """Is called by Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("doctree-read", open_pages)
    app.connect("build-finished", copy_report)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
