"""Runs the CUDA C++ kernels once over small and awkward sizes, for compute-sanitizer.

python -m mpamatch.benchmarks.exercise_cuda
"""

import sys

import torch

from mpamatch import ops
from mpamatch.benchmarks.backends import using

SIZES = [(1, 1, 1, 1), (97, 17, 3, 4), (1000, 256, 5, 10), (777, 768, 19, 10)]  # N, D, C, K
LABELS = [(1, 1, 1), (2, 37, 61), (1, 300, 1030)]  # B, H, W
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def main() -> int:
    for n, d, c, k in SIZES:
        for dtype in DTYPES:
            exercise(n, d, c, k, dtype)
    for shape in LABELS:
        with using("cuda"):
            ops.signed_distance(torch.randint(0, 4, shape, device="cuda", dtype=torch.uint8), 3)  # 3 is of no class
    torch.cuda.synchronize()
    print(f"{len(SIZES) * len(DTYPES) + len(LABELS)} cases ran")
    return 0


def exercise(n: int, d: int, c: int, k: int, dtype: torch.dtype) -> None:
    embedding = torch.randn(n, d, device="cuda").to(dtype)
    prototypes = torch.randn(c, k, d, device="cuda", dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    label = torch.randint(0, c + 1, (n,), device="cuda")  # c itself is ignored
    updates = torch.zeros((c, k), device="cuda", dtype=torch.int64)
    with using("cuda"):
        for epsilon in (0.05, 0.01):  # the constant shift, and the maximum
            assignment = ops.sinkhorn_assign(embedding, prototypes, label, epsilon=epsilon)
        ops.prototype_update_(prototypes, updates, embedding, assignment, weight=torch.rand(n, device="cuda"))


if __name__ == "__main__":
    sys.exit(main())
