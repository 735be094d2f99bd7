"""Slides are read the same by every library, in parts as in one piece, and a bad file is told in one sentence."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mpamatch.errors import InputError
from mpamatch.slides import reader
from mpamatch.slides.reader import Box, Level, is_slide, open_slide
from mpamatch.slides.sources import openslide as openslide_source
from mpamatch.slides.sources import plain
from mpamatch.slides.sources.tiff import TiffSource
from tests.slides.files import TILE, corrupt_tile, tissue, write_ome, write_slide

JPEG_NOISE = 12  # mean difference of a JPEG of made-up tissue from itself is near 6


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "slide[1].tif")


def test_a_pyramid_says_what_it_is(pyramid):
    with open_slide(pyramid) as slide:
        assert slide.path == pyramid
        assert slide.reader == "openslide"
        assert slide.size == (640, 512)
        assert slide.levels == (Level(640, 512, 1.0), Level(320, 256, 2.0), Level(160, 128, 4.0))
        assert slide.mpp == pytest.approx(0.5)
        assert slide.bounds is None
        assert slide.remarks == ()
        difference = np.abs(slide.read(0, 0, 640, 512).astype(int) - tissue())
        assert difference.mean() < JPEG_NOISE
        assert slide.bad_tiles == 0


@pytest.mark.parametrize("level", range(3))
def test_tifffile_reads_what_openslide_reads(pyramid, level):
    other = TiffSource(pyramid)
    with open_slide(pyramid) as slide:
        assert other.levels == slide.levels
        assert other.microns == pytest.approx(slide.mpp)
        width, height = slide.levels[level].width, slide.levels[level].height
        for box in (Box(0, 0, width, height), Box(37, 5, 90, 120), Box(width - 1, height - 1, 1, 1)):
            mine = slide.read(box.x, box.y, box.width, box.height, level)
            np.testing.assert_array_equal(other.read(box, level), mine)
    other.close()


@pytest.mark.parametrize("write", [write_slide, write_ome])
def test_outside_of_the_slide_is_white(write, tmp_path):
    with open_slide(write(tmp_path / "a.ome.tif")) as slide:
        region = slide.read(-10, 500, 30, 20)
        assert region.shape == (20, 30, 3)
        assert region.dtype == np.uint8
        np.testing.assert_array_equal(region[:12, 10:], slide.read(0, 500, 20, 12))
        assert (region[12:] == 255).all()
        assert (region[:, :10] == 255).all()
        assert (slide.read(5000, 5000, 3, 2) == 255).all()
        assert slide.read(0, 0, 0, 4).shape == (4, 0, 3)


@pytest.mark.parametrize("mpp", [0.5, 0.508, 0.3, 0.7, 1.0, 1.37, 2.6, 7.3])
def test_a_view_in_parts_is_bitwise_the_view_whole(pyramid, mpp):
    with open_slide(pyramid) as slide:
        view = slide.at(mpp)
        width, height = view.size
        assert (width, height) == pytest.approx((640 / view.scale, 512 / view.scale), abs=0.5)
        assert view.mpp == pytest.approx(mpp, rel=0.0201)
        assert view.mpp == pytest.approx(slide.mpp * view.scale)
        whole = view.read(0, 0, width, height)
        parts = np.zeros_like(whole)
        for y in range(0, height, 53):
            for x in range(0, width, 71):
                parts[y : y + 53, x : x + 71] = view.read(x, y, min(71, width - x), min(53, height - y))
        np.testing.assert_array_equal(parts, whole)
        beyond = view.read(-3, height - 2, 7, 4)
        np.testing.assert_array_equal(beyond[:2, 3:], whole[-2:, :4])
        assert (beyond[2:] == 255).all()
        assert (beyond[:, :3] == 255).all()


def test_blocks_in_memory_do_not_show(pyramid, monkeypatch):
    with open_slide(pyramid) as slide:
        view = slide.at(0.7)
        whole = view.read(0, 0, *view.size)
        monkeypatch.setattr("mpamatch.slides.resample.MOST_READ", 1000)
        np.testing.assert_array_equal(view.read(0, 0, *view.size), whole)


def test_a_level_within_two_percent_is_taken_as_it_is(pyramid):
    with open_slide(pyramid) as slide:
        view = slide.at(0.99)
        assert view.scale == 2.0
        assert view.mpp == pytest.approx(1.0)
        np.testing.assert_array_equal(view.read(3, 4, 50, 60), slide.read(3, 4, 50, 60, level=1))


def test_resampling_keeps_places_and_means(tmp_path):
    """A ramp resampled is the ramp at the middle of each pixel of the view: nothing is shifted."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 256, axis=0)
    path = write_slide(tmp_path / "ramp.tif", np.repeat(ramp[..., None], 3, axis=2), levels=1, compression=None)
    with open_slide(path) as slide:
        for mpp in (0.6, 1.0, 2.0, 2.5, 5.0):
            view = slide.at(mpp)
            read = view.read(0, 0, *view.size)[5, :, 0].astype(float)
            middle = (np.arange(view.size[0]) + 0.5) * view.scale - 0.5
            inner = slice(3, -3)
            assert np.abs(read - middle)[inner].max() <= 0.51, mpp


