"""A hundred thousand calls of the operations: `python -m tests.reliability.operators --count 100000`.

Each call has a number, which decides operation, sizes, dtypes, layout in memory, options, backend, and what is wrong
with it, if anything. A good call must give what the reference gives in float64, in its shape and dtype, and leave its
arguments as they were; a bad one must raise an error with words. `--only 17` runs one call again.
"""

import argparse
import json
import math
import mmap
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpamatch import ops
from mpamatch.errors import InputError
from mpamatch.ops import dispatch, native
from tests.ops import truth
from tests.ops.cases import DTYPES, TOLERANCE, array, maps, pixels
from tests.ops.form import ramp
from tests.ops.forms import KERNELS, arguments
from tests.ops.test_bad_input import BAD_NUMBERS, INDICES, SPOILERS
from tests.reliability import children
from tests.reliability.layouts import LAYOUTS

TOGETHER = 2000  # calls in one child
REFUSALS = (InputError, ValueError, TypeError, RuntimeError, NotImplementedError)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MOST = 400_000  # N·D·C·K: a call takes milliseconds
NOWHERE = ("cuda", "triton", "cuda,triton", "gpu", "cpp;eager")  # backends that do not run here, or are none
SPOILT_NUMBERS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e308)

Options = dict[str, Any]
Inputs = dict[str, Tensor]


class WrongError(Exception):
    """What a call must not do."""


@dataclass(frozen=True)
class Operation:
    """An operation as it is called.

    Attributes:
        call: returns all that it computes, of its tensors and options.
        tensors: names of `pixels` or, if of_maps, of `maps`; those after "|" may be left out.
        options: draws the options.
        spoilt: of an option, the values that must be refused.
        scores: of arrays and options, what an index output is the largest of.
        gradients: the arguments that get a gradient.
    """

    call: Callable[..., tuple[Tensor, ...]]
    tensors: tuple[str, ...]
    optional: tuple[str, ...] = ()
    options: Callable[[Random], Options] = lambda random: {}
    spoilt: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    scores: Callable[..., Any] | None = None
    gradients: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    of_maps: bool = False


def _update(prototypes: Tensor, updates: Tensor, **others: Any) -> tuple[Tensor, ...]:
    ops.prototype_update_(prototypes, updates, **others)
    return prototypes, updates


def _nearest(arrays: Mapping[str, Any], options: Options) -> Any:
    embedding, prototypes = arrays["embedding"], arrays["prototypes"]
    return truth.cosines(embedding, prototypes).reshape(-1, *prototypes.shape[:2])


OPERATIONS = {
    "prototype_distance": Operation(
        ops.prototype_distance,
        ("embedding", "prototypes"),
        scores=_nearest,
        gradients=("embedding", "prototypes"),
        free=("embedding", "prototypes"),
    ),
    "sinkhorn_assign": Operation(
        lambda **given: (ops.sinkhorn_assign(**given),),
        ("embedding", "prototypes", "label"),
        options=lambda random: {"epsilon": random.choice((0.01, 0.03, 0.05, 0.3)), "iterations": random.randrange(6)},
        spoilt={"epsilon": (*SPOILT_NUMBERS[:-1],), "iterations": (-1, -(2**40))},
        scores=lambda arrays, options: truth.sinkhorn_scores(**arrays, **options),
        free=("prototypes",),
    ),
    "prototype_update_": Operation(
        _update,
        ("prototypes", "updates", "embedding", "assignment"),
        ("weight",),
        options=lambda random: {"momentum": random.choice((0.0, 0.5, 0.9, 0.999, 1.0))},
        spoilt={"momentum": (math.nan, math.inf, -0.1, 1.1)},
    ),
    "prototype_contrast": Operation(
        ops.prototype_contrast,
        ("embedding", "prototypes", "assignment"),
        ("weight",),
        options=lambda random: {
            "temperature": random.choice((0.05, 0.1, 0.5, 2.0)),
            "same_class_negatives": random.random() < 0.5,
        },
        spoilt={"temperature": SPOILT_NUMBERS[:-1]},
        gradients=("embedding", "prototypes"),
        free=("prototypes",),
    ),
    "segmentation_loss": Operation(
        ops.segmentation_loss, ("logits", "label"), ("weight",), gradients=("logits",), of_maps=True
    ),
    "pseudo_label": Operation(
        ops.pseudo_label,
        ("logits",),
        scores=lambda arrays, options: np.moveaxis(arrays["logits"], 1, -1),
        free=("logits",),
        of_maps=True,
    ),
    "signed_distance": Operation(
        lambda **given: (ops.signed_distance(**given),),
        ("label",),
        options=lambda random: {"num_classes": random.choice((1, 2, 3, 7, 40))},
        spoilt={"num_classes": (0, -1, 256, 2**40)},
        free=("label",),
        of_maps=True,
    ),
}


