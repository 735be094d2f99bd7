"""What is chosen to be labelled next: against plain loops, and whatever the order in which candidates come."""

import math
import random

import numpy as np
import pytest

from mpamatch.inference.suggest.choice import POOL, Candidate, Pool, choose, pool_for


def make(count: int, seed: int, groups: int = 4, width: int = 3) -> list[Candidate]:
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(count, width))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    # A few equal scores, so that keys decide.
    scores = draw.integers(0, 12, count) / 12
    return [
        Candidate((f"n{at:03}", 0, 0), f"p{draw.integers(groups)}", float(scores[at]), features[at].astype(np.float32))
        for at in range(count)
    ]


def cosine_distance(one: np.ndarray, other: np.ndarray) -> float:
    return 1 - sum(float(a) * float(b) for a, b in zip(one, other, strict=True))


def by_hand(candidates, count, labelled, per_group, spread) -> list[tuple[str, float]]:
    """Names and distances, by loops over everything."""
    times = POOL if spread else 1
    pool, seen = [], {}
    for one in sorted(candidates, key=lambda one: (-one.score, one.key)):
        if len(pool) < times * count and (per_group is None or seen.get(one.group, 0) < times * per_group):
            seen[one.group] = seen.get(one.group, 0) + 1
            pool.append(one)
    chosen, references, result = [], [*labelled], []
    while len(chosen) < count:
        free = [
            one
            for one in pool
            if one not in chosen
            and (per_group is None or sum(other.group == one.group for other in chosen) < per_group)
        ]
        if not free:
            break
        away = [min((cosine_distance(one.feature, other) for other in references), default=math.inf) for one in free]
        at = 0
        if chosen and spread:
            for place in range(len(free)):
                if away[place] > away[at]:
                    at = place
        chosen.append(free[at])
        references.append(free[at].feature)
        result.append((free[at].key[0], max(0.0, away[at])))
    return result


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("per_group", [None, 1, 3])
def test_the_choice_is_that_of_plain_loops(seed: int, spread: bool, per_group: int | None) -> None:
    candidates = make(60, seed)
    labelled = np.stack([one.feature for one in make(seed % 3, 100 + seed)]) if seed % 3 else None
    pool = pool_for(7, per_group=per_group, spread=spread)
    for one in candidates:
        pool.add(one)
    found = choose(pool.kept(), 7, labelled=labelled, per_group=per_group, spread=spread)
    wanted = by_hand(candidates, 7, [] if labelled is None else labelled, per_group, spread)
    assert [choice.candidate.key[0] for choice in found] == [name for name, _ in wanted]
    assert [choice.distance for choice in found] == pytest.approx([distance for _, distance in wanted], abs=1e-6)
    assert [choice.rank for choice in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize("per_group", [None, 2])
@pytest.mark.parametrize("seed", range(5))
def test_the_pool_holds_the_same_whatever_comes_first(seed: int, per_group: int | None) -> None:
    candidates = make(200, seed, groups=9)
    whole = Pool(len(candidates), None)
    found = []
    for turn in range(3):
        pool = Pool(11, per_group)
        for one in random.Random(turn).sample(candidates, len(candidates)):
            pool.add(one)
            assert len(pool._held) <= 2 * 11 + 2
        found.append([one.key for one in pool.kept()])
        assert pool.added == len(candidates)
    assert found[0] == found[1] == found[2]
    if per_group is None:
        for one in candidates:
            whole.add(one)
        assert found[0] == [one.key for one in whole.kept()[:11]]


def test_unlike_ones_are_chosen_before_the_next_uncertain() -> None:
    east, north = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    alike = [Candidate((f"a{at}", 0, 0), "p", 0.9 - at / 100, east) for at in range(4)]
    other = Candidate(("b", 0, 0), "q", 0.5, north)
    found = choose([*alike, other], 2)
    assert [choice.candidate.key[0] for choice in found] == ["a0", "b"]
    assert found[0].distance == math.inf
    assert found[1].distance == pytest.approx(1)
    assert [one.candidate.key[0] for one in choose([*alike, other], 2, spread=False)] == ["a0", "a1"]


def test_a_direction_that_is_labelled_already_counts_as_chosen() -> None:
    east, north = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    pool = [
        Candidate(("first", 0, 0), "p", 0.9, north),
        Candidate(("known", 0, 0), "p", 0.8, east),
        Candidate(("new", 0, 0), "p", 0.1, -east),
    ]
    found = choose(pool, 2, labelled=east[None])
    assert [choice.candidate.key[0] for choice in found] == ["first", "new"]
    assert found[0].distance == pytest.approx(1)


def test_nothing_gives_nothing_and_too_few_give_all() -> None:
    assert choose([], 3) == []
    candidates = make(2, 0)
    assert len(choose(candidates, 5)) == 2