def test_levels_off_the_whole_numbers_are_seamless(tmp_path):
    """A side of 1001 halved is 501: OpenSlide then shifts each region by its own part of a pixel."""
    image = synthetic_odd()
    with open_slide(write_slide(tmp_path / "odd.tif", image, levels=2)) as slide:
        assert not slide.levels[1].downsample.is_integer()
        view = slide.at(1.0)
        whole = view.read(0, 0, *view.size)
        for x, y in ((0, 0), (13, 77), (250, 130)):
            np.testing.assert_array_equal(view.read(x, y, 90, 81), whole[y : y + 81, x : x + 90])


def synthetic_odd() -> np.ndarray:
    return np.pad(tissue(), ((0, 1), (0, 361), (0, 0)), mode="reflect")


@pytest.mark.parametrize("compression", ["jpeg2000", "webp", "jpegxl", "deflate"])
def test_compressions_that_openslide_lacks(compression, tmp_path):
    path = write_slide(tmp_path / "slide.tif", levels=2, compression=compression)
    with open_slide(path) as slide:
        assert slide.reader == ("openslide" if compression == "deflate" else "tifffile")
        assert len(slide.levels) == 2
        assert slide.mpp == pytest.approx(0.5)
        assert np.abs(slide.read(0, 0, 640, 512).astype(int) - tissue()).mean() < JPEG_NOISE
    assert is_slide(path)


def test_ome_tiff_has_its_levels_and_its_size_of_pixel(tmp_path):
    path = write_ome(tmp_path / "slide.ome.tiff", PhysicalSizeX=500, PhysicalSizeXUnit="nm")
    with open_slide(path) as slide:
        assert slide.reader == "tifffile"
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert slide.mpp == pytest.approx(0.5)
        np.testing.assert_array_equal(slide.read(100, 40, 300, 200), tissue()[40:240, 100:400])
        np.testing.assert_array_equal(slide.read(0, 0, 160, 128, level=2), tissue()[::4, ::4])
    assert is_slide(path)


def test_ome_tiff_of_three_planes(tmp_path):
    planes = np.ascontiguousarray(tissue().transpose(2, 0, 1))
    with open_slide(write_ome(tmp_path / "slide.ome.tif", planes, axes="CYX")) as slide:
        np.testing.assert_array_equal(slide.read(100, 40, 300, 200), tissue()[40:240, 100:400])
        np.testing.assert_array_equal(slide.read(0, 0, 160, 128, level=2), tissue()[::4, ::4])


def test_planes_apart_in_one_page(tmp_path):
    planes = np.ascontiguousarray(tissue().transpose(2, 0, 1))
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, planes, tile=(TILE, TILE), photometric="rgb", planarconfig="separate", metadata=None)
    source = TiffSource(path)
    np.testing.assert_array_equal(source.read(Box(100, 40, 300, 200), 0), tissue()[40:240, 100:400])
    source.close()


def test_sixteen_bits_are_scaled_and_said(tmp_path):
    deep = tissue().astype(np.uint16) * 257
    with open_slide(write_slide(tmp_path / "deep.tif", deep, compression="deflate")) as slide:
        assert slide.reader == "tifffile"
        np.testing.assert_array_equal(slide.read(0, 0, 640, 512), tissue())
        assert slide.remarks == ("holds 16 bits per channel, scaled to 8 with 65535 as white.",)


