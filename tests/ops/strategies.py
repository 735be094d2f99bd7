"""Drawn inputs of the operations, for hypothesis."""

import torch
from hypothesis import strategies as st

from tests.ops.cases import DTYPES, maps, pixels

SHARES = st.sampled_from([0.0, 0.3, 1.0])
SEEDS = st.integers(0, 2**16)
PIXELS = st.builds(
    pixels,
    n=st.sampled_from([0, 1, 2, 7, 31, 97]),
    d=st.sampled_from([1, 3, 17, 64, 768]),
    c=st.integers(1, 4),
    k=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    ignored=SHARES,
    absent=st.booleans(),
    seed=SEEDS,
)
MAPS = st.builds(
    maps,
    b=st.integers(0, 2),
    c=st.integers(1, 5),
    h=st.sampled_from([1, 3, 7]),
    w=st.sampled_from([1, 4, 11]),
    dtype=st.sampled_from(DTYPES),
    ignored=SHARES,
    absent=st.booleans(),
    seed=SEEDS,
)
# For Triton's interpreter: of the dtypes that the kernels take, and no wider than goes around each loop.
FLOATS = st.sampled_from([dtype for dtype in DTYPES if dtype != torch.float64])
INTERPRETED_PIXELS = st.builds(
    pixels,
    n=st.sampled_from([0, 1, 2, 7, 31, 70]),
    d=st.sampled_from([1, 3, 17, 70]),
    c=st.integers(1, 4),
    k=st.integers(1, 5),
    dtype=FLOATS,
    ignored=SHARES,
    absent=st.booleans(),
    seed=SEEDS,
)
INTERPRETED_MAPS = MAPS.filter(lambda case: case.logits.dtype != torch.float64)
