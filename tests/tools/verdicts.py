"""A check that compiles keeps its verdict: it runs again only if something that it compiles has changed.

Such a test says what its result depends on:

    @pytest.mark.native(sources=["csrc/core", "CMakeLists.txt"], tools=["c++", "cmake"])

A pass leaves build/native-checks/<test>.<hash>; while the hash stays, the test counts as kept and does not run. A
failure or a skip leaves nothing. To run all of them again, remove that folder: a fresh clone has none.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KEPT = ("verdict", "kept")
UNSAFE = re.compile(r"[^\w.,=-]+")  # in the name of a file
# What compilers, CMake and we ourselves heed.
VARIABLES = re.compile(
    r"CC|CXX|CUDACXX|MAKEFLAGS|(C|CXX|CPP|CUDA|LD)FLAGS|NVCC_.*|CUDA.*_HOME|MPAMATCH_.*|TORCH_CUDA.*"
)


class Verdicts:
    """The verdicts in a folder, on sources below `root`."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.root = root

    def place(self, name: str, **depends: Any) -> Path:
        """The file that stands for a pass of the test of this name; `depends` as in `fingerprint`."""
        return self.folder / f"{UNSAFE.sub('-', name)}.{self.fingerprint(**depends)}"

    def keep(self, place: Path) -> None:
        """Notes a pass, in place of those of the same test on other sources."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for older in self.folder.iterdir():
            if older.stem == place.stem:
                older.unlink(missing_ok=True)
        place.touch()

    def fingerprint(
        self,
        sources: Iterable[str | Path] = (),
        tools: Iterable[str] = (),
        packages: Iterable[str] = (),
        settings: object = None,
    ) -> str:
        """16 digits of a hash over all that a result may depend on.

        Args:
            sources: files and folders below the root, by name and content
            tools: programs, by what they answer to --version
            packages: of Python, by their version
            settings: anything else, by its repr
        """
        digest = hashlib.sha256()
        for source in sources:
            digest.update(_content(self.root, self.root / source))
        versions = [(tool, _version(tool)) for tool in tools]
        versions += [(package, metadata.version(package)) for package in packages]
        digest.update(repr([versions, settings, _machine(), _environment()]).encode())
        return digest.hexdigest()[:16]


def _content(root: Path, source: Path) -> bytes:
    """A hash over the names and contents of a file, or of all files below a folder."""
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    if not files:
        raise FileNotFoundError(f"{source}: a native check depends on it, and it is not there")
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{os.path.relpath(path, root)} {len(content)}\n".encode() + content)
    return digest.digest()


def find_tool(name: str) -> str | None:
    """A program: the one beside this Python, else the one on PATH."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


@cache
def _version(tool: str) -> str:
    found = find_tool(tool)
    return subprocess.run([found, "--version"], capture_output=True, text=True).stdout if found else "none"


@cache
def _machine() -> str:
    """The kind of processor with its instruction sets, which decide what runs."""
    try:
        flags = re.search(r"^(flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        flags = None
    return f"{platform.machine()} {flags[2] if flags else ''}"


def _environment() -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in os.environ.items() if VARIABLES.fullmatch(name))


# --- hooks of pytest ---

VERDICTS = Verdicts(ROOT / "build" / "native-checks", ROOT)
PLACE = pytest.StashKey[Path | None]()


def _place(item: pytest.Item) -> Path | None:
    """Where the verdict of a test lies; None for a test that is not marked `native`."""
    mark = item.get_closest_marker("native")
    if mark is None:
        return None
    depends = dict(mark.kwargs)
    depends["sources"] = [*depends.get("sources", ()), item.path, __file__]
    return VERDICTS.place(item.nodeid, **depends)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "native: compiles, and keeps its verdict while what it compiles stays the same")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    place = item.stash[PLACE] = _place(item)
    result = yield  # raises if the test fails or skips itself
    if place is not None and KEPT not in item.user_properties and place == _place(item):  # nothing changed meanwhile
        VERDICTS.keep(place)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Stands in for a test whose verdict is kept."""
    place = pyfuncitem.stash[PLACE]
    if place is None or not place.is_file():
        return None
    pyfuncitem.user_properties.append(KEPT)
    return True


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    kept = report.when == "call" and KEPT in [tuple(pair) for pair in report.user_properties]
    return ("kept", "k", "KEPT") if kept else None