def test_twelve_bits_are_scaled_by_what_ome_says(tmp_path):
    deep = tissue().astype(np.uint16) * 16
    path = tmp_path / "deep.ome.tif"
    write_ome(path, deep, SignificantBits=12)
    with open_slide(path) as slide:
        assert "4095 as white" in slide.remarks[0]
        assert np.abs(slide.read(0, 0, 640, 512).astype(int) - tissue()).max() <= 1


def test_greys_become_rgb(tmp_path):
    grey = np.ascontiguousarray(tissue()[..., 0])
    with open_slide(write_slide(tmp_path / "grey.tif", grey, compression="deflate")) as slide:
        read = slide.read(0, 0, 640, 512)
        np.testing.assert_array_equal(read, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("compression", ["deflate", "webp"])
def test_transparency_is_laid_on_white(compression, tmp_path):
    alpha = np.full((512, 640, 1), 255, dtype=np.uint8)
    alpha[:256] = 0
    rgba = np.concatenate([tissue(), alpha], axis=2)
    path = tmp_path / "clear.tif"
    options = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    tile = {"tile": (TILE, TILE), "extrasamples": ["unassalpha"], "metadata": None}
    tifffile.imwrite(path, rgba, photometric="rgb", compression=compression, **tile, **options)
    with open_slide(path) as slide:
        read = slide.read(0, 0, 640, 512)
        assert (read[:256] == 255).all()
        np.testing.assert_array_equal(read[256:], tissue()[256:])


@pytest.mark.parametrize("compression", ["jpeg", "webp"])
def test_one_corrupt_tile_is_white_and_counted_once(compression, tmp_path):
    path = write_slide(tmp_path / "slide.tif", compression=compression)
    with open_slide(path) as slide:
        expected = slide.read(0, 0, 640, 512)
    corrupt_tile(path, 6)  # second row, second column: 5 tiles in a row
    expected[128:256, 128:256] = 255
    with open_slide(path) as slide:
        for _ in range(2):
            np.testing.assert_array_equal(slide.read(0, 0, 640, 512), expected)
            np.testing.assert_array_equal(slide.read(200, 100, 100, 200), expected[100:300, 200:300])
        assert slide.bad_tiles == 1
        assert slide.is_damaged(Box(200, 100, 100, 200))
        assert slide.is_damaged(Box(255, 255, 9, 9))
        assert not slide.is_damaged(Box(256, 0, 300, 300))
        assert not slide.is_damaged(Box(0, 0, 300, 128))
        np.testing.assert_array_equal(slide.read(300, 300, 50, 60), expected[300:360, 300:350])


def test_a_dead_handle_is_replaced(tmp_path, monkeypatch):
    """Otherwise every later region would be read tile by tile, with a handle of its own."""
    path = write_slide(tmp_path / "slide.tif")
    corrupt_tile(path, 6)
    source = openslide_source.OpenSlideSource(path)
    source.read(Box(0, 0, 640, 512), 0)
    assert source.bad == {(0, 1, 1)}
    monkeypatch.setattr(source, "_rescued", lambda *_: pytest.fail("the handle is still dead"))
    assert source.read(Box(300, 300, 200, 200), 0).std() > 0
    source.close()


def test_threads_read_beside_a_corrupt_tile(tmp_path):
    path = write_slide(tmp_path / "slide.tif")
    with open_slide(path) as slide:
        expected = slide.read(0, 0, 640, 512)
    corrupt_tile(path, 6)
    expected[128:256, 128:256] = 255
    boxes = [(x, y) for y in range(0, 448, 32) for x in range(0, 576, 32)]
    with open_slide(path) as slide, ThreadPoolExecutor(8) as pool:
        for (x, y), read in zip(boxes, pool.map(lambda box: slide.read(*box, 64, 64), boxes), strict=True):
            np.testing.assert_array_equal(read, expected[y : y + 64, x : x + 64])
        assert slide.bad_tiles == 1


def test_a_size_of_pixel_that_no_slide_has_is_not_believed(tmp_path):
    path = write_slide(tmp_path / "dots.tif", mpp=25400 / 72, unit="INCH")
    with open_slide(path) as slide:
        assert slide.mpp is None
        assert slide.remarks == ("says 352.8 µm per pixel, which no slide has: they are not known.",)
        with pytest.raises(InputError, match=r"dots\.tif: does not say how large .* --slide-mpp"):
            slide.at(0.5)
    with open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25
        assert slide.at(0.5).scale == 2
        assert "taken as 0.25" in slide.remarks[0]


def test_a_size_of_pixel_is_given_only_where_the_file_has_none(tmp_path):
    with open_slide(write_slide(tmp_path / "none.tif", mpp=None), mpp=0.3) as slide:
        assert (slide.mpp, slide.remarks) == (0.3, ())
    with open_slide(write_slide(tmp_path / "half.tif"), mpp=0.3) as slide:
        assert slide.mpp == pytest.approx(0.5)
        assert slide.remarks == ("says 0.5 µm per pixel itself, which is taken, not the 0.3 given.",)
    for wrong in (0, -1, 352.8, float("nan")):
        with pytest.raises(InputError, match=r"none\.tif: must be from 0\.05 to 10"):
            open_slide(tmp_path / "none.tif", mpp=wrong)


def test_bounds_are_those_that_qupath_crops_to():
    level = Level(1000, 800, 1.0)
    names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]

    def bounds(*values: int) -> Box | None:
        return openslide_source._bounds(dict(zip(names, map(str, values), strict=True)), level)

    assert bounds(10, 20, 300, 400) == Box(10, 20, 300, 400)
    assert bounds(0, 0, 1000, 800) is None
    assert bounds(10, 0, 900, 800) is None, "QuPath crops only if both sides differ"
    assert openslide_source._bounds({}, level) is None


