"""The Markdown pages: blocks of code, links and headings, as CommonMark reads them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "csrc/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
NOT_RUN = re.compile(r"<!-- not run: (\S.*?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: such as docs/SLIDES.md.
        line: of its first line of code, from 1.
        language: the word after the fence; None for a block without one, or one that is indented.
        text: the code.
        reason: why it is not run: the comment <!-- not run: REASON --> in front of it.
    """

    page: str
    line: int
    language: str | None
    text: str
    reason: str | None = None

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that it is, if its first line is a comment with a file's name and nothing else."""
        first = self.text.partition("\n")[0]
        found = re.fullmatch(r"# ([\w./-]+\.\w+)", first)
        return found[1] if found else None


@dataclass(frozen=True)
class Link:
    """A link or picture: where it stands, and where it leads."""

    page: str
    line: int
    target: str


@cache
def tokens(page: str) -> list[Token]:
    """The tokens of a page."""
    return MarkdownIt("commonmark").enable("table").parse(PAGES[page].read_text(encoding="utf-8"))


@cache
def blocks(page: str) -> list[Block]:
    """The blocks of code of a page, in order."""
    found, reason = [], None
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            language = token.info.split()[0] if token.info.strip() else None
            line = token.map[0] + (2 if token.type == "fence" else 1)
            found.append(Block(page, line, language, token.content, reason))
        marked = NOT_RUN.fullmatch(token.content.strip()) if token.type == "html_block" else None
        reason = " ".join(marked[1].split()) if marked else None
    return found


def marks(page: str) -> int:
    """How many comments of a page begin as one that says why a block is not run, those with mistakes among them."""
    every = [child for token in tokens(page) for child in [token, *(token.children or [])]]
    return sum(bool(re.match(r"<!--\s*not run", child.content)) for child in every if child.type.startswith("html_"))


def links(page: str) -> Iterator[Link]:
    """The links and pictures of a page."""
    for token in tokens(page):
        for child in token.children or []:
            target = child.attrGet("href") if child.type == "link_open" else child.attrGet("src")
            if target is not None and child.type in ("link_open", "image"):
                assert token.map is not None
                yield Link(page, token.map[0] + 1, str(target))


def commands(page: str) -> Iterator[tuple[int, str]]:
    """Yields what stands as code within a sentence or table and begins with a word and a blank, with its line."""
    for token in tokens(page):
        for child in token.children or []:
            if child.type == "code_inline" and re.match(r"[\w-]+ \S", child.content):
                assert token.map is not None
                yield token.map[0] + 1, child.content


@cache
def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page: the second of two equal ones ends in -1."""
    found: set[str] = set()
    counts: dict[str, int] = {}
    every = tokens(page)
    for token, inner in pairwise(every):
        if token.type == "heading_open":
            text = "".join(child.content for child in inner.children or [])
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            number = counts.get(slug, 0)
            counts[slug] = number + 1
            found.add(f"{slug}-{number}" if number else slug)
    return found
