"""Images that are not what they seem: turned, with a fourth channel, or very large; as a user of commands sees it."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch import stored
from mpamatch.cli import main
from mpamatch.errors import InputError
from mpamatch.images import pixels_of, read_image, read_image_and_facts, read_mask
from tests.tiny import make_set

WIDTH, HEIGHT = 40, 30
COUNT = 3


def pixels(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def turned(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


@pytest.fixture
def source(tmp_path) -> Path:
    """Three images with masks whose left third is drawn."""
    for seed in range(COUNT):
        for kind in ("images", "masks"):
            (tmp_path / "mine" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(tmp_path / "mine" / "images" / f"a{seed}.png")
        mask(tmp_path / "mine", seed)
    return tmp_path / "mine"


def mask(source: Path, seed: int, width: int = WIDTH, height: int = HEIGHT, **options) -> np.ndarray:
    values = np.zeros((height, width), np.uint8)
    values[:, : width // 3] = 1
    Image.fromarray(values).save(source / "masks" / f"a{seed}.png", **options)
    return values


def prepare(source: Path, *words: str, code: int = 0) -> Path:
    out = source.parent / "out"
    assert main(["prepare", "folder", str(source), str(out), *words]) == code
    return out


# EXIF


def test_nothing_is_said_of_plain_images(source, capsys):
    prepare(source)
    said = capsys.readouterr().out
    assert "EXIF" not in said
    assert "channels" not in said


def test_turned_images_are_counted(source, capsys):
    for seed in (0, 2):
        Image.fromarray(pixels(seed)).save(source / "images" / f"a{seed}.png", exif=turned(3))
    out = prepare(source)
    assert np.array_equal(read_image(out / "images" / "a2.png"), np.rot90(pixels(2), 2))
    said = capsys.readouterr().out
    assert "note: 2 images, a0.png the first, with an EXIF orientation and turned as it says" in said
    assert "a mask drawn on the unturned picture does not fit" in said


def test_a_quarter_turn_of_a_square_is_counted_too(source, capsys):
    Image.fromarray(pixels(0, 32, 32)).save(source / "images" / "a0.png", exif=turned(6))
    mask(source, 0, 32, 32)
    prepare(source)
    assert "note: 1 image, a0.png, with an EXIF orientation" in capsys.readouterr().out


def test_sizes_that_differ_name_exif_as_the_cause(source, capsys):
    Image.fromarray(pixels(1)).save(source / "images" / "a1.png", exif=turned(6))
    prepare(source, code=2)
    said = capsys.readouterr().err
    assert "a1.png: the image is 30×40 pixels and its mask 40×30" in said
    assert "the image is turned as its EXIF orientation (6) says, the mask is not" in said


def test_image_and_mask_that_are_both_turned_fit(source, capsys):
    Image.fromarray(pixels(1)).save(source / "images" / "a1.png", exif=turned(6))
    values = mask(source, 1, exif=turned(6))
    assert np.array_equal(read_mask(prepare(source) / "masks" / "a1.png"), np.rot90(values, 3))
    assert "note: 1 of 3 masks have an EXIF orientation (a1.png) and were turned" in capsys.readouterr().out


def test_check_knows_of_turned_images_in_a_set_that_was_made_by_hand(source, capsys):
    out = prepare(source)
    Image.fromarray(pixels(0)).save(out / "images" / "a0.png", exif=turned(3))
    Image.fromarray(pixels(1)).save(out / "images" / "a1.png", exif=turned(8))
    main(["check", str(out)])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "orientation (3)" in said
    assert "orientation turns it" in said


def test_check_finds_a_palette_that_was_made_anew(source, capsys):
    out = prepare(source)
    for seed, table in ((0, [255, 0, 0, 0, 0, 0]), (1, [0, 0, 0, 255, 0, 0])):
        label = Image.fromarray(read_mask(out / "masks" / f"a{seed}.png"), mode="P")
        label.putpalette(table)
        label.save(out / "masks" / f"a{seed}.png")
    assert main(["check", str(out)]) == 1
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert said.count("has a palette that shows 0") == 1
    assert "(255, 0, 0)" in said


# Four channels


def four_channels(path: Path, **options) -> np.ndarray:
    tifffile = pytest.importorskip("tifffile")
    values = np.dstack([pixels(0), pixels(9)[..., 0]])
    values[..., 3] = values[..., 3] // 2
    tifffile.imwrite(path, values, photometric="rgb", **options)
    return values


def without_extra_samples(path: Path) -> np.ndarray:
    """A TIFF of four samples that says nothing of the fourth."""
    values = four_channels(path)
    body = path.read_bytes()
    offset = struct.unpack("<I", body[4:8])[0]
    count = struct.unpack("<H", body[offset : offset + 2])[0]
    entries = [body[offset + 2 + 12 * i : offset + 14 + 12 * i] for i in range(count)]
    kept = [entry for entry in entries if struct.unpack("<H", entry[:2])[0] != 338]
    assert len(kept) == count - 1
    tail = body[offset + 2 + 12 * count :]
    directory = struct.pack("<H", len(kept)) + b"".join(kept) + b"\0\0\0\0" + b"\0" * 8
    path.write_bytes(body[:offset] + directory + tail)
    return values


@pytest.mark.parametrize("kind", ["unspecified", "absent"])
def test_near_infrared_beside_rgb_is_dropped_and_said(source, capsys, kind):
    path = source / "images" / "a0.tif"
    (source / "images" / "a0.png").unlink()
    if kind == "absent":
        values = without_extra_samples(path)
        with Image.open(path) as image:
            assert image.mode == "RGBA", "Pillow takes it for transparency"
            assert 338 not in image.tag_v2
    else:
        values = four_channels(path, extrasamples=["unspecified"])
    out = prepare(source)
    assert np.array_equal(read_image(out / "images" / "a0.png"), values[..., :3])
    said = capsys.readouterr().out
    assert "note: 1 image, a0.tif, with four channels and no transparency: the first three were taken as RGB." in said


def test_transparency_is_laid_on_white_and_said_where_nothing_is_opaque(source, capsys):
    path = source / "images" / "a0.tif"
    (source / "images" / "a0.png").unlink()
    values = four_channels(path, extrasamples=["unassalpha"])
    read, facts = read_image_and_facts(path)
    opacity = values[..., 3:] / 255
    assert np.abs(read - (values[..., :3] * opacity + 255 * (1 - opacity))).max() <= 1
    assert facts.never_opaque
    prepare(source)
    assert "note: 1 image, a0.tif, with a transparency that leaves no pixel opaque" in capsys.readouterr().out


def test_transparency_with_opaque_pixels_is_no_word_worth(source, capsys):
    rgba = np.dstack([pixels(0), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    rgba[:5, :, 3] = 0
    Image.fromarray(rgba).save(source / "images" / "a0.png")
    out = prepare(source)
    assert (read_image(out / "images" / "a0.png")[:5] == 255).all()
    assert "no pixel opaque" not in capsys.readouterr().out


# WhiteIsZero: what one sees of an image


def test_inverted_images_are_read_as_they_are_shown(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    grey = pixels(0)[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 1], 255 - grey)


@pytest.mark.parametrize("compression", ["zstd", "jpeg2000"])
def test_what_pillow_lacks_is_read_by_tifffile(tmp_path, compression):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", pixels(0), photometric="rgb", compression=compression)
    assert np.array_equal(read_image(tmp_path / "a.tif"), pixels(0))


def test_what_neither_reads_is_one_sentence(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", pixels(0)[..., 0].astype(np.int64))
    with pytest.raises(InputError, match=r"a\.tif: holds int64 of shape \(30, 40\): convert it to 8-bit RGB"):
        read_image(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(b"II*\0 and no more")
    with pytest.raises(InputError, match=r"a\.tif: cannot be decoded"):
        read_image(tmp_path / "a.tif")


# Size


@pytest.fixture
def limit():
    """Puts the process's limit back."""
    yield
    stored.allow_megapixels(stored.MOST_MEGAPIXELS)