def test_pixels_that_are_no_squares_are_said(tmp_path, monkeypatch):
    found = openslide_source._microns({"openslide.mpp-x": "0.4", "openslide.mpp-y": "0.6"})
    assert found == (0.5, ("its pixels are 0.4×0.6 µm and taken as squares of the mean side.",))


def test_a_plain_picture_is_a_slide_of_one_level(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.fromarray(tissue()).save(path)
    assert not is_slide(path)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.reader == "pillow"
        assert slide.levels == (Level(640, 512, 1.0),)
        np.testing.assert_array_equal(slide.read(3, 4, 50, 60), tissue()[4:64, 3:53])
        assert slide.at(1.0).size == (320, 256)
    monkeypatch.setattr(reader, "LARGE", 640 * 512 - 1)
    assert is_slide(path)
    monkeypatch.setattr(plain, "MOST_PIXELS", 1000)
    with pytest.raises(InputError, match=r"photo\.png: is 640×512 pixels and can only be read whole: convert"):
        open_slide(path)


@pytest.mark.parametrize("name", ["photo.tif", "photo.png", os.fsdecode(b"photo\xff[1].jpg")])
def test_a_picture_is_read_by_what_it_holds(name, tmp_path):
    path = tmp_path / name
    _jpeg(path)
    assert not is_slide(path)
    with open_slide(path) as slide:
        assert slide.reader == "pillow"


def test_an_aperio_slide_has_its_size_of_pixel_in_words(tmp_path):
    words = "Aperio Image Library v11.2.1\n640x512 (128x128) JPEG/RGB Q=85|AppMag = 40|MPP = 0.2523"
    for compression, reads in (("jpeg", "openslide"), ("jpegxl", "tifffile")):
        path = tmp_path / f"{compression}.svs"
        options = {"description": words, "levels": 1, "mpp": None, "compression": compression}
        with open_slide(write_slide(path, **options)) as slide:
            assert slide.reader == reads
            assert slide.mpp == pytest.approx(0.2523)
        path.write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(InputError, match="is broken or cut short"):
            open_slide(path)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take names in UTF-8 alone")
def test_names_are_bytes(tmp_path):
    path = write_slide(tmp_path / os.fsdecode(b"slide\xff[1].tif"))
    assert is_slide(path)
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert slide.read(0, 0, 50, 50).std() > 0


def test_pillow_keeps_its_own_limit(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.fromarray(tissue()).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert plain.picture_size(path) == (640, 512, "PNG")
    open_slide(path).close()
    assert Image.MAX_IMAGE_PIXELS == 1000


def _strips(path: Path) -> None:
    tifffile.imwrite(path, tissue(), photometric="rgb", rowsperstrip=8)


def _cut(path: Path, share: float) -> None:
    whole = path.with_name("whole.tif")
    write_slide(whole)
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _cut_ome(path: Path) -> None:
    whole = path.with_name("whole.ome.tif")
    write_ome(whole)
    with tifffile.TiffFile(whole) as file:  # behind its directories, which are moved to the front
        assert file.pages[0].is_tiled
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) - 1000])


