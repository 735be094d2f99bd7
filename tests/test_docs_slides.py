"""Every command of docs/SLIDES.md runs, on slides as small as show it."""

import ast
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mpamatch.benchmarks import make_slide
from mpamatch.cli import COMMANDS as COMMANDS_OF_CLI
from mpamatch.cli import Parser, main
from mpamatch.data.kinds import kinds
from mpamatch.inference.slides import SlideResult
from tests.slides.qupath import problems
from tests.tiny import tiny_flags

PAGE = (Path(__file__).parent.parent / "docs" / "SLIDES.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in PAGE.splitlines() if re.match("    (mpamatch|python)", line)]


def run(words: list[str], monkeypatch) -> int:
    if words[0] == "python":
        words = [word if word != "4096" else "1024" for word in words]
        monkeypatch.setattr(sys, "argv", words[2:])
        return make_slide.main()
    if words[0] == "mpamatch-train":
        return main(["train", *words[1:], "--run", "run", *tiny_flags(Path(words[-1]), "supervised")])
    if words[1] == "predict":
        words = ["run" if word == "runs/folder-001" else word for word in words]
    return main([*words[1:], *(["--patch", "128"] if words[1] == "prepare" else [])])


@pytest.mark.slow
def test_every_command_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MPAMATCH_EBHI_SEG", raising=False)
    (tmp_path / "qupath").mkdir()
    made = [command for command in COMMANDS if "make_slide" in command or "data/made" in command]
    assert len(made) == 4
    for command in made:
        assert run(shlex.split(command), monkeypatch) == 0, command
    for name in ("one", "two", "three"):
        (tmp_path / "slides" / f"{name}.geojson").rename(tmp_path / "qupath" / f"{name}.geojson")
    others = [command for command in COMMANDS if command not in made]
    words = [shlex.split(command) for command in others]
    assert [" ".join(one[:2]) for one in words] == [
        *("mpamatch prepare", "mpamatch check", "mpamatch-train --recipe", "mpamatch predict"),
    ]
    for command in others:
        assert run(shlex.split(command), monkeypatch) == 0, command
    assert (tmp_path / "data" / "mine" / "check.png").is_file()
    for name in ("one", "two", "three"):
        assert problems(tmp_path / "out" / name / "regions.geojson.gz") == []
        for file in re.findall(r"\| `([a-z.]+\.[a-z]+)` \|", PAGE):
            assert (tmp_path / "out" / name / file).is_file(), file


@pytest.mark.parametrize("block", re.findall("```python\n(.*?)```", PAGE, re.DOTALL))
def test_python_of_the_page_uses_what_there_is(block):
    """The names it takes from results exist; the command's test shows that a slide is predicted."""
    parsed = ast.parse(block)
    asked = {node.attr for node in ast.walk(parsed) if isinstance(node, ast.Attribute)}
    known = {field.name for field in fields(SlideResult)} | {"label", "load", "predict_slide"}
    assert asked <= known


def test_every_option_is_told():
    for action in COMMANDS_OF_CLI["predict"](Parser())._actions:
        if action.option_strings and action.option_strings[0] not in ("-h", "--out", "--device"):
            assert f"`{action.option_strings[0]}" in PAGE, action.option_strings
    for option in kinds()["slides"].options:
        assert f"`{option.flag}" in PAGE or option.flag == "--annotations", option.flag
