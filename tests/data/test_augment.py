"""Cutting and recolouring: image and label stay on the same pixels, every colour does what its name says."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mpamatch.data.augment import cut, recolour
from mpamatch.data.draws import UNLABELLED, ColourDraw, DrawSettings, Geometry, draw

NEUTRAL = ColourDraw()
# Ruifrok and Johnston (2001), written out again: optical densities of haematoxylin and eosin in RGB.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29]) / math.sqrt(0.65**2 + 0.70**2 + 0.29**2)
EOSIN = np.array([0.07, 0.99, 0.11]) / math.sqrt(0.07**2 + 0.99**2 + 0.11**2)


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red is twice its row and green twice its column, and the label row·16 + column modulo 250."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([2 * rows, 2 * columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    return image, ((rows * 16 + columns) % 250).astype(np.uint8)


def geometries(number: int, zoom: tuple[float, float] = (0.4, 2.5)) -> list[Geometry]:
    settings = DrawSettings("histology", 32, zoom, 0.0, 0)
    return [draw(settings, 0, UNLABELLED, step, 0).geometry for step in range(number)]


def test_without_resizing_every_pixel_keeps_its_label():
    image, label = coordinates(45, 60)
    label[10:14] = 255
    seen = set()
    for geometry in geometries(120, zoom=(1.0, 1.0)):
        x, y, valid = cut(image, label, geometry, 32, 1.0)
        rows, columns = x[0].numpy() // 2, x[1].numpy() // 2
        assert np.array_equal(y.numpy(), label[rows, columns])
        assert valid.all()
        assert (x.dtype, y.dtype, valid.dtype) == (torch.uint8, torch.uint8, torch.bool)
        assert (x.shape, y.shape, valid.shape) == ((3, 32, 32), (32, 32), (32, 32))
        assert len({(r, c) for r, c in zip(rows.flat, columns.flat, strict=True)}) == 32 * 32
        seen.add((geometry.flip, geometry.quarter_turns))
    assert len(seen) == 8


def test_all_eight_turns_and_flips_differ_and_are_the_named_ones():
    image, label = coordinates(32, 32)
    found = []
    for flip in (False, True):
        for turns in range(4):
            x, y, _ = cut(image, label, Geometry(1.0, 0.0, 0.0, flip, turns), 32, 1.0)
            mirrored = label[:, ::-1] if flip else label
            assert np.array_equal(y.numpy(), np.rot90(mirrored, turns))
            assert x.is_contiguous()
            found.append(tuple(y.flatten().tolist()))
    assert len(set(found)) == 8


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_with_resizing_image_and_label_meet_within_a_pixel(scale):
    """Red is twice the row and the label is the row: away from the padding they tell the same place. The nearest row is
    at most 1/2 off, the average of rows that antialiasing takes 1/2 more at the image's edge, rounding 1/4."""
    image, _ = coordinates(90, 110)
    for axis in (0, 1):
        label = (image[..., axis] // 2).copy()
        for geometry in geometries(60):
            x, y, valid = cut(image, label, geometry, 32, scale)
            assert set(y.unique().tolist()) <= {*range(110), 255}
            _, _, side = geometry.region(90, 110, 32, scale)
            blurred = max(side / 32, 1)  # the filter's half width in source pixels
            inner = valid & (torch.from_numpy(erode(valid.numpy())))
            apart = (x[axis].float() / 2 - y.float()).abs()[inner]
            assert inner.any()
            assert apart.max() <= 0.5 + 0.5 * blurred + 0.25
            assert apart.mean() < 0.4 + 0.05 * blurred


def erode(valid: np.ndarray) -> np.ndarray:
    """Two pixels in from the padding, where the reflected part is mixed in."""
    inner = valid.copy()
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            moved = np.roll(valid, shift, axis)
            edge = [slice(None)] * 2
            edge[axis] = slice(None, shift) if shift > 0 else slice(shift, None)
            moved[tuple(edge)] = True
            inner &= moved
    return inner


def test_resized_labels_come_from_the_palette_alone():
    rng = np.random.default_rng(0)
    label = rng.choice(np.array([0, 3, 9, 255], dtype=np.uint8), (70, 50))
    image = rng.integers(0, 256, (70, 50, 3), dtype=np.uint8)
    for geometry in geometries(60):
        _, y, valid = cut(image, label, geometry, 32, 1.0)
        assert set(y.unique().tolist()) <= {0, 3, 9, 255}
        assert set(y[valid].unique().tolist()) == {0, 3, 9, 255}


@pytest.mark.parametrize("size", [(20, 60), (60, 20), (17, 19), (16, 16)])
def test_what_is_padded_is_invalid_ignored_and_a_reflection(size):
    image, label = coordinates(*size)
    for geometry in geometries(60, zoom=(0.5, 1.0)):
        x, y, valid = cut(image, label, geometry, 32, 1.0)
        top, left, side = geometry.region(*size, 32, 1.0)
        centres = np.floor((np.arange(32) + 0.5) * side / 32).astype(int)  # of the crop's pixels in the region
        inside = ((top + centres) < size[0])[:, None] & ((left + centres) < size[1])
        inside = np.rot90(inside[:, ::-1] if geometry.flip else inside, geometry.quarter_turns)
        assert np.array_equal(valid.numpy(), inside)
        assert (y[~valid] == 255).all()
        assert (y[valid] != 255).all()
        if side == 32:
            reflected = np.pad(image, ((0, max(0, 32 - size[0])), (0, max(0, 32 - size[1])), (0, 0)), mode="symmetric")
            region = reflected[top : top + 32, left : left + 32]
            region = np.rot90(region[:, ::-1] if geometry.flip else region, geometry.quarter_turns)
            assert np.array_equal(x.permute(1, 2, 0).numpy(), region)


def test_an_image_without_label_is_all_ignored_and_only_its_padding_invalid():
    image, _ = coordinates(20, 64)
    _, y, valid = cut(image, None, Geometry(1.0, 0.0, 0.0, False, 0), 32, 1.0)
    assert (y == 255).all()
    assert valid[:20].all()
    assert not valid[20:].any()


def test_scale_and_zoom_choose_the_same_region_and_magnify_as_named():
    image, label = coordinates(100, 100)
    base = Geometry(2.0, 0.5, 0.5, False, 0)
    by_zoom = cut(image, label, base, 32, 1.0)
    by_scale = cut(image, label, replace(base, zoom=1.0), 32, 2.0)
    assert all(torch.equal(a, b) for a, b in zip(by_zoom, by_scale, strict=True))
    rows = by_zoom[0][0, :, 0].float() / 2
    assert (rows[-3] - rows[2]).item() == pytest.approx(27 / 2, abs=0.6)  # 27 pixels of the crop, twice enlarged


def test_cutting_leaves_the_source_alone():
    image, label = coordinates(40, 40)
    before = image.copy(), label.copy()
    x, y, _ = cut(image, label, Geometry(1.0, 0.0, 0.0, False, 0), 40, 1.0)
    x.zero_()
    y.zero_()
    assert np.array_equal(image, before[0])
    assert np.array_equal(label, before[1])


def stained(haematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
    """(H, W) densities → (H, W, 3) light in [0, 1]."""
    return np.exp(-(haematoxylin[..., None] * HAEMATOXYLIN + eosin[..., None] * EOSIN))


def tissue() -> Tensor:
    """(3, 48, 48) u8 pink and purple blobs on white."""
    rows, columns = np.mgrid[:48, :48] / 48
    nuclei = 0.9 * (np.sin(20 * rows) * np.sin(17 * columns) > 0.3) + 0.2 * rows
    light = stained(nuclei, 0.5 * (columns > 0.3) + 0.2 * columns)
    return torch.from_numpy(np.rint(light * 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def density(x: Tensor) -> np.ndarray:  # (3, H, W) -> (H, W, 2)
    """Haematoxylin and eosin of an image, by least squares in optical density."""
    optical = -np.log(np.clip(x.permute(1, 2, 0).double().numpy(), 1 / 256, 1))
    return np.linalg.lstsq(np.stack([HAEMATOXYLIN, EOSIN], axis=1), optical.reshape(-1, 3).T, rcond=None)[0].T


def test_a_neutral_colour_changes_no_bit():
    image = tissue()
    assert torch.equal(recolour(image, NEUTRAL), image.float() / 255)


def test_the_source_survives_every_colour():
    image = tissue()
    before = image.clone()
    recolour(image, ColourDraw(1.2, 0.8, 1.3, 0.1, True, (3, 2, 1, 0), (1.2, 0.05, 0.8, -0.05), 1.0, 50))
    assert torch.equal(image, before)


def test_brightness_scales_and_contrast_spreads():
    image = (tissue() // 2 + 32).contiguous()  # no value reaches 0 or 255
    x = image.double() / 255
    darker = recolour(image, replace(NEUTRAL, brightness=0.7)).double()
    assert torch.allclose(darker, 0.7 * x, atol=1e-6)
    flat = recolour(image, replace(NEUTRAL, contrast=0.6)).double()
    assert (flat.std() / x.std()).item() == pytest.approx(0.6, abs=1e-5)
    grey = (x * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(0).mean()
    assert torch.allclose(flat - grey, 0.6 * (x - grey), atol=1e-3)  # torchvision's grey has four digits


def test_saturation_hue_and_grey_change_the_colour_alone():
    image = tissue()
    x = image.float() / 255

    def chroma(t: Tensor) -> float:
        return (t.amax(0) - t.amin(0)).mean().item()

    pale = recolour(image, replace(NEUTRAL, saturation=0.5))
    assert chroma(pale) == pytest.approx(0.5 * chroma(x), rel=0.01)
    turned = recolour(image, replace(NEUTRAL, hue=1 / 3))  # a third of the circle: red becomes green becomes blue
    assert torch.allclose(turned, x.roll(1, 0), atol=0.01)
    grey = recolour(image, replace(NEUTRAL, grey=True))
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    expected = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    assert torch.allclose(grey[0], expected, atol=1e-3)


def test_the_order_of_the_natural_parts_is_obeyed():
    image = tissue()
    colour = ColourDraw(brightness=1.4, contrast=0.5)
    first = recolour(image, replace(colour, order=(0, 1, 2, 3)))
    x = image.float() / 255
    bright = (1.4 * x).clamp(0, 1)
    grey = (bright * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(0).mean()
    assert torch.allclose(first, (0.5 * bright + 0.5 * grey).clamp(0, 1), atol=1e-5)
    other = recolour(image, replace(colour, order=(1, 0, 2, 3)))
    assert (first - other).abs().max() > 0.02


@pytest.mark.parametrize("alphas", [(1.3, 1.0), (1.0, 0.7), (0.75, 1.25)])
def test_stain_factors_scale_the_densities(alphas):
    rng = np.random.default_rng(1)
    light = stained(rng.uniform(0.1, 0.9, (24, 24)), rng.uniform(0.1, 0.9, (24, 24)))
    image = torch.from_numpy(np.rint(light * 255).astype(np.uint8)).permute(2, 0, 1)
    before = density(image.float() / 255)
    after = density(recolour(image, replace(NEUTRAL, stain=(alphas[0], 0.0, alphas[1], 0.0))))
    assert np.allclose(after, before * np.array(alphas), atol=0.02)  # eight bits leave some of the third stain


def test_stain_offsets_shift_tissue_and_leave_the_slide_white():
    image = torch.full((3, 16, 32), 255, dtype=torch.uint8)
    image[:, :, 16:] = torch.from_numpy(np.rint(255 * stained(np.array(0.8), np.array(0.6)))).to(torch.uint8)[
        :, None, None
    ]
    after = recolour(image, replace(NEUTRAL, stain=(1.0, 0.08, 1.0, -0.05)))
    assert torch.equal(after[:, :, :16], torch.ones(3, 16, 16))
    moved = density(after[:, :, 16:]) - density(image[:, :, 16:].float() / 255)
    assert np.allclose(moved, [0.08, -0.05], atol=0.01)


def test_stain_of_black_and_saturated_pixels_stays_finite():
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[0] = 255
    image[:, 8:] = 0
    after = recolour(image, replace(NEUTRAL, stain=(1.35, 0.08, 0.65, -0.08)))
    assert after.isfinite().all()
    assert after.min() >= 0
    assert after.max() <= 1


def sharpness(t: Tensor) -> float:
    return (t.diff(dim=-1) ** 2).mean().item()


def test_blur_smooths_more_with_sigma_and_keeps_the_mean():
    image = tissue()
    x = image.float() / 255
    mild, strong = (recolour(image, replace(NEUTRAL, blur=sigma)) for sigma in (0.6, 1.5))
    assert sharpness(strong) < 0.6 * sharpness(mild) < 0.6 * sharpness(x)
    assert mild.mean().item() == pytest.approx(x.mean().item(), abs=0.005)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.5, 2.0])
def test_blur_is_a_gaussian_of_that_sigma(sigma):
    """By values of e^(−d²/2σ²) over the whole image; the spread is σ, as Pillow's is, where a kernel cut at 2σ has 1.85
    for 2."""
    image = torch.zeros(3, 33, 33, dtype=torch.uint8)
    image[:, 16, 16] = 255
    weight = recolour(image, replace(NEUTRAL, blur=sigma))[0].double()
    distance = (torch.arange(33) - 16).double() ** 2
    gaussian = np.array([math.exp(-((place - 16) ** 2) / (2 * sigma**2)) for place in range(33)])
    gaussian /= gaussian.sum()
    assert np.allclose(weight.numpy(), np.outer(gaussian, gaussian), atol=1e-4)
    assert weight.sum().item() == pytest.approx(1, abs=1e-5)
    spread = math.sqrt((weight.sum(0) * distance).sum().item())
    assert spread == pytest.approx(math.sqrt((gaussian * distance.numpy()).sum()), rel=0.002)
    if sigma >= 0.7:
        assert spread == pytest.approx(sigma, rel=0.002)
    assert torch.allclose(weight, weight.T)


def test_blur_reflects_at_the_edges():
    """Column 0 of a ramp 0, 1, 2, … takes its neighbours to the right twice: Σ 2 k g(k), not 0."""
    image = (torch.arange(32).expand(3, 32, 32) * 8).to(torch.uint8)
    blurred = recolour(image, replace(NEUTRAL, blur=1.0))[0].double() * 255 / 8
    gaussian = {k: math.exp(-k * k / 2) for k in range(-6, 7)}
    wanted = sum(abs(k) * g for k, g in gaussian.items()) / sum(gaussian.values())
    assert blurred[:, 0].tolist() == pytest.approx([wanted] * 32, abs=1e-3)
    assert blurred[5, 16].item() == pytest.approx(16, abs=1e-3)


def test_jpeg_hurts_more_at_lower_quality():
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8))
    x = noise.float() / 255
    errors = [(recolour(noise, replace(NEUTRAL, jpeg=quality)) - x).abs().mean().item() for quality in (30, 60, 90)]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("augment", ["histology", "natural"])
def test_strong_views_stay_in_range_and_differ_from_the_crop(augment):
    image, settings = tissue(), DrawSettings(augment, 48, (1.0, 1.0), 0.0, 0)
    x = image.float() / 255
    changed = 0
    for step in range(40):
        for colour in draw(settings, 0, UNLABELLED, step, 0).strong:
            view = recolour(image, colour)
            assert view.shape == image.shape
            assert view.dtype == torch.float32
            assert view.isfinite().all()
            assert view.min() >= 0
            assert view.max() <= 1 + 1e-6  # a blur's weights add up to 1 but for rounding
            changed += (view - x).abs().mean().item() > 0.01
    assert changed > 55  # of 80; natural leaves one in ten as it is: p .2 · .8 · .5


def test_every_part_of_a_histology_view_shows_in_the_image():
    """Taking any one part out of a view that has all of them changes it visibly."""
    image = tissue()
    full = ColourDraw(brightness=0.85, contrast=1.2, stain=(1.25, 0.05, 0.8, 0.05), blur=1.0, jpeg=40)
    view = recolour(image, full)
    for name in ("brightness", "contrast", "stain", "blur", "jpeg"):
        without = recolour(image, replace(full, **{name: getattr(NEUTRAL, name)}))
        assert (view - without).abs().mean() > 0.005, name


def test_every_part_of_a_natural_view_shows_in_the_image():
    image = tissue()
    full = ColourDraw(brightness=0.8, contrast=1.3, saturation=1.5, hue=0.15, blur=1.0)
    view = recolour(image, full)
    for name in ("brightness", "contrast", "saturation", "hue", "blur"):
        without = recolour(image, replace(full, **{name: getattr(NEUTRAL, name)}))
        assert (view - without).abs().mean() > 0.005, name
