"""A few of the failing disks of `python -m tests.reliability.full_disk`, and its list of what writes."""

import re
from pathlib import Path

import pytest

import mpamatch
from tests.reliability.commands import refused_well
from tests.reliability.full_disk import ALL, WRITERS, may_mount, trials

PACKAGE = Path(mpamatch.__file__).parent
LINKED = ("kernels", "benchmarks")  # folders beside the package in the repository
WRITES = re.compile(
    r"\b(?:replacing|making|write_json|write_png|write_tensors|SummaryWriter|TemporaryFile|save_file)\("
    r"|\.(?:mkdir|write_text|write_bytes|savefig|save)\(|\.open\(\"[wa]"
)


def test_the_list_of_what_writes_is_that_of_the_code():
    files = (path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in LINKED)
    found = {path.relative_to(PACKAGE).as_posix() for path in files if WRITES.search(path.read_text("utf-8"))}
    assert found == set(WRITERS)
    assert {scenario for named in WRITERS.values() for scenario in named} <= set(ALL)


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="to mount a small disk takes root")
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("evaluate-again", ("space", "files", "read-only", "user")),
        ("prepare-folder", ("read-only", "user")),
        ("train-resume", ("read-only", "user")),
        ("predict-slide", ("space",)),
        ("suggest-images", ("space", "user")),
        ("split-masks", ("files",)),
    ],
)
def test_a_disk_that_fails_costs_a_sentence(name, kinds, shared, tmp_path):
    tried = list(trials(ALL[name], shared, tmp_path / name, kinds))
    assert [f"{one.kind}, {one.where}: {fault}" for one in tried for fault in one.faults] == []
    assert any(one.code for one in tried)


def test_a_refusal_is_one_sentence():
    assert refused_well(2, "some words\nmpamatch: a: cannot be written.\n") is None
    assert "exit code 1" in str(refused_well(1, "mpamatch: a"))
    assert "0 sentences" in str(refused_well(2, "a"))
    assert "traceback" in str(refused_well(2, "Traceback (most recent call last):\nmpamatch: a"))
