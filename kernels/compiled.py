"""Compiles kernels to machine code for a device that need not be here, and reads what the code costs."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from . import tiles

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


# "        /*0a30*/              @!P0 LDG.E.128 R4, [R2.64] ;" and ".L_x_7:"
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Za-z0-9_.]*)(.*)")
LABEL = re.compile(r"^(\.L_x_\d+):")


class Part(NamedTuple):
    """The instructions of a kernel that lie in the same loops."""

    loops: tuple[int, ...]  # from the outermost to the innermost, each by its place among those of the kernel
    instructions: Counter[str]  # whole mnemonics: LDG.E.128


class Cost(NamedTuple):
    kernel: str
    registers: int  # a thread
    local_memory: int  # bytes a thread, spilled registers among them
    shared_memory: int  # bytes a program
    instructions: Counter[str]  # mnemonics without their suffixes
    parts: tuple[Part, ...] = ()
    warps: int = 0  # of a program
    grid: tuple[int, ...] = ()
    arguments: Mapping[str, Any] = {}  # what it is launched with, by the names of its parameters
    module: str = ""  # that defines it: an operation's, or common


class Launched(NamedTuple):
    kernel: Any  # as Triton compiled it
    module: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class _Target:
    """Stands in for the driver of a device: enough for Triton to specialise and compile, not to launch."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = 10 * capability[0] + capability[1]

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return -self.capability  # a key of Triton's caches that no real device has

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _recorded(device: tiles.Device) -> Iterator[list[Launched]]:
    """Launches compile for `device` and go to the list, none runs."""
    kernels: list[Launched] = []
    run = JITFunction.run

    def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(function, *args, grid=grid, warmup=True, **kwargs)
        arguments = dict(zip(function.arg_names, args, strict=False)) | kwargs
        kernels.append(Launched(kernel, function.fn.__module__.rpartition(".")[2], tuple(grid), arguments))
        return kernel

    before = driver._active
    JITFunction.run = compile_only
    driver.set_active(_Target(device.capability))
    try:
        with tiles.as_device(device):
            yield kernels
    finally:
        JITFunction.run = run
        driver._active = before


def costs(call: Callable[[], object], device: tiles.Device) -> list[Cost]:
    """Of every kernel that `call` would launch on `device`, in order. Nothing is computed: its results are garbage.

    The code is that of a real launch with these arguments: Triton itself deduces from them what it specialises on, the
    alignment of pointers and strides among it. The tensors may be anywhere, on "meta" too.
    """
    with _recorded(device) as kernels:
        call()
    return [_cost(launched) for launched in kernels]


def _cost(launched: Launched) -> Cost:
    kernel = launched.kernel
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _output("cuobjdump", "--dump-resource-usage", str(cubin))
        parts = parts_of(_output("nvdisasm", "-c", str(cubin)))
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    if not parts or "REG" not in numbers:
        raise RuntimeError(f"{kernel.name}: cuobjdump or nvdisasm of Triton wrote nothing that can be read.")
    local = numbers["STACK"] + numbers["LOCAL"]
    mnemonics: Counter[str] = Counter()
    for part in parts:
        for mnemonic, count in part.instructions.items():
            mnemonics[mnemonic.partition(".")[0]] += count
    return Cost(
        kernel.name, numbers["REG"], local, kernel.metadata.shared, mnemonics, parts, kernel.metadata.num_warps,
        launched.grid, launched.arguments, launched.module,
    )  # fmt: skip


def parts_of(code: str) -> tuple[Part, ...]:
    """Sorts the instructions of a disassembly by the loops around them: a loop reaches from a label to the last branch
    back to it. An instruction that jumps to itself, the padding after the end, is no loop."""
    mnemonics: list[str] = []
    labels: dict[str, int] = {}
    last_jump: dict[int, int] = {}  # of a loop, by its first instruction
    for line in code.splitlines():
        if label := LABEL.match(line.strip()):
            labels[label[1]] = len(mnemonics)
        elif found := INSTRUCTION.match(line):
            target = re.search(r"\.L_x_\d+", found[2])
            if found[1].startswith("BRA") and target and labels.get(target[0], len(mnemonics)) < len(mnemonics):
                last_jump[labels[target[0]]] = len(mnemonics)
            mnemonics.append(found[1])
    loops = sorted(last_jump.items(), key=lambda loop: (loop[0], -loop[1]))
    parts: dict[tuple[int, ...], Counter[str]] = {}
    for place, mnemonic in enumerate(mnemonics):
        around = tuple(index for index, (first, last) in enumerate(loops) if first <= place <= last)
        parts.setdefault(around, Counter())[mnemonic] += 1
    return tuple(Part(around, counts) for around, counts in parts.items())


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], check=True, capture_output=True, text=True).stdout
