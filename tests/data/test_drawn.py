"""Masks of published sets that were stored otherwise: by other numbers, palettes, polarity, or with soft edges."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.cli import main
from mpamatch.data.sources.mask_survey import look_at
from mpamatch.images import read_mask
from tests.data.masks import BLACK, SIDE, WHITE, drawn, halo_alone, jpeg_named_png, paletted, saved, soft
from tests.data.raw import image
from tests.data.test_source_bcss_wsss import PALETTE as PUBLISHED
from tests.data.test_source_bcss_wsss import REGION, breast_folder

COUNT = 6


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    saved(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), path)


def ebhi(root: Path, write) -> list[str]:
    for seed in range(COUNT):
        for lesion in ("Normal", "Polyp", "Low-grade IN", "High-grade IN", "Serrated adenoma"):
            (root / lesion / "label").mkdir(parents=True, exist_ok=True)
            (root / lesion / "image").mkdir(exist_ok=True)
        name = f"GT201250{seed}-1-400-001"
        picture(root / "Polyp" / "image" / f"{name}.png", seed)
        write(seed, root / "Polyp" / "label" / name)
    return ["ebhi-seg", str(root)]


def kpi(root: Path, write) -> list[str]:
    for seed in range(COUNT):
        case = root / "data" / "DN" / f"11-36{seed}"
        picture(case / "img" / f"p{seed}_img.png", seed)
        (case / "mask").mkdir()
        write(seed, case / "mask" / f"p{seed}_mask")
    return ["kpi", str(root)]


def busi(root: Path, write) -> list[str]:
    for seed in range(COUNT):
        picture(root / "benign" / f"benign ({seed}).png", seed)
        write(seed, root / "benign" / f"benign ({seed})_mask")
    picture(root / "malignant" / "malignant (1).png", 99)
    return ["busi", str(root)]


def glas(root: Path, write) -> list[str]:
    for seed in range(COUNT):
        picture(root / f"train_{seed}.png", seed)
        write(seed, root / f"train_{seed}_anno")
    return ["glas", str(root)]


@pytest.fixture(params=[ebhi, kpi, busi], ids=["ebhi-seg", "kpi", "busi"])
def kind(request):
    return request.param


def prepared(words: list[str], out: Path) -> dict[int, np.ndarray]:
    """Prepares and returns the labels by seed."""
    assert main(["prepare", *words, str(out)]) == 0
    found = sorted((out / "masks").iterdir(), key=lambda path: [int(d) for d in path.stem if d.isdigit()])
    labels = [read_mask(path) for path in found if "malignant" not in path.name]
    return dict(enumerate(labels))


def refused(words: list[str], out: Path, capsys) -> str:
    assert main(["prepare", *words, str(out)]) == 2
    assert not out.exists()
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    return sentence


def scaled(factor: int):
    return lambda seed, path: saved(drawn(seed).astype(np.uint8) * factor, path.with_suffix(".png"))


def assert_drawn(labels: dict[int, np.ndarray]) -> None:
    assert len(labels) == COUNT
    for seed, label in labels.items():
        assert np.array_equal(label, drawn(seed).astype(np.uint8)), seed


def test_masks_of_0_and_255_are_read_silently(kind, tmp_path, capsys):
    assert_drawn(prepared(kind(tmp_path / "raw", scaled(255)), tmp_path / "out"))
    said = capsys.readouterr().out
    assert "published" not in said
    assert "soft edges" not in said


@pytest.mark.parametrize("value", [1, 100])
def test_masks_of_other_numbers_all_over_are_drawn_and_it_is_said(kind, tmp_path, capsys, value):
    def write(seed, path):
        if seed == 0:
            saved(np.zeros((SIDE, SIDE), np.uint8), path.with_suffix(".png"))
        else:
            scaled(value)(seed, path)

    labels = prepared(kind(tmp_path / "raw", write), tmp_path / "out")
    assert not labels[0].any()
    assert all(np.array_equal(labels[seed], drawn(seed)) for seed in range(1, COUNT))
    assert f"the masks hold 0 and {value} instead of 0 and 255" in capsys.readouterr().out


@pytest.mark.parametrize("odd", [0, 3])
@pytest.mark.parametrize("value", [1, 100])
def test_a_mask_of_other_numbers_among_those_of_0_and_255_is_refused_by_name(kind, tmp_path, capsys, value, odd):
    words = kind(tmp_path / "raw", lambda seed, path: scaled(value if seed == odd else 255)(seed, path))
    said = refused(words, tmp_path / "out", capsys)
    assert f"holds 0, {value}, where others hold 0 and 255" in said
    assert {"ebhi-seg": f"GT201250{odd}", "kpi": f"p{odd}_mask", "busi": f"({odd})_mask"}[words[0]] in said


def test_masks_of_several_low_numbers_are_refused(kind, tmp_path, capsys):
    words = kind(tmp_path / "raw", lambda seed, path: scaled(1 + seed % 2)(seed, path))
    assert "where 0 and 255 were published" in refused(words, tmp_path / "out", capsys)


def test_an_empty_mask_among_those_of_0_and_255_is_background(kind, tmp_path):
    def write(seed, path):
        saved(drawn(seed).astype(np.uint8) * (0 if seed == 2 else 255), path.with_suffix(".png"))

    labels = prepared(kind(tmp_path / "raw", write), tmp_path / "out")
    assert not labels[2].any()
    assert np.array_equal(labels[3], drawn(3))


def test_soft_masks_and_jpegs_are_cut_at_half_and_it_is_said(kind, tmp_path, capsys):
    def write(seed, path):
        if seed % 2:
            jpeg_named_png(seed, path)
        else:
            saved(soft(seed), path.with_suffix(".png"))

    labels = prepared(kind(tmp_path / "raw", write), tmp_path / "out")
    for seed, label in labels.items():
        assert np.array_equal(label, drawn(seed) if seed % 2 else soft(seed) > 127)
    said = capsys.readouterr().out
    assert "6 masks have soft edges or a lossy format's halo" in said
    assert "they were cut at half" in said


def test_a_mask_that_shows_but_the_halo_of_its_neighbour_is_background(kind, tmp_path):
    assert not prepared(kind(tmp_path / "raw", halo_alone), tmp_path / "out")[3].any()


def test_palettes_one_bit_and_inverted_masks_are_read_as_what_they_mean(kind, tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")

    def write(seed, path):
        if seed % 3 == 0:
            paletted(~drawn(seed), [WHITE, BLACK], path.with_suffix(".png"))
        elif seed % 3 == 1:
            saved(drawn(seed), path.with_suffix(".png"))
        else:
            values = drawn(seed).astype(np.uint8) * 255
            tifffile.imwrite(path.with_suffix(".tif"), values, photometric="miniswhite")

    assert_drawn(prepared(kind(tmp_path / "raw", write), tmp_path / "out"))
    assert "2 masks say that 0 is white" in capsys.readouterr().out


def test_colours_are_refused_where_greys_were_published(kind, tmp_path, capsys):
    words = kind(
        tmp_path / "raw", lambda seed, path: paletted(drawn(seed), [BLACK, (255, 0, 0)], path.with_suffix(".png"))
    )
    assert "is a mask with a palette of colours: save it as greys" in refused(words, tmp_path / "out", capsys)


# GlaS, whose masks number the glands


def numbered(seed: int, step: int = 1) -> np.ndarray:
    """Three glands side by side."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    for number in range(3):
        values[5 + seed : 40, 4 + 20 * number : 18 + 20 * number] = (1 + number) * step
    return values


