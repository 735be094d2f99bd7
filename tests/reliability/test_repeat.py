"""A short one of the trainings that `python -m tests.reliability.repeat` repeats."""

import pytest

from tests.reliability.repeat import VARIANTS, digests

pytestmark = pytest.mark.slow


def test_a_training_repeats_to_the_last_bit_however_its_batches_come(shared, tmp_path):
    found = digests("fixmatch", 6, shared.data, tmp_path)
    assert set(found) == set(VARIANTS)
    assert len(set(found.values())) == 1
    assert digests("fixmatch", 4, shared.data, tmp_path / "other")["once"] != found["once"]
