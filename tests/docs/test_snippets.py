"""Every shell and Python snippet of the pages runs, or says why it cannot; snippets.py says how."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mpamatch
from mpamatch.cli import COMMANDS, Parser
from mpamatch.data.kinds import kinds
from tests.docs import pages, snippets
from tests.docs.pages import PAGES
from tests.docs.snippets import Fault
from tests.docs.terminal import Terminal
from tests.slides.qupath import problems

RUN = [page for page in PAGES if page not in snippets.WHOLE and pages.blocks(page)]
SLIDES = PAGES["docs/SLIDES.md"].read_text(encoding="utf-8")


def slides_are_as_told(folder: Path) -> None:
    """The contact sheet, and for each slide every file of the page's table; QuPath would take the regions."""
    assert (folder / "data" / "mine" / "check.png").is_file()
    files = re.findall(r"\| `([a-z.]+\.[a-z]+)` \|", SLIDES)
    assert len(files) == 5
    for name in ("case1", "case2", "case3"):
        assert problems(folder / "out" / name / "regions.geojson.gz") == []
        assert [file for file in files if not (folder / "out" / name / file).is_file()] == []


def tiles_are_as_predicted(folder: Path) -> None:
    """The script without mpamatch gives the label of `mpamatch predict`."""
    mask = np.asarray(Image.open(folder / "mask.png"))
    assert np.array_equal(mask, mpamatch.load(folder / "gland.onnx").predict(folder / "patch.png"))


def wrote(*names: str):
    """A check that files are there."""

    def check(folder: Path) -> None:
        assert [name for name in names if not (folder / name).is_file()] == []

    return check


# What a page says of its results, beyond that the commands end well.
AFTER = {
    "docs/EXPORT.md": tiles_are_as_predicted,
    "docs/OWN_DATA.md": wrote("data/mine/check.png", "data/mine/splits/paper.json"),
    "docs/REPORT.md": wrote("runs/glas-001/report.html", "val/summary.json", "side-by-side/MODEL_CARD.md"),
    "docs/SLIDES.md": slides_are_as_told,
    "docs/STUDIES.md": wrote("runs/study-prototypes-ebhi-seg-gland/table.csv"),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_snippets_of_a_page_run(page, tmp_path):
    snippets.run_page(page, tmp_path)
    if page in AFTER:
        AFTER[page](tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_and_every_reason_a_block(page):
    for block in pages.blocks(page):
        known = block.language in (*snippets.SHELL, "python", *snippets.READ, *snippets.OTHER)
        assert known, f"{block.place}: write it as a fence that begins with one of {snippets.known_languages()}"
    reasons = [block for block in pages.blocks(page) if block.reason]
    assert len(reasons) == pages.marks(page), "<!-- not run: REASON --> stands in front of a block, a line of its own"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_commands_within_sentences_have_their_options(page):
    """The changelog tells of commands as they were."""
    assert list(snippets.check_sentences(page)) == []


def test_the_list_names_every_block():
    lines = list(snippets.listed())
    for page in RUN:
        for block in pages.blocks(page):
            if block.language not in snippets.OTHER:
                assert sum(line.startswith(f"{block.place} ") for line in lines) == 1, block.place
    assert {*snippets.WHOLE} <= {*PAGES}
    assert sum("not run" in line for line in lines) < len(lines) / 4


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A function that writes a page of one's own and runs it in an empty folder."""

    def run(content: str) -> None:
        path = tmp_path / "PAGE.md"
        path.write_text(content, encoding="utf-8")
        monkeypatch.setitem(PAGES, "PAGE.md", path)
        pages.tokens.cache_clear()
        pages.blocks.cache_clear()
        (tmp_path / "here").mkdir(exist_ok=True)
        snippets.run_page("PAGE.md", tmp_path / "here")

    yield run
    pages.tokens.cache_clear()
    pages.blocks.cache_clear()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("```sh\nmpamatch check nowhere\n```", r"PAGE.md:2: exit code 2\n(.|\n)*mpamatch: nowhere"),
        ("```sh\nmpamatch check nowhere || true\nfalse\n```", "PAGE.md:2: exit code 1"),
        ("```sh\nmpamatch chekc data\n```", "chekc"),
        ("text\n\n```python\nx = 1\nassert x == 2\n```", "PAGE.md:4: AssertionError"),
        ("```python\nimport mpamatch\nmpamatch.nothing\n```", "has no attribute 'nothing'"),
        ("```sh\nmake nothing\n```", "the Makefile has no target nothing"),
        ("```sh\npip install 'mpamatch[nothing]'\n```", "has no extra nothing"),
        ("```sh\npip install surely-nothing\n```", "neither mpamatch nor a folder"),
        ("```yaml\na: [\n```", "PAGE.md:2: ParserError"),
        ("```console\n$ echo 1\n2\n```", "echo 1\nexit code 0, shown:\n2"),
        ("```perl\n1\n```", "a fence must begin with one of sh, bash"),
        ("<!-- not run: no GPU -->\n```sh\nmpamatch bench --tnue\n```", "mpamatch has no option --tnue"),
        ("<!-- not run: no GPU -->\n```sh\nsrun mpamatch-train --stpes 3\n```", "mpamatch-train has no option --stpes"),
        (
            "<!-- not run: machines -->\n```sh\ntorchrun --nnode-s 2 -m mpamatch train\n```",
            "torchrun has no option --nnode-s",
        ),
        (
            "<!-- not run: long -->\n```sh\npython benchmarks/gpu_check.py --pretned\n```",
            "python has no option --pretned",
        ),
        ("<!-- not run: long -->\n```sh\nif true\n```", "PAGE.md:3: .*unexpected"),
        ("<!-- not run: long -->\n```python\nx =\n```", "PAGE.md:3: SyntaxError"),
    ],
)
def test_a_wrong_snippet_is_found(page, content, says):
    with pytest.raises(Fault, match=says):
        page(content)


