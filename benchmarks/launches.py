"""The launches of a benchmark case on a card that need not be here, as the cost model takes them.

Those of Triton kernels are compiled and read. Those of CUDA kernels are written down here, with the sizes of grids and
the traffic that csrc/cuda/ gives them and instructions as counted in their machine code for sm_90; at 256 threads and
two programs a multiprocessor their registers are held at 128.
"""

from collections.abc import Callable, Mapping
from math import ceil

from mpamatch.benchmarks.cards import KIB, Card
from mpamatch.benchmarks.cases import BOTH, SINKHORN_AND_UPDATE, Case
from mpamatch.benchmarks.compiling import call_of
from mpamatch.benchmarks.model import Launch, launch_of

THREADS = 256
WARPS = THREADS // 32
RESIDENT = 2  # programs on a multiprocessor
REGISTERS = 128


def launches(case: Case, card: Card) -> list[Launch]:
    """Everything that the fused backend launches for a case, in order. Needs triton, and no GPU."""
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
            memory=case.bytes,
            turns=ceil(sets / (THREADS // 8)),  # rows that a group asks for and waits for
            instructions=score + PASS * ITERATIONS * pixels,
            loaded=pixels * case.d * case.itemsize + prototypes,
            barriers=ITERATIONS,
        )
    ]


# csrc/cuda/prototype_update_.h. A warp, or half of one, walks down a run of sorted pixels, four rows at a time.
BATCH = 4
SORT = 9  # warps' instructions a pixel, in each of the eight blocks of its domain, over eight


def prototype_update_(case: Case, card: Card) -> list[Launch]:
    vector = 16 // case.itemsize
    lanes = next((count for count in (8, 16) if case.d <= count * vector * PIECES), 32)
    domains = RESIDENT * card.processors // 8
    programs = 8 * domains
    pixels = ceil(case.n / programs)
    runs = THREADS // lanes * 8
    partial = domains * (case.m + runs) * case.d * 4
    batches = ceil(ceil(case.n / domains) / runs / BATCH)
    sort = 8 * pixels * SORT / 8
    move = Launch("prototype_move", case.m, WARPS, 64, KIB, 8 * case.m * case.d, turns=3)
    return [
        Launch(
            "prototype_sum, runs",
            programs=programs,
            warps=WARPS,
            registers=REGISTERS,
            shared_memory=8 * pixels * 6 + 8 * case.m,
            memory=case.n * (case.d * case.itemsize + 4),
            turns=batches + 1,
            instructions=WARPS * batches * BATCH_INSTRUCTIONS + sort * WARPS,
            loaded=pixels * (case.d * case.itemsize + 32) + partial / programs,
        ),
        Launch(
            "prototype_sum, total",
            programs=case.m * ceil(case.d / 32),
            warps=WARPS,
            registers=64,
            shared_memory=4 * KIB,
            memory=0,
            turns=3,
            instructions=WARPS * 1500,
            loaded=partial / (case.m * ceil(case.d / 32)),
        ),
        move,
    ]


PIECES = 2
BATCH_INSTRUCTIONS = 900

CUDA: Mapping[str, Callable[[Case, Card], list[Launch]]] = {
    "sinkhorn_assign": sinkhorn_assign,
    "prototype_update_": prototype_update_,
    SINKHORN_AND_UPDATE: lambda case, card: [*sinkhorn_assign(case, card), *prototype_update_(case, card)],
}
