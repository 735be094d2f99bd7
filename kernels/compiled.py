"""Compiles kernels to machine code for a device that need not be here, and reads what the code costs."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from . import tiles

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Cost(NamedTuple):
    kernel: str
    registers: int  # a thread
    local_memory: int  # bytes a thread, spilled registers among them
    shared_memory: int  # bytes a program
    instructions: Counter[str]  # mnemonics without their suffixes


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
def _recorded(device: tiles.Device) -> Iterator[list[Any]]:
    """Launches compile for `device` and go to the list, none runs."""
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernels.append(run(function, *args, grid=grid, warmup=True, **kwargs))
        return kernels[-1]

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
    return [_cost(kernel) for kernel in kernels]


def _cost(kernel: Any) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _output("cuobjdump", "--dump-resource-usage", str(cubin))
        code = _output("nvdisasm", "-c", str(cubin))
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    # "/*0a30*/   @!P0 LDG.E.128 R4, [R2.64] ;"
    mnemonics = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_]*)", code, re.MULTILINE)
    if not mnemonics or "REG" not in numbers:
        raise RuntimeError(f"{kernel.name}: cuobjdump or nvdisasm of Triton wrote nothing that can be read.")
    local = numbers["STACK"] + numbers["LOCAL"]
    return Cost(kernel.name, numbers["REG"], local, kernel.metadata.shared, Counter(mnemonics))


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], check=True, capture_output=True, text=True).stdout
