"""The search for tile sizes on the GPU at hand: `mpamatch bench --tune`; writes kernels/tiles/<device>.json.

For every kernel, width of dtype and size there is a walk: it starts at the setting now in use and always tries the
compiled candidate nearest to the best so far. Candidates are compiled by other processes, ahead of the walks and in
their order (see `compiling`); one is compared with eager before it is timed. No walk begins after the deadline. The
table is written after each: what no walk has reached keeps the values in use.

A dry run (gpu_check --pretend) walks in Triton's interpreter over tiny cases, and its table lies beside its rows.
"""

import datetime
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mpamatch.benchmarks import measure, rows
from mpamatch.benchmarks.backends import EAGER, using
from mpamatch.benchmarks.cases import BOTH, FORWARD, Case
from mpamatch.benchmarks.compiling import COMPILED, Compilers, Setting, arguments, benchmark_of, workers_for
from mpamatch.benchmarks.measure import Timed
from mpamatch.benchmarks.pretend import mend_interpreter, pretended
from mpamatch.benchmarks.suite import Inputs, bind, difference
from mpamatch.errors import unknown
from mpamatch.ops.operation import operations

Entry = dict[str, Any]
DTYPES = {16: "bfloat16", 32: "float32"}
# The (D, C, K) or (0, C, 0) that are timed, the narrower first; the last one serves every larger size.
PIXEL_SIZES = ((64, 5, 10), (256, 5, 10), (256, 19, 10))
MAP_SIZES = ((0, 2, 0), (0, 5, 0), (0, 20, 0))
# Seconds that a walk may take even if that leaves none for the last ones: a few kernels searched well are worth more
# than all of them begun. 36 codes of 2 s on 15 cores take 5 s, starting the compilers takes 5 s more.
FULL_WALK = 12.0
POLL = 0.02  # seconds between two looks at what has been compiled


@dataclass(frozen=True)
class Target:
    """One kernel at one size, and the bounds within which its setting is to hold."""

    kernel: str
    case: Case
    bits: int
    bounds: tuple[tuple[str, int], ...]  # but bits

    @property
    def sizes(self) -> dict[str, int]:
        """What the tables are asked with."""
        return {"D": self.case.d, "M": self.case.m} if self.case.d else {"C": self.case.c}

    def entry(self, setting: Setting) -> Entry:
        return {"kernel": self.kernel, "bits": self.bits, **dict(self.bounds), "setting": setting}


class Choice(NamedTuple):
    setting: Setting
    seconds: float | None  # None: not even the start could be timed
    start: float | None  # of the setting that was in use
    tried: int
    dropped: int  # that spill, do not fit or do not compile


def choose(
    start: Setting,
    candidates: Iterable[Setting],
    timer: Callable[[Setting], float | None],
    *,
    until: float,
    state: Callable[[Setting], str | None] = lambda setting: COMPILED,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[], None] = lambda: time.sleep(POLL),
) -> Choice:
    """The quickest setting found before `until`; `timer` gives None for one that is wrong or does not run.

    `state`: COMPILED, a reason why a candidate is dropped, or None as long as it is being compiled.
    """
    first = timer(start)
    best, fastest, tried, dropped = start, first, 1, 0
    untried = [candidate for candidate in candidates if candidate != start]
    while untried and clock() < until:
        states = [(candidate, state(candidate)) for candidate in untried]
        untried = [candidate for candidate, known in states if known in (None, COMPILED)]
        dropped += len(states) - len(untried)
        ready = [candidate for candidate, known in states if known == COMPILED]
        if not ready:
            if untried:
                wait()
            continue
        candidate = min(ready, key=lambda setting: _steps_apart(setting, best))
        untried.remove(candidate)
        seconds, tried = timer(candidate), tried + 1
        if seconds is not None and (fastest is None or seconds < fastest):
            best, fastest = candidate, seconds
    return Choice(best, fastest, first, tried, dropped)


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
    """Every kernel of the operation (None: of all) at every size, in the order of a table: narrow before wide."""
    found = []
    for bits, dtype in DTYPES.items():
        for name, kernels in tiled(operation).items():
            of_maps = benchmark_of(name).cases("small", "cuda", dtype)[0].d == 0
            sizes = MAP_SIZES if of_maps else PIXEL_SIZES
            for kernel, (place, (d, c, k)) in product(kernels, enumerate(sizes)):
                bounds = {} if place + 1 == len(sizes) else {"C": c} if of_maps else {"D": d, "M": c * k}
                found.append(Target(kernel, _case(name, d, c, k, dtype), bits, tuple(bounds.items())))
    return found


def in_order(found: Sequence[Target]) -> list[Target]:
    """As they are searched: half precision first, and of each width the sizes of the goals of all operations."""
    widths = {256: 0, 0: 0, 64: 2}
    classes = {5: 0, 19: 1, 20: 1, 2: 2}
    return sorted(found, key=lambda one: (one.bits, max(widths[one.case.d], classes[one.case.c])))


