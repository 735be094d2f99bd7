"""The search for tile sizes on the GPU at hand: `mpamatch bench --tune`; writes kernels/tiles/<device>.json.

For every kernel, width of dtype and size there is a walk: it starts at the setting now in use and always tries the
untried candidate nearest to the best so far. A candidate is compared with eager before it is timed. Whatever the time
allows, the table written is complete, as every walk has its start.
"""

import datetime
import importlib
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from typing import Any, NamedTuple

import torch

from mpamatch.benchmarks import measure
from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.backends import EAGER, using
from mpamatch.benchmarks.cases import BOTH, FORWARD, Case
from mpamatch.benchmarks.measure import Timed
from mpamatch.benchmarks.suite import Benchmark, Inputs, bind, difference
from mpamatch.errors import unknown
from mpamatch.ops.operation import operations

Setting = dict[str, int]
DTYPES = {16: "bfloat16", 32: "float32"}
# The (D, C, K) or (0, C, 0) that are timed, the narrower first; the last one serves every larger size.
PIXEL_SIZES = ((64, 5, 10), (256, 5, 10), (256, 19, 10))
MAP_SIZES = ((0, 2, 0), (0, 5, 0), (0, 20, 0))


@dataclass(frozen=True)
class Target:
    """One kernel at one size, and the bounds within which its setting is to hold."""

    kernel: str
    case: Case
    bits: int
    bounds: dict[str, int]

    @property
    def sizes(self) -> dict[str, int]:
        """What the tables are asked with."""
        return {"D": self.case.d, "M": self.case.m} if self.case.d else {"C": self.case.c}


class Choice(NamedTuple):
    setting: Setting
    seconds: float | None  # None: not even the start could be timed
    start: float | None  # of the setting that was in use
    tried: int


def choose(
    start: Setting,
    candidates: Iterable[Setting],
    timer: Callable[[Setting], float | None],
    *,
    until: float,
    clock: Callable[[], float] = time.monotonic,
) -> Choice:
    """The quickest setting found before `until`; `timer` gives None for one that is wrong or does not run."""
    first = timer(start)
    best, fastest, tried = start, first, 1
    untried = [candidate for candidate in candidates if candidate != start]
    while untried and clock() < until:
        candidate = min(untried, key=lambda setting: _steps_apart(setting, best))
        untried.remove(candidate)
        seconds, tried = timer(candidate), tried + 1
        if seconds is not None and (fastest is None or seconds < fastest):
            best, fastest = candidate, seconds
    return Choice(best, fastest, first, tried)


def _steps_apart(one: Setting, other: Setting) -> int:
    """In how many fields two settings differ."""
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def tiled(operation: str | None) -> dict[str, tuple[str, ...]]:
    """The Triton kernels with tile sizes by their operation (None: of all). Raises InputError if it has none."""
    known = {name: record.tiled for name, record in operations().items() if record.tiled}
    if operation is not None and operation not in known:
        raise unknown("operation with tiles", operation, known)
    return known if operation is None else {operation: known[operation]}


def targets(operation: str | None) -> list[Target]:
    """Every kernel of the operation (None: of all) at every size, 16 bits first."""
    found = []
    for bits, dtype in DTYPES.items():
        for name, kernels in tiled(operation).items():
            of_maps = benchmark_of(name).cases("small", "cuda", dtype)[0].d == 0
            sizes = MAP_SIZES if of_maps else PIXEL_SIZES
            for kernel, (place, (d, c, k)) in product(kernels, enumerate(sizes, 1)):
                bounds = {} if place == len(sizes) else {"C": c} if of_maps else {"D": d, "M": c * k}
                found.append(Target(kernel, _case(name, d, c, k, dtype), bits, {"bits": bits} | bounds))
    return found


def _case(operation: str, d: int, c: int, k: int, dtype: str) -> Case:
    direction = BOTH if operations()[operation].differentiable else FORWARD
    if d:
        return Case(operation, direction, 65_536, d, c, k, dtype)
    return Case(operation, direction, 8 * 256 * 256, 0, c, 0, dtype, shape=(8, 256, 256))


