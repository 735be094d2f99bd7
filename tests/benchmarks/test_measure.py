"""Times, memory and ceilings: the tools themselves."""

import contextlib
import subprocess
import time
import timeit

import pytest
import torch

from mpamatch.benchmarks import measure
from mpamatch.benchmarks.measure import Ceilings, Timed
from mpamatch.malloc import can_be_set


def test_variants_take_turns_and_the_first_use_is_not_timed():
    order = []
    timed = {name: Timed(lambda name=name: order.append(name)) for name in "abc"}
    found = measure.interleaved(timed, seconds=0.0, rounds=(4, 9))
    assert "".join(order) == 3 * "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: timing.rounds for name, timing in found.items()} == dict.fromkeys("abc", 4)


def test_a_median_is_that_of_the_samples():
    timing = measure.summary([5.0, 1.0, 2.0, 3.0, 4.0], "wall")
    assert (timing.median, timing.p20, timing.p80, timing.rounds) == pytest.approx((3.0, 1.8, 4.2, 5))


@pytest.mark.serial
def test_the_slower_call_takes_longer():
    timed = {"short": Timed(lambda: time.sleep(0.001)), "long": Timed(lambda: time.sleep(0.03))}
    found = measure.interleaved(timed, seconds=0.0)
    assert found["long"].median > 2 * found["short"].median


def test_peak_memory_is_measured_without_the_result():
    elements = 8 * 2**20

    def call():
        hidden = torch.full((elements,), 2.0)  # 32 MiB, gone at the end
        return hidden[: elements // 2] + 1  # 16 MiB, the result

    peak = measure.peak_extra_bytes(Timed(call), "cpu")
    assert peak == pytest.approx(4 * elements, rel=0.1)


def test_a_result_that_needs_nothing_else_has_no_extra_memory():
    peak = measure.peak_extra_bytes(Timed(lambda: torch.full((8 * 2**20,), 1.0)), "cpu")
    assert peak is not None
    assert peak < 2**20


def test_storages_are_counted_once():
    rows = torch.zeros(100, 10)
    assert measure.held_bytes((rows, rows[3], {"x": rows.T})) == 4000


FAULTS = """
import resource, torch
from mpamatch.benchmarks import measure
def faults(allocation):
    with measure.memory(allocation):
        counts = []
        for _ in range(8):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.full((16 * 2**20,), 1.0)
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return sorted(counts)[4]
print(faults("fresh"), faults("warm"))
"""


@pytest.mark.skipif(not can_be_set(), reason="malloc of this system has no such setting")
@pytest.mark.slow
def test_kept_memory_is_not_touched_anew(warm_python):
    """In a process of its own, of 64 MiB: 16,384 pages of 4 KiB."""
    done = subprocess.run([warm_python, "-c", FAULTS], capture_output=True, text=True, check=True)
    fresh, warm = map(int, done.stdout.split())
    assert fresh > 1000 + 10 * warm


def test_the_roofline_is_the_higher_of_two_floors():
    ceilings = Ceilings(copy=10.0, matmul={"float32": 100.0})
    assert ceilings.fraction(2.0, moved=10, flops=10, dtype="float32") == pytest.approx(0.5)
    assert ceilings.fraction(2.0, moved=1, flops=150, dtype="float32") == pytest.approx(0.75)


def test_the_quickest_call_counts_and_the_first_does_not(monkeypatch):
    calls = []
    monkeypatch.setattr(timeit, "repeat", lambda call, number, repeat: [3.0, 1.0, 2.0, *[4.0] * (repeat - 3)])
    assert measure._quickest(lambda: calls.append(None), "cpu") == 1.0
    assert len(calls) == 1


def test_half_precision_has_the_ceiling_of_float32_on_a_cpu(monkeypatch):
    monkeypatch.setattr(measure, "_quickest", lambda call, device: 1.0)
    ceilings = measure.measure_ceilings("cpu", ["bfloat16", "float32"])
    assert ceilings.matmul["bfloat16"] == ceilings.matmul["float32"] == 2 * 2048**3


@pytest.fixture
def stub_gpu(monkeypatch):
    """The calls of `on_cuda` beside the capture, without a GPU: do_bench finds 0.5 ms."""
    testing = pytest.importorskip("triton.testing")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(testing, "do_bench", lambda *_, **__: [0.5, 0.5, 0.5])


def test_a_call_under_two_milliseconds_is_timed_by_a_graph(stub_gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(measure, "_captured", lambda call, rotation, calls: asked.append((rotation, calls)))
    monkeypatch.setattr(measure, "_replayed", lambda graph, calls, replays: measure.summary([1e-5] * replays, "graph"))
    timing = measure.on_cuda(Timed(lambda: None), rotation=5)
    assert (timing.timer, timing.median, timing.note) == ("graph", 1e-5, "")
    assert asked == [(5, 20)]
    assert timing.rounds == 10  # 20 calls of 0.5 ms in each, 100 ms in all


def test_where_a_capture_fails_the_row_says_that_host_time_counts(stub_gpu, monkeypatch):
    def refused(*_):
        raise RuntimeError("called a synchronizing\nCUDA operation")

    monkeypatch.setattr(measure, "_captured", refused)
    timing = measure.on_cuda(Timed(lambda: None), rotation=1)
    assert (timing.timer, timing.median) == ("do_bench", 0.5e-3)
    assert timing.note == "no CUDA graph, so host time counts: called a synchronizing CUDA operation"


def test_a_failed_capture_leaves_the_stream_that_it_found(monkeypatch):
    class Stream:
        def wait_stream(self, other):
            pass

    class Failing:
        def __enter__(self):
            current.append("the capture's")

        def __exit__(self, *_):
            raise RuntimeError("capture failed")

    before = Stream()
    current: list[object] = [before]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: Failing())
    with pytest.raises(RuntimeError, match="capture failed"):
        measure._captured(lambda: None, rotation=1, calls=2)
    assert current[-1] is before