def test_numbers_of_glands_are_read_silently(tmp_path, capsys):
    words = glas(tmp_path / "raw", lambda seed, path: saved(numbered(seed), path.with_suffix(".bmp")))
    for seed, label in prepared(words, tmp_path / "out").items():
        assert np.array_equal(label, numbered(seed) > 0)
    said = capsys.readouterr().out
    assert "soft edges" not in said
    assert "without a gap" not in said


def test_numbers_of_glands_with_gaps_are_read_and_said(tmp_path, capsys):
    words = glas(tmp_path / "raw", lambda seed, path: saved(numbered(seed, 40), path.with_suffix(".bmp")))
    for seed, label in prepared(words, tmp_path / "out").items():
        assert np.array_equal(label, numbered(seed) > 0)
    assert "6 masks, train_0_anno.bmp the first, hold other numbers than 1, 2, 3" in capsys.readouterr().out


def test_a_small_gland_with_a_low_number_is_no_soft_edge(tmp_path):
    def write(seed, path):
        values = drawn(seed).astype(np.uint8) * 30
        values[60:64, 60:64] = 3
        saved(values, path.with_suffix(".bmp"))

    labels = prepared(glas(tmp_path / "raw", write), tmp_path / "out")
    assert (labels[0][60:64, 60:64] == 1).all()


