"""Image files whose header promises more than they hold: refused by name, or said; never read as black in silence."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mpamatch.cli import main
from mpamatch.errors import InputError
from mpamatch.images import read_image, read_image_and_facts, read_mask
from mpamatch.slides.reader import open_slide

SIDE, TALLER = 64, 96
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def picture(mode: str = "RGB") -> Image.Image:
    """Pixels that are nowhere 0, so that a black row is one that is missing."""
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(1, 60_000, (SIDE, SIDE), dtype=np.uint16))
    if mode == "1":
        return Image.new("1", (SIDE, SIDE), 1)
    channels = {"L": 1, "LA": 2, "P": 1, "RGB": 3, "RGBA": 4}[mode]
    values = rng.integers(1, 255, (SIDE, SIDE, channels), dtype=np.uint8).squeeze()
    image = Image.fromarray(values, mode="L" if mode == "P" else mode)
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
        image = Image.frombytes("P", image.size, image.tobytes())
    return image


def png(mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    image = picture(mode)
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
    image.save(file, "PNG")
    return file.getvalue()


def with_height(data: bytes, height: int) -> bytes:
    """A PNG that says it has `height` rows, with its checksum mended."""
    changed = bytearray(data)
    changed[20:24] = struct.pack(">I", height)
    changed[29:33] = struct.pack(">I", zlib.crc32(bytes(changed[12:29])))
    return bytes(changed)


def interlaced(height: int, rows_there: int) -> bytes:
    """A grey PNG in seven passes of white pixels, with the data of so many rows of the last pass."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    data = b""
    for number, (left, top, across, down) in enumerate(passes):
        columns, rows = len(range(left, SIDE, across)), len(range(top, height, down))
        data += (b"\0" + b"\xff" * columns) * (rows_there if number == 6 else rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", SIDE, height, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(path: Path, **options) -> bytes:
    pixels = np.asarray(picture())
    if options.get("planarconfig") == "separate":
        pixels = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, **options)
    return path.read_bytes()


def with_length(data: bytes, length: int) -> bytes:
    """A little-endian TIFF whose ImageLength is `length`."""
    changed = bytearray(data)
    start = struct.unpack("<I", data[4:8])[0]
    for place in range(start + 2, start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0], 12):
        if struct.unpack("<H", data[place : place + 2])[0] == 257:
            changed[place + 8 : place + 12] = (
                struct.pack("<H", length) + b"\0\0" if data[place + 2] == 3 else struct.pack("<I", length)
            )
    return bytes(changed)


def refused(path: Path, read=read_image) -> str:
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: cannot be decoded \(") as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize("mode", MODES)
def test_a_png_whose_data_end_early_is_refused(mode, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(mode))
    read_mask(path) if mode in {"I;16", "L", "P", "1"} else read_image(path)
    path.write_bytes(with_height(png(mode), TALLER))
    assert "its data end before its last row" in refused(path, read_mask if mode == "I;16" else read_image)


def test_an_interlaced_png_is_counted_pass_by_pass(tmp_path):
    path = tmp_path / "a.png"
    for height in (SIDE, SIDE + 1):
        rows = height // 2
        path.write_bytes(interlaced(height, rows))
        assert (read_image(path) == 255).all()
        path.write_bytes(interlaced(height, rows - 1))
        refused(path)


def test_a_mask_that_ends_in_background_is_whole(tmp_path):
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[:20] = 1
    for image in (Image.fromarray(values), Image.fromarray(values.astype(bool))):
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), values)
    (tmp_path / "a.png").write_bytes(with_height((tmp_path / "a.png").read_bytes(), TALLER))
    refused(tmp_path / "a.png", read_mask)


@pytest.mark.parametrize(
    "options",
    [{"rowsperstrip": 16}, {"rowsperstrip": 96}, {"tile": (32, 32)}, {"planarconfig": "separate", "rowsperstrip": 16}],
)
def test_a_tiff_that_is_longer_than_its_strips_is_refused(options, tmp_path):
    path = tmp_path / "a.tif"
    data = tiff(path, **options)
    np.testing.assert_array_equal(read_image(path), np.asarray(picture()))
    path.write_bytes(with_length(data, TALLER))
    assert "need" in refused(path)


@pytest.mark.parametrize("compression", ["deflate", "lzw", "jpeg", "packbits"])
def test_a_packed_tiff_is_whole_or_refused(compression, tmp_path):
    path = tmp_path / "a.tif"
    data = tiff(path, rowsperstrip=16, compression=compression)
    assert read_image(path).shape == (SIDE, SIDE, 3)
    path.write_bytes(with_length(data, TALLER))
    refused(path)


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.ppm", "a.tga", "a.webp", "a.jp2"])
def test_a_file_that_was_cut_is_refused(name, tmp_path):
    path = tmp_path / name
    picture().save(path)
    data = path.read_bytes()
    read_image(path)
    path.write_bytes(data[: len(data) * 2 // 3])
    refused(path)


def cut_jpeg(path: Path, **options) -> None:
    """A JPEG whose data end in the middle and are closed there, as some programs mend a broken download."""
    picture().save(path, quality=90, **options)
    data = path.read_bytes()[: path.stat().st_size // 2].removesuffix(b"\xff")
    path.write_bytes(data + b"\xff\xd9")


def test_a_jpeg_that_ends_in_grey_is_told(tmp_path, capsys):
    for folder in ("images", "masks"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    for number in range(3):
        image, mask = (tmp_path / "mine" / folder for folder in ("images", "masks"))
        picture().save(image / f"a{number}.jpg", quality=90)
        Image.fromarray(np.tri(SIDE, dtype=np.uint8)).save(mask / f"a{number}.png")
    cut_jpeg(tmp_path / "mine" / "images" / "a1.jpg")
    assert read_image_and_facts(tmp_path / "mine" / "images" / "a1.jpg")[1].grey_end
    assert not read_image_and_facts(tmp_path / "mine" / "images" / "a0.jpg")[1].grey_end
    assert main(["prepare", "folder", str(tmp_path / "mine"), str(tmp_path / "set")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "note: 1 image, a1.jpg, with even grey at the end, as decoders put where the data of a JPEG are cut off" in said
    )


def test_a_large_picture_read_as_a_slide_is_looked_at_too(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(with_height(png(), TALLER))
    with pytest.raises(InputError, match="its data end before its last row"), open_slide(path, mpp=1.0) as slide:
        slide.read(0, 0, 8, 8)
