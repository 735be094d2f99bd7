"""Predicts how long an operation takes on a GPU that need not be here: from machine code, sizes and a data sheet.

    python -m mpamatch.benchmarks.predict                   every operation at full size on every card, as Markdown

A launch is a number of programs that each take so many turns of a loop. For the Triton kernels all of it is read from
the code that a real launch would run: registers and shared memory, from which follows how many programs a
multiprocessor holds; the instructions of each loop, by kind; the launch's own arguments, from which follow the turns.
The launches of the CUDA kernels are described in `cuda_launches`.

What is assumed, and can be wrong (no figure here was fitted to a measurement):

- Memory gives MEMORY_SHARE of its data sheet. What a launch reads or writes of the operation's inputs and outputs comes
  from memory, once a launch, also if the launch before read it; what the operation hands from launch to launch stays in
  L2. What each program loads comes through L2.
- A warp starts an instruction every WARP_CYCLES cycles; a scheduler one a cycle, however many warps it has. A special
  function takes its scheduler 32 / special cycles, a shared access its bytes over the width of shared memory: no bank
  conflicts. Tensor cores reach TENSOR_SHARE of their rate.
- In one program tensor cores, special functions and other instructions wait for each other, so their times add; so do
  loads that the loop does not order ahead (no LDGSTS in it), each turn MEMORY_LATENCY, or CACHE_LATENCY where most of
  them find their data in L2. Programs on the same multiprocessor overlap. So a launch takes the longest of: any one
  resource of the busiest multiprocessor; memory and L2 of the card; and one chain of programs after each other.
- Each launch costs LAUNCH from the end of the one before it, as node of a CUDA graph, and that latency until its first
  data are there. A barrier over the grid costs BARRIER.
- Numbers of a row of pixels that are loaded one by one (labels, lengths) are the same in many threads of a warp, which
  then asks for one sector of 32 bytes; but for kernels over maps, where each thread has pixels of its own.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any

from mpamatch.benchmarks.cards import Card

if TYPE_CHECKING:
    from mpamatch.kernels.compiled import Cost

MEMORY_SHARE = 0.9
TENSOR_SHARE = 0.75
WARP_CYCLES = 2.5
MEMORY_LATENCY = 0.7e-6  # seconds
CACHE_LATENCY = 0.3e-6
LAUNCH = 1.3e-6
BARRIER = 1.8e-6
RESERVED = 1024  # bytes of shared memory that each program takes beside its own
LANES = 32


@dataclass(frozen=True)
class Launch:
    """One kernel and the work of one of its programs, the busiest."""

    kernel: str
    programs: int
    warps: int  # of a program
    registers: int  # of a thread
    shared_memory: int  # bytes of a program
    memory: float  # bytes that all programs together move from and to memory
    turns: float = 1  # of the main loop
    instructions: float = 0  # started by all warps of a program
    special: float = 0  # of these, special functions
    tensor: float = 0  # multiply-adds in tensor cores, half precision; TF32 counts twice
    shared: float = 0  # bytes of accesses to shared memory
    loaded: float = 0  # bytes between L2 and the multiprocessor
    ahead: bool = False  # whether loads of the main loop are ordered ahead of their use
    barriers: int = 0  # over the grid


@dataclass(frozen=True)
class Prediction:
    """Seconds of one launch, in all and by what takes them."""

    kernel: str
    seconds: float
    resident: int  # programs that a multiprocessor holds at once
    parts: Mapping[str, float]  # those that overlap; the longest is what the launch is bound by

    @property
    def bound(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])


def predict(launch: Launch, card: Card) -> Prediction:
    """Raises ValueError if not one program fits on a multiprocessor."""
    resident = resident_programs(launch, card)
    share = ceil(launch.programs / card.processors)  # of the busiest multiprocessor
    together = min(resident, share)
    warps = launch.warps * together / card.schedulers
    alone = _started(launch, card, launch.warps / card.schedulers)
    special = launch.special * LANES / card.special / card.schedulers
    tensor = launch.tensor / card.tensor / TENSOR_SHARE
    shared = launch.shared / card.shared_width
    latency = CACHE_LATENCY if 2 * launch.memory < launch.loaded * launch.programs else MEMORY_LATENCY
    waiting = 0.0 if launch.ahead else launch.turns * latency * card.clock
    cycles = {
        "instructions": share * _started(launch, card, warps),
        "special functions": share * special,
        "tensor cores": share * tensor,
        "shared memory": share * shared,
        "loads": share * launch.loaded / card.load_width,
        "one after the other": ceil(share / together) * (alone + special + tensor + waiting),
    }
    parts = {name: value / card.clock for name, value in cycles.items()}
    parts["memory"] = launch.memory / (card.memory * MEMORY_SHARE)
    parts["L2"] = launch.loaded * launch.programs / card.cache
    start = LAUNCH + latency + launch.barriers * BARRIER
    return Prediction(launch.kernel, start + max(parts.values()), resident, parts)


def _started(launch: Launch, card: Card, warps: float) -> float:
    """Cycles until a program's instructions are started, with so many warps a scheduler."""
    return launch.instructions / card.schedulers / min(1.0, warps / WARP_CYCLES)


