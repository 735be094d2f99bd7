"""The controls of the prompt study: wrong descriptions and none at all, from a seed."""

import pytest

from mpamatch.errors import InputError
from mpamatch.models.prompt import DISTINCT, GENERIC, PROMPTS, load_descriptions
from mpamatch.models.prompt_controls import WORDS, distinct, framed, noisy, random_words, shuffled

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


def words_of(descriptions):
    return [word for texts in descriptions for text in texts for word in text.split()]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_noise_replaces_its_share_of_the_words_and_keeps_the_lengths(share):
    found, before = words_of(noisy(WRITTEN, share, 3)), words_of(WRITTEN)
    assert len(found) == len(before)
    changed = [new for new, old in zip(found, before, strict=True) if new != old]
    assert len(changed) == round(share * len(before))  # no everyday word stands in a description
    assert set(changed) <= set(WORDS.split())
    assert [len(texts) for texts in noisy(WRITTEN, share, 3)] == [len(texts) for texts in WRITTEN]


def test_more_noise_leaves_the_places_of_less_as_they_were():
    before, little, much = (words_of(noisy(WRITTEN, share, 1)) for share in (0, 0.25, 0.75))
    assert all(more == less for old, less, more in zip(before, little, much, strict=True) if less != old)


def test_noise_is_drawn_from_the_seed_and_reaches_every_kind_of_description():
    assert noisy(WRITTEN, 0.5, 0) == load_descriptions("pathology", "glas", CLASSES, 0, noise=0.5)
    assert noisy(WRITTEN, 0.5, 0) != noisy(WRITTEN, 0.5, 1)
    generic = load_descriptions("generic", None, CLASSES)
    assert load_descriptions("generic", None, CLASSES, 2, noise=0.5) == noisy(generic, 0.5, 2) != generic
    with pytest.raises(InputError, match=r"method\.prompt_noise: expected 0 to 1, got 1\.5"):
        load_descriptions("pathology", "glas", CLASSES, noise=1.5)


def test_a_frame_is_the_same_for_every_class_and_names_them_all():
    found = framed(WRITTEN, CLASSES)
    frame = "one of background, benign and malignant in the same kind of image: "
    assert found == [[frame + text for text in texts] for texts in WRITTEN]
    assert found == load_descriptions("pathology-similar", "glas", CLASSES)
    assert framed([["x"]], ["gland"]) == [["one of gland in the same kind of image: x"]]


@pytest.mark.parametrize("classes", [1, 2, 7, len(DISTINCT)])
def test_every_template_is_dealt_to_one_class_and_as_many_to_each(classes):
    found = distinct(DISTINCT, [f"kind{number}" for number in range(classes)])
    bare = [[text.replace(f"kind{number}", "{}") for text in texts] for number, texts in enumerate(found)]
    used = [text for texts in bare for text in texts]
    assert len(set(used)) == len(used)
    assert set(used) <= set(DISTINCT)
    assert {len(texts) for texts in found} == {min(len(GENERIC), len(DISTINCT) // classes)}


def test_more_classes_than_templates_are_refused():
    with pytest.raises(InputError, match="has templates for 14 classes, not for 15"):
        distinct(DISTINCT, [str(number) for number in range(15)])


def test_every_kind_of_description_can_be_loaded():
    for prompts in PROMPTS:
        found = load_descriptions(prompts, "glas", CLASSES)
        assert len(found) == 3
        assert all(found)
