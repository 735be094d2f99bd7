"""Tissue is found, pale tissue beside dark too, and glass in all its forms is not."""

import numpy as np
import pytest

from mpamatch.errors import InputError
from mpamatch.slides.reader import Box, open_slide
from mpamatch.slides.tissue import Tissue, all_tissue, find_tissue
from tests.slides.files import tissue, write_slide

MPP = 8.0  # of these slides: one pixel is one of the mask
DARK, PALE, GLASS = (110, 60, 130), (240, 222, 236), (244, 243, 245)


def found(image: np.ndarray, tmp_path, mpp: float = MPP, **options) -> Tissue:
    with open_slide(write_slide(tmp_path / "slide.tif", image, levels=1, mpp=mpp, compression=None)) as slide:
        return find_tissue(slide, **options)


def glass(height: int = 300, width: int = 400) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-1, 2, (height, width, 1))
    return (np.array(GLASS) + noise).astype(np.uint8)


def disc(radius: float, row: int, column: int, shape: tuple[int, int] = (300, 400)) -> np.ndarray:
    rows, columns = np.indices(shape)
    return np.hypot(rows - row, columns - column) <= radius


def agreement(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def test_pale_tissue_beside_dark_is_found(tmp_path):
    image = glass()
    dark, pale = disc(70, 150, 100), disc(60, 150, 300)
    image[dark], image[pale] = DARK, PALE
    tissue = found(image, tmp_path)
    assert tissue.mpp == pytest.approx(MPP)
    assert tissue.scale == pytest.approx(1)
    assert agreement(tissue.mask, dark | pale) > 0.99
    assert tissue.square_millimetres == pytest.approx((dark | pale).sum() * 0.008**2, rel=0.01)


@pytest.mark.parametrize("colour", [DARK, PALE])
def test_glass_alone_has_no_tissue_and_tissue_alone_no_glass(colour, tmp_path):
    assert not found(glass(), tmp_path).mask.any()
    noise = np.random.default_rng(0).integers(-3, 4, (300, 400, 3))
    assert found((np.array(colour) + noise).astype(np.uint8), tmp_path).mask.all()


def test_made_up_tissue_is_found_at_the_microscopes_scale(tmp_path):
    image = np.full((512, 1280, 3), GLASS, dtype=np.uint8)
    image[:, 640:] = tissue()
    with open_slide(write_slide(tmp_path / "slide.tif", image, mpp=1.0)) as slide:
        mask = find_tissue(slide).mask
    assert mask.shape == (64, 160)
    assert not mask[:, :75].any()
    assert mask[:, 85:].mean() > 0.95


def test_what_was_not_scanned_is_glass(tmp_path):
    image = glass()
    piece = disc(40, 150, 200)
    image[piece] = DARK
    image[:, :90] = 0
    image[:, 310:] = 255
    image[:, 90] = 120  # between black and glass
    mask = found(image, tmp_path).mask
    assert agreement(mask, piece) > 0.99


def test_grey_glass_and_shadows_are_no_tissue(tmp_path):
    image = glass() - 20
    piece = disc(40, 150, 200)
    image[piece] = PALE
    image[piece] -= 20
    image[:50] -= 9
    assert agreement(found(image, tmp_path).mask, piece) > 0.99


def test_gaps_close_dust_goes_holes_fill(tmp_path):
    image = glass()
    whole = disc(80, 150, 120)
    image[whole] = DARK
    gap, hole, vessel = np.zeros_like(whole), disc(6, 120, 110), disc(20, 180, 120)
    gap[:, 140:144] = True  # 32 µm
    for part in (gap, hole, vessel):
        image[part] = GLASS
    image[disc(8, 60, 330)] = DARK  # 0.013 mm²
    kept = disc(12, 240, 330)  # 0.029 mm²
    image[kept] = DARK
    mask = found(image, tmp_path).mask
    assert mask[100:150][gap[100:150]].all()
    assert mask[hole].all()
    assert not mask[disc(17, 180, 120)].any()
    assert not mask[50:70, 320:340].any()
    assert mask[kept].all()


def test_tissue_at_the_rim_stays(tmp_path):
    image = glass()
    image[:, :60] = DARK
    mask = found(image, tmp_path).mask
    assert mask[:, :60].all()
    assert not mask[:, 62:].any()


def test_grown_by_a_window(tmp_path):
    image = glass()
    image[100:200, 100:200] = DARK
    mask = found(image, tmp_path, grow=10 * MPP).mask
    truth = np.zeros_like(mask)
    truth[90:210, 90:210] = True
    np.testing.assert_array_equal(mask, truth)
    assert not found(glass(), tmp_path, grow=10 * MPP).mask.any()


def test_boxes_are_in_pixels_of_level_0():
    mask = np.zeros((10, 20), dtype=bool)
    mask[4, 6] = True
    found = Tissue(mask, 8.0, 16.0)
    assert found.touches(Box(96, 64, 1, 1))
    assert found.touches(Box(111, 79, 50, 50))
    assert found.touches(Box(-50, -50, 500, 500))
    for box in (Box(112, 64, 50, 50), Box(0, 0, 96, 64), Box(-90, -90, 80, 80), Box(900, 900, 10, 10)):
        assert not found.touches(box)
    assert found.share(Box(96, 64, 16, 16)) == 1
    assert found.share(Box(96, 64, 32, 32)) == 0.25
    assert found.share(Box(-16, 64, 128, 16)) == 1 / 8


def test_all_of_a_slide(tmp_path):
    with open_slide(write_slide(tmp_path / "slide.tif", mpp=1.0)) as slide:
        assert all_tissue(slide).mask.all()
        assert all_tissue(slide).mask.shape == find_tissue(slide).mask.shape == (64, 80)
    with open_slide(write_slide(tmp_path / "none.tif", mpp=None)) as slide:
        with pytest.raises(InputError, match="--slide-mpp"):
            find_tissue(slide)