def huge_png(path: Path, width: int, height: int) -> Path:
    """A few bytes that say they are a picture of that size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


def test_a_bomb_is_refused_by_its_size_before_it_is_decoded(source, capsys):
    huge_png(source / "images" / "a1.png", 60_000, 50_000)
    prepare(source, code=2)
    said = capsys.readouterr().err
    assert "a1.png: is 60000×50000 pixels, 3000 megapixels, and the limit is 300: cut it into patches" in said
    assert "--most-megapixels 3000" in said
    assert "take it out of the data" not in said


def test_bombs_in_tiff_and_masks_are_refused_too(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for dtype in (np.uint8, np.int64):
        path = tmp_path / f"{dtype.__name__}.tif"
        tifffile.imwrite(path, np.zeros((32, 32), dtype))
        with tifffile.TiffFile(path, mode="r+") as file:
            for tag in ("ImageWidth", "ImageLength"):
                file.pages[0].tags[tag].overwrite(40_000)
        for read in (read_image, read_mask):
            with pytest.raises(InputError, match="40000×40000 pixels, 1600 megapixels, and the limit is 300"):
                read(path)
        path.unlink()


def test_the_limit_is_an_option_of_prepare(source, capsys, limit):
    prepare(source, "--most-megapixels", "0.001", code=2)
    assert "a0.png: is 40×30 pixels, 1 megapixels, and the limit is 0.001" in capsys.readouterr().err
    prepare(source, "--most-megapixels", "0", code=2)
    assert "--most-megapixels 0: must be above 0." in capsys.readouterr().err
    prepare(source, "--most-megapixels", "0.002")


def test_the_limit_is_an_option_of_prototypes_too(tmp_path, limit):
    Image.fromarray(pixels(0)).save(tmp_path / "a.png")
    words = ["prototypes", str(tmp_path), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    assert main([*words, "--most-megapixels", "0.001"]) == 2
    with pytest.raises(InputError, match=r"the limit is 0\.001"):
        read_image(tmp_path / "a.png")
    main(words)
    read_image(tmp_path / "a.png")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_region_of_182_megapixels_is_read(tmp_path, suffix):
    path = tmp_path / f"region.{suffix}"
    Image.new("L", (14_000, 13_000), 7).save(path)
    read = read_mask(path)
    assert read.shape == (13_000, 14_000)
    assert (read[::1000, ::1000] == 7).all()
    assert Image.MAX_IMAGE_PIXELS == 89_478_485, "Pillow's own limit is for others, and stays"


# Pictures of Pillow


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "LA", "RGBA"])
def test_pictures_of_pillow_are_converted_as_files_are(tmp_path, mode):
    image = Image.fromarray(pixels(0)).convert(mode)
    image.save(tmp_path / "a.png")
    assert np.array_equal(pixels_of(image), read_image(tmp_path / "a.png"))


def test_pictures_of_pillow_are_turned_or_refused():
    image = Image.fromarray(pixels(0))
    image.getexif()[0x0112] = 6
    assert np.array_equal(pixels_of(image), np.rot90(pixels(0), 3))
    for mode in ("CMYK", "I", "F", "I;16"):
        with pytest.raises(InputError, match=f"the picture of mode {mode}: "):
            pixels_of(Image.new(mode, (20, 20)))


@pytest.mark.slow
def test_predict_takes_images_of_every_kind_or_says_what_it_takes(tmp_path):
    from mpamatch import load
    from mpamatch.engine.loop import train
    from tests.tiny import silent, tiny_config

    prepared = make_set(tmp_path / "set")
    train(tiny_config(prepared.root), tmp_path / "run", console=silent())
    model = load(tmp_path / "run", "cpu")
    path = prepared.image_path(prepared.parts["test"][0])
    label = model.predict(path)
    with Image.open(path) as image:
        assert np.array_equal(model.predict(image), label)
        assert np.array_equal(model.predict(image.convert("RGBA")), label)
    assert np.array_equal(model.predict(str(path)), label)
    assert np.array_equal(model.predict(read_image(path)), label)
    for wrong in (None, [1, 2], b"bytes", 3):
        with pytest.raises(InputError, match=f"image of type {type(wrong).__name__}: give an array"):
            model.predict(wrong)
    for array in (read_image(path)[..., 0], read_image(path) / 255, np.zeros((20, 20, 4), np.uint8)):
        with pytest.raises(InputError, match=r"must be \(H, W, 3\) uint8"):
            model.predict(array)
    with pytest.raises(InputError, match="30000×30000 pixels, 900 megapixels, and the limit is 300"):
        model.predict(huge_png(tmp_path / "huge.png", 30_000, 30_000))
