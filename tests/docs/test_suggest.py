"""docs/SUGGEST.md tells every option, and its numbers are those of the experiment."""

import json
import re
from pathlib import Path

from mpamatch.cli import COMMANDS, Parser

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "SUGGEST.md").read_text(encoding="utf-8")
FOUND = json.loads((ROOT / "experiments" / "results" / "suggest_rounds.json").read_text(encoding="utf-8"))


def test_every_option_is_told():
    for action in COMMANDS["suggest"](Parser())._actions:
        if action.option_strings and action.option_strings[0] not in ("-h", "--out", "--device", "--most-megapixels"):
            told = {f"`{one}" for one in action.option_strings} | {f" {action.option_strings[0]} "}
            assert any(one in PAGE for one in told), action.option_strings


def written(value: float, digits: int = 2, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def difference(one: dict) -> str:
    return f"{written(one['mean'], sign=True)} [{', '.join(written(one[end], sign=True) for end in ('low', 'high'))}]"


def test_the_numbers_are_those_of_the_experiment():
    rows = {cells[0].split(" (")[0]: cells[2:] for cells in table()}
    for strategy, name in (("random", "random"), ("uncertainty", "uncertainty alone"), ("suggest", "suggest")):
        assert rows[name] == [written(FOUND["curves"][strategy][size]["mean"]) for size in ("8", "16", "32")]
    for strategy, of in FOUND["minus_random"].items():
        assert rows[f"{strategy} − random"] == [difference(of[size]) for size in ("8", "16", "32")]
    of = FOUND["suggest_minus_uncertainty"]
    assert rows["suggest − uncertainty"] == [difference(of[size]) for size in ("8", "16", "32")]
    whole = FOUND["over_rounds"]["suggest minus random"]
    assert whole["low"] < 0 < whole["high"], "which the page says"
    for value in whole["mean"], whole["low"], whole["high"]:
        assert written(value, sign=True).replace("0.", ".") in PAGE


def table() -> list[list[str]]:
    lines = re.findall(r"^\| (.+) \|$", PAGE[PAGE.index("Is it better than chance") :], re.MULTILINE)
    return [[cell.strip() for cell in line.split(" |")] for line in lines[1:]]