def benchmark_of(operation: str) -> Benchmark:
    return next(benchmark for benchmark in BENCHMARKS if benchmark.operation == operation)


def tune(operation: str | None, seconds: float) -> int:
    """Searches for `seconds` in all, writes the table of this device, prints what changed; returns 0."""

    from mpamatch.kernels import tiles

    device = tiles.describe(torch.device("cuda", torch.cuda.current_device()))
    chosen, began = [], time.monotonic()
    wanted = targets(operation)
    for place, target in enumerate(wanted):
        now = time.monotonic()
        until = now + (began + seconds - now) / (len(wanted) - place)
        start = tiles.lookup(target.kernel, torch.device("cuda"), bits=target.bits, **target.sizes)
        possible = tiles.candidates(start, bits=target.bits, multiprocessors=device.multiprocessors, **target.sizes)
        choice = choose(start, possible, _timer(target), until=until)
        chosen.append({"kernel": target.kernel, **target.bounds, "setting": choice.setting})
        print(_line(target, choice), flush=True)
    kept = _others(tiles.entries_for(device), operation)
    origin = f"timed on {datetime.date.today()}, torch {torch.__version__}, {seconds:.0f} s for {len(wanted)} searches"
    every = [kernel for kernels in tiled(None).values() for kernel in kernels]
    path = tiles.write(device, [*chosen, *kept], every, origin=origin)
    print(f"wrote {path}")
    return 0


def _others(entries: Iterable[dict[str, Any]], operation: str | None) -> list[dict[str, Any]]:
    """The entries in use of operations that were not searched for."""
    if operation is None:
        return []
    return [entry for entry in entries if not entry["kernel"].startswith(f"{operation}.")]


def _line(target: Target, choice: Choice) -> str:
    if choice.seconds is None:
        return f"{target.kernel} {target.case.name}: no setting of {choice.tried} ran; the one in use stays"
    start = "" if choice.start is None else f", {1e6 * choice.start:.1f} µs before"
    tried = f"{choice.tried} settings tried"
    return f"{target.kernel} {target.case.name}: {1e6 * choice.seconds:.1f} µs{start}; {choice.setting} ({tried})"


def _timer(target: Target) -> Callable[[Setting], float | None]:
    """Seconds of the target's kernel with a setting, or None where it is wrong or does not run."""
    from mpamatch.kernels import tiles

    benchmark = benchmark_of(target.case.operation)
    whole = bind(benchmark, target.case, benchmark.call)
    given = benchmark.inputs(target.case, "cuda")
    with using(EAGER):
        expected = whole(given)
    calls = list(_calls(target, given, measure.rotations(given, "cuda")))

    def timer(setting: Setting) -> float | None:
        turn = count()
        try:
            with tiles.using(target.kernel, setting), using("triton"):
                if difference(whole(given), expected, target.case.dtype):
                    return None
                rotating = Timed(lambda: calls[next(turn) % len(calls)]())
                return measure.on_cuda(rotating, rotation=len(calls), milliseconds=20).median
        except Exception as error:  # out of shared memory or registers, or refused by the compiler
            if "illegal" in str(error).lower() or "launch failure" in str(error).lower():
                raise  # the device is lost: no later time would mean anything
            return None

    return timer


def _calls(target: Target, given: Inputs, copies: int) -> Iterator[Callable[[], Any]]:
    """The kernel's own function on copies of its arguments."""
    name, _, direction = target.kernel.partition(".")
    module = importlib.import_module(f"mpamatch.kernels.{name}")
    benchmark = benchmark_of(name)
    for _ in range(copies):
        known = {key: value.detach().clone() for key, value in given.items()} | benchmark.constants
        if direction != "forward":
            results = module.forward(*arguments(module.forward, known))
            known |= dict(zip(benchmark.results, results, strict=False))
        kernel = getattr(module, direction)
        yield partial(kernel, *arguments(kernel, known))


def arguments(kernel: Callable[..., Any], known: Mapping[str, Any]) -> list[Any]:
    """What a kernel takes, in its order, by the names of its parameters; all gradients are needed."""
    names = inspect.signature(kernel).parameters
    return [True if name.startswith("need_") else known[name] for name in names]
