"""What masks mean, decided over the whole set, as a user of `mpamatch prepare folder` sees it."""

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.cli import main
from mpamatch.images import read_mask
from tests.data.masks import BLACK, RED, SIDE, WHITE, drawn, halo_alone, jpeg_named_png, paletted, saved, soft

COUNT = 4


@pytest.fixture
def folder(tmp_path):
    """Writes images and masks; `write(seed, path without suffix)` writes a mask."""

    def folder(write: Callable[[int, Path], None], count: int = COUNT) -> Path:
        for kind in ("images", "masks"):
            (tmp_path / "mine" / kind).mkdir(parents=True, exist_ok=True)
        for seed in range(count):
            pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            saved(pixels, tmp_path / "mine" / "images" / f"a{seed}.png")
            write(seed, tmp_path / "mine" / "masks" / f"a{seed}")
        return tmp_path / "mine"

    return folder


@pytest.fixture
def prepared(tmp_path, capsys):
    """Prepares a folder and returns its labels by stem, and what was printed."""

    def prepared(source: Path, *words: str) -> tuple[dict[str, np.ndarray], str]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert main(["prepare", "folder", str(source), str(out), *words]) == 0
        return {path.stem: read_mask(path) for path in (out / "masks").iterdir()}, capsys.readouterr().out

    return prepared


@pytest.fixture
def refused(tmp_path, capsys):
    """Prepares a folder in vain, and returns the sentence that says why."""

    def refused(source: Path, *words: str) -> str:
        assert main(["prepare", "folder", str(source), str(tmp_path / "none"), *words]) == 2
        assert not (tmp_path / "none").exists()
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert said[0].startswith("mpamatch: ")
        return said[0]

    return refused


def line_in(sentence: str, at: int = 0) -> list[str]:
    """The words of a --mask-values line in a sentence, as a shell takes them."""
    words = shlex.split(sentence[sentence.index("--mask-values") :].replace(";", " "))
    return [words[0], words[1].rstrip(",")]


def assert_drawn(labels: dict[str, np.ndarray], count: int = COUNT) -> None:
    assert len(labels) == count
    for seed in range(count):
        assert np.array_equal(labels[f"a{seed}"], drawn(seed).astype(np.uint8)), f"mask {seed}"


# Palettes


def quantized(seed: int, path: Path) -> None:
    """Black and red, as `quantize` of Pillow numbers them: red is 0."""
    colours = np.zeros((SIDE, SIDE, 3), np.uint8)
    colours[drawn(seed)] = RED
    Image.fromarray(colours).quantize(2).save(path.with_suffix(".png"))


def test_a_palette_whose_0_is_not_the_background_is_refused_with_the_line_that_reads_it(folder, prepared, refused):
    source = folder(quantized)
    with Image.open(source / "masks" / "a0.png") as mask:
        assert mask.getpalette()[:6] == [*RED, *BLACK]
    said = refused(source)
    assert "the palettes of the masks show 0 as #ff0000, not as the background" in said
    assert "--mask-values '#000000:background,#ff0000:object'" in said
    labels, _ = prepared(source, *line_in(said))
    assert_drawn(labels)
    assert "show 0 as #ff0000" in refused(source, "--mask-values", "0:background,1:gland"), "numbers are not seen"
    assert "show 0 as #ff0000" in refused(source, "--instances")


def test_palettes_that_differ_are_refused_with_the_line_that_reads_them(folder, prepared, refused):
    def write(seed, path):
        table = [BLACK, RED] if seed % 2 else [RED, BLACK]
        paletted(drawn(seed) if seed % 2 else ~drawn(seed), table, path.with_suffix(".png"))

    source = folder(write)
    said = refused(source)
    assert "the palettes of the masks differ from file to file" in said
    labels, _ = prepared(source, *line_in(said))
    assert_drawn(labels)


def test_a_palette_like_that_of_voc_gives_its_numbers_silently(folder, prepared):
    colours = [BLACK, (128, 0, 0), (0, 128, 0)] + 252 * [BLACK] + [(224, 224, 192)]

    def write(seed, path):
        indices = drawn(seed).astype(np.uint8) * (1 + seed % 2)
        indices[:2] = 255
        paletted(indices, colours, path.with_suffix(".png"))

    labels, said = prepared(folder(write))
    assert np.unique(labels["a0"]).tolist() == [0, 1, 255]
    assert np.unique(labels["a1"]).tolist() == [0, 2, 255]
    assert "palettes" not in said
    again, _ = prepared(folder(write), "--mask-values", "0:background,1:a,2:b,255:ignore")
    assert all(np.array_equal(labels[stem], again[stem]) for stem in labels)


