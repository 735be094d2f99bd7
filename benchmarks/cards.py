"""What GPUs are able to do, from their makers' data sheets: what the cost model predicts with."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Card:
    """A GPU. Rates are those of the data sheet; how much of each a kernel gets is the model's business."""

    name: str
    capability: tuple[int, int]
    processors: int  # streaming multiprocessors
    clock: float  # Hz, boost
    memory: float  # bytes/s of HBM or GDDR
    cache: float  # bytes/s from L2 to all multiprocessors
    tensor: int  # multiply-adds in half precision a cycle and multiprocessor, dense, sums in float32
    shared_memory: int  # bytes a multiprocessor, for its programs together
    warps: int  # at most on a multiprocessor
    registers: int = 65536  # a multiprocessor
    schedulers: int = 4  # a multiprocessor; each starts one instruction of a warp a cycle
    special: int = 4  # exp, log, 1/x, √ a cycle and scheduler
    shared_width: int = 128  # bytes of shared memory a cycle and multiprocessor
    load_width: int = 64  # bytes between L2 and a multiprocessor a cycle


KIB = 1024
CARDS = (
    Card("A100", (8, 0), 108, 1.41e9, 2.039e12, 4.8e12, 1024, 164 * KIB, 64),
    Card("L4", (8, 9), 58, 2.04e9, 0.300e12, 1.9e12, 512, 100 * KIB, 48),
    Card("H100", (9, 0), 132, 1.755e9, 3.35e12, 5.7e12, 2048, 228 * KIB, 64),
    Card("H200", (9, 0), 132, 1.755e9, 4.80e12, 5.7e12, 2048, 228 * KIB, 64),
)


def card_of(name: str, capability: tuple[int, int], processors: int) -> Card | None:
    """The card whose name is a word of `name`, else the first of that compute capability; with as many multiprocessors.
    None if there is neither."""
    named = [card for card in CARDS if card.name in name.replace("-", " ").split()]
    alike = [card for card in CARDS if card.capability == capability]
    found = named or alike
    return replace(found[0], processors=processors) if found else None
