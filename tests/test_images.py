import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.errors import InputError
from mpamatch.images import (
    DEFAULT_COLOURS,
    IGNORE_COLOUR,
    can_copy,
    colour_label,
    overlay,
    plain_size,
    read_image,
    read_mask,
    write_png,
)


def picture(height=20, width=24):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def rgb16_png(path: Path, side: int = 16) -> Path:
    """A 16-bit RGB PNG, which Pillow reads but cannot write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + b"\x12\x34" * 3 * side for _ in range(side))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_lossless_formats_come_back_as_they_were(tmp_path, suffix):
    array = picture()
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(array))
    assert np.array_equal(read_image(path), array)


def test_grey_palette_and_1_bit_images_become_rgb(tmp_path):
    grey = picture()[..., 0]
    assert np.array_equal(read_image(save(tmp_path / "l.png", Image.fromarray(grey)))[..., 2], grey)
    bits = Image.fromarray(grey > 100)
    assert np.array_equal(read_image(save(tmp_path / "1.png", bits))[..., 0], np.where(grey > 100, 255, 0))
    palette = Image.fromarray(grey // 128)
    palette.putpalette([10, 20, 30, 200, 210, 220])
    read = read_image(save(tmp_path / "p.png", palette))
    assert np.array_equal(read, np.array([[10, 20, 30], [200, 210, 220]], dtype=np.uint8)[grey // 128])


def test_alpha_is_laid_on_white(tmp_path):
    rgba = np.dstack([picture(), np.full((20, 24), 255, np.uint8)])
    rgba[:5, :, 3] = 0
    read = read_image(save(tmp_path / "a.png", Image.fromarray(rgba)))
    assert (read[:5] == 255).all()
    assert np.array_equal(read[5:], rgba[5:, :, :3])


def test_orientation_is_applied(tmp_path):
    array = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270°
    path = save(tmp_path / "a.png", Image.fromarray(array), exif=exif)
    assert np.array_equal(read_image(path), np.rot90(array, 3))
    assert not can_copy(path)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (Image.new("CMYK", (20, 20)), "CMYK"),
        (Image.new("F", (20, 20)), "floating-point"),
        (Image.new("I;16", (20, 20)), "scale it to 8 bits"),
        (Image.new("RGB", (1, 1)), "1×1"),
        (Image.new("RGB", (100, 15)), "100×15"),
    ],
)
def test_unfit_images_are_refused_by_name(tmp_path, image, named):
    path = save(tmp_path / "unfit.tif", image)
    with pytest.raises(InputError, match=named) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_16_bit_rgb_and_stacks_are_refused(tmp_path):
    with pytest.raises(InputError, match="16 bits"):
        read_image(rgb16_png(tmp_path / "deep.png"))
    page = Image.new("RGB", (20, 20))
    path = save(tmp_path / "stack.tif", page, save_all=True, append_images=[page, page])
    with pytest.raises(InputError, match="3 pages"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_broken_and_missing_files_are_named(tmp_path, read):
    path = save(tmp_path / "cut.png", Image.fromarray(picture(64, 64)))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"cut\.png: cannot be decoded"):
        read(path)
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"cut\.png: cannot be decoded"):
        read(path)
    with pytest.raises(InputError, match=r"none\.png: no such file"):
        read(tmp_path / "none.png")


def test_masks_give_their_stored_values(tmp_path):
    values = np.random.default_rng(1).integers(0, 3, (8, 9), dtype=np.uint8)
    assert np.array_equal(read_mask(save(tmp_path / "l.png", Image.fromarray(values))), values)
    palette = Image.fromarray(values)
    palette.putpalette([9, 9, 9, 255, 0, 0, 0, 0, 255])
    assert np.array_equal(read_mask(save(tmp_path / "p.png", palette)), values)
    bits = read_mask(save(tmp_path / "1.png", Image.fromarray(values > 0)))
    assert bits.dtype == np.uint8
    assert np.array_equal(bits, values > 0)
    deep = values.astype(np.uint16) * 300
    read = read_mask(save(tmp_path / "i.png", Image.fromarray(deep)))
    assert read.dtype == np.int32
    assert np.array_equal(read, deep)
    for channels in (3, 4):
        rgb = np.repeat(values[..., None], channels, axis=2)
        if channels == 4:
            rgb[..., 3] = 255
        assert np.array_equal(read_mask(save(tmp_path / f"{channels}.png", Image.fromarray(rgb))), values)


def test_coloured_transparent_and_float_masks_are_refused(tmp_path):
    with pytest.raises(InputError, match="coloured mask"):
        read_mask(save(tmp_path / "c.png", Image.fromarray(picture())))
    rgba = np.zeros((20, 20, 4), np.uint8)
    rgba[5:9, 5:9, 3] = 255
    with pytest.raises(InputError, match="transparency"):
        read_mask(save(tmp_path / "a.png", Image.fromarray(rgba)))
    with pytest.raises(InputError, match=r"f\.tif: holds the value 0\.5: a mask has whole numbers"):
        read_mask(save(tmp_path / "f.tif", Image.new("F", (20, 20), 0.5)))


def test_write_png_is_whole_or_not_at_all(tmp_path):
    array = picture()
    write_png(tmp_path / "new" / "a.png", array)
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), array)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        write_png(tmp_path / "file" / "a.png", array)
    with pytest.raises(TypeError, match="int64"):
        write_png(tmp_path / "b.png", np.zeros((4, 4), np.int64))


def test_overlay_tints_outlines_and_hatches():
    image = np.full((40, 40, 3), 200, np.uint8)
    label = np.zeros((40, 40), np.uint8)
    label[5:20, 5:20] = 1
    label[25:40] = 255
    shown = overlay(image, label, DEFAULT_COLOURS, opacity=0.5)
    colour = np.array(DEFAULT_COLOURS[1])
    assert (shown[:5] == 200).all()
    assert (shown[5, 5:20] == colour).all()
    assert (shown[5:20, 19] == colour).all()
    assert (shown[12, 12] == np.rint(0.5 * 200 + 0.5 * colour)).all()
    hatched = (shown[30, :] != 200).any(axis=-1).mean()
    assert 0.2 < hatched < 0.5
    assert np.ptp(shown[30], axis=-1).max() == 0, "what is ignored stays grey"
    with pytest.raises(ValueError, match="differ in size"):
        overlay(image, label[:30], DEFAULT_COLOURS)


def test_colour_label_knows_every_index():
    label = np.arange(256, dtype=np.uint8)[None]
    shown = colour_label(label, [(1, 2, 3), (4, 5, 6)])
    assert shown[0, 0].tolist() == [1, 2, 3]
    assert shown[0, 1].tolist() == [4, 5, 6]
    assert shown[0, 2].tolist() == list(DEFAULT_COLOURS[2])
    assert shown[0, len(DEFAULT_COLOURS)].tolist() == list(DEFAULT_COLOURS[1])
    assert shown[0, 255].tolist() == list(IGNORE_COLOUR)


def test_default_colours_are_told_apart_on_tissue():
    colours = np.array(DEFAULT_COLOURS[1:], dtype=float)
    assert len(colours) >= 12
    tissue = np.array([[225, 160, 200], [110, 70, 150], [240, 240, 240]], dtype=float)  # eosin, nuclei, glass
    pairs = np.linalg.norm(colours[:, None] - colours[None], axis=-1)[np.triu_indices(len(colours), 1)]
    assert pairs.min() > 60
    assert np.linalg.norm(colours[:, None] - tissue[None], axis=-1).min() > 40


def test_plain_size_reads_the_header_of_plain_images_alone(tmp_path):
    grey = Image.fromarray(np.zeros((20, 30), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = {
        "rgb.png": (grey.convert("RGB"), {}, "RGB"),
        "rgb.jpg": (grey.convert("RGB"), {}, "RGB"),
        "mask.png": (grey, {}, "L"),
        "palette.png": (grey.convert("P"), {}, None),
        "alpha.png": (grey.convert("RGBA"), {}, None),
        "clear.png": (grey.convert("RGB"), {"transparency": (1, 2, 3)}, None),
        "turned.jpg": (grey.convert("RGB"), {"exif": turned}, None),
        "deep.png": (Image.fromarray(np.zeros((20, 30), np.uint16)), {}, None),
        "rgb.tif": (grey.convert("RGB"), {}, None),
        "small.png": (grey.convert("RGB").resize((15, 30)), {}, None),
    }
    for name, (image, options, mode) in kinds.items():
        image.save(tmp_path / name, **options)
        for asked in ("RGB", "L"):
            assert plain_size(tmp_path / name, asked) == ((20, 30) if asked == mode else None), name
    (tmp_path / "text.png").write_text("no image")
    assert plain_size(tmp_path / "text.png", "RGB") is None
    assert plain_size(tmp_path / "missing.png", "RGB") is None