def resident_programs(launch: Launch, card: Card) -> int:
    """How many programs a multiprocessor holds at once."""
    of_warp = ceil(launch.registers * LANES / 256) * 256  # registers are given out by 256
    limits = (
        card.warps // launch.warps,
        card.registers // (of_warp * launch.warps),
        card.shared_memory // (launch.shared_memory + RESERVED),
        32,
    )
    if min(limits) < 1:
        raise ValueError(f"{launch.kernel}: no program fits on a multiprocessor of {card.name}.")
    return min(limits)


# From machine code.

# Bytes that a thread moves by a memory instruction, by a part of its mnemonic; 4 without one.
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
MATRICES = {"M88": 4, "2": 8, "4": 16}  # of LDSM, by its last part but one or last
TO_L2 = ("LDG", "STG", "LDGSTS", "ATOM", "RED")
TO_SHARED = ("LDS", "STS", "LDSM", "STSM", "LDGSTS", "ATOMS")


def launch_of(cost: "Cost") -> Launch:
    """A launch of a Triton kernel, as it was compiled and with the arguments that it got."""
    turns = turns_of(cost)
    instructions: Counter[str] = Counter()
    first: Counter[str] = Counter()
    for part in cost.parts:
        times = prod(turns[loop] for loop in part.loops)
        for mnemonic, count in part.instructions.items():
            instructions[mnemonic] += count * times
            first[mnemonic] += count if part.loops else 0
    threads = cost.warps * LANES
    return Launch(
        cost.kernel,
        programs=prod(cost.grid),
        warps=cost.warps,
        registers=cost.registers,
        shared_memory=cost.shared_memory,
        memory=memory_of(cost.arguments),
        turns=turns[0] if turns else 1,
        instructions=cost.warps * sum(instructions.values()),
        special=cost.warps * sum(count for name, count in instructions.items() if name.startswith("MUFU")),
        tensor=sum(count * multiply_adds(name, cost.warps) for name, count in instructions.items()),
        shared=sum(count * threads * _width(name) for name, count in instructions.items() if _is(name, TO_SHARED))
        + sum(count * _operands(name, cost.warps) for name, count in instructions.items()),
        loaded=threads * sum(count * _asked(name, cost) for name, count in instructions.items() if _is(name, TO_L2)),
        ahead=any(name.startswith("LDGSTS") for name in first),
    )


def _is(mnemonic: str, kinds: tuple[str, ...]) -> bool:
    return mnemonic.partition(".")[0] in kinds


def _width(mnemonic: str) -> int:
    """Bytes a thread."""
    kind, *rest = mnemonic.split(".")
    table = MATRICES if kind in ("LDSM", "STSM") else WIDTHS
    return next((table[word] for word in reversed(rest) if word in table), 4)


def _asked(mnemonic: str, cost: "Cost") -> int:
    """Bytes a thread that a warp asks L2 for."""
    width = _width(mnemonic)
    return 1 if width <= 4 and cost.module not in OVER_MAPS else width


