"""The sizes that are measured, and the least work of each: bytes that must cross memory, and FLOPs.

N pixels, D width, C classes, K prototypes per class, M = C·K; b bytes of the embedding's (or logits') dtype. A formula
counts every input read once and every output written once per pass that cannot be merged with another; intermediate
results are free, as a perfect implementation keeps them in cache. So no implementation exceeds 100 % of the roofline.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

FORWARD, BOTH = "forward", "forward+backward"
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
SIZES = ("small", "full")
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
    bytes: int = 0
    flops: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)  # B, H, W of the maps, B·H·W = N

    @property
    def m(self) -> int:
        return self.c * self.k

    @property
    def name(self) -> str:
        sizes = {"N": self.n, "D": self.d, "C": self.c, "K": self.k}
        return " ".join(f"{letter}={size}" for letter, size in sizes.items() if size) + f" {self.dtype}"


def prototype_distance(sizes: str, device: str, dtype: str) -> list[Case]:
    """D 64, 256, 512 and M 20, 50, 190 at 65,536 pixels, and on a GPU at 262,144 too."""
    n, d, shapes = _pixels(sizes)
    cases = [_case("prototype_distance", FORWARD, n, d, shape, dtype) for shape in shapes]
    if sizes == "full":
        cases += [_case("prototype_distance", FORWARD, n, width, (5, 10), dtype) for width in (64, 512)]
        if device == "cuda":
            cases += [_case("prototype_distance", FORWARD, 4 * n, width, (5, 10), dtype) for width in (64, 256, 512)]
    cases.append(_case("prototype_distance", BOTH, n, d, (5, 10), dtype))
    return [replace(case, bytes=distance_bytes(case), flops=distance_flops(case)) for case in cases]


def distance_bytes(case: Case) -> int:
    b = BYTES[case.dtype]
    # read embedding N·D·b and prototypes M·D·4; write distance N·C·4 and nearest N·C·4
    forward = case.n * case.d * b + case.m * case.d * 4 + 8 * case.n * case.c
    # read grad_distance, distance, nearest 3·N·C·4, embedding and prototypes; write both gradients
    backward = 12 * case.n * case.c + 2 * case.n * case.d * b + 2 * case.m * case.d * 4
    return forward + (backward if case.direction == BOTH else 0)


def distance_flops(case: Case) -> int:
    # products 2·N·M·D and norms 2·N·D
    forward = 2 * case.n * case.m * case.d + 2 * case.n * case.d
    # only the chosen prototype of each class: 2·N·C·D into each of the two gradients
    backward = 4 * case.n * case.c * case.d
    return forward + (backward if case.direction == BOTH else 0)


def sinkhorn_assign(sizes: str, device: str, dtype: str) -> list[Case]:
    n, d, shapes = _pixels(sizes)
    cases = [_case("sinkhorn_assign", FORWARD, n, d, shape, dtype) for shape in shapes]
    return [replace(case, bytes=sinkhorn_bytes(case), flops=sinkhorn_flops(case)) for case in cases]


def sinkhorn_bytes(case: Case) -> int:
    # read embedding N·D·b, prototypes M·D·4, label N·1; write assignment N·4. The N·K scores stay in cache
    return case.n * case.d * BYTES[case.dtype] + case.m * case.d * 4 + 5 * case.n


def sinkhorn_flops(case: Case) -> int:
    # the K scores of the own class 2·N·K·D and norms 2·N·D; iterations O(N·K) are left out
    return 2 * case.n * case.k * case.d + 2 * case.n * case.d


def prototype_update_(sizes: str, device: str, dtype: str) -> list[Case]:
    n, d, shapes = _pixels(sizes)
    cases = [_case("prototype_update_", FORWARD, n, d, shape, dtype) for shape in shapes]
    return [replace(case, bytes=update_bytes(case), flops=update_flops(case)) for case in cases]


def update_bytes(case: Case) -> int:
    # read embedding N·D·b and assignment N·4; read and write prototypes 2·M·D·4
    return case.n * case.d * BYTES[case.dtype] + 4 * case.n + 8 * case.m * case.d


def update_flops(case: Case) -> int:
    # norms 2·N·D and sums 2·N·D
    return 4 * case.n * case.d


def sinkhorn_and_update(sizes: str, device: str, dtype: str) -> list[Case]:
    """One after the other, as a training step runs them: the embedding is read twice."""
    n, d, shapes = _pixels(sizes)
    cases = [_case(SINKHORN_AND_UPDATE, FORWARD, n, d, shape, dtype) for shape in shapes]
    return [
        replace(case, bytes=sinkhorn_bytes(case) + update_bytes(case), flops=sinkhorn_flops(case) + update_flops(case))
        for case in cases
    ]


def prototype_contrast(sizes: str, device: str, dtype: str) -> list[Case]:
    n, d, shapes = _pixels(sizes)
    cases = [_case("prototype_contrast", BOTH, n, d, shape, dtype) for shape in shapes]
    if sizes == "full":
        cases.append(_case("prototype_contrast", BOTH, n, 64, (5, 10), dtype))
    return [replace(case, bytes=contrast_bytes(case), flops=contrast_flops(case)) for case in cases]


def contrast_bytes(case: Case) -> int:
    row, prototypes = case.n * case.d * BYTES[case.dtype], case.m * case.d * 4
    # read embedding, prototypes, assignment N·4; write lse N·4
    forward = row + prototypes + 8 * case.n
    # read all of it again, write both gradients: with the forward pass 3·N·D·b, in half precision 6·N·D
    backward = 2 * row + 2 * prototypes + 8 * case.n
    return forward + backward


def contrast_flops(case: Case) -> int:
    # logits 2·N·M·D forward; again in backward, then 2·N·M·D into each of the two gradients
    return 8 * case.n * case.m * case.d


def segmentation_loss(sizes: str, device: str, dtype: str) -> list[Case]:
    cases = [_maps("segmentation_loss", BOTH, classes, sizes, dtype) for classes in _classes(sizes)]
    return [replace(case, bytes=segmentation_bytes(case), flops=segmentation_flops(case)) for case in cases]


def segmentation_bytes(case: Case) -> int:
    # read logits N·C·b and label N·1; in backward read both again and write N·C·b
    return 3 * case.n * case.c * BYTES[case.dtype] + 2 * case.n


def segmentation_flops(case: Case) -> int:
    # forward: shift, exp, sum, p, p², two sums: 7·N·C; backward: exp again, the dot product, three more: 8·N·C
    return 15 * case.n * case.c


def pseudo_label(sizes: str, device: str, dtype: str) -> list[Case]:
    cases = [_maps("pseudo_label", FORWARD, classes, sizes, dtype) for classes in _classes(sizes)]
    return [replace(case, bytes=pseudo_bytes(case), flops=pseudo_flops(case)) for case in cases]


def pseudo_bytes(case: Case) -> int:
    # read logits N·C·b; write label N·1 and confidence N·4
    return case.n * case.c * BYTES[case.dtype] + 5 * case.n


def pseudo_flops(case: Case) -> int:
    # compare, shift, exp, sum
    return 4 * case.n * case.c


def signed_distance(sizes: str, device: str, dtype: str) -> list[Case]:
    """Labels have no floating dtype, so it is measured with float32's cases alone."""
    if dtype != "float32":
        return []
    cases = [_maps("signed_distance", FORWARD, classes, sizes, dtype) for classes in _classes(sizes)]
    return [replace(case, bytes=signed_bytes(case), flops=signed_flops(case)) for case in cases]


def signed_bytes(case: Case) -> int:
    # read label N·1; write distance N·C·4
    return case.n + 4 * case.n * case.c


def signed_flops(case: Case) -> int:
    # along the column: a square, a sum, a comparison; a root
    return 4 * case.n * case.c


def _pixels(sizes: str) -> tuple[int, int, list[tuple[int, int]]]:
    """N, D and the (C, K): one 256² image, or 16 at stride 4; the small ones for tests and a first look."""
    if sizes == "full":
        return 65_536, 256, [(2, 10), (5, 10), (19, 10)]
    return 8_192, 64, [(2, 10), (5, 10)]


def _classes(sizes: str) -> Iterable[int]:
    return (2, 5, 20) if sizes == "full" else (2, 5)


def _case(operation: str, direction: str, n: int, d: int, shape: tuple[int, int], dtype: str) -> Case:
    return Case(operation, direction, n, d, *shape, dtype)


def _maps(operation: str, direction: str, classes: int, sizes: str, dtype: str) -> Case:
    shape = (8, 256, 256) if sizes == "full" else (2, 64, 64)
    return Case(operation, direction, shape[0] * shape[1] * shape[2], 0, classes, 0, dtype, shape=shape)
