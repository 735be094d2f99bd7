"""What every test shares: one thread, quick and repeatable fuzzing, the folder of real tissue, a warm python."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.tools import warm

pytest_plugins = ["tests.tools.verdicts"]

REAL_TISSUE = "MPAMATCH_EBHI_SEG"
FEW = ("serial", "native")  # marks of a few files

# Test tensors are small: a second thread costs more in waking than it saves in work.
torch.set_num_threads(1)

# The same examples on every run, no clock (a busy machine is no failure) and no folder of past examples.
settings.register_profile(
    "mpamatch",
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("mpamatch")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under `-m serial` or `-m native` only files that name the mark are imported: all of them take ten seconds."""
    mark = config.option.markexpr
    if mark in FEW and collection_path.suffix == ".py" and f"mark.{mark}" not in collection_path.read_text("utf-8"):
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `real` are skipped, visibly, where no real tissue is named."""
    if os.environ.get(REAL_TISSUE):
        return
    skip = pytest.mark.skip(reason=f"set {REAL_TISSUE} to the folder of EBHI-Seg")
    for item in items:
        if "real" in item.keywords:
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """The garbage collector passes over what was imported: each training collects once, in 0.3 s otherwise."""
    gc.freeze()


@pytest.fixture(scope="session")
def ebhi_seg() -> Path:
    """The folder of EBHI-Seg as distributed; use it in tests marked `real`."""
    if not os.environ.get(REAL_TISSUE):
        pytest.skip(f"set {REAL_TISSUE} to the folder of EBHI-Seg")
    folder = Path(os.environ[REAL_TISSUE]).expanduser()
    if not folder.is_dir():
        pytest.fail(f"{REAL_TISSUE} names {folder}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A command for processes of their own, as sys.executable is one, but with torch imported: tests.tools.warm."""
    with warm.warm_python(tmp_path_factory.mktemp("warm")) as command:
        yield command
