"""The version stands in pyproject.toml alone."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import mpamatch

ROOT = Path(__file__).parent.parent
STATED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def test_the_version_is_the_installed_one(monkeypatch):
    monkeypatch.setattr(metadata, "version", {"mpamatch": "9.8.7"}.__getitem__)
    assert mpamatch.__version__ == "9.8.7"


def test_a_checkout_that_nobody_installed_has_its_version(tmp_path):
    """As gpu-check runs one: the package through a link, and no metadata beside it."""
    (tmp_path / "mpamatch").symlink_to(ROOT / "mpamatch")
    script = (
        "import sys\n"
        f"sys.path = [{str(tmp_path)!r}, *(path for path in sys.path if not path.endswith('-packages'))]\n"
        "import mpamatch\n"
        "loaded = {'importlib.metadata', 'tomllib', 'torch', 'numpy'} & set(sys.modules)\n"
        "print(mpamatch.__version__, loaded)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", script]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.split("\n")[0] == f"{STATED} set()"


def test_another_name_is_none_of_the_package():
    with pytest.raises(AttributeError, match="module 'mpamatch' has no attribute 'verson'"):
        mpamatch.verson  # noqa: B018


def test_cmake_reads_the_version_from_the_same_line():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("version = ")] == [f'version = "{STATED}"']