def test_a_palette_of_greys_that_are_its_numbers_is_silent(folder, prepared):
    grey = [(value, value, value) for value in range(256)]
    labels, said = prepared(folder(lambda seed, path: paletted(drawn(seed), grey, path.with_suffix(".png"))))
    assert_drawn(labels)
    assert "palettes" not in said


def test_a_palette_of_rising_greys_is_read_by_number_and_said(folder, prepared, refused):
    source = folder(lambda seed, path: paletted(drawn(seed), [BLACK, WHITE], path.with_suffix(".png")))
    labels, said = prepared(source)
    assert_drawn(labels)
    assert "palettes that show 0 as 0, 1 as 255: the numbers were taken as classes" in said
    labels, _ = prepared(source, "--mask-values", "0:background,255:gland")
    assert_drawn(labels)
    assert "holds the value 255, which --mask-values does not explain" in refused(
        source, "--mask-values", "0:background,1:gland"
    ), "it speaks of what one sees"


def test_a_palette_of_falling_greys_is_refused_with_the_line_that_reads_it(folder, prepared, refused):
    source = folder(lambda seed, path: paletted(~drawn(seed), [WHITE, BLACK], path.with_suffix(".png")))
    said = refused(source)
    assert "--mask-values 0:background,255:object if the dark is background, or" in said
    labels, _ = prepared(source, *line_in(said))
    assert_drawn(labels)
    assert "--mask-values 255:background,0:object if the light is" in said
    labels, _ = prepared(source, "--mask-values", "255:background,0:object")
    assert all((labels[f"a{seed}"] == ~drawn(seed)).all() for seed in range(COUNT))
    labels, _ = prepared(source, "--instances")
    assert_drawn(labels)


def test_inverting_tables_that_imagej_wrote_as_png_offer_both_readings(folder, prepared, refused):
    """The object is 255, shown black on white."""
    table = [(255 - value,) * 3 for value in range(256)]
    source = folder(lambda seed, path: paletted(drawn(seed).astype(np.uint8) * 255, table, path.with_suffix(".png")))
    said = refused(source)
    labels, _ = prepared(source, *line_in(said[said.index("background, or") :]))
    assert_drawn(labels)


def test_palettes_of_white_ground_say_which_number_is_the_background(folder, prepared):
    source = folder(lambda seed, path: paletted(drawn(seed), [WHITE, RED], path.with_suffix(".png")))
    labels, said = prepared(source)
    assert_drawn(labels)
    assert "their numbers were taken as classes: 0 #ffffff, 1 #ff0000" in said


# Colours


def test_coloured_masks_are_read_by_colours_that_the_refusal_gives(folder, prepared, refused):
    def write(seed, path):
        colours = np.zeros((SIDE, SIDE, 3), np.uint8)
        colours[drawn(seed)] = RED
        saved(colours, path.with_suffix(".png"))

    source = folder(write)
    said = refused(source)
    assert "a0.png (and 3 more): is a coloured mask" in said
    assert "--mask-values '#000000:background,#ff0000:object'" in said
    labels, _ = prepared(source, *line_in(said))
    assert_drawn(labels)
    assert "holds the colour #ff0000" in refused(source, "--mask-values", "#000000:background,#00ff00:gland")
    saved(drawn(0).astype(np.uint16) * 300, source / "masks" / "a0.png")
    assert "a0.png: holds the number 300, which is no grey" in refused(source, *line_in(said))
    assert "mixes numbers and colours" in refused(source, "--mask-values", "0:background,#ff0000:gland")


def test_coloured_masks_as_jpeg_take_the_nearest_colour_and_it_is_said(folder, prepared, refused):
    def write(seed, path):
        colours = np.zeros((SIDE, SIDE, 3), np.uint8)
        colours[drawn(seed)] = RED
        saved(colours, path.with_suffix(".jpg"), quality=90)

    source = folder(write)
    said = refused(source)
    labels, said = prepared(source, "--mask-values", "#000000:background,#ff0000:gland")
    assert all((labels[f"a{seed}"] != drawn(seed)).mean() < 0.03 for seed in range(COUNT))
    assert "soft edges or a lossy format's halo" in said


# WhiteIsZero


def bool_tiff(seed: int, path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path.with_suffix(".tif"), drawn(seed))


def test_bool_tiffs_of_napari_are_no_complement_and_it_is_said(folder, prepared):
    source = folder(bool_tiff)
    with Image.open(source / "masks" / "a0.tif") as mask:
        assert mask.tag_v2[262] == 0, "WhiteIsZero, so that Pillow inverts"
    labels, said = prepared(source)
    assert_drawn(labels)
    assert "4 of 4 masks say that 0 is white (TIFF's WhiteIsZero: a0.tif and 3 more)" in said


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_inverting_tables_of_imagej_are_no_complement_at_any_depth(folder, prepared, dtype):
    tifffile = pytest.importorskip("tifffile")

    def write(seed, path):
        tifffile.imwrite(path.with_suffix(".tif"), drawn(seed).astype(dtype) * 255, photometric="miniswhite")

    labels, said = prepared(folder(write), "--mask-values", "0:background,255:gland")
    assert_drawn(labels)
    assert said.count("WhiteIsZero") == 1


