"""Runs the CUDA C++ kernels once over small and awkward sizes, for compute-sanitizer.

python -m mpamatch.benchmarks.exercise_cuda
"""

import sys
from dataclasses import replace

import torch

from mpamatch.benchmarks.backends import using
from mpamatch.ops.operation import operations
from mpamatch.ops.selfcheck import Sample, Size, draw

SIZES = [
    Size((1, 1, 1), width=1, classes=1, per_class=1),
    Size((1, 1, 97), width=17, classes=3, per_class=4),
    Size((1, 20, 50), width=256, classes=5, per_class=10),
    Size((1, 21, 37), width=768, classes=19, per_class=10),
]
MAPS = [Size((2, 37, 61)), Size((1, 300, 1030), width=3)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDE_INDICES = (torch.bfloat16, torch.float64)  # the dtypes beside which indices are int64
CASES = [(size, dtype) for size in SIZES for dtype in DTYPES] + [(size, torch.float32) for size in MAPS]


def sample(size: Size, dtype: torch.dtype, device: str) -> Sample:
    drawn = draw(device, dtype, size)
    if dtype in WIDE_INDICES:
        return replace(drawn, label=drawn.label.long(), assignment=drawn.assignment.long())
    return drawn


def main() -> int:
    """The self-check of every operation that has CUDA C++ kernels, at every size; returns 0."""
    checks = [record.self_check for record in operations().values() if "cuda" in record.backends]
    for size, dtype in CASES:
        for check in checks:
            with using("cuda"):
                check(sample(size, dtype, "cuda"))
    torch.cuda.synchronize()
    print(f"{len(CASES) * len(checks)} cases ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
