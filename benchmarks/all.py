"""Every benchmark of an operation, in the order of a training step: those that bench_<operation>.py has."""

from importlib import import_module

from mpamatch.benchmarks.suite import Benchmark
from mpamatch.ops.operation import operations

BENCHMARKS: tuple[Benchmark, ...] = tuple(
    benchmark
    for operation in operations()
    for benchmark in import_module(f"mpamatch.benchmarks.bench_{operation}").BENCHMARKS
)
