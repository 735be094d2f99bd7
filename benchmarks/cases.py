"""The sizes that are measured: N pixels, D width, C classes, K prototypes per class, M = C·K.

"full" is everything; "goal" the sizes of `goals`, a case or two an operation; "rest" is full without the goal cases in
half precision; "small" is a first look, "tiny" a dry run, whose times mean nothing.
"""

from dataclasses import dataclass

FORWARD, BOTH = "forward", "forward+backward"
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
SIZES = ("small", "full", "goal", "rest", "tiny")
SINKHORN_AND_UPDATE = "sinkhorn_assign+prototype_update_"


@dataclass(frozen=True)
class Case:
    """One operation at one size. `d` and `k` are 0 where the operation has no embedding or prototypes."""

    operation: str
    direction: str
    n: int
    d: int
    c: int
    k: int
    dtype: str  # of the embedding or the logits
    bytes: int = 0  # that must cross memory, by the formula of its benchmark
    flops: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)  # B, H, W of the maps, B·H·W = N

    @property
    def m(self) -> int:
        return self.c * self.k

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the embedding or the logits."""
        return BYTES[self.dtype]

    @property
    def name(self) -> str:
        sizes = {"N": self.n, "D": self.d, "C": self.c, "K": self.k}
        return " ".join(f"{letter}={size}" for letter, size in sizes.items() if size) + f" {self.dtype}"


def of_pixels(operation: str, direction: str, sizes: str, dtype: str) -> list[Case]:
    """One 256² image, or 16 at stride 4, with 2, 5 and 19 classes; the small ones for tests and a first look."""
    n, d, counts, k = {
        "full": (65_536, 256, (2, 5, 19), 10),
        "goal": (65_536, 256, (5,), 10),
        "small": (8_192, 64, (2, 5), 10),
        "tiny": (96, 16, (3,), 2),
    }[sizes]
    return [Case(operation, direction, n, d, classes, k, dtype) for classes in counts]


def of_maps(operation: str, direction: str, sizes: str, dtype: str) -> list[Case]:
    """8 images of 256², with 2, 5 and 20 classes; the small ones as above."""
    shape, counts = {
        "full": ((8, 256, 256), (2, 5, 20)),
        "goal": ((8, 256, 256), (5,)),
        "small": ((2, 64, 64), (2, 5)),
        "tiny": ((1, 16, 16), (3,)),
    }[sizes]
    pixels = shape[0] * shape[1] * shape[2]
    return [Case(operation, direction, pixels, 0, classes, 0, dtype, shape=shape) for classes in counts]
