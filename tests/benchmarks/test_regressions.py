"""No fused operation falls behind: ratios of medians within one process, never absolute times.

The bounds are about half of what one core of an AVX2 machine reaches at these sizes, so that a busy minute is no
failure and the loss of vectorisation, of blocking or of a whole pass is one.
"""

from collections.abc import Iterator

import pytest

from mpamatch.benchmarks import measure, suite
from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.backends import EAGER, using
from mpamatch.benchmarks.cases import Case
from mpamatch.benchmarks.measure import Timed
from mpamatch.benchmarks.suite import Benchmark, bind
from mpamatch.ops import dispatch, native

BOUNDS = [
    pytest.param(benchmark, direction, least, id=f"{benchmark.operation}-{direction}")
    for benchmark in BENCHMARKS
    for direction, least in benchmark.least.items()
]


pytestmark = pytest.mark.serial


@pytest.fixture(scope="module", autouse=True)
def _kept_memory() -> Iterator[None]:
    """Touching a gigabyte of heap takes longer than a measurement: once for all of them."""
    with measure.memory("warm"):
        yield


def case_of(benchmark: Benchmark, direction: str) -> Case:
    """16,384 pixels of width 64, or 2 maps of 128²; five classes of ten prototypes."""
    if benchmark.cases("small", "cpu", "float32")[0].d:
        return Case(benchmark.operation, direction, 16_384, 64, 5, 10, "float32")
    return Case(benchmark.operation, direction, 2 * 128 * 128, 0, 5, 0, "float32", shape=(2, 128, 128))


@pytest.mark.parametrize(("found", "direction", "least"), BOUNDS)
def test_fused_against_eager(found, direction, least, benchmark):
    reasons = [dispatch.available(part, "cpu")["cpp"] for part in found.operation.split("+")]
    if any(reasons):
        pytest.skip(f"no fused backend to compare: {reasons}")
    if native.build_information()["instruction_set"] == "baseline":
        pytest.skip("the bounds are those of a processor with AVX2 or better")
    case = case_of(found, direction)
    given = found.inputs(case, "cpu")
    run = bind(found, case, found.call)
    timed = {}
    for backend in (EAGER, "cpp"):
        own = suite._copy(found, given)
        timed[backend] = Timed(lambda own=own: run(own), lambda backend=backend: using(backend))
    times = measure.interleaved(timed, seconds=0.2, rounds=(7, 31))
    with using("cpp"):
        benchmark.pedantic(timed["cpp"].call, rounds=5, warmup_rounds=1)
    ratio = times[EAGER].median / times["cpp"].median
    benchmark.extra_info["eager / cpp"] = ratio
    assert ratio >= least, f"{ratio:.2f} times eager's speed"
