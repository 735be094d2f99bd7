"""Looks at all candidates and chooses: what `mpamatch suggest` does for images and for regions of slides alike."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.suggest.choice import Candidate, Choice, choose, pool_for
from mpamatch.inference.suggest.uncertainty import By, Look, Pixels, Views, features_of, look_at_each

Key = tuple[str, int, int]  # name, and for a region of a slide its top and left


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        count: how many are to be chosen.
        by: what is ranked by: entropy or disagreement.
        spread: whether the choice is spread over what the encoder tells apart.
        per_patient: how many of one patient at most; None: any number.
        strong_views: makes the recoloured views of an image, for disagreement.
    """

    count: int
    by: By = "entropy"
    spread: bool = True
    per_patient: int | None = None
    strong_views: Views | None = None


@dataclass(frozen=True)
class Ranked:
    """What was chosen.

    Attributes:
        choices: in order.
        looked_at: how many candidates there were.
    """

    choices: list[Choice]
    looked_at: int


def rank(
    segmenter: Segmenter,
    candidates: Iterable[tuple[Key, str, Pixels]],  # key, patient, image
    labelled: Iterable[Pixels],
    wish: Wish,
) -> Ranked:
    """Looks at every candidate and chooses what to label next.

    Memory holds the images of the batches under way and what the choice may still take, however many candidates come.

    Args:
        segmenter: the model.
        candidates: what could be labelled, one after the other.
        labelled: the images that are labelled already.
        wish: how many, and how.

    Raises:
        InputError: an image or the network cannot be used.
    """
    known = list(features_of(segmenter, labelled))
    pool = pool_for(wish.count, per_group=wish.per_patient, spread=wish.spread)
    who: deque[tuple[Key, str]] = deque()

    def images() -> Iterator[Pixels]:
        for key, group, image in candidates:
            who.append((key, group))
            yield image

    for look in look_at_each(segmenter, images(), wish.by, wish.strong_views):
        pool.add(Candidate(*who.popleft(), look.score, look.feature))
    choices = choose(
        pool.kept(),
        wish.count,
        labelled=np.stack(known) if known else None,
        per_group=wish.per_patient,
        spread=wish.spread,
    )
    return Ranked(choices, pool.added)


def looks_with_images(segmenter: Segmenter, images: Iterable[Pixels], wish: Wish) -> Iterator[tuple[Pixels, Look]]:
    """Looks at each image again, as `rank` did, and yields it beside what was seen."""
    held: deque[Pixels] = deque()

    def keeping() -> Iterator[Pixels]:
        for image in images:
            held.append(image)
            yield image

    for look in look_at_each(segmenter, keeping(), wish.by, wish.strong_views):
        yield held.popleft(), look