# Soft edges


def test_a_jpeg_renamed_png_is_cut_at_half_and_the_advice_is_the_line(folder, prepared, refused):
    source = folder(jpeg_named_png)
    said = refused(source)
    assert "nearly all pixels of the masks hold 0, 255" in said
    assert said.index("--mask-values 0:background,255:object") < said.index("--instances")
    labels, said = prepared(source, *line_in(said))
    assert_drawn(labels)
    assert "4 masks have soft edges or a lossy format's halo (" in said
    assert "% in a" in said
    assert "became the nearest of the values explained" in said


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_soft_edges_take_the_nearer_value_whatever_the_format(folder, prepared, refused, suffix):
    source = folder(lambda seed, path: saved(soft(seed), path.with_suffix(suffix)))
    labels, said = prepared(source, *line_in(refused(source)))
    for seed in range(COUNT):
        assert np.array_equal(labels[f"a{seed}"], (soft(seed) > 127).astype(np.uint8))
    assert "soft edges" in said


def test_a_class_that_was_forgotten_is_refused_by_name_among_soft_edges(folder, prepared, refused):
    def write(seed, path):
        values = soft(seed).copy()
        if seed == 2:
            values[50:60, 4:20] = 128
        saved(values, path.with_suffix(".png"))

    source = folder(write)
    said = refused(source, "--mask-values", "0:background,255:gland")
    assert "a2.png: holds the value" in said
    assert "128" in said
    assert "add 128:NAME, or :ignore" in said
    labels, said = prepared(source, "--mask-values", "0:background,128:stroma,255:gland")
    assert (labels["a2"][51:59, 5:19] == 1).all()
    assert "rim" in said, "an edge of gland passes 128"


@pytest.mark.parametrize("value", [50, 100, 200])
def test_an_area_of_any_other_value_is_no_edge(folder, refused, value):
    def write(seed, path):
        values = drawn(seed).astype(np.uint8) * 255
        values[50:60, 4:20] = value
        saved(values, path.with_suffix(".png"))

    assert f"holds the value {value}" in refused(folder(write), "--mask-values", "0:background,255:gland")


@pytest.mark.parametrize("scale", [1, 2, 100])
def test_masks_of_other_numbers_than_explained_do_not_become_background(folder, refused, scale):
    source = folder(lambda seed, path: saved(drawn(seed).astype(np.uint8) * scale, path.with_suffix(".png")))
    said = refused(source, "--mask-values", "0:background,255:gland")
    assert f"a0.png: holds the value {scale}, which --mask-values does not explain" in said


def test_a_tile_that_shows_but_the_halo_of_its_neighbour_is_background(folder, prepared):
    labels, said = prepared(folder(halo_alone), "--mask-values", "0:background,255:gland")
    assert not labels["a3"].any()
    assert "1 mask has soft edges" in said


def test_jpegs_cannot_hold_class_numbers(folder, refused):
    source = folder(lambda seed, path: saved(drawn(seed).astype(np.uint8) * 3, path.with_suffix(".jpg"), quality=95))
    for words in ([], ["--mask-values", "0:background,1:a,2:b,3:c"]):
        assert "a0.jpg: is a JPEG, which smears" in refused(source, *words)


def test_instances_on_soft_masks_are_remarked_on(folder, prepared):
    labels, said = prepared(folder(jpeg_named_png), "--instances")
    assert labels["a0"].sum() > drawn(0).sum()
    assert "if these are no numbers of objects, give --mask-values 0:background,255:object instead" in said


def test_instances_on_numbers_of_objects_are_not(folder, prepared):
    def write(seed, path):
        values = np.zeros((SIDE, SIDE), np.uint16)
        for number in range(30):
            values[2 * number : 2 * number + 1, : 40 + number] = 1 + number * 7
        saved(values, path.with_suffix(".png"))

    labels, said = prepared(folder(write), "--instances")
    assert np.unique(labels["a0"]).tolist() == [0, 1]
    assert "--instances" not in said


# Scales that differ in one set


