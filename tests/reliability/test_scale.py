"""A small one of the epochs whose memory `python -m tests.reliability.scale` measures."""

import mmap
import os

import pytest

from mpamatch.data.prepared import load_prepared
from tests.reliability.scale import Memory, family, make_patches, measure, resident


def test_memory_that_grows_is_told():
    assert Memory(100, 101, 102, 102.9, 1).constant
    assert not Memory(100, 103, 106, 106, 1).constant


def test_the_memory_of_this_process_is_seen():
    before = resident(os.getpid())
    with mmap.mmap(-1, 50_000_000) as held:  # pages of its own, not what this process has freed and kept
        held.write(bytes(range(250)) * 200_000)
        assert resident(os.getpid()) - before > 40
    assert next(family(os.getpid())) == os.getpid()


@pytest.mark.slow
def test_an_epoch_passes_every_patch(tmp_path):
    root = make_patches(tmp_path / "data", 300)
    prepared = load_prepared(root)
    assert len([name for name in prepared.parts["train"] if prepared.mask_path(name) is None]) >= 300
    found = measure("training", root, 300, tmp_path / "training")
    assert found.peak > 50
    assert (tmp_path / "training" / "run" / "metrics.jsonl").read_text().count('"loss"') == 1
