"""The house: imports run one way, files stay short, and help is quick and light."""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mpamatch"
BOTTOM = {"errors", "files", "tensors", "images", "batch", "settings", "registry", "stored", "whole"}
BOTTOM |= {"ranks", "device", "malloc", "ahead", "console", "names", "environment", "claims", "signals"}
FLOORS = ["ops", "models", "methods", "engine"]  # each may import what stands before it
# What each part may import beside itself and the bottom.
MAY = {
    **{floor: set(FLOORS[:height]) for height, floor in enumerate(FLOORS)},
    "data": {"slides"},
    "slides": set(),
    "inference": {"ops", "models", "slides"},
    "report": set(),
    "recipes": set(),
    "studies": {*FLOORS, "data"},
    "commands": {*FLOORS, "data", "inference", "report", "benchmarks", "studies"},
}
MAY["engine"] |= {"data", "slides", "inference"}
MAY["commands"] |= {"slides"}
PLANNED: set[str] = set()  # rooms that are not there yet, and what they may import once they are
OUR_FOLDERS = ("mpamatch", "kernels", "benchmarks", "experiments", "tools", "tests", "csrc")
INSTALLED = ("mpamatch", "kernels", "benchmarks")


def modules_imported(file: Path) -> Iterator[str]:
    """What a file imports, wherever in the file, by full name."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(word for word in (base, node.module or "") if word)
            names = [f"{module}.{alias.name}" for alias in node.names]
        yield from names


def parts_imported(file: Path) -> Iterator[str]:
    """The parts of mpamatch that a file imports: "ops", "errors", … or "" for the package."""
    for name in modules_imported(file):
        first, _, rest = name.partition(".")
        if first == "mpamatch":
            yield rest.partition(".")[0]


def refused(part: str, imported: set[str]) -> set[str]:
    """What a file of `part` imports although its floor does not allow it."""
    allowed = BOTTOM | {part} | MAY[part] if part in MAY else set()
    return imported - allowed


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


@pytest.mark.parametrize("file", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    part = file.relative_to(PACKAGE).parts[0]
    assert part in MAY, f"{part} has no floor: say here what it may import"
    assert refused(part, set(parts_imported(file))) == set()


@pytest.mark.parametrize("name", sorted(BOTTOM))
def test_the_bottom_imports_only_the_bottom(name):
    assert set(parts_imported(PACKAGE / f"{name}.py")) <= BOTTOM


def test_nothing_but_known_files_lies_beside_the_floors():
    beside = {path.stem for path in PACKAGE.glob("*.py")}
    assert beside - BOTTOM <= {"__init__", "__main__", "cli"}


def test_every_floor_is_there():
    found = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert found | PLANNED == set(MAY)


@pytest.mark.parametrize("part", ["engine", "studies", "commands"])
def test_a_method_is_asked_by_its_contract(part):
    """No getattr on a method or its configuration: what all may ask stands in methods/base.py."""
    asked = []
    for file in (PACKAGE / part).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            is_getattr = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
            if is_getattr and ast.unparse(node.args[0]).split(".")[-1] in ("method", "trains"):
                asked.append(f"{file.name}: {ast.unparse(node)}")
    assert asked == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import mpamatch.engine.loop", {"engine"}),
        ("from mpamatch import ops", {"ops"}),
        ("from ..models import text", {"models"}),
        ("from . import draws", {"data"}),
        ("def f():\n    from mpamatch.report.figures import draw_training", {"report"}),
        ("import torch\nfrom torch import nn", set()),
    ],
)
def test_the_reader_of_imports_finds_every_form(source, found, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "mpamatch" / "data" / "module.py"
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert set(parts_imported(file)) == found


@pytest.mark.parametrize(
    ("part", "imported"),
    [("ops", "models"), ("models", "methods"), ("methods", "engine"), ("data", "inference"), ("inference", "data")]
    + [("data", "engine"), ("inference", "methods"), ("report", "ops"), ("engine", "report"), ("engine", "commands")]
    + [
        ("engine", "cli"),
        ("methods", "data"),
        ("slides", "models"),
        ("slides", "data"),
    ],
)
def test_the_forbidden_directions_are_refused(part, imported):
    assert refused(part, {imported, "errors"}) == {imported}


# Of the package's own files, or of what our own killed processes left.
LIST_THEMSELVES = {"names.py", "files.py", "ops/source_hash.py", "engine/config.py", "models/prompt.py"}


def test_folders_are_listed_in_one_way():
    """By mpamatch.names, which leaves hidden files out."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"iterdir", "glob", "rglob", "listdir", "scandir"}:
                found.add(name)
    assert {name for name in found if not name.startswith(("benchmarks/", "kernels/"))} <= LIST_THEMSELVES


def test_consoles_and_text_of_bars_are_made_in_one_place():
    """In mpamatch.console, which reads no markup and no emoji in names."""
    makers = {"Console", "TextColumn", "Progress", "track"}
    for folder in INSTALLED:
        for file in (ROOT / folder).rglob("*.py"):
            if file == PACKAGE / "console.py":
                continue
            from_rich = {name.rpartition(".")[2] for name in modules_imported(file) if name.startswith("rich.")}
            calls = [node.func for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
            called = {call.id for call in calls if isinstance(call, ast.Name)}
            assert from_rich & makers & called == set(), file


def test_kernels_import_nothing_of_ours():
    for file in (ROOT / "kernels").rglob("*.py"):
        assert list(parts_imported(file)) == [], file


def test_what_is_installed_imports_no_experiment():
    def experiments(file: Path) -> list[str]:
        return [name for name in modules_imported(file) if name.partition(".")[0] == "experiments"]

    assert experiments(ROOT / "tests" / "experiments" / "test_compare_methods.py")  # found where there are some
    for folder in INSTALLED:
        for file in (ROOT / folder).rglob("*.py"):
            assert experiments(file) == [], file


def test_no_file_is_over_500_lines():
    files = [*ROOT.glob("*.py")]
    for folder in OUR_FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".cpp", ".cu", ".h"}]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > 500} == {}


@pytest.mark.serial
def test_help_is_quick():
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "mpamatch", "--help"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 0
        assert done.stderr == ""
        assert "mpamatch prepare glas" in done.stdout
    assert min(seconds) < 0.5


def test_no_help_imports_torch():
    """Nor anything else that takes long: one process asks for every command's help."""
    script = (
        "import sys\n"
        "from mpamatch.cli import COMMANDS, main\n"
        "for words in [[], *([name] for name in COMMANDS)]:\n"
        "    try:\n"
        "        main([*words, '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0, words\n"
        "print('heavy:', {'torch', 'numpy', 'yaml', 'jsonargparse', 'rich'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: set()"