def multiply_adds(mnemonic: str, warps: int) -> int:
    """Of all warps of a program that start this instruction, counted in half precision: TF32 takes twice the time.

    HMMA.16816.F32.BF16: a warp's 16×8×16; HMMA.1688.F32.TF32: 16×8×8; HGMMA.64x64x16.F32.BF16: four warps' 64×64×16.
    """
    kind, _, rest = mnemonic.partition(".")
    if kind not in ("HMMA", "HGMMA"):
        return 0
    shape = rest.split(".")[0]
    sizes = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4}
    amount = sizes[shape] * warps if kind == "HMMA" else prod(map(int, shape.split("x"))) * (warps // 4)
    return 2 * amount if "TF32" in rest else amount


def _operands(mnemonic: str, warps: int) -> int:
    """Bytes of shared memory that tensor cores read by themselves: both factors of an HGMMA, at most."""
    if not mnemonic.startswith("HGMMA"):
        return 0
    m, n, k = map(int, mnemonic.split(".")[1].split("x"))
    return (m + n) * k * (4 if "TF32" in mnemonic else 2) * (warps // 4)


def memory_of(arguments: Mapping[str, Any]) -> int:
    """Bytes of a launch's tensors, each once, but for those that one launch of the operation hands to the next."""
    kept = ("packed_pointer", "partial_pointer")
    tensors = {id(value): value for name, value in arguments.items() if name.endswith("_pointer") and name not in kept}
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())


def turns_of(cost: "Cost") -> list[int]:
    """How often the busiest program goes through each loop of the code, for each time it comes to it.

    The source's loops are known by the kernel, from the outermost to the innermost; those of one turn are no loops in
    the code, and where it nests fewer the compiler has unrolled the innermost.
    """
    depth = {part.loops[-1]: len(part.loops) for part in cost.parts if part.loops}
    name = f"{cost.module}.{cost.kernel}"
    levels = SOURCE_LOOPS.get(name, _no_loops)(cost.arguments, cost.grid)
    over_classes = [loop for loop in sorted(depth) if depth[loop] == 2][: CLASS_LOOPS.get(name, 0)]
    found = []
    for loop in range(len(depth)):
        if loop in over_classes:
            found.append(ceil(cost.arguments["C"] / cost.arguments["BLOCK_C"]))
        elif depth[loop] > len(levels):
            raise ValueError(f"{name}: a loop at depth {depth[loop]}, of {len(levels)} known.")
        else:
            found.append(levels[depth[loop] - 1])
    return found


Loops = Callable[[Mapping[str, Any], Sequence[int]], list[int]]


def _over_pixels(*inside: str) -> Loops:
    """Blocks of pixels, and within them loops that turn as often as these constants say."""

    def loops(a: Mapping[str, Any], grid: Sequence[int]) -> list[int]:
        blocks = ceil(a["N"] / a["BLOCK_N"])
        turns = [1 if name == "D_PARTS" and _unrolls_d(a) else a[name] for name in inside]
        return [ceil(blocks / grid[-1]), *(count for count in turns if count > 1)]

    return loops


def _unrolls_d(a: Mapping[str, Any]) -> bool:
    """Whether parts of D are written one after the other, as what stays in shared memory has a place for each."""
    return bool(a["RESIDENT"] or a.get("KEEP"))


def _over_slots(a: Mapping[str, Any], grid: Sequence[int]) -> list[int]:
    return [ceil(a["slots"] / a["BLOCK_S"])]


def _no_loops(a: Mapping[str, Any], grid: Sequence[int]) -> list[int]:
    return []


SOURCE_LOOPS: Mapping[str, Loops] = {
    "prototype_distance.forward_kernel": _over_pixels("C_PARTS", "K_PARTS", "D_PARTS"),
    "prototype_distance.in_embedding_kernel": _over_pixels("M_PARTS"),  # a part of D for each program
    "prototype_distance.in_prototypes_kernel": _over_pixels(),
    "prototype_contrast.forward_kernel": _over_pixels("M_PARTS", "D_PARTS"),
    # With one tile of prototypes two loops over D stand side by side, for the products and for their use.
    "prototype_contrast.in_embedding_kernel": _over_pixels("M_PARTS", "D_PARTS"),
    "prototype_contrast.in_prototypes_kernel": _over_pixels("D_PARTS"),
    "segmentation_loss.forward_kernel": lambda a, grid: [ceil(a["all_blocks"] / grid[0])],
    "segmentation_loss.forward_many_kernel": lambda a, grid: [ceil(a["all_blocks"] / grid[0])],
    "common.pack_kernel": lambda a, grid: [ceil(a["D_PAD"] / a["BLOCK_D"])],
    "common.prototypes_gradient_kernel": _over_slots,
    "common.sum_slots_kernel": _over_slots,
}
# Loops over the classes of a pixel, the first at the second level.
CLASS_LOOPS = {"prototype_distance.in_embedding_kernel": 2, "prototype_distance.in_prototypes_kernel": 1}
OVER_MAPS = ("segmentation_loss", "pseudo_label")  # each thread has pixels of its own
