"""Runs the benchmarks: every operation against what else there is, checked first, then timed in turns."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, zip_longest
from subprocess import CalledProcessError
from typing import Any

import torch
from torch import Tensor

from mpamatch.benchmarks import measure
from mpamatch.benchmarks.backends import EAGER, FUSED, fused, using
from mpamatch.benchmarks.cases import BOTH, Case
from mpamatch.benchmarks.measure import Ceilings, Timed, Timing
from mpamatch.benchmarks.rows import Row
from mpamatch.malloc import can_be_set

Inputs = dict[str, Tensor]
Function = Callable[..., tuple[Tensor, ...]]
COMPILE = "compile"
ANYWHERE: Callable[[str], str | None] = lambda device: None  # noqa: E731
# Of the largest value of a result. Sums over 65,536 pixels in another order differ by 1e-5 in float32; indices may
# differ where two scores are equal to rounding.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
SHARE_OF_INDICES = {"float64": 0.0, "float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Competitor:
    """Something a user could take instead: the same arguments and results as the operation.

    `missing(device)` says why it cannot run there (None: it can). `meaning` is what it computes, in eager, where that
    is less than the operation (`note` says what); its results are compared with that.
    """

    call: Function
    missing: Callable[[str], str | None] = ANYWHERE
    meaning: Function | None = None
    note: str = ""


@dataclass(frozen=True)
class Benchmark:
    """An operation, its inputs and its competitors besides eager and torch.compile.

    `call` takes the inputs by name, but for those named in `incoming`: the gradients of its first outputs, used
    where a case goes forward and backward. `wanted` are the inputs that get a gradient, `state` those changed in place.

    `bytes` and `flops` are the least work of a case. A formula counts every input read once and every output written
    once per pass that cannot be merged with another; intermediate results are free, as a perfect implementation keeps
    them in cache. So no implementation exceeds 100 % of the roofline.

    Its Triton kernels take the inputs too, beside them `constants`, and in the backward pass the `results` of forward.
    """

    operation: str
    measured: Callable[[str, str, str], list[Case]]  # sizes (of cases.SIZES), device, dtype
    bytes: Callable[[Case], int]
    flops: Callable[[Case], int]
    inputs: Callable[[Case, str], Inputs]  # case, device
    call: Function
    competitors: Mapping[str, Competitor] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)  # by direction: eager / cpp, below which a test fails
    wanted: tuple[str, ...] = ()
    incoming: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[str, ...] = ()

    def cases(self, sizes: str, device: str, dtype: str) -> list[Case]:
        """What is measured, with the least work of each."""
        if sizes == "rest":
            done = self.measured("goal", device, dtype) if dtype == "bfloat16" else []
            found = [case for case in self.measured("full", device, dtype) if case not in done]
        else:
            found = self.measured(sizes, device, dtype)
        return [replace(case, bytes=self.bytes(case), flops=self.flops(case)) for case in found]

    @property
    def names(self) -> list[str]:
        return [EAGER, COMPILE, *self.competitors]


@dataclass(frozen=True)
class Variant:
    """One way to compute a case, ready to run on its own inputs."""

    name: str
    run: Callable[[Inputs], tuple[Tensor, ...]]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    meaning: Callable[[Inputs], tuple[Tensor, ...]] | None = None
    note: str = ""


@dataclass(frozen=True)
class Settings:
    """`seconds` per case and allocation; `compare`: names of competitors, None for all.

    Tiny sizes are a dry run: little is measured of the machine, and torch.compile does all but write code.
    """

    device: str
    sizes: str
    dtypes: tuple[str, ...]
    compare: tuple[str, ...] | None = None
    seconds: float = 10.0

    @property
    def tiny(self) -> bool:
        return self.sizes == "tiny"


def run(benchmarks: Sequence[Benchmark], settings: Settings) -> Iterator[list[Row]]:
    """The rows of one case after the other: all its variants, first those that cannot run with the reason.

    On a CPU all cases are measured with fresh memory before any is with kept memory, see measure.memory.
    """
    ceilings = measure.measure_ceilings(settings.device, settings.dtypes, settings.tiny)
    load = measure.load()
    for allocation in allocations(settings.device)[: 1 if settings.tiny else None]:
        for benchmark, case in in_turns(benchmarks, settings):
            rows = run_case(benchmark, case, settings, ceilings, allocation)
            yield [replace(row, load=load) for row in rows]
    torch.compiler.reset()


def in_turns(benchmarks: Sequence[Benchmark], settings: Settings) -> Iterator[tuple[Benchmark, Case]]:
    """The first case of every operation, then the second of each: a run that is stopped has seen all operations."""
    for dtype in settings.dtypes:
        of_each = [benchmark.cases(settings.sizes, settings.device, dtype) for benchmark in benchmarks]
        for turn in zip_longest(*of_each):
            for benchmark, case in zip(benchmarks, turn, strict=True):
                if case is not None:
                    yield benchmark, case


def allocations(device: str) -> list[str]:
    """What is measured, in this order; torch's allocator of a GPU keeps memory."""
    if device == "cuda":
        return ["warm"]
    return ["fresh", "warm"] if can_be_set() else ["fresh"]