@dataclass(frozen=True)
class Call:
    """A call: what is given, how it lies in memory, and what it runs on."""

    name: str
    inputs: Inputs
    layouts: Mapping[str, int]
    options: Options
    wanted: tuple[str, ...]
    backend: str

    @property
    def operation(self) -> Operation:
        return OPERATIONS[self.name]


# Drawing


def draw(random: Random) -> Call:
    """Draws a good call."""
    name = random.choice(list(OPERATIONS))
    operation = OPERATIONS[name]
    inputs = (_maps if operation.of_maps else _pixels)(random, operation)
    for other in operation.optional:
        if random.random() < 0.4:
            inputs.pop(other, None)
    wanted = tuple(one for one in operation.gradients if random.random() < 0.6)
    backends = ("auto", "eager") if native.missing("cpu") else ("auto", "cpp", "cpp,eager", "eager")
    layouts = {one: random.randrange(len(LAYOUTS)) for one in inputs}
    return Call(name, inputs, layouts, operation.options(random), wanted, random.choice(backends))


def _pixels(random: Random, operation: Operation) -> Inputs:
    n = random.choice((0, 1, 2, 3, 7, 31, 61, 64, 97, 128, 257, 1031))
    d = random.choice((1, 2, 3, 7, 8, 16, 17, 31, 64, 65, 127, 256))
    c, k = random.choice((1, 2, 3, 4, 7, 19)), random.choice((1, 2, 3, 5, 8, 13))
    while n * d * c * k > MOST:
        n //= 2
    dtype, seed = random.choice(DTYPES), random.getrandbits(30)
    drawn = pixels(n, d, c, k, dtype=dtype, ignored=random.choice((0.0, 0.3, 1.0)), absent=random.random() < 0.3,
                   seed=seed)._asdict()  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    drawn["updates"] = torch.randint(0, 3000, (c, k), generator=generator)
    if random.random() < 0.2:
        drawn["prototypes"] = drawn["prototypes"].to(random.choice((torch.float32, torch.float64)))
    if random.random() < 0.1 and n:  # a vector of no length has no direction
        drawn["embedding"][random.randrange(n)] = 0
    drawn["assignment"] = _index(random, drawn["assignment"], c * k, (torch.int32, torch.int64))
    drawn["label"] = _index(random, drawn["label"], c, INTEGERS)
    drawn["weight"] = drawn["weight"].to(random.choice(FLOATS))
    return {name: drawn[name] for name in (*operation.tensors, *operation.optional)}


