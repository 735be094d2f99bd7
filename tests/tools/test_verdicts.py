"""Verdicts of native checks: kept while nothing changes, dropped at one byte, never kept of a failure."""

from pathlib import Path

import pytest

from tests.tools import verdicts
from tests.tools.verdicts import Verdicts

pytest_plugins = ["pytester"]

CHECK = """
import os
from pathlib import Path

import pytest

@pytest.mark.native(sources=["sources"])
@pytest.mark.parametrize("name", ["first", "second"])
def test_check(name):
    with Path("ran").open("a") as file:
        file.write(f"{name} ")
    assert "fault" not in Path("sources/kernel.h").read_text()
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with two native checks of one source."""
    monkeypatch.setattr(verdicts, "VERDICTS", Verdicts(pytester.path / "kept", pytester.path))
    pytester.makepyfile(CHECK)
    (pytester.path / "sources").mkdir()
    (pytester.path / "sources" / "kernel.h").write_text("int one;")
    (pytester.path / "sources" / "other.h").touch()
    return pytester


def run(project: pytest.Pytester) -> tuple[str, pytest.RunResult]:
    """What ran, and what pytest said."""
    ran = project.path / "ran"
    ran.unlink(missing_ok=True)
    result = project.runpytest_inprocess("-p", "tests.tools.verdicts", "-p", "no:cacheprovider", "-m", "native")
    return ran.read_text() if ran.is_file() else "", result


def test_what_passed_does_not_run_again(project):
    assert run(project)[0] == "first second "
    ran, result = run(project)
    assert ran == ""
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*2 kept*"])


def test_one_byte_of_a_source_makes_it_run(project):
    run(project)
    (project.path / "sources" / "kernel.h").write_text("int two;")
    assert run(project)[0] == "first second "
    assert run(project)[0] == ""


@pytest.mark.parametrize("change", ["a new file", "a file renamed", "the test itself"])
def test_so_does(change, project):
    run(project)
    if change == "a new file":
        (project.path / "sources" / "new.h").touch()
    elif change == "a file renamed":
        (project.path / "sources" / "other.h").rename(project.path / "sources" / "another.h")
    else:
        project.makepyfile(CHECK + "# checked twice")
    assert run(project)[0] == "first second "


def test_a_failure_is_not_kept(project):
    (project.path / "sources" / "kernel.h").write_text("fault")
    for _ in range(2):
        ran, result = run(project)
        assert ran == "first second "
        assert result.ret == 1
    result.assert_outcomes(failed=2)


def test_a_failure_after_a_pass_is_told(project):
    run(project)
    (project.path / "sources" / "kernel.h").write_text("fault")
    assert run(project)[1].ret == 1
    (project.path / "sources" / "kernel.h").write_text("int one;")
    assert run(project)[0] == ""  # the verdict on these very sources still stands


def test_only_the_latest_pass_of_a_test_is_kept(project):
    for text in ("int one;", "int two;"):
        (project.path / "sources" / "kernel.h").write_text(text)
        run(project)
    assert len(list((project.path / "kept").iterdir())) == 2


def test_a_skip_is_not_kept(project):
    project.makepyfile("import pytest\n\n@pytest.mark.native(sources=['sources'])\ndef test_it():\n    pytest.skip('')")
    assert run(project)[1].ret == 0
    assert not (project.path / "kept").exists()


def test_tools_versions_settings_and_flags_count(tmp_path, monkeypatch):
    (tmp_path / "kernel.h").touch()
    of = Verdicts(tmp_path / "kept", tmp_path).fingerprint
    answers = {"c++": "12", "nvcc": "13"}
    monkeypatch.setattr(verdicts, "_version", answers.get)
    depends = {"sources": ["kernel.h"], "tools": ["c++"], "packages": ["pytest"], "settings": {"warps": 4}}
    first = of(**depends)
    assert of(**depends) == first
    seen = {first, of(**depends | {"tools": ["nvcc"]}), of(**depends | {"settings": {"warps": 8}})}
    seen.add(of(**depends | {"packages": ["torch"]}))
    answers["c++"] = "13"
    seen.add(of(**depends))
    monkeypatch.setenv("CXXFLAGS", "-O0")
    seen.add(of(**depends))
    monkeypatch.setattr(verdicts, "_machine", lambda: "another")
    seen.add(of(**depends))
    assert len(seen) == 7


def test_a_source_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.h: a native check depends on it"):
        Verdicts(tmp_path, tmp_path).fingerprint(sources=[Path("gone.h")])
