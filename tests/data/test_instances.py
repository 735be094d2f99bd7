"""Numbers of objects: kept, checked, and the border that is learned from them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mpamatch.data.cache import ImageCache
from mpamatch.data.checks import examine
from mpamatch.data.crowded import own_depth
from mpamatch.data.instances import border_of, instances_problem, numbered
from mpamatch.data.prepared import Class, Item, RawSet, load_prepared, write_prepared
from mpamatch.data.sources import synthetic
from mpamatch.data.synthetic import synthesize, synthesize_glands
from mpamatch.errors import InputError

CLASSES = (Class("background", (0, 0, 0)), Class("gland", (0, 200, 83)))


def two_discs(height: int = 40, width: int = 60, apart: int = 20) -> np.ndarray:
    """Two discs of radius 10, their centres `apart` pixels from each other: at 20 they touch."""
    rows, columns = np.mgrid[:height, :width]
    numbers = np.zeros((height, width), dtype=np.uint16)
    for number, centre in ((1, 20), (2, 20 + apart)):
        numbers[(rows - 20) ** 2 + (columns - centre) ** 2 <= 100] = number
    return numbers


def item(number: int, objects: np.ndarray | None, label: np.ndarray | None = None) -> Item:
    image = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    label = (two_discs() > 0).astype(np.uint8) if label is None else label
    return Item(f"i{number}", f"p{number}", ("train", "validation", "test")[number % 3], image, label, None, objects)


def write(root: Path, items: list[Item]) -> Path:
    return write_prepared(root, RawSet("set", CLASSES, items, len(items), None, "", "")).root


def test_numbers_are_kept_by_name_and_checked(tmp_path):
    root = write(tmp_path / "set", [item(0, two_discs()), item(1, two_discs()), item(2, None)])
    prepared = load_prepared(root)
    assert prepared.instances_path("i2.png") is None
    path = prepared.instances_path("i0.png")
    assert path == root / "instances" / "i0.png"
    with Image.open(path) as stored:
        assert stored.mode.startswith("I;16")
        assert np.array_equal(np.asarray(stored), two_discs())
    images = ImageCache(prepared, 1)
    assert np.array_equal(images.instances("i0.png", images.labelled("i0.png")[1]), two_discs())
    with pytest.raises(InputError, match=r"i2\.png: has no numbers of objects \(instances/i2\.png\)"):
        images.bordered("i2.png", 2)
    assert [one for one in examine(root).problems if one.file.startswith("instances")] == []


def test_a_set_without_numbers_has_no_folder_of_them(tmp_path):
    assert not (write(tmp_path / "set", [item(n, None) for n in range(3)]) / "instances").exists()


def background(numbers):
    numbers[0, 0] = 3


def bare(numbers):
    numbers[numbers == 2] = 0


@pytest.mark.parametrize(
    ("change", "told"),
    [(background, "numbers 1 pixels that are background"), (bare, "has no number for 317 pixels of class 1")],
)
def test_numbers_that_do_not_fit_the_mask_are_named(change, told, tmp_path):
    wrong = two_discs()
    change(wrong)
    with pytest.raises(InputError, match=rf"^i0: its numbers of objects do not fit: .*{told}"):
        write(tmp_path / "other", [item(0, wrong), item(1, None), item(2, None)])
    root = write(tmp_path / "set", [item(n, two_discs()) for n in range(3)])
    Image.fromarray(wrong).save(root / "instances" / "i0.png")
    found = [one for one in examine(root).problems if one.file == "instances/i0.png"]
    assert [one.blocking for one in found] == [True]
    assert told in found[0].problem
    with pytest.raises(InputError, match=rf"instances/i0\.png: {told}.*prepare the set anew"):
        ImageCache(load_prepared(root), 0).bordered("i0.png", 2)


def test_check_names_other_sizes_strays_and_broken_files(tmp_path):
    root = write(tmp_path / "set", [item(n, two_discs()) for n in range(3)])
    Image.fromarray(two_discs(width=61)).save(root / "instances" / "i0.png")
    (root / "instances" / "i1.png").write_bytes((root / "instances" / "i1.png").read_bytes()[:60])
    Image.fromarray(two_discs()).save(root / "instances" / "gone.png")
    Image.fromarray(two_discs()).save(root / "instances" / "i2.tif")
    found = {one.file: one for one in examine(root).problems if one.file.startswith("instances")}
    assert "is 61×40 pixels, its mask 60×40" in found["instances/i0.png"].problem
    assert found["instances/i1.png"].blocking
    assert not found["instances/gone.png"].blocking
    assert "no PNG" in found["instances/i2.tif"].problem
    assert len(found) == 4


def test_ignored_pixels_may_have_a_number_or_none():
    label = (two_discs() > 0).astype(np.uint8)
    label[:, 30:40] = 255
    numbers = two_discs()
    assert instances_problem(numbers, label) is None
    numbers[:, 30:40] = 0
    assert instances_problem(numbers, label) is None


def test_values_are_numbered_anew_in_their_order():
    values = np.array([[0, 9, 70_000], [9, 0, 4]])
    assert numbered(values, "here").tolist() == [[0, 2, 3], [2, 0, 1]]
    assert numbered(values + 1, "here").min() == 1  # no background at all
    assert numbered(values, "here").dtype == np.uint16
    most = np.arange(65_536)
    assert numbered(most.reshape(256, 256), "here").max() == 65_535
    with pytest.raises(InputError, match=r"a\.png: holds 65536 numbers of objects, and an image may have 65535"):
        numbered(np.arange(65_537).reshape(1, -1), Path("a.png"))


def by_hand(numbers: np.ndarray, label: np.ndarray, width: float) -> np.ndarray:
    """Pixel by pixel: edge pixels, then the distance to each of them."""
    height, across = numbers.shape
    edges = []
    for row in range(height):
        for column in range(across):
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                inside = 0 <= r < height and 0 <= c < across
                if inside and 255 not in (label[row, column], label[r, c]) and numbers[row, column] != numbers[r, c]:
                    edges.append((row, column))
    out = np.full(numbers.shape, 255, dtype=np.uint8)
    for row in range(height):
        for column in range(across):
            if label[row, column] != 255:
                near = [(row - r) ** 2 + (column - c) ** 2 < width**2 for r, c in edges]
                out[row, column] = any(near)
    return out


@pytest.mark.parametrize("width", [1, 2, 3, 4.5])
@pytest.mark.parametrize("ignored", [False, True])
def test_the_border_is_what_plain_loops_find(width, ignored):
    rng = np.random.default_rng(3)
    numbers = np.kron(rng.integers(0, 4, (4, 5)), np.ones((5, 4), dtype=np.int64)).astype(np.uint16)
    label = (numbers > 0).astype(np.uint8)
    if ignored:
        label[6:11, 3:9] = 255
    assert np.array_equal(border_of(numbers, label, width), by_hand(numbers, label, width))


def test_touching_objects_have_a_border_between_them_and_one_class_has_none():
    numbers = two_discs()
    label = (numbers > 0).astype(np.uint8)
    border = border_of(numbers, label, 2)
    assert border[20, 29:32].all()  # where they touch
    assert not border[20, 20]
    assert not border[0, 0]
    assert not border_of(np.zeros_like(numbers), np.zeros_like(label), 2).any()


def test_crowded_tissue_touches_and_other_tissue_does_not():
    def touching(crowded: bool) -> tuple[int, int]:
        objects = regions = 0
        for index in range(24):
            _, number = synthesize_glands(index, 0, 96, crowded=crowded)
            objects += len(np.unique(number)) - 1
            regions += ndimage.label(number > 0, structure=np.ones((3, 3)))[1]
        return objects, regions

    apart, crowded = touching(False), touching(True)
    assert apart[0] <= apart[1]  # the image's border may cut a gland in two
    assert crowded[0] > 1.5 * crowded[1]


def test_numbered_tissue_is_the_tissue_of_synthesize():
    image, label = synthesize(3, 1, 64)
    same, number = synthesize_glands(3, 1, 64)
    assert np.array_equal(image, same)
    assert np.array_equal(label, number > 0)
    raw = list(synthetic.raw_set(images=12, size=64, seed=1).items)[3]
    assert raw.instances is not None
    assert np.array_equal(raw.instances, numbered(number, ""))
    assert "--crowded" in synthetic.raw_set(images=12, size=64, crowded=True).source


def test_depth_is_measured_to_the_edge_of_the_own_gland():
    numbers = two_discs().astype(np.int64)
    depth, foot = own_depth(numbers)
    for one in (1, 2):
        inside = numbers == one
        wanted, feet = ndimage.distance_transform_edt(inside, return_indices=True)
        assert np.array_equal(depth[inside], wanted[inside])
        for axis in (0, 1):
            assert np.array_equal(foot[axis][inside], feet[axis][inside])
    assert not depth[numbers == 0].any()
