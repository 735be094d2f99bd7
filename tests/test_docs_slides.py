"""Every command of docs/SLIDES.md runs, on slides as small as show it."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from mpamatch.benchmarks import make_slide
from mpamatch.cli import main
from mpamatch.data.kinds import kinds
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
    assert [shlex.split(command)[0] for command in others] == ["mpamatch", "mpamatch", "mpamatch-train"]
    for command in others:
        assert run(shlex.split(command), monkeypatch) == 0, command
    assert (tmp_path / "data" / "mine" / "check.png").is_file()


def test_every_option_is_told():
    for option in kinds()["slides"].options:
        assert f"`{option.flag}" in PAGE or option.flag == "--annotations", option.flag
