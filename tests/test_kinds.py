"""Each kind of raw set by the recipe that `prepare` names, from its folder to a score.

What a kind's raw folder looks like stands beside its own tests, tests/data/test_source_KIND.py:
prepare_words(root, data) makes a small one below `root` and returns the words after `mpamatch prepare`, and CLASSES
are the names of the classes to be scored.
"""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from mpamatch.cli import main
from mpamatch.data.kinds import Kind, kinds
from mpamatch.data.prepared import load_prepared
from tests.tiny import tiny_flags

pytestmark = pytest.mark.slow


def module_of_tests(kind: Kind) -> ModuleType:
    """Imports the tests of a kind; fails with what is missing."""
    stem = f"test_source_{kind.module.rpartition('.')[2]}"
    file = Path(__file__).parent / "data" / f"{stem}.py"
    wanted = "prepare_words(root, data) and CLASSES, as tests/test_kinds.py says"
    if not file.is_file():
        pytest.fail(f"the kind {kind.name} has no tests: write tests/data/{file.name} with {wanted}")
    module = importlib.import_module(f"tests.data.{stem}")
    for name in ("prepare_words", "CLASSES"):
        if not hasattr(module, name):
            pytest.fail(f"tests/data/{file.name} has no {name}: it must have {wanted}")
    return module


@pytest.mark.parametrize("kind", kinds())
def test_from_the_raw_folder_to_a_score(kind, tmp_path, capsys):
    tests = module_of_tests(kinds()[kind])
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["prepare", *tests.prepare_words(tmp_path, data)]) == 0
    said = capsys.readouterr().out
    assert main(["check", str(data)]) == 0
    weak = bool(load_prepared(data).with_present("train"))
    assert ("mpamatch split" in said) != weak, "image-level labels are all used"
    if not weak:
        assert main(["split", str(data), "--labelled", "2"]) == 0
    recipe = re.findall("--recipe (.+) --data.root", said)[-1]
    fields = {"engine.steps": 3, "data.scale": 1.0}  # the images are small already
    words = ["--recipe", recipe, "--run", str(run), *tiny_flags(data, "lpd" if weak else "mpamatch", fields)]
    assert main(["train", *words]) == 0
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    scores = json.loads((run / "evaluation-test.json").read_text())
    assert set(scores["dice"]) == tests.CLASSES
    assert 0 <= scores["mdice"] < 1


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("mpamatch.data.sources.nobody", r"the kind none has no tests: write tests/data/test_source_nobody\.py with"),
        ("mpamatch.data.checks", r"tests/data/test_source_checks\.py has no prepare_words"),
    ],
)
def test_a_kind_without_tests_is_told_what_is_missing(module, says, monkeypatch):
    if module.endswith("checks"):
        monkeypatch.setattr(Path, "is_file", lambda _: True)
        monkeypatch.setattr(importlib, "import_module", ModuleType)
    with pytest.raises(pytest.fail.Exception, match=says):
        module_of_tests(Kind("none", "nothing", module))