def _maps(random: Random, operation: Operation) -> Inputs:
    b, c = random.choice((0, 1, 1, 2, 3)), random.choice((1, 2, 3, 4, 5, 19, 255))
    h, w = (random.choice((1, 1, 2, 3, 7, 13, 16, 31, 64)) for _ in range(2))
    if random.random() < 0.03:
        h = 0
    while b * c * h * w > MOST // 4:
        c = max(1, c // 2)
    dtype = random.choice(DTYPES)
    drawn = maps(b, c, h, w, dtype=dtype, ignored=random.choice((0.0, 0.3, 1.0)), absent=random.random() < 0.3,
                 seed=random.getrandbits(30))._asdict()  # fmt: skip
    drawn["label"] = _index(random, drawn["label"], c, INTEGERS)
    drawn["weight"] = drawn["weight"].to(random.choice(FLOATS))
    return {name: drawn[name] for name in (*operation.tensors, *operation.optional)}


def _index(random: Random, index: Tensor, limit: int, dtypes: Sequence[torch.dtype]) -> Tensor:
    """Stores labels or assignments in another dtype, ignored ones as any number outside of the range."""
    dtype = random.choice(dtypes)
    limits = torch.iinfo(dtype)
    ignored = (index.long() < 0) | (index.long() >= limit) | (index.long() > limits.max)
    outside = [value for value in (-1, limit, 255, limits.max, limits.min) if limits.min <= value <= limits.max]
    outside = [value for value in outside if not 0 <= value < limit] or [None]
    value = random.choice(outside)
    if value is None:
        return index.to(torch.int64)  # a small dtype holds nothing but valid numbers
    return torch.where(ignored, value, index.long()).to(dtype)


# Running


def run(call: Call, inputs: Inputs, *, laid_out: bool) -> dict[str, Tensor]:
    """Every output by its place, and the gradient in each wanted argument by its name, as `forward_backward` does."""
    given = {
        name: LAYOUTS[call.layouts[name] if laid_out else 0](value.clone()).detach()  # an operation may write into it
        for name, value in inputs.items()
    }
    before = {name: value.clone() for name, value in given.items()}
    for name in call.wanted:
        given[name].requires_grad_()
    outputs = call.operation.call(**given, **call.options)
    terms = [(output * ramp(output)).sum() for output in outputs if output.requires_grad]
    if terms:
        torch.stack([term.double() for term in terms]).sum().backward()
    if call.name != "prototype_update_" and laid_out:
        for name, value in given.items():
            if not torch.equal(value.detach(), before[name]):
                raise WrongError(f"{name} has changed")
    result = {str(place): output.detach() for place, output in enumerate(outputs)}
    for name in call.wanted:
        gradient = given[name].grad
        if gradient is None:
            raise WrongError(f"no gradient came back to {name}")
        result[name] = gradient
    return result


def check_good(call: Call) -> str:
    """Compares a call with the reference in float64; returns how it ended. Raises WrongError for a difference."""
    with dispatch.using(call.backend):
        ours = run(call, call.inputs, laid_out=True)
    wide = {name: value.double() if value.is_floating_point() else value for name, value in call.inputs.items()}
    with dispatch.using("eager"):
        exact = run(call, wide, laid_out=False)
    ties = False
    for name, value in ours.items():
        true = exact[name]
        if value.shape != true.shape:
            raise WrongError(f"output {name} has the shape {tuple(value.shape)}, not {tuple(true.shape)}")
        if name in call.inputs and value.dtype != call.inputs[name].dtype:
            raise WrongError(f"the gradient in {name} is {value.dtype}")
        if not value.is_floating_point():
            ties |= _check_index(call, name, value, true)
    for name, value in ours.items():
        if value.is_floating_point() and not (ties and name in call.inputs):
            _check_near(name, value, exact[name], _size(call, name))
    return "equal but for a tie" if ties else "equal"


def _size(call: Call, output: str) -> float:
    """The size of the terms that an output is summed of, which may cancel."""
    pixels = float(call.inputs[call.operation.tensors[-1]].numel())
    if output in ("embedding", "logits"):
        return 20.0  # 1/temperature
    if output == "prototypes" or call.name in ("prototype_contrast", "segmentation_loss"):
        return 20.0 + pixels
    return 10.0 if call.name == "prototype_update_" else 1.0  # vectors that cancel have any direction


def _check_near(name: str, ours: Tensor, true: Tensor, size: float) -> None:
    """Within the tolerance of the dtype times the largest value, or the size of the terms that may cancel."""
    if not bool(ours.isfinite().all()):
        raise WrongError(f"output {name} is not finite")
    if not ours.numel():
        return
    scale = max(float(true.abs().max()), size)
    off = float((ours.double() - true.double()).abs().max())
    if off > TOLERANCE[ours.dtype] * scale:
        raise WrongError(f"output {name} is off by {off:.3g}, of {scale:.3g}")


def _check_index(call: Call, name: str, ours: Tensor, true: Tensor) -> bool:
    """Tells whether indices differ where their scores are nearer than rounding. Raises WrongError elsewhere."""
    differ = (ours.long() != true.long()).nonzero().tolist()
    if not differ:
        return False
    if call.operation.scores is None:
        raise WrongError(f"output {name} differs in {len(differ)} places")
    arrays = {one: array(value) for one, value in call.inputs.items()}
    scores = call.operation.scores(arrays, call.options)
    reach = 1e-4 if torch.float64 not in {value.dtype for value in call.inputs.values()} else 1e-9
    reach /= min(1.0, 10 * call.options.get("epsilon", 1.0))
    for place in map(tuple, differ):
        row, mine, best = scores[place], int(ours[place]), int(true[place])
        if not 0 <= mine < len(row) or not abs(row[mine] - row[best]) <= reach:
            raise WrongError(f"output {name} is {mine} at {place}, not {best}")
    return True


def check_bad(random: Random, call: Call) -> str:
    """Makes a call bad; returns how. Raises WrongError if it is not refused in words."""
    inputs, options, backend = dict(call.inputs), dict(call.options), call.backend
    kinds = ["tensor", "tensor", "device", "backend"] + ["number"] * bool(call.operation.spoilt)
    kind = random.choice(kinds)
    name = random.choice(call.operation.tensors)
    if kind == "tensor":
        spoil = random.choice([one for one in SPOILERS if one != "longer" or name not in call.operation.free])
        if spoil == "longer" and not (inputs[name].dim() and inputs[name].shape[0]):
            spoil = "complex"
        if spoil == "one axis less" and inputs[name].dim() and not inputs[name].shape[0]:
            spoil = "one axis more"
        inputs[name], kind = SPOILERS[spoil](inputs[name]), spoil
    elif kind == "device":
        if len(inputs) == 1:
            return "nothing to spoil"
        inputs[name] = inputs[name].to("meta")
    elif kind == "backend":
        backend = random.choice(NOWHERE)
    else:
        option = random.choice(list(call.operation.spoilt))
        options[option] = random.choice(call.operation.spoilt[option])
    try:
        with dispatch.using(backend):
            call.operation.call(**inputs, **options)
    except REFUSALS as error:
        if len(str(error).split()) < 3:
            raise WrongError(f"{kind}: refused with {error!r}") from error
        return "refused"
    raise WrongError(f"{kind} of {name if kind not in ('backend', 'number') else options}: not refused")


def check_wild(random: Random, call: Call) -> str:
    """Gives numbers of any size, which may give any result."""
    inputs = dict(call.inputs)
    for name, value in inputs.items():
        if value.is_floating_point() and value.numel():
            wild = value.clone().reshape(-1)
            for _ in range(random.choice((1, 5))):
                wild[random.randrange(len(wild))] = random.choice((math.nan, math.inf, -math.inf, 3e38, 1e-42, -0.0))
            inputs[name] = wild.reshape(value.shape)
    with dispatch.using(call.backend):
        found = run(Call(call.name, inputs, call.layouts, call.options, (), call.backend), inputs, laid_out=False)
    return "any result" if found else "none"


def check_kernel(random: Random) -> str:
    """Calls a schema of torch.ops.mpamatch itself, past the checks of mpamatch.ops, with a spoilt argument."""
    torch.manual_seed(random.getrandbits(30))
    if random.random() < 0.2:
        name, argument, bad = random.choice(BAD_NUMBERS)
        given = list(arguments(name))
        schema = getattr(torch.ops.mpamatch, name).default._schema
        given[[one.name for one in schema.arguments].index(argument)] = bad
    else:
        name = random.choice(list(KERNELS))
        dtype, weighted = random.choice(FLOATS), random.random() < 0.5
        given = list(arguments(name, dtype, weighted))
        schema = getattr(torch.ops.mpamatch, name).default._schema
        places = [at for at, value in enumerate(given) if isinstance(value, Tensor)]
        place, spoil = random.choice(places), random.choice(list(SPOILERS))
        argument = schema.arguments[place].name
        if (spoil == "longer" and argument in KERNELS[name].free) or (spoil == "one axis more" and argument in INDICES):
            getattr(torch.ops.mpamatch, name)(*given)
            return "kernel called"
        given[place] = SPOILERS[spoil](given[place])
    try:
        getattr(torch.ops.mpamatch, name)(*given)
    except (RuntimeError, NotImplementedError) as error:
        if argument not in str(error) and "expected" not in str(error) and "wrong" not in str(error):
            raise WrongError(f"{name}: {argument} refused with {str(error)[:200]!r}") from error
        return "kernel refused"
    raise WrongError(f"{name}: a spoilt {argument} is not refused")


def do_call(number: int) -> str:
    """Does a call by its number and returns how it ended. Raises WrongError, or whatever it should not."""
    random = Random(f"operators {number}")
    what = random.random()
    if what < 0.1 and not native.missing("cpu"):
        return check_kernel(random)
    call = draw(random)
    if what < 0.35:
        return check_bad(random, call)
    if what < 0.4:
        return check_wild(random, call)
    return check_good(call)


def do_calls(numbers: Sequence[int], folder: Path) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Does calls in children, each of TOGETHER of them; returns how often each end came, and the faults by number."""
    ends, faults, at = Counter[str](), list[tuple[int, str]](), 0
    shared = mmap.mmap(-1, 8)  # which call the child has come to
    ends_of = folder / "ends.jsonl"
    while at < len(numbers):
        some = numbers[at : at + TOGETHER]

        def work(some: Sequence[int] = some) -> int:
            with ends_of.open("w", buffering=1) as file:  # line by line: a child may die at any call
                for place, number in enumerate(some):
                    shared[:8] = place.to_bytes(8, "little")
                    file.write(json.dumps([number, *_told(number)]) + "\n")
            return 0

        ended = children.run(work, folder, seconds=1200)
        told = [json.loads(line) for line in ends_of.read_text().splitlines()]
        ends.update(how for _, how, fault in told if not fault)
        faults += [(number, how) for number, how, fault in told if fault]
        at += len(some)
        if len(told) < len(some):  # it died, or was late
            number = some[int.from_bytes(shared[:8], "little")]
            faults.append((number, ended.fault or f"its process ended with {ended.code}"))
            at = at - len(some) + some.index(number) + 1
        print(f"up to call {numbers[at - 1]}: {len(faults)} faults", file=sys.stderr, flush=True)
    return ends, faults


def _told(number: int) -> tuple[str, bool]:
    try:
        return do_call(number), False
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", True


def main(given: Sequence[str] | None = None) -> int:
    """Does the calls and prints how they ended; returns 1 if one had a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.operators", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--only", help="numbers, as 7,9 or 100-120, in this process")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    if options.only:
        for number in children.numbers(options.only):
            print(number, do_call(number))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        wanted = range(options.first, options.first + options.count)
        ends, faults = do_calls(wanted, Path(folder))
    for number, fault in faults:
        print(f"call {number}: {fault}")
    print(f"{options.count} calls: " + ", ".join(f"{count} {how}" for how, count in ends.most_common()))
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
