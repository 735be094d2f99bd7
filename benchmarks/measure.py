"""Time, memory and launches of a call, and the ceilings of the machine, all in one process.

CPU: the variants take turns, so that a busy minute meets all of them; medians and the 20th and 80th percentile.
"fresh" is malloc as a long-lived process has it: every block above 32 MiB is new pages (1.8–2.6 µs each to touch);
"warm" keeps freed memory, so outputs come to lie where the last ones lay. GPU: replays of a CUDA graph for calls under
2 ms, else triton.testing.do_bench; inputs rotate past the L2 cache.
"""

import ctypes
import gc
import os
import platform
import re
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mpamatch.benchmarks.pretend import pretended
from mpamatch.malloc import KEPT, MIB, can_be_set, set_malloc
from mpamatch.ops import native

# Seconds. do_bench hides 0.1 ms of host time behind its flush of the cache; forty launches and a backward pass through
# autograd take about 1 ms of it, whatever the GPU does.
GRAPH_BELOW = 2e-3
WARM_UP = 3  # turns
PAGE_STATE = Path("/proc/self/status")


class Timed(NamedTuple):
    """A call without arguments, and the context in which it runs; entering the context is not timed."""

    call: Callable[[], Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


class Timing(NamedTuple):
    """Seconds of one call."""

    median: float
    p20: float
    p80: float
    rounds: int
    timer: str  # wall, graph or do_bench
    note: str = ""  # why it is not a graph


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches in this process: bytes/s of a copy (read + write), FLOP/s of a large matmul by dtype.

    A dtype without arithmetic of its own on the device (half precision on a CPU) has the rate of float32.
    """

    copy: float
    matmul: dict[str, float]

    def fraction(self, seconds: float, moved: int, flops: int, dtype: str) -> float:
        """The least time by the roofline over the time taken."""
        return max(moved / self.copy, flops / self.matmul[dtype]) / seconds


def interleaved(
    timed: Mapping[str, Timed], *, seconds: float, rounds: tuple[int, int] = (5, 25), warm_up: int = WARM_UP
) -> dict[str, Timing]:
    """Times the calls in turns, each turn in another order, for about `seconds` in all and at least rounds[0] turns.

    `warm_up` turns before are not timed: first use, and until kept memory has found its place.
    """
    names = list(timed)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for name in names * warm_up:
        with timed[name].context():
            timed[name].call()
    began, turn = time.perf_counter(), 0
    collecting = gc.isenabled()
    gc.disable()
    try:
        while turn < rounds[0] or (turn < rounds[1] and time.perf_counter() - began < seconds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                with timed[name].context():
                    start = time.perf_counter()
                    result = timed[name].call()
                    samples[name].append(time.perf_counter() - start)
                    del result
            turn += 1
    finally:
        if collecting:
            gc.enable()
    return {name: summary(values, "wall") for name, values in samples.items()}


def summary(samples: Sequence[float], timer: str) -> Timing:
    ordered = torch.tensor(samples, dtype=torch.float64)
    median, p20, p80 = (float(ordered.quantile(share)) for share in (0.5, 0.2, 0.8))
    return Timing(median, p20, p80, len(samples), timer)


POOL = 1024 * MIB
# What becomes of freed memory, as `set_malloc` takes it.
ALLOCATIONS = {
    "warm": KEPT,
    # where a process settles by itself: glibc raises its thresholds up to these as large blocks are freed
    "fresh": (65_536, 32 * MIB, 64 * MIB),
    "counted": (65_536, MIB // 8, MIB // 8),  # everything large mapped on its own, so that resident pages tell the peak
}


@contextmanager
def memory(allocation: str) -> Iterator[None]:
    """Within it malloc behaves as ALLOCATIONS says; afterwards as in a process that has settled.

    "warm" leaves holes in the heap that large blocks then use again: measure "fresh" before it.
    """
    if not can_be_set():
        yield
        return
    set_malloc(*ALLOCATIONS[allocation])
    if allocation == "warm":
        _fill_heap()
    try:
        yield
    finally:
        set_malloc(*ALLOCATIONS["fresh"])


def _fill_heap() -> None:
    """Touches POOL bytes of the heap and frees them. Malloc cannot put an aligned block into a hole of its own size, so
    for some calls each takes another part of the heap; none of it is new then."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    block = libc.malloc(POOL)
    if block:
        ctypes.memset(block, 1, POOL)
        libc.free(block)


def peak_extra_bytes(timed: Timed, device: str) -> int | None:
    """The highest memory during a call, less what was there before and what its results hold; measured, not computed.

    CPU: resident pages, so buffers that no allocator hook sees count too; exact to about 0.3 MB. None where the
    system does not tell. CUDA: torch's allocator.
    """
    with timed.context():
        timed.call()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            held = held_bytes(timed.call())
            torch.cuda.synchronize()
            return max(0, torch.cuda.max_memory_allocated() - before - held)
        gc.collect()  # before free memory goes back: what it frees afterwards would stay resident and be used again
        with memory("counted"):
            if not restart_peak():
                return None
            before = resident("VmRSS")
            held = held_bytes(timed.call())
            return max(0, resident("VmHWM") - before - held)


def held_bytes(results: Any) -> int:
    """Bytes of the storages behind the tensors in `results`, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(results)}
    return sum(storages.values())


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def restart_peak() -> bool:
    """Lets VmHWM start from now; False where the system has no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest since restart_peak) of this process in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", PAGE_STATE.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def launches(timed: Timed) -> int:
    """Kernels, copies and fills that one call puts on the GPU, counted by the profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with timed.context():
        timed.call()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            timed.call()
            torch.cuda.synchronize()
    events = seen.events() or []
    return sum(event.device_type == DeviceType.CUDA and not event.is_user_annotation for event in events)


def on_cuda(timed: Timed, *, rotation: int, milliseconds: int = 100) -> Timing:
    """`timed.call` takes the next of `rotation` copies of its inputs at each call, so none lies in the L2 cache."""
    from triton import testing

    with timed.context():
        for _ in range(max(2, rotation)):
            timed.call()
        torch.cuda.synchronize()
        samples = [
            value / 1e3 for value in testing.do_bench(timed.call, warmup=25, rep=milliseconds, return_mode="all")
        ]
        timing = summary(samples, "do_bench")
        if timing.median >= GRAPH_BELOW:
            return timing
        calls = rotation * max(1, 20 // rotation)
        replays = min(30, max(5, round(milliseconds / (1e3 * timing.median * calls))))
        try:
            return _replayed(_captured(timed.call, rotation, calls), calls, replays)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:80]
            return timing._replace(note=f"no CUDA graph, so host time counts: {reason}")


def _captured(call: Callable[[], Any], rotation: int, calls: int) -> Any:
    """A CUDA graph of `calls` calls. Raises RuntimeError if the call cannot be captured, as one that asks the GPU."""
    _refuse_questions(call)
    before = torch.cuda.current_stream()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(rotation):
            call()
    before.wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
    except RuntimeError:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own
        raise
    return graph


def _replayed(graph: Any, calls: int, replays: int) -> Timing:
    graph.replay()  # the first one puts the graph on the GPU
    samples = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3 / calls)
    return summary(samples, "graph")


def _refuse_questions(call: Callable[[], Any]) -> None:
    """Raises RuntimeError if a call waits for the GPU; found out before a capture, as one that fails costs more."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def rotations(inputs: Mapping[str, Tensor], device: str) -> int:
    """How many copies of the inputs exceed the L2 cache three times over; 1 on the CPU."""
    if device != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, -(-3 * cache // max(1, held_bytes(dict(inputs)))))


def measure_ceilings(device: str, dtypes: Sequence[str], tiny: bool = False) -> Ceilings:
    """Copies of 256 MB (1 GB on a GPU) and matmuls of 2048³ (8192³), the quickest of each; tiny: of nearly nothing."""
    matmul = {"float32": _matmul_rate("float32", device, tiny)}
    for dtype in dtypes:
        own = device == "cuda" or dtype == "float64"
        matmul[dtype] = _matmul_rate(dtype, device, tiny) if own else matmul["float32"]
    return Ceilings(_copy_rate(device, tiny), matmul)


def _copy_rate(device: str, tiny: bool) -> float:
    elements = 2**16 if tiny else 2**28 if device == "cuda" else 2**26
    source = torch.ones(elements, device=device)
    copy = torch.empty_like(source)
    return 2 * 4 * elements / _quickest(lambda: copy.copy_(source), device)


def _matmul_rate(dtype: str, device: str, tiny: bool) -> float:
    side = 128 if tiny else 8192 if device == "cuda" and dtype != "float64" else 2048
    a = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    out = torch.empty_like(a)
    return 2 * side**3 / _quickest(lambda: torch.mm(a, a, out=out), device)


def _quickest(call: Callable[[], Any], device: str) -> float:
    """A ceiling is what the machine can do: the median on a GPU, the best of 12 on a CPU that others use too."""
    if device == "cuda":
        return on_cuda(Timed(call), rotation=1).median
    call()
    return min(timeit.repeat(call, number=1, repeat=12))


def machine(device: str) -> str:
    """What the rows name: the GPU, or the processor, the instruction set of the C++ kernels and the number of threads.

    A processor's name may be sold with and without AVX-512, and MPAMATCH_CPU chooses.
    """
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    names = re.findall(r"^model name\s*: (.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    chosen = native.build_information().get("instruction_set", "no C++")
    found = f"{name}, {chosen}, {threads} thread{'s' if threads > 1 else ''}"
    return f"pretended on {found}" if pretended() else found


def load() -> float:
    """Running processes of the last minute per core, taken before a run: above about 0.2 no timing is worth quoting."""
    return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""