def _case(operation: str, d: int, c: int, k: int, dtype: str) -> Case:
    direction = BOTH if operations()[operation].differentiable else FORWARD
    if d:
        return Case(operation, direction, 65_536, d, c, k, dtype)
    return Case(operation, direction, 8 * 256 * 256, 0, c, 0, dtype, shape=(8, 256, 256))


@dataclass(frozen=True)
class Ground:
    """Where a search happens: on the GPU at hand, or in Triton's interpreter for a dry run."""

    device: torch.device
    known: Any  # tiles.Device
    folder: Path  # of the table
    out: Path | None  # the rows, and beside them a copy of the table

    def sized(self, case: Case) -> Case:
        """The interpreter takes 0.1 s for a tile."""
        if self.device.type == "cuda":
            return case
        return replace(case, n=64) if case.d else replace(case, n=256, shape=(1, 16, 16))

    def write(self, entries: Sequence[Entry], origin: str) -> Path:
        """The whole table, at its place and beside the rows."""
        from mpamatch.kernels import tiles

        every = [kernel for kernels in tiled(None).values() for kernel in kernels]
        path = tiles.write(self.known, entries, every, origin=origin, folder=self.folder)
        if pretended():
            rows.write_text(path, path.read_text(encoding="utf-8").replace('"tuned": true', '"tuned": false'))
        if self.out is not None:
            rows.write_text(self.out.with_suffix(".tiles.json"), path.read_text(encoding="utf-8"))
        return path


def ground(out: Path | None) -> Ground:
    from mpamatch.kernels import tiles

    if not pretended():
        device = torch.device("cuda", torch.cuda.current_device())
        return Ground(device, tiles.describe(device), tiles.FOLDER, out)
    assert out is not None, "a dry run writes beside its rows"
    mend_interpreter()
    device = torch.device("cpu")
    folder = out.with_suffix(".tiles")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Ground(device, tiles.describe(device)._replace(name="pretended"), folder, out)


def tune(operation: str | None, seconds: float, out: Path | None = None) -> int:
    """Searches for `seconds` in all, prints and writes what each walk found; returns 0."""
    from mpamatch.kernels import tiles

    end, place = time.monotonic() + seconds, ground(out)
    wanted = in_order(targets(operation))
    before, chosen = list(tiles.entries_for(place.known)), dict[Target, Choice]()
    origin = f"timed on {datetime.date.today()}, torch {torch.__version__}, {seconds:.0f} s for {len(wanted)} searches"
    if pretended():
        origin = f"a dry run in Triton's interpreter, no GPU was timed: {origin}"
    with Compilers(place.known, workers_for(len(os.sched_getaffinity(0)))) as compilers:
        walks = [Walk(target, place, before, compilers) for target in wanted]
        for number, walk in enumerate(walks):
            now = time.monotonic()
            if now >= end:
                print(f"the time is up: {len(wanted) - number} of {len(wanted)} searches did not begin", flush=True)
                break
            share = (end - now) / (len(walks) - number)
            choice = walk.run(until=min(end, now + max(share, FULL_WALK)))
            chosen[walk.target] = choice
            path = place.write(table(targets(None), chosen, before), f"{origin}, {len(chosen)} of them done")
            print(f"{_line(walk.target.kernel, walk.case, choice)}; wrote {path}", flush=True)
            if out is not None:
                rows.add(out, [_record(walk.target, walk.case, choice, place)])
    return 0


class Walk:
    """A search for one target; what it may try is being compiled from its beginning on."""

    def __init__(self, target: Target, place: Ground, before: Sequence[Entry], compilers: Compilers):
        from mpamatch.kernels import tiles

        self.target, self.place, self.case = target, place, place.sized(target.case)
        self.start = in_use(target, before)
        multiprocessors = place.known.multiprocessors
        possible = tiles.candidates(self.start, bits=target.bits, multiprocessors=multiprocessors, **target.sizes)
        self.candidates = sorted(possible, key=lambda setting: _steps_apart(setting, self.start))
        self.futures: dict[tuple[Any, ...], Future[str]] = {}
        for setting in [self.start, *self.candidates]:
            if code_of(setting) not in self.futures:
                self.futures[code_of(setting)] = compilers.ask(target.kernel, self.case, setting)

    def state(self, setting: Setting) -> str | None:
        future = self.futures[code_of(setting)]
        return future.result() if future.done() else None

    def run(self, until: float) -> Choice:
        try:
            timer = _timer(self.target.kernel, self.case, self.place.device)
            return choose(self.start, self.candidates, timer, until=until, state=self.state)
        except Exception as error:  # one kernel that does not run keeps no other from its search
            _raise_if_lost(error)
            print(f"{self.target.kernel}: {' '.join(str(error).split())[:160]}", flush=True)
            return Choice(self.start, None, None, 0, 0)
        finally:
            for future in self.futures.values():
                future.cancel()  # nobody waits for the rest


