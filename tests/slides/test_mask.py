"""A mask is the label, in any reader of TIFFs, with its pyramid, its size of pixel and its place."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from mpamatch.errors import InputError
from mpamatch.slides import mask as module
from mpamatch.slides.mask import MaskFile, MaskInfo, write_mask
from mpamatch.slides.reader import is_slide, open_slide
from tests.slides.test_outlines import blobs

INFO = MaskInfo(0.503, 2.0, (100, 20), ("background", 'gland <ü> & "x"'), "slide ü.svs")


def write(path: Path, label: np.ndarray, heights: tuple[int, ...] = (7, 600, 1, 512)) -> Path:
    def rows() -> Iterator[np.ndarray]:
        at, turn = 0, 0
        while at < len(label):
            yield label[at : at + heights[turn % len(heights)]]
            at, turn = at + heights[turn % len(heights)], turn + 1

    write_mask(path, (label.shape[1], label.shape[0]), rows, INFO)
    return path


@pytest.fixture(scope="module")
def label() -> np.ndarray:
    return blobs(1333, 2100, sigma=6.0)


def test_memory_does_not_grow_with_the_height(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come one after another, as from the bands of a slide; a level that is held takes its own pixels alone."""
    monkeypatch.setattr(module, "HELD", 200_000)
    peaks = []
    for height in (4096, 16384):
        tracemalloc.start()
        rows = lambda height=height: (np.ones((256, 2048), dtype=np.uint8) for _ in range(0, height, 256))  # noqa: E731
        write_mask(tmp_path / "a.ome.tif", (2048, height), rows, INFO)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 8 * 2**20
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize("held", [10**9, 0])
def test_every_level_is_every_second_pixel_of_the_one_before(
    tmp_path: Path, label: np.ndarray, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(module, "HELD", held)
    with tifffile.TiffFile(write(tmp_path / "a.ome.tif", label)) as tiff:
        assert tiff.is_ome
        levels = tiff.series[0].levels
        assert [level.shape for level in levels] == [(1333, 2100), (667, 1050), (334, 525)]
        for number, level in enumerate(levels):
            assert (level.asarray() == label[:: 2**number, :: 2**number]).all()
            page = level.pages[0]
            assert (page.is_tiled, page.compression.name) == (True, "ADOBE_DEFLATE")
            assert page.resolution[0] == pytest.approx(1e4 / (0.503 * 2**number), rel=1e-5)
        root = ElementTree.fromstring(tiff.pages[0].description.encode())
    pixels = root.find(".//{*}Pixels")
    assert float(pixels.get("PhysicalSizeX")) == float(pixels.get("PhysicalSizeY")) == 0.503
    assert pixels.get("PhysicalSizeXUnit") == "µm"


def test_heights_of_the_rows_change_no_byte(tmp_path: Path, label: np.ndarray) -> None:
    files = [write(tmp_path / f"{at}.ome.tif", label, heights) for at, heights in enumerate([(7, 600), (5000,), (1,)])]
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize("size", [(1, 1), (512, 512), (513, 511), (30, 1025)])
def test_it_is_read_back_region_by_region(tmp_path: Path, label: np.ndarray, size: tuple[int, int]) -> None:
    label = label[: size[0], : size[1]]
    with MaskFile(write(tmp_path / "a.ome.tif", label)) as found:
        assert (found.shape, found.mpp, found.origin, found.info) == (size, 0.503, (100, 20), INFO)
        assert found.dtype == np.uint8
        assert (found.array() == label).all()
        assert (np.asarray(found) == label).all()
        for place in (np.s_[3:500, 100:513], np.s_[-10:, ::3], np.s_[5:5, :], np.s_[:10000, 7:8]):
            assert np.array_equal(found[place], label[place])
        with pytest.raises(IndexError):
            found[::-1, :]


def test_it_is_read_as_a_slide_is(tmp_path: Path, label: np.ndarray) -> None:
    path = write(tmp_path / "a.ome.tif", label)
    assert is_slide(path)
    with open_slide(path) as slide:
        assert slide.size == (2100, 1333)
        assert (slide.read(100, 200, 300, 150)[..., 0] == label[200:350, 100:400]).all()


def test_what_is_no_mask_is_told(tmp_path: Path, label: np.ndarray) -> None:
    with pytest.raises(InputError, match="no such file"):
        MaskFile(tmp_path / "gone.ome.tif")
    (tmp_path / "text.ome.tif").write_text("no TIFF")
    with pytest.raises(InputError, match="is no mask"):
        MaskFile(tmp_path / "text.ome.tif")
    tifffile.imwrite(tmp_path / "other.ome.tif", label)
    with pytest.raises(InputError, match="is no mask that mpamatch wrote"):
        MaskFile(tmp_path / "other.ome.tif")
