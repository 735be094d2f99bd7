"""The slide that make_slide makes is what it says: opened by OpenSlide, with its true regions."""

import sys

import numpy as np
import pytest
import shapely

from mpamatch.benchmarks import make_slide
from mpamatch.errors import InputError
from mpamatch.images import default_colour
from mpamatch.slides.annotations.read import read_annotations
from mpamatch.slides.reader import open_slide
from mpamatch.slides.tissue import find_tissue

SIZE = 1500  # no whole number of tiles or photographs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "slide.tif"
    return path, *make_slide.make_slide(path, SIZE, mpp=0.25, seed=3, truth=path.with_name("truth.geojson"))


def test_openslide_opens_it(made):
    path, layout, regions = made
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert slide.mpp == pytest.approx(0.25)
        assert [level.width for level in slide.levels] == [1500, 750, 375]
        pixels = slide.read(0, 0, SIZE, SIZE)
        for row, column in np.ndindex(layout.index.shape):
            cell = pixels[row * 224 + 8 : row * 224 + 216, column * 224 + 8 : column * 224 + 216]
            if cell.size:
                assert (np.ptp(cell, axis=(0, 1)).max() > 40) == (layout.index[row, column] >= 0)
        smaller = slide.read(0, 0, 750, 750, level=1).astype(int)
        averaged = pixels.reshape(750, 2, 750, 2, 3).mean(axis=(1, 3))
        assert np.abs(smaller - averaged).mean() < 3
        tissue = find_tissue(slide)
    assert tissue.square_millimetres == pytest.approx(sum(one.area for one in regions.values()) * 0.00025**2, rel=0.1)


def test_one_piece_is_pale_and_one_dark(made):
    path, layout, _ = made
    assert set(np.unique(layout.stain)) == {0, *make_slide.STAIN.values()}
    with open_slide(path) as slide:
        means = [
            slide.read(*[224 * at for at in np.argwhere(layout.stain == one)[0][::-1]], 224, 224).mean()
            for one in make_slide.STAIN.values()
        ]
    assert means[0] > means[1] + 60


def test_its_regions_are_true_and_as_qupath_writes_them(made):
    path, layout, regions = made
    truth = read_annotations([path.with_name("truth.geojson")])
    assert truth.remarks == ()
    for number, (name, region) in enumerate(regions.items()):
        of_class = [one for one in truth.regions if one.class_name == name]
        assert all(one.color == default_colour(number + 1) for one in of_class)
        assert shapely.union_all([one.geometry for one in of_class]).symmetric_difference(region).area == 0
    marked = read_annotations([path.with_suffix(".geojson")])
    whole = [one.geometry for one in marked.regions if one.class_name == "Region*"]
    assert len(whole) == 2
    inside = [one for one in marked.regions if one.class_name != "Region*"]
    assert {one.class_name for one in inside} <= set(layout.names[1:])
    assert inside
    for one in inside:
        assert shapely.union_all(whole).covers(one.geometry)
        assert regions[one.class_name].buffer(1e-6).covers(one.geometry)


def test_the_same_seed_is_the_same_slide(made, tmp_path):
    path, _, _ = made
    make_slide.make_slide(tmp_path / "slide.tif", SIZE, mpp=0.25, seed=3, truth=tmp_path / "truth.geojson")
    for name in ("slide.geojson", "truth.geojson"):
        assert (tmp_path / name).read_text() == path.with_name(name).read_text()
    with open_slide(path) as one, open_slide(tmp_path / "slide.tif") as other:
        np.testing.assert_array_equal(one.read(0, 0, SIZE, SIZE), other.read(0, 0, SIZE, SIZE))


def test_what_cannot_be_made_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_slide", str(tmp_path / "a.tif"), "--size", "100"])
    with pytest.raises(InputError, match="--size 100: must be at least 1024"):
        make_slide.main()
    with pytest.raises(InputError, match="holds no Normal/image"):
        make_slide.make_slide(tmp_path / "a.tif", 1024, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real
def test_pale_and_dark_real_tissue_is_found(tmp_path, ebhi_seg):
    path = tmp_path / "slide.tif"
    _, regions = make_slide.make_slide(path, 4096, ebhi_seg, mpp=0.5)
    with open_slide(path) as slide:
        tissue = find_tissue(slide)
    rows, columns = np.indices(tissue.mask.shape)
    truth = shapely.contains_xy(
        shapely.union_all(list(regions.values())), (columns + 0.5) * tissue.scale, (rows + 0.5) * tissue.scale
    )
    for half in (np.s_[:, :128], np.s_[:, 128:]):
        found, true = tissue.mask[half], truth[half]
        assert (found & true).sum() / true.sum() > 0.99
        assert (found & true).sum() / found.sum() > 0.95