def _jpeg(path: Path) -> None:
    Image.fromarray(tissue()).save(path, format="JPEG")


def _stack(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((5, 256, 256), np.uint8), ome=True, tile=(TILE, TILE), metadata={"axes": "ZYX"})


def _floats(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((256, 256), np.float32), tile=(TILE, TILE))


BAD = {
    "missing": ("a.svs", lambda path: None, "no such file"),
    "folder": ("a.svs", Path.mkdir, "is a folder, not a slide"),
    "empty": ("a.svs", Path.touch, "is empty: copy it again"),
    "photo": ("a.svs", _jpeg, "is a JPEG picture and no slide"),
    "text": ("a.svs", lambda path: path.write_text("hello"), "is of no format that OpenSlide knows: convert it"),
    "strips": ("a.tif", _strips, "is a TIFF in strips, .*: convert it"),
    "cut": ("a.tif", lambda path: _cut(path, 0.3), "is broken or cut short .*: copy it again"),
    "cut at its end": ("a.tif", lambda path: _cut(path, 0.97), "is broken or cut short .*: copy it again"),
    "cut ome": ("a.ome.tif", _cut_ome, "is broken or cut short .*: copy it again"),
    "head alone": ("a.tif", lambda path: path.write_bytes(b"II*\0\x08\0\0\0"), "is broken or cut short"),
    "stack": ("a.ome.tif", _stack, "is 5 Z×256 Y×256 X, not one plane in RGB or grey: export"),
    "floats": ("a.tif", _floats, "holds values of type float32: convert it"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_in_one_sentence(name, tmp_path):
    file, make, told = BAD[name]
    path = tmp_path / file
    make(path)
    with pytest.raises(InputError, match=rf"^{path}: {told}") as caught:
        open_slide(path)
    assert str(caught.value).count("\n") == 0
    assert is_slide(path) in {True, False}


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    tiled, picture = write_slide(tmp_path / "slide.svs"), tmp_path / "photo.jpg"
    other = tmp_path / "slide.czi"
    other.write_text("ZISRAWFILE")
    Image.fromarray(tissue()).save(picture)
    for name in ("openslide", "tifffile", "imagecodecs"):
        monkeypatch.setitem(sys.modules, name, None)
    assert is_slide(tiled)
    assert is_slide(other)
    assert not is_slide(picture)
    for path in (tiled, other):
        with pytest.raises(InputError, match=rf"{path}: is read by openslide, .*: pip install 'mpamatch\[slides\]'"):
            open_slide(path)
    open_slide(picture).close()


@pytest.mark.parametrize(("tag", "value"), [(256, 10**6), (257, 2**32 - 1), (322, 2**20), (323, 16)])
def test_sides_that_the_index_of_tiles_does_not_cover(tmp_path, tag, value):
    """OpenSlide would read the rest as white, and tifffile a tile of gigabytes."""
    path = write_slide(tmp_path / "a.tif", compression="deflate", levels=1)
    with tifffile.TiffFile(path) as file:
        entry = file.pages[0].tags[tag].offset
    data = bytearray(path.read_bytes())
    data[entry + 2 : entry + 12] = (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"^{path}: is broken or cut short \(.*tiles"):
        open_slide(path)


def test_an_empty_picture_of_gigapixels_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (30_000, 30_000)).save(path)
    with pytest.raises(InputError, match=r"says that it is 30000×30000 pixels, and has .* bytes, as no tissue does"):
        open_slide(path)
