"""Which candidates to label next: those the model is least sure of, no two alike, and not all of one patient.

Two stages, as in suggestive annotation (Yang et al., MICCAI 2017): the most uncertain candidates are kept, and among
them those are chosen that differ most from each other and from what is labelled, by greedy k-centre (Gonzalez 1985;
Sener and Savarese, ICLR 2018).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POOL = 5  # times as many of the most uncertain as are asked for, among which the choice is spread


@dataclass(frozen=True)
class Candidate:
    """An image, or a region of a slide, that could be labelled.

    Attributes:
        key: its own; of two equally uncertain ones the lower comes first.
        group: the patient.
        score: how unsure the model is of it, 0 to 1.
        feature: (D,) float32 of length 1.
    """

    key: tuple[str, int, int]
    group: str
    score: float
    feature: NDArray[np.float32]


@dataclass(frozen=True)
class Choice:
    """A candidate that was chosen.

    Attributes:
        rank: 1 for the first.
        candidate: which.
        distance: 1 − cosine to the nearest of those labelled or chosen before, 0 (alike) to 2; infinite for the first
            if nothing is labelled.
    """

    rank: int
    candidate: Candidate
    distance: float


class Pool:
    """The most uncertain of all candidates that were added, however many: memory holds twice as many as it keeps.

    Args:
        size: how many are kept at most.
        per_group: of one group at most; None: any number.
    """

    def __init__(self, size: int, per_group: int | None = None) -> None:
        self.added = 0
        self._size, self._per_group = size, per_group
        self._held: list[Candidate] = []

    def add(self, candidate: Candidate) -> None:
        """Adds a candidate, and forgets the least uncertain ones once there are too many."""
        self.added += 1
        self._held.append(candidate)
        if len(self._held) >= 2 * self._size + 2:
            self._held = self.kept()

    def kept(self) -> list[Candidate]:
        """Returns those that are kept, the most uncertain first."""
        # Taking the best of the best so far gives the best of all: groups with a most are a matroid.
        groups, kept = Counter[str](), list[Candidate]()
        for one in sorted(self._held, key=lambda one: (-one.score, one.key)):
            if self._per_group is None or groups[one.group] < self._per_group:
                groups[one.group] += 1
                kept.append(one)
            if len(kept) == self._size:
                break
        return kept


def pool_for(count: int, *, per_group: int | None = None, spread: bool = True) -> Pool:
    """Makes the pool that `choose` needs: POOL times as many as are asked for, and of each group, if it spreads."""
    times = POOL if spread else 1
    return Pool(times * count, None if per_group is None else times * per_group)


def choose(
    pool: Sequence[Candidate],
    count: int,
    *,
    labelled: NDArray[np.float32] | None = None,  # (L, D) of length 1
    per_group: int | None = None,
    spread: bool = True,
) -> list[Choice]:
    """Chooses what to label next, the first first.

    The most uncertain candidate is chosen first, then again and again the one that is farthest from everything labelled
    or chosen; of equally far ones the more uncertain.

    Args:
        pool: the candidates, the most uncertain first, as `Pool.kept` returns them.
        count: how many to choose, at most.
        labelled: features of what is labelled already; None: nothing is.
        per_group: the most of one group; None: any number.
        spread: False: by uncertainty alone.

    Returns:
        The choices in order; fewer than `count` if there are no more, or `per_group` allows no more.
    """
    features = np.stack([one.feature for one in pool]).astype(np.float64) if pool else np.zeros((0, 1))
    nearest = np.full(len(pool), np.inf)
    if labelled is not None and len(labelled):
        nearest = (1 - features @ labelled.astype(np.float64).T).min(1, initial=np.inf)
    free, groups, chosen = np.ones(len(pool), dtype=bool), Counter[str](), list[Choice]()
    while len(chosen) < count and free.any():
        by_order = not chosen or not spread
        at = int(np.argmax(free)) if by_order else int(np.argmax(np.where(free, nearest, -np.inf)))
        one = pool[at]
        chosen.append(Choice(len(chosen) + 1, one, max(0.0, float(nearest[at]))))
        groups[one.group] += 1
        full = per_group is not None and groups[one.group] >= per_group
        free[at] = False
        if full:
            free &= np.array([other.group != one.group for other in pool])
        nearest = np.minimum(nearest, 1 - features @ features[at])
    return chosen
