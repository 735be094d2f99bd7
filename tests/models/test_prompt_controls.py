"""The controls of the prompt study: wrong descriptions and none at all, from a seed."""

import pytest

from mpamatch.errors import InputError
from mpamatch.models.prompt import load_descriptions
from mpamatch.models.prompt_controls import WORDS, random_words, shuffled

CLASSES = ("background", "benign", "malignant")
WRITTEN = load_descriptions("pathology", "glas", CLASSES)


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_gives_every_class_the_descriptions_of_another(seed):
    found = shuffled(WRITTEN, seed)
    assert all(mine != own for mine, own in zip(found, WRITTEN, strict=True))
    assert sorted(found) == sorted(WRITTEN)
    assert found == shuffled(WRITTEN, seed) == load_descriptions("shuffled", "glas", CLASSES, seed)


def test_seeds_draw_different_exchanges():
    assert len({tuple(map(tuple, shuffled(WRITTEN, seed))) for seed in range(20)}) == 2  # all that three classes allow


def test_two_classes_can_only_swap_and_one_cannot():
    assert shuffled(WRITTEN[:2], 0) == WRITTEN[1::-1]
    with pytest.raises(InputError, match="needs two classes"):
        shuffled(WRITTEN[:1], 0)


def test_random_words_keep_the_lengths_and_nothing_else():
    found = random_words(WRITTEN, 0)
    assert [[len(text.split()) for text in texts] for texts in found] == [
        [len(text.split()) for text in texts] for texts in WRITTEN
    ]
    words = {word for texts in found for text in texts for word in text.split()}
    assert words <= set(WORDS.split())
    assert len(words) > 100
    assert found == random_words(WRITTEN, 0) == load_descriptions("random", "glas", CLASSES, 0)
    assert found != random_words(WRITTEN, 1)


def test_no_everyday_word_stands_in_a_description_of_any_recipe():
    sets = {"glas": CLASSES, "demo": ("gland",), "ebhi-seg-cancer": ("cancer",), "folder": ("glomerulus",)}
    texts = [
        text for name, classes in sets.items() for of in load_descriptions("pathology", name, classes) for text in of
    ]
    said = {word.strip(".,").lower() for text in texts for word in text.split()}
    assert said & set(WORDS.split()) == set()
    assert len(WORDS.split()) == len(set(WORDS.split())) > 150


def test_what_is_not_there_cannot_be_shuffled():
    with pytest.raises(InputError, match="no descriptions were written for recipe None"):
        load_descriptions("shuffled", None, CLASSES)
    with pytest.raises(InputError, match=r"method\.prompt_seed: expected at least 0, got -1"):
        load_descriptions("random", "glas", CLASSES, -1)