def run_case(
    benchmark: Benchmark, case: Case, settings: Settings, ceilings: Ceilings, allocation: str
) -> Iterator[Row]:
    device = settings.device
    inputs = benchmark.inputs(case, device)
    torch.compiler.reset()  # a graph per case: shapes are static in training
    variants: list[Variant] = []
    for found in _variants(benchmark, case, settings):
        if isinstance(found, Row):
            yield found
            continue
        note = _trial(benchmark, case, found, inputs)
        if note.startswith("cannot run"):
            yield _row(case, device, found.name, "", note=note)
        else:
            variants.append(replace(found, note="; ".join(filter(None, [found.note, note]))))
    timed = {v.name: _timed(benchmark, v, inputs, device) for v in variants}
    peaks = {name: measure.peak_extra_bytes(call, device) for name, call in timed.items()}
    launches = {name: measure.launches(call) for name, call in timed.items()} if device == "cuda" else {}
    times = _times(timed, settings, measure.rotations(inputs, device), allocation)
    for variant in variants:
        yield _row(
            case,
            device,
            variant.name,
            allocation,
            timing=times[variant.name],
            ceilings=ceilings,
            peak=peaks[variant.name],
            launches=launches.get(variant.name),
            predicted=prediction(case) if device == "cuda" and variant.name in FUSED else None,
            note=variant.note,
        )


def _variants(benchmark: Benchmark, case: Case, settings: Settings) -> Iterator[Variant | Row]:
    """Everything asked for: a Variant where it can run, else its Row with the reason."""
    device = settings.device
    bound = partial(bind, benchmark, case)
    wanted = settings.compare if settings.compare is not None else benchmark.names
    eager = partial(using, EAGER)
    yield Variant(EAGER, bound(benchmark.call), eager)  # what the others are compared with
    for backend, reason in fused(benchmark.operation, device).items():
        if reason is None:
            yield Variant(backend, bound(benchmark.call), partial(using, backend))
        else:
            yield _row(case, device, backend, "", note=reason)
    if COMPILE in wanted:
        compiler = "aot_eager" if settings.tiny else "inductor"
        compiled = torch.compile(benchmark.call, fullgraph=True, dynamic=False, backend=compiler)
        yield Variant(COMPILE, bound(compiled), eager)
    for name, competitor in benchmark.competitors.items():
        if name not in wanted:
            continue
        reason = competitor.missing(device)
        if reason is not None:
            yield _row(case, device, name, "", note=reason)
            continue
        meaning = bound(competitor.meaning) if competitor.meaning else None
        yield Variant(name, bound(competitor.call), eager, meaning, competitor.note)


def bind(benchmark: Benchmark, case: Case, call: Function) -> Callable[[Inputs], tuple[Tensor, ...]]:
    """`call` on a dictionary of inputs; forward and backward where the case says so."""

    def forward(inputs: Inputs) -> tuple[Tensor, ...]:
        return call(**{name: value for name, value in inputs.items() if name not in benchmark.incoming})

    def both(inputs: Inputs) -> tuple[Tensor, ...]:
        outputs = forward(inputs)
        pairs = [
            (output, inputs[name])
            for output, name in zip(outputs, benchmark.incoming, strict=False)
            if output.requires_grad
        ]
        gradients = torch.autograd.grad(
            [output for output, _ in pairs],
            [inputs[name] for name in benchmark.wanted],
            [gradient for _, gradient in pairs],
        )
        return (*(output.detach() for output in outputs), *gradients)

    return both if case.direction == BOTH else forward


