"""Descriptions made of others: wrong or meaningless ones, noise, and more or less alike between the classes."""

from collections.abc import Sequence

import numpy as np

from mpamatch.errors import InputError

# Everyday words, none of them about tissue, colour, size or shape.
WORDS = """
    airport anchor answer apartment argue autumn bakery balcony banker barrel bargain basket beach believe bicycle
    borrow bridge broadcast builder calendar camera candle carpenter castle ceremony chapter cheerful climate coach
    comedy compass concert cottage cousin criticise customer dance daughter debate decade delay desert diary dinner
    distance dolphin eager economy editor election engine envelope evening exam expensive explain factory famous
    farmer festival finance firework fisherman flight forecast forget fortune funny garage gardener geography ghost
    gift government grammar guitar habit hammer harbour helicopter holiday honest horse hotel hurry idea inherit
    insurance invent island jacket january jealous joke journey judge juice keyboard kingdom kitchen knock ladder
    language laugh lawyer lazy lecture legend lemon letter library lighthouse lorry luggage lunch machine manager
    market marriage mayor meeting melody message midnight minister monday mountain museum neighbour newspaper noisy
    novel office opera orchestra owner painter parade parliament passport patience peasant perform philosophy piano
    picnic pilot planet poem polite politics postman pretend prison promise proverb puzzle quarrel question railway
    recipe remember repair restaurant reward rhyme riddle robot sailor sandwich saturday scholar school science
    secret shoulder silent singer soldier soup speech stadium station story student summer sweater tailor teacher
    telephone tennis theatre thunder ticket tomorrow tourist traffic travel treasure trousers truth umbrella uncle
    university vacation valley vegetable village violin visitor voyage waiter wallet weather wedding weekend whistle
    window winter wisdom writer yesterday
"""

MOST_TEMPLATES = 6  # for a class, as many as the generic ones


def shuffled(descriptions: Sequence[Sequence[str]], seed: int) -> list[list[str]]:
    """Gives every class the descriptions of another one, by a derangement drawn from `seed`.

    Raises InputError for a single class, which has no other.
    """
    classes = len(descriptions)
    if classes < 2:
        raise InputError("prompts 'shuffled': needs two classes to exchange their descriptions.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(classes)
    while (order == np.arange(classes)).any():  # about one permutation in e is a derangement
        order = rng.permutation(classes)
    return [list(descriptions[i]) for i in order]


def random_words(descriptions: Sequence[Sequence[str]], seed: int) -> list[list[str]]:
    """Replaces each description by as many everyday words, drawn from `seed`."""
    rng, words = np.random.default_rng(seed), WORDS.split()
    return [[" ".join(rng.choice(words, len(text.split()))) for text in texts] for texts in descriptions]


def noisy(descriptions: Sequence[Sequence[str]], share: float, seed: int) -> list[list[str]]:
    """Replaces a share of the words of all descriptions together by everyday words, at places drawn from `seed`.

    With one seed the words of a smaller share are replaced within a larger one too, by the same words; at 1 none of the
    former words is left.
    """
    rng, everyday = np.random.default_rng((seed, 1)), WORDS.split()  # another stream than that of `random_words`
    words = [[text.split() for text in texts] for texts in descriptions]
    places = [(texts, i, j) for texts in words for i, text in enumerate(texts) for j in range(len(text))]
    order, drawn = rng.permutation(len(places)), rng.choice(everyday, len(places))
    for at in order[: round(share * len(places))]:
        texts, i, j = places[at]
        texts[i][j] = str(drawn[at])
    return [[" ".join(text) for text in texts] for texts in words]


def framed(descriptions: Sequence[Sequence[str]], class_names: Sequence[str]) -> list[list[str]]:
    """Puts the same frame of words, which names all classes, around every description: classes grow alike."""
    *first, last = class_names
    named = f"{', '.join(first)} and {last}" if first else last
    return [[f"one of {named} in the same kind of image: {text}" for text in texts] for texts in descriptions]


def distinct(templates: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """Deals the templates to the classes, each to one, up to six to each: classes have little wording in common.

    Raises InputError if there are more classes than templates.
    """
    classes = len(class_names)
    each = min(MOST_TEMPLATES, len(templates) // classes)
    if not each:
        raise InputError(f"prompts 'generic-distinct': has templates for {len(templates)} classes, not for {classes}.")
    return [
        [template.format(name) for template in templates[number : each * classes : classes]]
        for number, name in enumerate(class_names)
    ]
