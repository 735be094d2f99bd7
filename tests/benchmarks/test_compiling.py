"""Candidates of a search, compiled by other processes for a device that need not be here."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")
from mpamatch.benchmarks import compiling, tune
from mpamatch.benchmarks.compiling import COMPILED, Compilers, compile_setting
from mpamatch.kernels import compiled, tiles
from mpamatch.kernels.compiled import Cost

pytestmark = pytest.mark.slow

HOPPER = tiles.Device("A GPU", (9, 0), 132, 232448)
TARGET = next(target for target in tune.targets("prototype_distance") if target.case.d == 256 and target.case.c == 5)
SETTING = tune.in_use(TARGET, tiles.entries_for(HOPPER))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of Triton, also for the processes that are started."""
    from triton import knobs

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path)
        yield tmp_path


def shared_memory_of_a_launch() -> int:
    given = compiling.benchmark_of("prototype_distance").inputs(replace(TARGET.case, n=1024), "cpu")
    [call] = tune._calls(TARGET.kernel, given, 1)
    with tiles.using(TARGET.kernel, SETTING):
        return max(cost.shared_memory for cost in compiled.costs(call, HOPPER))


def test_a_worker_fills_the_cache_that_a_launch_on_tensors_finds(cache):
    """The launch is one on the CPU's memory, for the same architecture: a GPU is not here.

    It has a process of its own, as Triton's key of a kernel depends on what the process compiled before (3.6).
    """
    with Compilers(HOPPER, 1) as compilers:
        assert compilers.ask(TARGET.kernel, TARGET.case, SETTING).result(timeout=300) == COMPILED
    before = sorted(cache.rglob("*.cubin"))
    assert len(before) == 2  # pack_kernel and forward_kernel
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        needed = fresh.apply(shared_memory_of_a_launch)
    assert sorted(cache.rglob("*.cubin")) == before
    narrow = HOPPER._replace(shared_memory=100_000)
    reason = compile_setting(TARGET.kernel, TARGET.case, SETTING, narrow)
    assert reason == f"needs {needed} bytes of shared memory of 100000"


def test_a_worker_that_dies_loses_its_setting_and_the_next_one_starts_anew(cache):
    pseudo_label = tune.targets("pseudo_label")[0]
    setting = {"BLOCK_P": 64, "num_warps": 2, "num_stages": 2}
    with Compilers(HOPPER, 1) as compilers:
        first = compilers.ask(pseudo_label.kernel, pseudo_label.case, setting)
        while not compilers._processes:
            pass
        os.kill(compilers._processes[0].pid, signal.SIGKILL)
        assert first.result(timeout=60) == "the compiler's process ended with code -9"
        assert compilers.ask(pseudo_label.kernel, pseudo_label.case, setting).result(timeout=300) == COMPILED
    assert all(process.returncode == -9 for process in compilers._processes)


@pytest.mark.parametrize("kernel", [kernel for kernels in tune.tiled(None).values() for kernel in kernels])
def test_every_kernel_has_arguments_that_lie_nowhere(kernel, monkeypatch):
    """Forward results for a backward pass come without a launch."""
    target = next(target for target in tune.targets(kernel.partition(".")[0]) if target.kernel == kernel)
    called = []
    monkeypatch.setattr(compiled, "costs", lambda call, device: called.append(call) or [Cost("k", 32, 0, 0, {})])
    with compiling.nothing_launched(), tiles.as_device(HOPPER):
        assert compile_setting(kernel, target.case, tune.in_use(target, tiles.entries_for(HOPPER)), HOPPER) == COMPILED
        called[0]()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([Cost("k", 255, 0, 1000, {}), Cost("l", 32, 24, 0, {})], "spills 24 bytes a thread"),
        ([Cost("k", 255, 0, 300_000, {})], "needs 300000 bytes of shared memory of 232448"),
        ([Cost("k", 255, 0, 232_448, {})], COMPILED),
        (FileNotFoundError("cuobjdump"), COMPILED),  # unknown costs condemn nothing
        (RuntimeError("PassManager::run\nfailed"), "RuntimeError: PassManager::run failed"),
    ],
)
def test_what_the_code_costs_decides(monkeypatch, found, says):
    def costs(call, device):
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(compiled, "costs", costs)
    target = tune.targets("pseudo_label")[0]
    assert compile_setting(target.kernel, target.case, {"BLOCK_P": 64}, HOPPER) == says


def test_one_core_is_left_for_the_process_that_times():
    assert [compiling.workers_for(cores) for cores in (1, 2, 16, 128)] == [1, 1, 15, 16]
