"""95 % intervals by bootstrap over groups: patients are drawn anew; their pixels and images are not independent.

Percentile bootstrap: Efron and Tibshirani, "An introduction to the bootstrap", 1993; of clusters: Field and Welsh,
"Bootstrapping clustered data", JRSS B 69, 2007.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
FEW = 10  # groups below which a percentile interval is clearly too narrow
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def bootstrap(
    sums: NDArray[np.float64],  # (N, S)
    groups: Sequence[str],  # N
    statistic: Statistic,  # (R, S) -> (R, T)
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[tuple[float, float] | None]:  # T
    """Computes 95 % intervals of statistics of sums over images.

    In each draw as many groups as there are come with replacement, each with all of its images; a draw in which a
    statistic is NaN (its class is in no image) does not count for it.

    Args:
        sums: what each image adds.
        groups: of each image.
        statistic: computes T numbers from the sums of each of R draws.
        draws: how many.
        seed: of the draws.

    Returns:
        Lower and upper end of each statistic; None for all if there is one group alone, as nothing varies then, and for
        a statistic that is NaN in every draw.
    """
    by_group = sum_by_group(sums, groups)
    if len(by_group) < 2:
        return [None] * statistic(by_group.sum(0, keepdims=True)).shape[1]
    count = len(by_group)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    found = statistic(times.astype(np.float64) @ by_group)
    return [_ends(column[np.isfinite(column)]) for column in found.T]


def sum_by_group(
    sums: NDArray[np.float64],  # (N, S)
    groups: Sequence[str],  # N
) -> NDArray[np.float64]:  # (G, S)
    """Adds up what the images of each group add; groups in the order of their names."""
    names, place = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    found = np.zeros((len(names), sums.shape[1]))
    np.add.at(found, place, sums)
    return found


def _ends(values: NDArray[np.float64]) -> tuple[float, float] | None:
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