def test_a_right_one_runs_as_a_reader_would_type_it(page, tmp_path):
    page(
        """
```python
# here.py
import sys
print(sys.argv[1], end="")
```

```sh
python here.py "two  words" \\
    > one.txt       # a comment
mpamatch info --json | grep -q versions && echo yes > two.txt
```

```console
$ python here.py twenty; echo
twe…
```

```python
from pathlib import Path
assert Path("one.txt").read_text() == "two  words" and embedding.shape == (512, 32)
```

<!-- not run: nobody has four -->
```sh
torchrun --nproc-per-node 4 -m mpamatch train --recipe demo --steps 3 --method.threshold 0.9
```
"""
    )
    assert (tmp_path / "here" / "two.txt").read_text() == "yes\n"


def test_a_wrong_command_within_a_sentence_is_found(page):
    page("Say `mpamatch bench --tnue`, `make nothing`, `mpamatch-train --threshold 0.9` or `mpamatch nothing x`.")
    found = list(snippets.check_sentences("PAGE.md"))
    assert [line.partition("`: ")[0] for line in found] == [
        f"PAGE.md:1: `{code}" for code in ("mpamatch bench --tnue", "make nothing", "mpamatch nothing x")
    ]


def test_nothing_of_a_page_stays(page):
    before = [*sys.path], {*kinds()}, {*mpamatch.methods.METHODS}
    page("```python\nimport sys\nsys.path.append('nowhere')\n```")
    assert before == ([*sys.path], {*kinds()}, {*mpamatch.methods.METHODS})


def test_programs_answer_in_the_folder_and_environment_of_the_block(tmp_path):
    def told(words: list[str]) -> int:
        print(Path.cwd().name, sys.modules["os"].environ["WHO"], *words)
        return 3

    (tmp_path / "sub").mkdir()
    with Terminal(tmp_path, {"tell": told}, {"WHO": "me"}) as terminal:
        assert terminal.run("cd sub; WHO=you tell a 'b  c'; echo never") == (3, "sub you a b  c\n")
        assert terminal.run("#!/bin/bash\ntell ~ | grep me\necho $?") == (0, f"{tmp_path.name} me {tmp_path}\n3\n")


def test_every_option_of_slides_is_told():
    for action in COMMANDS["predict"](Parser())._actions:
        if action.option_strings and action.option_strings[0] not in ("-h", "--out", "--device"):
            assert f"`{action.option_strings[0]}" in SLIDES, action.option_strings
    for option in kinds()["slides"].options:
        assert f"`{option.flag}" in SLIDES or option.flag == "--annotations", option.flag