def test_masks_of_0_and_255_among_masks_of_0_and_1_are_named(folder, prepared, refused):
    source = folder(
        lambda seed, path: saved(drawn(seed).astype(np.uint8) * (255 if seed == 2 else 1), path.with_suffix(".png"))
    )
    said = refused(source)
    assert "a2.png holds 255, and a0.png and 2 more hold 1: say what they mean" in said
    labels, _ = prepared(source, "--mask-values", "0:background,1:object,255:object")
    assert_drawn(labels)
    assert "--mask-values 0:background,1:object,255:object if 255 is the same object" in said
    labels, _ = prepared(source, "--mask-values", "0:background,1:object,255:ignore")
    assert np.unique(labels["a2"]).tolist() == [0, 255]


def test_255_beside_a_class_means_ignore_also_where_it_stands_alone(folder, prepared):
    def write(seed, path):
        values = drawn(seed).astype(np.uint8)
        values[:3] = 255
        saved(np.where(seed == 2, np.where(values == 1, 0, values), values).astype(np.uint8), path.with_suffix(".png"))

    labels, _ = prepared(folder(write))
    assert np.unique(labels["a2"]).tolist() == [0, 255]
    assert np.unique(labels["a1"]).tolist() == [0, 1, 255]


def test_one_bit_masks_among_masks_of_0_and_255_are_read_as_they_are_shown(folder, prepared, refused):
    def write(seed, path):
        saved(drawn(seed) if seed % 2 else drawn(seed).astype(np.uint8) * 255, path.with_suffix(".png"))

    source = folder(write)
    said = refused(source)
    assert "the masks hold the values 0, 255" in said
    labels, _ = prepared(source, *line_in(said))
    assert_drawn(labels)


def test_values_that_never_meet_in_a_mask_may_be_one_class(folder, refused):
    source = folder(
        lambda seed, path: saved(drawn(seed).astype(np.uint8) * (100 if seed == 2 else 1), path.with_suffix(".png"))
    )
    assert "giving one name to what is the same" in refused(source)


def test_masks_of_0_and_1_among_soft_ones_are_named(folder, refused):
    def write(seed, path):
        saved(drawn(seed).astype(np.uint8) if seed == 1 else soft(seed), path.with_suffix(".png"))

    said = refused(folder(write))
    assert "most masks hold 0, 255 and soft edges, but 1 of them 0, 1 (a1.png)" in said


# Many numbers


def stripes(seed: int, path: Path, classes: int = 22) -> None:
    values = np.repeat(np.arange(SIDE) % classes, SIDE).reshape(SIDE, SIDE)
    saved(values.astype(np.uint8), path.with_suffix(".png"))


def test_22_contiguous_numbers_offer_classes_and_objects(folder, prepared, refused):
    source = folder(stripes)
    said = refused(source)
    assert (
        "the masks hold the 22 values 0 to 21: if they are classes, give --mask-values 0:background,1:class-1," in said
    )
    assert "add --instances if they are numbers of objects" in said
    labels, _ = prepared(source, *line_in(said))
    assert np.unique(labels["a0"]).tolist() == list(range(22))


# Numbers of other types


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64, np.float32, np.int16, np.uint32])
def test_whole_numbers_of_any_type_are_read(folder, prepared, dtype):
    tifffile = pytest.importorskip("tifffile")
    source = folder(lambda seed, path: tifffile.imwrite(path.with_suffix(".tif"), drawn(seed).astype(dtype)))
    labels, _ = prepared(source)
    assert_drawn(labels)


@pytest.mark.parametrize(("dtype", "value"), [(np.float64, 0.5), (np.int64, -1), (np.uint64, 2**40), (np.int32, -7)])
def test_other_numbers_are_refused_by_name(folder, refused, dtype, value):
    tifffile = pytest.importorskip("tifffile")
    source = folder(
        lambda seed, path: tifffile.imwrite(path.with_suffix(".tif"), drawn(seed).astype(dtype) * dtype(value))
    )
    said = refused(source)
    assert f"a0.tif: holds the value {value:g}: a mask has whole numbers from 0" in said


def test_a_tiff_that_pillow_lacks_names_the_library_that_may_read_it(folder, refused, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    source = folder(lambda seed, path: tifffile.imwrite(path.with_suffix(".tif"), drawn(seed).astype(np.int64)))
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    said = refused(source)
    assert "a0.tif: is a TIFF that Pillow cannot decode" in said
    assert "pip install 'mpamatch[slides]'" in said


@pytest.mark.parametrize(("masks", "splits"), [(4, True), (1, False)])
def test_a_split_is_offered_where_most_images_have_masks(tmp_path, folder, capsys, masks, splits):
    def write(seed, path):
        if seed < masks:
            saved(drawn(seed).astype(np.uint8), path.with_suffix(".png"))

    source = folder(write)
    assert main(["prepare", "folder", str(source), str(tmp_path / "out")]) == 0
    assert ("mpamatch split" in capsys.readouterr().out) is splits
