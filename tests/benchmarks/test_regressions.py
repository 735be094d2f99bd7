"""No fused operation falls behind: ratios of medians within one process, never absolute times.

The bounds are about half of what one core of an AVX2 machine reaches at these sizes, so that a busy minute is no
failure and the loss of vectorisation, of blocking or of a whole pass is one.
"""

import pytest

from mpamatch.benchmarks import measure, suite
from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.backends import EAGER, using
from mpamatch.benchmarks.cases import BOTH, FORWARD, SINKHORN_AND_UPDATE, Case
from mpamatch.benchmarks.measure import Timed
from mpamatch.benchmarks.suite import bind
from mpamatch.ops import dispatch, native

PIXELS = (16_384, 64, 5, 10)  # N, D, C, K
MAPS = (2, 128, 128)  # B, H, W
# (operation, direction): the least ratio eager / fused
BOUNDS = {
    ("prototype_distance", FORWARD): 1.5,
    ("prototype_distance", BOTH): 1.6,
    ("sinkhorn_assign", FORWARD): 4.5,
    ("prototype_update_", FORWARD): 6.5,
    (SINKHORN_AND_UPDATE, FORWARD): 5.0,
    ("prototype_contrast", BOTH): 1.1,
    ("segmentation_loss", BOTH): 2.1,
    ("pseudo_label", FORWARD): 2.3,
    ("signed_distance", FORWARD): 5.0,
}


def case_of(operation: str, direction: str) -> Case:
    if operation in ("segmentation_loss", "pseudo_label", "signed_distance"):
        return Case(operation, direction, 2 * 128 * 128, 0, 5, 0, "float32", shape=MAPS)
    return Case(operation, direction, *PIXELS, "float32")


@pytest.mark.parametrize(("operation", "direction"), BOUNDS, ids=lambda value: value)
def test_fused_against_eager(operation, direction, benchmark):
    reasons = [dispatch.available(part, "cpu")["cpp"] for part in operation.split("+")]
    if any(reasons):
        pytest.skip(f"no fused backend to compare: {reasons}")
    if native.build_information()["instruction_set"] == "baseline":
        pytest.skip("the bounds are those of a processor with AVX2 or better")
    found = next(b for b in BENCHMARKS if b.operation == operation)
    case = case_of(operation, direction)
    given = found.inputs(case, "cpu")
    run = bind(found, case, found.call)
    timed = {}
    for backend in (EAGER, "cpp"):
        own = suite._copy(found, given)
        timed[backend] = Timed(lambda own=own: run(own), lambda backend=backend: using(backend))
    with measure.memory("warm"):
        times = measure.interleaved(timed, seconds=0.5, rounds=(7, 31))
        with using("cpp"):
            benchmark.pedantic(timed["cpp"].call, rounds=5, warmup_rounds=1)
    ratio = times[EAGER].median / times["cpp"].median
    benchmark.extra_info["eager / cpp"] = ratio
    assert ratio >= BOUNDS[operation, direction], f"{ratio:.2f} times eager's speed"
