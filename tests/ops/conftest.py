"""The backends that run without a GPU, for the tests that hold each of them to the truth."""

from collections.abc import Iterator

import pytest

from mpamatch.ops import dispatch, native


@pytest.fixture(scope="module", params=["eager", "cpp"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The operations run on this backend, or raise: none gives way to another."""
    if request.param == "cpp" and native.missing("cpu"):
        pytest.skip(str(native.missing("cpu")))
    with dispatch.using(request.param):
        yield request.param
