"""The launches of a benchmark case on a card that need not be here, as the cost model takes them.

Those of Triton kernels are compiled and read. Those of CUDA kernels are written down here, with the sizes of grids and
the traffic that csrc/cuda/ gives them and instructions as counted in their machine code for sm_90; at 256 threads and
two programs a multiprocessor their registers are held at 128.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from math import ceil

from mpamatch.benchmarks.cards import KIB, Card
from mpamatch.benchmarks.cases import BOTH, SINKHORN_AND_UPDATE, Case
from mpamatch.benchmarks.compiling import call_of
from mpamatch.benchmarks.model import Launch, launch_of

THREADS = 256
WARPS = THREADS // 32
RESIDENT = 2  # programs on a multiprocessor
REGISTERS = 128


def described(operation: str) -> bool:
    """Whether its launches are known: it has Triton kernels, or stands in CUDA."""
    return operation in CUDA or find_spec(f"mpamatch.kernels.{operation}") is not None


def launches(case: Case, card: Card) -> list[Launch]:
    """Everything that the fused backend launches for a case, in order; none where it is not described.

    Needs triton, and no GPU.
    """
    if not described(case.operation):
        return []
    if case.operation in CUDA:
        return CUDA[case.operation](case, card)
    from mpamatch.kernels import compiled, tiles

    device = tiles.Device(card.name, card.capability, card.processors, card.shared_memory - KIB)
    directions = ("forward", "backward") if case.direction == BOTH else ("forward",)
    calls = [call_of(f"{case.operation}.{direction}", case, device) for direction in directions]
    return [launch_of(cost) for call in calls for cost in compiled.costs(call, device)]


# csrc/cuda/sinkhorn_assign.h, SinkhornAssign. A group of eight lanes takes four pixels of a class; of a row each lane
# takes four numbers at a time.
SET = 4
SCORE_TURN = 264  # instructions of the loop over D: 32 numbers of four rows, with ten prototypes
SCORE_SET = 345  # and around it: sums over the lanes, factors, the scores' place
PASS = 14  # warps' instructions a pixel in one iteration: exp, sums over k and over pixels
ITERATIONS = 3  # each one sum over the grid


def sinkhorn_assign(case: Case, card: Card) -> list[Launch]:
    programs = RESIDENT * card.processors
    pixels = ceil(case.n / programs)
    sets = ceil(pixels / SET) + case.c  # a class begins a new set
    tens = ceil(case.k / 10)
    score = sets * (ceil(case.d / 32) * SCORE_TURN + SCORE_SET) * tens / 4  # four groups in a warp
    prototypes = case.m * case.d * 4
    return [
        Launch(
            "sinkhorn_assign",
            programs=programs,
            warps=WARPS,
            registers=REGISTERS,
            shared_memory=pixels * 4 * (case.k + 3) + case.m * 12,
            memory=case.n * (case.d * case.itemsize + 5),
            turns=ceil(sets / (THREADS // 8)),  # rows that a group asks for and waits for
            instructions=score + PASS * ITERATIONS * pixels,
            loaded=pixels * case.d * case.itemsize + prototypes,
            barriers=ITERATIONS,
        )
    ]


# csrc/cuda/prototype_update_.h. A group of 8, 16 or 32 lanes walks down a run of sorted pixels, four rows at a time.
BLOCKS = 8  # of a domain, each of which sorts all its pixels
BATCH = 4
BATCH_INSTRUCTIONS = 1000  # of a warp: four rows for each of its groups, sums written now and then
SORT_INSTRUCTIONS = 3  # of a warp for 32 pixels, thirty of a thread for each, by the eight warps of a block
PIECES = 2  # packs of a row in a lane
LIST_INSTRUCTIONS = 300  # of a warp in the second launch: which partial sums are its own
ROW_INSTRUCTIONS = 25  # and to add one of them


def prototype_update_(case: Case, card: Card) -> list[Launch]:
    vector = 16 // case.itemsize
    lanes = next((count for count in (8, 16) if case.d <= count * vector * PIECES), 32)
    domains = RESIDENT * card.processors // BLOCKS
    programs, domain = BLOCKS * domains, ceil(case.n / domains)
    runs = THREADS // lanes * BLOCKS
    rows = domains * (case.m + runs)  # of partial sums
    batches = ceil(ceil(domain / runs) / BATCH)
    row_bytes = case.d * 4
    adders = case.m * ceil(case.d / 32)
    of_prototype = ceil(rows / case.m / WARPS)  # rows that a warp of the second launch adds
    return [
        Launch(
            "prototype_sum, runs",
            programs=programs,
            warps=WARPS,
            registers=REGISTERS,
            shared_memory=6 * domain + 6 * case.m * WARPS,
            memory=case.n * (case.d * case.itemsize + 4),
            turns=batches + 1,
            instructions=WARPS * (batches * BATCH_INSTRUCTIONS + domain / 32 * SORT_INSTRUCTIONS),
            loaded=domain / BLOCKS * case.d * case.itemsize + 4 * domain + rows * row_bytes / programs,
        ),
        Launch(
            "prototype_sum, total",
            programs=adders,
            warps=WARPS,
            registers=64,
            shared_memory=4 * KIB,
            memory=0,
            turns=ceil(of_prototype / 8) + 1,
            instructions=WARPS * (LIST_INSTRUCTIONS + of_prototype * ROW_INSTRUCTIONS),
            loaded=rows * row_bytes / adders,
        ),
        Launch("prototype_move_", case.m, WARPS, 64, KIB, memory=0, turns=3, loaded=4 * row_bytes),
    ]


CUDA: Mapping[str, Callable[[Case, Card], list[Launch]]] = {
    "sinkhorn_assign": sinkhorn_assign,
    "prototype_update_": prototype_update_,
    SINKHORN_AND_UPDATE: lambda case, card: [*sinkhorn_assign(case, card), *prototype_update_(case, card)],
}