def code_of(setting: Setting) -> tuple[Any, ...]:
    """What the code depends on: all but the number of programs."""
    return tuple(sorted((name, value) for name, value in setting.items() if name != "programs"))


def in_use(target: Target, entries: Iterable[Entry]) -> Setting:
    """The setting that the table `entries` gives the target's size."""
    asked = {"bits": target.bits, "D": 0, "M": 0, "C": 0, **target.sizes}
    for entry in entries:
        if entry["kernel"] == target.kernel and all(value <= entry.get(name, value) for name, value in asked.items()):
            setting: Setting = entry["setting"]
            return setting
    raise LookupError(f"the table in use has no entry of {target.kernel} for {asked}.")


def table(every: Sequence[Target], chosen: Mapping[Target, Choice], before: Sequence[Entry]) -> list[Entry]:
    """A whole table: what was chosen, and beside it the values in use for every other size.

    The first entry that holds is taken. So a narrower target that is not searched yet gets an entry before those that
    are, and the entries in use follow, for one width alone, as long as the widest target is not searched.
    """
    entries: list[Entry] = []
    for bits, kernel in dict.fromkeys((target.bits, target.kernel) for target in every):
        of_kernel = [target for target in every if (target.bits, target.kernel) == (bits, kernel)]
        last = max((place for place, target in enumerate(of_kernel) if target in chosen), default=-1)
        for target in of_kernel[: last + 1]:
            entries.append(target.entry(chosen[target].setting if target in chosen else in_use(target, before)))
        if last + 1 < len(of_kernel):
            holding = (entry for entry in before if entry["kernel"] == kernel and entry.get("bits", bits) >= bits)
            for entry in holding:
                entries.append(entry | {"bits": bits})
                if not {"D", "M", "C"} & entry.keys():
                    break  # no later one is ever taken
    return entries


def _line(kernel: str, case: Case, choice: Choice) -> str:
    if choice.seconds is None:
        return f"{kernel} {case.name}: no setting of {choice.tried} ran; the one in use stays"
    start = "" if choice.start is None else f", {1e6 * choice.start:.1f} µs before"
    tried = f"{choice.tried} settings tried, {choice.dropped} dropped by their code"
    return f"{kernel} {case.name}: {1e6 * choice.seconds:.1f} µs{start}; {choice.setting} ({tried})"


def _record(target: Target, case: Case, choice: Choice, place: Ground) -> dict[str, Any]:
    """The line of a search among the rows."""
    return {
        "tune": target.kernel,
        "bits": target.bits,
        **{name: getattr(case, name) for name in ("n", "d", "c", "k")},
        **choice._asdict(),
        "machine": measure.machine(place.device.type),
        "torch": torch.__version__,
    }


def _timer(kernel: str, case: Case, device: torch.device) -> Callable[[Setting], float | None]:
    """Seconds of a kernel with a setting, or None where it is wrong or does not run."""
    from mpamatch.kernels import tiles

    benchmark = benchmark_of(case.operation)
    whole = bind(benchmark, case, benchmark.call)
    given = benchmark.inputs(case, device.type)
    with using(EAGER):
        expected = whole(given)
    calls = list(_calls(kernel, given, measure.rotations(given, device.type)))

    def timer(setting: Setting) -> float | None:
        turn = count()
        try:
            with tiles.using(kernel, setting), using("triton"):
                if difference(whole(given), expected, case.dtype):
                    return None
                rotating = Timed(lambda: calls[next(turn) % len(calls)]())
                return _median(rotating, device.type, len(calls))
        except Exception as error:  # out of shared memory or registers, or refused by the compiler
            _raise_if_lost(error)
            return None

    return timer


def _raise_if_lost(error: Exception) -> None:
    """Passes on an error after which the device answers no more: no later time would mean anything."""
    if any(word in str(error).lower() for word in ("illegal", "launch failure", "misaligned address")):
        raise error


def _median(timed: Timed, device: str, rotation: int) -> float:
    if device == "cuda":
        return measure.on_cuda(timed, rotation=rotation, milliseconds=20).median
    return measure.interleaved({"": timed}, seconds=0.0, rounds=(1, 1), warm_up=0)[""].median


def _calls(kernel: str, given: Inputs, copies: int) -> Iterator[Callable[[], Any]]:
    """The kernel's own function on copies of its arguments."""
    name, _, direction = kernel.partition(".")
    module = importlib.import_module(f"mpamatch.kernels.{name}")
    benchmark = benchmark_of(name)
    for _ in range(copies):
        known: dict[str, Any] = {key: value.detach().clone() for key, value in given.items()}
        known |= benchmark.constants
        if direction != "forward":
            results = module.forward(*arguments(module.forward, known))
            known |= dict(zip(benchmark.results, results, strict=False))
        function = getattr(module, direction)
        yield partial(function, *arguments(function, known))
