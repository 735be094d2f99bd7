"""The search for tile sizes on the GPU at hand: `mpamatch bench --tune`; writes kernels/tiles/<device>.json.

For every kernel, width of dtype and size there is a walk: it starts at the setting now in use and always tries the
untried candidate nearest to the best so far. A candidate is compared with eager before it is timed. Whatever the time
allows, the table written is complete, as every walk has its start.
"""

import datetime
import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mpamatch.benchmarks import cases, measure
from mpamatch.benchmarks.all import BENCHMARKS
from mpamatch.benchmarks.backends import EAGER, using
from mpamatch.benchmarks.bench_prototype_contrast import TEMPERATURE
from mpamatch.benchmarks.cases import BOTH, Case
from mpamatch.benchmarks.measure import Timed
from mpamatch.benchmarks.suite import Inputs, bind, difference
from mpamatch.errors import unknown

Setting = dict[str, int]
NO_WEIGHT: list[Any] = [None]
DTYPES = {16: "bfloat16", 32: "float32"}
# By operation the (D, C, K) or (0, C, 0) that are timed, the narrower first; the last one serves every larger size.
PIXEL_SIZES = ((64, 5, 10), (256, 5, 10), (256, 19, 10))
MAP_SIZES = ((0, 2, 0), (0, 5, 0), (0, 20, 0))
SIZES = {
    "prototype_distance": PIXEL_SIZES,
    "prototype_contrast": PIXEL_SIZES,
    "segmentation_loss": MAP_SIZES,
    "pseudo_label": MAP_SIZES,
}


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


def targets(operation: str | None, kernels: Sequence[str]) -> list[Target]:
    """Every kernel of the operation (None: of all) at every size, 16 bits first."""
    found = []
    for bits, dtype in DTYPES.items():
        for kernel in kernels:
            name = kernel.partition(".")[0]
            if operation not in (None, name):
                continue
            for place, (d, c, k) in enumerate(SIZES[name]):
                last = place == len(SIZES[name]) - 1
                bounds = {} if last else {"D": d, "M": c * k} if d else {"C": c}
                found.append(Target(kernel, _case(name, d, c, k, dtype), bits, {"bits": bits} | bounds))
    return found


def _case(operation: str, d: int, c: int, k: int, dtype: str) -> Case:
    both = cases.FORWARD if operation == "pseudo_label" else BOTH
    if d:
        return Case(operation, both, 65_536, d, c, k, dtype)
    return Case(operation, both, 8 * 256 * 256, 0, c, 0, dtype, shape=(8, 256, 256))


def tune(operation: str | None, seconds: float) -> int:
    """Searches for `seconds` in all, writes the table of this device, prints what changed; returns 0."""

    from triton import runtime

    from mpamatch.kernels import tiles

    if operation is not None and operation not in SIZES:
        raise unknown("operation with tiles", operation, SIZES)
    properties = torch.cuda.get_device_properties(0)
    device = tiles.Device(properties.name, (properties.major, properties.minor), properties.multi_processor_count)
    chosen, began = [], time.monotonic()
    wanted = targets(operation, tiles.KERNELS)
    for place, target in enumerate(wanted):
        now = time.monotonic()
        until = now + (began + seconds - now) / (len(wanted) - place)
        start = tiles.lookup(target.kernel, torch.device("cuda"), bits=target.bits, **target.sizes)
        possible = tiles.candidates(
            target.kernel, bits=target.bits, multiprocessors=device.multiprocessors, **target.sizes
        )
        choice = choose(start, possible, _timer(target), until=until)
        chosen.append({"kernel": target.kernel, **target.bounds, "setting": choice.setting})
        print(_line(target, choice), flush=True)
    kept = _others(tiles.nearest(device).entries, operation)
    origin = f"timed on {datetime.date.today()}, torch {torch.__version__}, {seconds:.0f} s for {len(wanted)} searches"
    shared_memory = runtime.driver.active.utils.get_device_properties(0)["max_shared_mem"]
    path = tiles.write(device, [*chosen, *kept], shared_memory=shared_memory, origin=origin)
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

    benchmark = next(b for b in BENCHMARKS if b.operation == target.case.operation)
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
    for _ in range(copies):
        copied = {key: value.detach().clone() for key, value in given.items()}
        forward, backward = arguments(name, copied)
        if direction == "forward":
            yield partial(module.forward, *forward)
        else:
            yield partial(module.backward, *backward(module.forward(*forward)))


def arguments(name: str, x: dict[str, Tensor]) -> tuple[list[Any], Callable[[Any], list[Any]]]:
    """Of a kernel's forward, and of its backward given what forward returned."""
    if name == "prototype_distance":
        rows: list[Any] = [x["embedding"], x["prototypes"]]
        return rows, lambda results: [x["grad_distance"], *rows, *results, True, True]
    if name == "prototype_contrast":
        rows = [x["embedding"], x["prototypes"], x["assignment"], *NO_WEIGHT]
        grads = [x["grad_contrast"], x["grad_alignment"]]
        return (
            [*rows, TEMPERATURE, True],
            lambda results: [*grads, *rows, results[2], TEMPERATURE, True, True, True],
        )
    if name == "segmentation_loss":
        maps = [x["logits"], x["label"], *NO_WEIGHT]
        return maps, lambda results: [x["grad_cross_entropy"], x["grad_overlap"], *maps]
    return [x["logits"]], lambda results: []