def _trial(benchmark: Benchmark, case: Case, variant: Variant, inputs: Inputs) -> str:
    """Runs the variant once and compares it with eager: "" where all is well, else what is wrong."""
    try:
        with variant.context():
            ours = variant.run(_copy(benchmark, inputs))
    except Exception as error:  # a competitor that fails becomes a row that says so
        return f"cannot run: {' '.join(str(error).split())[:120] or type(error).__name__}"
    if variant.name == EAGER:
        return ""
    meaning = variant.meaning or bind(benchmark, case, benchmark.call)
    with using(EAGER):
        theirs = meaning(_copy(benchmark, inputs))
    return difference(ours, theirs, case.dtype)


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor], dtype: str) -> str:
    """ "" where the results agree within TOLERANCE and SHARE_OF_INDICES, else a phrase with the figure."""
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one.shape != other.shape:
            return f"values differ: result {place} has shape {tuple(one.shape)}, not {tuple(other.shape)}"
        if not other.is_floating_point():
            share = float((one.long() != other.long()).double().mean()) if other.numel() else 0.0
            if share > SHARE_OF_INDICES[dtype]:
                return f"values differ: {share:.2%} of result {place}"
            continue
        scale = max(float(other.abs().max()) if other.numel() else 0.0, 1e-12)
        error = float((one.double() - other.double()).abs().max()) / scale if other.numel() else 0.0
        if not error <= TOLERANCE[dtype]:
            return f"values differ: result {place} by {error:.1e} of its size"
    return ""


def _copy(benchmark: Benchmark, inputs: Inputs) -> Inputs:
    """The inputs with state of their own."""
    return inputs | {name: inputs[name].clone() for name in benchmark.state}


def _clone(inputs: Inputs) -> Inputs:
    return {name: value.detach().clone().requires_grad_(value.requires_grad) for name, value in inputs.items()}


def _timed(benchmark: Benchmark, variant: Variant, inputs: Inputs, device: str) -> Timed:
    """The variant's call; on a GPU each call takes the next copy of the inputs."""
    copies = [_copy(benchmark, inputs)]
    copies += [_clone(inputs) for _ in range(measure.rotations(inputs, device) - 1)]
    turn = count()
    return Timed(lambda: variant.run(copies[next(turn) % len(copies)]), variant.context)


def _times(timed: Mapping[str, Timed], settings: Settings, rotation: int, allocation: str) -> dict[str, Timing]:
    if settings.device == "cuda":
        return {name: measure.on_cuda(call, rotation=rotation) for name, call in timed.items()}
    with measure.memory(allocation):
        return measure.interleaved(timed, seconds=settings.seconds)


def prediction(case: Case) -> float | None:
    """What the cost model says of the fused backend on the GPU at hand; None where it cannot."""
    from mpamatch.benchmarks import predict

    found = torch.cuda.get_device_properties(0)
    try:
        return predict.seconds(case, found.name, (found.major, found.minor), found.multi_processor_count)
    except (ImportError, OSError, CalledProcessError, ValueError):  # no Triton, or none of the tools that read code
        return None


def _row(
    case: Case,
    device: str,
    backend: str,
    allocation: str,
    *,
    timing: Timing | None = None,
    ceilings: Ceilings | None = None,
    peak: int | None = None,
    launches: int | None = None,
    predicted: float | None = None,
    note: str = "",
) -> Row:
    note = "; ".join(filter(None, [note, timing.note if timing else ""]))
    row = Row(
        case.operation, backend, case.direction, case.n, case.d, case.c, case.k, case.dtype, device, allocation,
        bytes=case.bytes, flops=case.flops, note=note, machine=measure.machine(device), torch=torch.__version__,
    )  # fmt: skip
    if timing is None or ceilings is None:
        return row
    return replace(
        row,
        **{name: value for name, value in timing._asdict().items() if name != "note"},
        roofline=ceilings.fraction(timing.median, case.bytes, case.flops, case.dtype),
        peak_extra_bytes=peak,
        launches=launches,
        predicted=predicted,
        copy_bytes_per_second=ceilings.copy,
        matmul_flops_per_second=ceilings.matmul[case.dtype],
    )


def needs(package: str, *, cuda: bool = False) -> Callable[[str], str | None]:
    """The reason why something cannot run: the package is not installed, or it needs a GPU."""

    def reason(device: str) -> str | None:
        if cuda and device != "cuda":
            return "runs on a GPU only"
        return None if importlib.util.find_spec(package) else f"{package} is not installed"

    return reason
