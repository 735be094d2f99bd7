"""Reads a report as a reader's program would: tables by their id, with the numbers that cells keep."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "line", "polyline", "circle", "rect"}


@dataclass
class Tag:
    """An element of a page."""

    name: str
    attributes: dict[str, str | None]
    parents: list["Tag"]
    text: str = ""
    children: list["Tag"] = field(default_factory=list)


class Reader(HTMLParser):
    """Reads a page into a list of elements, in their order; complains about one that is not closed."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[Tag] = []
        self.open: list[Tag] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert [tag.name for tag in self.open] == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        tag = Tag(name, dict(attributes), list(self.open))
        if self.open:
            self.open[-1].children.append(tag)
        self.tags.append(tag)
        if name not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(Tag(name, dict(attributes), list(self.open)))

    def handle_endtag(self, name: str) -> None:
        assert self.open, name
        assert self.open.pop().name == name

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            tag.text += data

    def named(self, *names: str) -> list[Tag]:
        return [tag for tag in self.tags if tag.name in names]

    def rows(self, table: str) -> dict[str, list[float | str | None]]:
        """The rows of the table with this id: heading → numbers as they are kept, else words."""
        found: dict[str, list[float | str | None]] = {}
        inside = [tag for tag in self.tags if any(one.attributes.get("id") == table for one in tag.parents)]
        assert inside, f"no table {table}"
        for row in (tag for tag in inside if tag.name == "tr"):
            head = next(tag for tag in row.children if tag.name == "th")
            cells = [tag for tag in row.children if tag.name == "td"]
            found[head.text] = [_number(cell) for cell in cells]
        return found


def _number(cell: Tag) -> float | str | None:
    kept = [tag for tag in cell.children if tag.name == "data"]
    return float(str(kept[0].attributes["value"])) if kept else cell.text
