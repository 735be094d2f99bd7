"""Compiles settings of kernels in processes of their own, before any is timed.

No worker needs the GPU: Triton's own launch path fills its cache on disk for the device's architecture, and the process
that times finds the code there. What the code costs tells which settings are not worth a launch: those that spill
registers, or need more shared memory than the device has. A worker that crashes (LLVM does at times) loses its setting,
and the next one starts anew.

    python -m mpamatch.benchmarks.compiling DEVICE      one worker: jobs on standard input, answers on standard output
"""

import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.cases import Case
from mpamatch.benchmarks.suite import Benchmark

Setting = dict[str, int]
COMPILED = ""  # the answer for a setting that may be timed; any other says why it is dropped
LONGEST = 160  # characters of a reason


def workers_for(cores: int) -> int:
    """All cores but the one that times; more than 16 would mostly wait for the disk."""
    return max(1, min(cores - 1, 16))


class Compilers:
    """Workers that compile what they are asked, first asked first."""

    def __init__(self, device: tuple[Any, ...], workers: int):
        self._device, self._workers = json.dumps(device), workers
        self._threads = ThreadPoolExecutor(workers)
        self._own = threading.local()
        self._processes: list[subprocess.Popen[str]] = []
        self._closed = False

    def __enter__(self) -> "Compilers":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the workers, whatever they are at."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.wait()

    def ask(self, kernel: str, case: Case, setting: Setting) -> Future[str]:
        """The future of COMPILED or a reason."""
        job = json.dumps({"kernel": kernel, "case": asdict(case), "setting": setting})
        return self._threads.submit(self._answer, job)

    def _answer(self, job: str) -> str:
        process = self._process()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(job + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # a pipe whose reader is gone
            line = ""
        if line:
            return str(json.loads(line))
        return f"the compiler's process ended with code {process.wait()}"

    def _process(self) -> "subprocess.Popen[str]":
        """This thread's worker, a new one if there is none alive."""
        process: subprocess.Popen[str] | None = getattr(self._own, "process", None)
        if process is None or process.poll() is not None:
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            environment.pop("TRITON_INTERPRET", None)  # a dry run's process interprets
            process = self._own.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mpamatch.benchmarks.compiling", self._device],
                env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self._processes.append(process)
            if self._closed:
                process.kill()
        return process


# What a worker does.


def compile_setting(kernel: str, case: Case, setting: Setting, device: Any) -> str:
    """COMPILED, or why the setting is dropped. Costs that cannot be read drop nothing."""
    from mpamatch.kernels import compiled, tiles

    call = call_of(kernel, case, device)
    try:
        with tiles.using(kernel, setting):
            costs = compiled.costs(call, device)
    except (OSError, subprocess.CalledProcessError):  # compiled, but the tools that read the code are not there
        return COMPILED
    except Exception as error:  # refused by the compiler, whose errors have no common class
        return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
    shared, local = max(cost.shared_memory for cost in costs), max(cost.local_memory for cost in costs)
    if shared > device.shared_memory:
        return f"needs {shared} bytes of shared memory of {device.shared_memory}"
    return f"spills {local} bytes a thread" if local else COMPILED


@lru_cache(maxsize=2)
def call_of(kernel: str, case: Case, device: Any) -> Callable[[], Any]:
    """The kernel's own function on arguments that lie nowhere, at the addresses of none."""
    from mpamatch.kernels import tiles

    name, _, direction = kernel.partition(".")
    module, benchmark = importlib.import_module(f"mpamatch.kernels.{name}"), benchmark_of(name)
    known: dict[str, Any] = {key: value.detach().to("meta") for key, value in benchmark.inputs(case, "cpu").items()}
    known |= benchmark.constants
    if direction != "forward":
        with tiles.as_device(device), nothing_launched():
            results = module.forward(*arguments(module.forward, known))
        known |= dict(zip(benchmark.results, results, strict=False))
    function = getattr(module, direction)
    given = arguments(function, known)
    return lambda: function(*given)


@contextmanager
def nothing_launched() -> Iterator[None]:
    """Within it, Triton kernels are neither compiled nor run: results have their shapes alone."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    JITFunction.run = lambda *_, **__: None
    try:
        yield
    finally:
        JITFunction.run = run


def arguments(kernel: Callable[..., Any], known: Mapping[str, Any]) -> list[Any]:
    """What a kernel takes, in its order, by the names of its parameters; all gradients are needed."""
    names = inspect.signature(kernel).parameters
    return [True if name.startswith("need_") else known[name] for name in names]


def benchmark_of(operation: str) -> Benchmark:
    return next(benchmark for benchmark in BENCHMARKS if benchmark.operation == operation)


def main() -> int:
    """Answers jobs, a line each, until there are no more."""
    from mpamatch.kernels import tiles

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    name, capability, *rest = json.loads(sys.argv[1])
    device = tiles.Device(name, tuple(capability), *rest)
    for line in sys.stdin:
        job = json.loads(line)
        case = Case(**job["case"] | {"shape": tuple(job["case"]["shape"])})
        print(json.dumps(compile_setting(job["kernel"], case, job["setting"], device)), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
