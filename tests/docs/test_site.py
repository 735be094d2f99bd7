"""The site builds without a warning, by the command of `make docs`, and the example of a report is in it."""

import importlib.util
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

PARTS = ("sphinx", "myst_parser", "furo")
MISSING = [name for name in PARTS if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install 'mpamatch[dev-docs]'"),
]


class Links(HTMLParser):
    """Collects where the links of a page lead, and the names that links may lead to."""

    def __init__(self, path: Path):
        super().__init__()
        self.targets: set[str] = set()
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.names.add(about.get("id") or "")
        self.targets.add(about.get("href") or about.get("src") or "")


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command of `make docs` on the pages in `source`."""
    (command,) = re.findall(r"^docs: .*\n\t\$\(BIN\)/python (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    *words, root, target = shlex.split(command)
    assert (root, target) == (".", "build/docs")
    return subprocess.run([sys.executable, *words, str(source), str(out)], cwd=source, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return out


def test_every_page_is_there_and_links_inside_the_site_lead_somewhere(site):
    for page in PAGES:
        assert (site / page).with_suffix(".html").is_file(), page
    found = {path: Links(path) for path in sorted(site.rglob("*.html")) if "report" not in path.parts}
    for path, links in found.items():
        for target in links.targets:
            name, _, anchor = target.partition("#")
            name = name.partition("?")[0]
            if re.match("[a-z]+:", target) or not target:
                continue
            there = (path.parent / name).resolve() if name else path
            assert there.is_file(), f"{path}: {target}"
            if anchor and there in found:
                assert anchor in found[there].names, f"{path}: {target}"


def test_the_report_opens_and_the_first_page_is_found(site):
    assert (site / "docs/report/index.html").read_bytes() == (ROOT / "docs/report/index.html").read_bytes()
    assert "docs/report/index.html" in Links(site / "README.html").targets
    assert "docs/README.html" in (site / "index.html").read_text()


def test_a_dead_link_fails_the_build(tmp_path):
    for name in ("docs/conf.py", "docs/site/index.html", "docs/report/index.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    index = "# Documentation\n\n## Pages\n\n- [One](ONE.md): a page\n"
    (tmp_path / "docs/README.md").write_text(index)
    (tmp_path / "docs/ONE.md").write_text("# One\n\n[gone](#nowhere)\n")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