def test_the_halo_does_not_count_as_gland(tmp_path, capsys):
    def write(seed, path):
        jpeg_named_png(seed, path)
        with Image.open(path.with_suffix(".png")) as lossy:  # once JPEG, now BMP
            lossy.convert("L").save(path.with_suffix(".bmp"))
        path.with_suffix(".png").unlink()

    assert_drawn(prepared(glas(tmp_path / "raw", write), tmp_path / "out"))
    assert "they were cut at half, not counted as numbers of objects" in capsys.readouterr().out


def test_inverted_numbers_are_read_as_stored(tmp_path, capsys):
    words = glas(tmp_path / "raw", lambda seed, path: saved(numbered(seed), path.with_suffix(".png")))
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "raw" / "train_2_anno.png"
    tifffile.imwrite(path, numbered(2), photometric="miniswhite")
    assert np.array_equal(prepared(words, tmp_path / "out")[2], numbered(2) > 0)
    assert "1 masks say that 0 is white" in capsys.readouterr().out


def test_palettes_that_show_0_as_a_gland_are_refused(tmp_path, capsys):
    words = glas(
        tmp_path / "raw", lambda seed, path: paletted(~drawn(seed), [(255, 0, 0), BLACK], path.with_suffix(".png"))
    )
    assert "has a palette that shows 0 as #ff0000, not black" in refused(words, tmp_path / "out", capsys)


# BCSS-WSSS, whose masks are palettes


def test_a_palette_in_another_order_is_refused(tmp_path, capsys):
    source = breast_folder(tmp_path)
    path = source / "test" / "mask" / f"TCGA-D8-A27F-{REGION}+0.png"
    with Image.open(path) as mask:
        assert look_at(path).palette is not None
        again = mask.convert("RGB").quantize(5)
        assert again.getpalette()[:15] != PUBLISHED
        again.save(path)
    said = refused(["bcss-wsss", str(source)], tmp_path / "out", capsys)
    assert "so its palette was made anew: take the mask as it was published" in said
    with Image.open(path) as mask:
        numbers = np.resize(np.arange(5, dtype=np.uint8), (mask.height, mask.width))
    saved(numbers, path)
    assert main(["prepare", "bcss-wsss", str(source), str(tmp_path / "out")]) == 0, "greys are indices as ever"
    shutil.rmtree(tmp_path / "out")


def test_busi_names_exif_where_sizes_differ(tmp_path, capsys):
    words = busi(tmp_path / "raw", scaled(255))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "raw" / "benign" / "benign (2).png"
    image(path)
    with Image.open(path) as picture:
        picture.resize((64, 48)).save(path, exif=exif)
    saved(np.zeros((48, 64), np.uint8), tmp_path / "raw" / "benign" / "benign (2)_mask.png")
    said = refused(words, tmp_path / "out", capsys)
    assert "the image is turned as its EXIF orientation (6) says, the mask is not" in said
