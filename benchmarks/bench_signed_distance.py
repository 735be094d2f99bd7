"""signed_distance against SciPy's Euclidean distance transform, called twice per class and image."""

import importlib
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mpamatch import ops
from mpamatch.benchmarks import inputs
from mpamatch.benchmarks.cases import FORWARD, Case, of_maps
from mpamatch.benchmarks.suite import Benchmark, Competitor, Inputs, needs

ACROSS = 16  # regions along each side: noise would have every distance near 1


def cases(sizes: str, device: str, dtype: str) -> list[Case]:
    """Labels have no floating dtype: it is measured with float32's cases alone, a single case with any dtype's.

    Two images at most on a CPU, as eager takes W³ steps an image: seconds for eight of 20 classes.
    """
    wanted = dtype == "float32" or sizes in ("goal", "tiny")
    found = of_maps("signed_distance", FORWARD, sizes, "float32") if wanted else []
    return [_of_two(case) for case in found] if device == "cpu" else found


def _of_two(case: Case) -> Case:
    images, height, width = case.shape
    kept = min(images, 2)
    return replace(case, n=kept * height * width, shape=(kept, height, width))


def least_bytes(case: Case) -> int:
    # read label N·1; write distance N·C·4
    return case.n + 4 * case.n * case.c


def least_flops(case: Case) -> int:
    # along the column: a square, a sum, a comparison; a root
    return 4 * case.n * case.c


def make(case: Case, device: str) -> Inputs:
    """Regions of one class; `classes` (C, 0) carries their number, as every input of a benchmark is a tensor."""
    batch, height, width = case.shape
    coarse = inputs.label(case, "cpu", batch, ACROSS, ACROSS)
    rows, columns = (torch.arange(side) * ACROSS // side for side in (height, width))
    return {"label": coarse[:, rows][:, :, columns].to(device), "classes": torch.empty(case.c, 0)}


def distance(label: Tensor, classes: Tensor) -> tuple[Tensor]:
    return (ops.signed_distance(label, len(classes)),)


def scipy(label: Tensor, classes: Tensor) -> tuple[Tensor]:
    """By distance_transform_edt, which leaves the absent and the full class to its caller."""
    transform = importlib.import_module("scipy.ndimage").distance_transform_edt
    image = label.cpu().numpy()
    batch, height, width = image.shape
    result = np.empty((batch, len(classes), height, width), np.float32)
    for b, c in np.ndindex(batch, len(classes)):
        member = image[b] == c
        if not member.any() or member.all():
            result[b, c] = np.hypot(height, width) * (-1 if member.all() else 1)
            continue
        inside = transform(member)
        result[b, c] = np.where(member, np.where(inside == 1, 0, -inside), transform(~member))
    return (torch.from_numpy(result).to(label.device),)


BENCHMARK = Benchmark(
    "signed_distance",
    cases,
    least_bytes,
    least_flops,
    make,
    distance,
    {"scipy": Competitor(scipy, needs("scipy"))},
    least={FORWARD: 5.0},
)
BENCHMARKS = (BENCHMARK,)
