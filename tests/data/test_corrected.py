"""Masks that come back from an editor: their numbers or colours, and what is refused before anything is written."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.cli import main
from mpamatch.data.corrected import find_masks, label_of, take_masks
from mpamatch.data.prepared import Prepared, load_prepared, training_lists
from mpamatch.data.raw import Class
from mpamatch.errors import InputError
from mpamatch.images import colour_label, read_mask, write_painted_mask
from tests.tiny import SPLIT, make_set


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """A set in which the images outside of the split have no mask."""
    made = make_set(tmp_path / "set")
    for name in training_lists(made, SPLIT)[1]:
        mask = made.mask_path(name)
        assert mask is not None
        mask.unlink()
    return made


def some_label(seed: int = 0) -> np.ndarray:
    label = np.random.default_rng(seed).integers(0, 2, (48, 48)).astype(np.uint8)
    label[:3] = 255
    return label


def bare(prepared: Prepared) -> str:
    return training_lists(prepared, SPLIT)[1][0]


def put(folder: Path, name: str, image: Image.Image, ending: str = "png") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{Path(name).stem}.{ending}"
    image.save(path)
    return path


def numbers(label: np.ndarray, prepared: Prepared) -> Image.Image:
    return Image.fromarray(label)


def colours(label: np.ndarray, prepared: Prepared) -> Image.Image:
    return Image.fromarray(colour_label(label, prepared.colours))


def sorted_anew(label: np.ndarray, prepared: Prepared) -> Image.Image:
    """As an editor saves it that orders the palette by colour: gland is 0, ignore 1, background 2."""
    image = Image.fromarray(np.where(label == 1, 0, np.where(label == 255, 1, 2)).astype(np.uint8))
    image.putpalette([*prepared.colours[1], 128, 128, 128, *prepared.colours[0]])
    return image


@pytest.mark.parametrize("save", [numbers, colours, sorted_anew])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_mask_is_read_however_it_was_saved(prepared: Prepared, tmp_path: Path, save, ending: str) -> None:
    label, name = some_label(), bare(prepared)
    path = put(tmp_path / "new", name, save(label, prepared), ending)
    np.testing.assert_array_equal(label_of(prepared, path), label)
    found = find_masks(prepared, tmp_path / "new")
    assert found == {name: path}
    take_masks(prepared, found)
    np.testing.assert_array_equal(read_mask(prepared.mask_path(name)), label)
    assert find_masks(prepared, tmp_path / "new") == {}, "it is there now"


def test_a_painted_mask_holds_the_numbers_and_shows_the_colours(prepared: Prepared, tmp_path: Path) -> None:
    label = some_label()
    write_painted_mask(tmp_path / "mask.png", label, prepared.colours)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), label)
    np.testing.assert_array_equal(label_of(prepared, tmp_path / "mask.png"), label)
    shown = np.array(Image.open(tmp_path / "mask.png").convert("RGB"))
    np.testing.assert_array_equal(shown, colour_label(label, prepared.colours))


def fails(prepared: Prepared, folder: Path, *says: str) -> None:
    before = {path: path.read_bytes() for path in prepared.root.rglob("*") if path.is_file()}
    (prepared.root.parent / "list.txt").write_text("\n".join([bare(prepared), *training_lists(prepared, SPLIT)[0]]))
    with pytest.raises(InputError) as caught:
        find_masks(prepared, folder)
    for one in says:
        assert one in str(caught.value)
    words = ["split", prepared.root, "--list", prepared.root.parent / "list.txt", "--masks", folder]
    assert main([str(word) for word in words]) == 2
    assert {path: path.read_bytes() for path in prepared.root.rglob("*") if path.is_file()} == before


def test_what_does_not_fit_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    new, name = tmp_path / "new", bare(prepared)
    fails(prepared, new, "no such folder")
    new.mkdir()
    fails(prepared, new, "holds no mask")
    path = put(new, name, Image.fromarray(np.zeros((40, 48), np.uint8)))
    fails(prepared, new, str(path), "48×40")
    put(new, name, Image.fromarray(np.full((48, 48), 2, np.uint8)))
    fails(prepared, new, "class index 2")
    soft = np.array(colours(some_label(), prepared))
    soft[5, 5] = (10, 20, 30)
    put(new, name, Image.fromarray(soft))
    fails(prepared, new, "#0a141e", "without soft edges")
    put(new, name, numbers(some_label(), prepared))
    put(new, "stranger.png", numbers(some_label(), prepared))
    fails(prepared, new, "stranger", "no training image")


def test_a_mask_that_differs_from_the_sets_own_is_refused_and_the_same_is_not(prepared, tmp_path: Path) -> None:
    name = training_lists(prepared, SPLIT)[0][0]
    own = read_mask(prepared.mask_path(name)).astype(np.uint8)
    put(tmp_path / "new", name, numbers(own, prepared))
    assert find_masks(prepared, tmp_path / "new") == {}
    own[0, 0] = 1 - own[0, 0]
    put(tmp_path / "new", name, numbers(own, prepared))
    fails(prepared, tmp_path / "new", "differs from")


def test_a_grey_that_is_a_classs_colour_and_no_number_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    white = dataclasses.replace(prepared, classes=(prepared.classes[0], Class("gland", (255, 255, 255))))
    path = put(tmp_path / "new", bare(prepared), Image.fromarray((some_label() == 1).astype(np.uint8) * 255))
    with pytest.raises(InputError, match="255, the grey of the class gland"):
        label_of(white, path)


def split(prepared: Prepared, *words: object) -> int:
    return main(["split", str(prepared.root), *(str(word) for word in words)])


def test_the_list_must_name_what_is_taken(prepared: Prepared, tmp_path: Path, capsys) -> None:
    name, new = bare(prepared), tmp_path / "new"
    put(new, name, numbers(some_label(), prepared))
    (tmp_path / "a.txt").write_text(training_lists(prepared, SPLIT)[0][0])
    assert split(prepared, "--list", tmp_path / "a.txt", "--masks", new) == 2
    assert f"does not name {name}" in capsys.readouterr().err
    assert prepared.mask_path(name) is None


def test_nothing_is_taken_if_the_split_cannot_be_written(prepared: Prepared, tmp_path: Path, capsys) -> None:
    name, new = bare(prepared), tmp_path / "new"
    put(new, name, numbers(some_label(), prepared))
    (tmp_path / "a.txt").write_text(name)
    for words, says in (
        (["--name", SPLIT], "is there already, with other images"),
        (["--name", "a b"], "may hold letters"),
    ):
        assert split(prepared, "--list", tmp_path / "a.txt", "--masks", new, *words) == 2
        assert says in capsys.readouterr().err
        assert prepared.mask_path(name) is None
    assert split(prepared, "--labelled", 1, "--masks", new) == 2
    assert "--masks" in capsys.readouterr().err
    assert split(prepared, "--list", tmp_path / "a.txt", "--masks", new) == 0
    assert "1 mask taken" in capsys.readouterr().out.replace("\n", " ")
    assert training_lists(load_prepared(prepared.root), "a")[0] == (name,)


def test_the_other_images_of_a_set_keep_their_masks(prepared: Prepared, tmp_path: Path) -> None:
    kept = {path.name: path.read_bytes() for path in (prepared.root / "masks").iterdir()}
    put(tmp_path / "new", bare(prepared), numbers(some_label(), prepared))
    take_masks(prepared, find_masks(prepared, tmp_path / "new"))
    for name, content in kept.items():
        assert (prepared.root / "masks" / name).read_bytes() == content
    shutil.rmtree(tmp_path / "new")
