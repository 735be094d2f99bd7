"""Whole slides: the label of plain prediction, whatever the bands, the blocks, the pieces read, or the kills."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from mpamatch.errors import InputError
from mpamatch.files import UNFINISHED
from mpamatch.inference import bands as bands_module
from mpamatch.inference.slides import AROUND, SlideOptions, SlideResult, predict_slide, predict_slides
from mpamatch.inference.tiles import origins
from mpamatch.slides import bands as strips
from mpamatch.slides import regions as regions_module
from mpamatch.slides.mask import MaskFile
from mpamatch.slides.reader import open_slide
from mpamatch.slides.shards import Shard
from tests.inference.slides import CLASSES, island, make_slide, small_segmenter
from tests.slides.files import corrupt_tile, tissue
from tests.slides.qupath import problems

RESULTS = ["done.json", "mask.ome.tif", "regions.geojson.gz", "slide.json", "thumbnail.jpg", "tissue.geojson"]
ALL = SlideOptions(tissue="all")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def by_hand(segmenter, image: np.ndarray) -> np.ndarray:
    """The label of an image at least a window large: each row of windows in batches of its own, one after another."""
    settings = segmenter.settings
    window, stride = settings.window, int(settings.window * (1 - settings.overlap))
    height, width = image.shape[:2]
    tops, lefts = origins(height, window, stride), origins(width, window, stride)
    wave = np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2
    along = []
    for length, starts in ((height, tops), (width, lefts)):
        total = np.zeros(length)
        for start in starts:
            total[start : start + window] += wave
        along.append({start: (wave / total[start : start + window]).astype(np.float32) for start in starts})
    total = torch.zeros((len(CLASSES), height, width))
    for top in tops:
        for first in range(0, len(lefts), settings.batch):
            some = lefts[first : first + settings.batch]
            cut = np.stack([image[top : top + window, left : left + window] for left in some])
            x = torch.from_numpy(cut).permute(0, 3, 1, 2).contiguous().float()
            mean, std = (255 * torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
            found = segmenter.model((x - mean) / std).logits.softmax(dim=1)
            for left, probability in zip(some, found, strict=True):
                share = torch.from_numpy(np.outer(along[0][top], along[1][left]))
                total[:, top : top + window, left : left + window] += probability * share
    return total.argmax(dim=0).numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_slide(tmp_path_factory.mktemp("slides") / "a.tif")


@pytest.fixture(scope="module")
def done(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> SlideResult:
    return predict_slide(small_segmenter(), slide, tmp_path_factory.mktemp("done") / "a", SlideOptions())


def test_a_slide_has_bitwise_the_label_of_its_windows_in_memory(tmp_path: Path) -> None:
    image = tissue(200, 310)
    slide = make_slide(tmp_path / "a.tif", image)
    result = predict_slide(small_segmenter(), slide, tmp_path / "out", ALL)
    assert (result.label.array() == by_hand(small_segmenter(), image)).all()
    assert len(np.unique(result.label.array())) == len(CLASSES)


def test_plain_prediction_differs_by_last_bits_alone(tmp_path: Path) -> None:
    """Its batches run on from row to row."""
    image = tissue(200, 310)
    result = predict_slide(small_segmenter(), make_slide(tmp_path / "a.tif", image), tmp_path / "out", ALL)
    assert (result.label.array() != small_segmenter().predict(image)).mean() < 1e-3


def test_where_there_is_tissue_the_label_is_that_of_all_windows(done: SlideResult) -> None:
    """Windows that touch no tissue are not run, and what they alone cover is 255."""
    label, whole = done.label.array(), by_hand(small_segmenter(), island())
    seen = label != 255
    assert (label[seen] == whole[seen]).mean() > 0.9999  # batches differ, so last bits may
    assert seen[20:140, 30:180].all()
    assert seen[170:280, 200:380].all()
    assert 0.4 < seen.mean() < 0.95
    assert sum(done.pixels) == seen.sum()
    assert sum(done.tissue_pixels) < seen.sum()


def test_glass_far_from_tissue_has_no_label(tmp_path: Path, slide: Path) -> None:
    """However large the windows that touch tissue: networks learn from tissue, and call glass anything."""
    result = predict_slide(small_segmenter(window=128), slide, tmp_path / "out", SlideOptions())
    label, stained = result.label.array(), (island() != 243).any(axis=-1)
    away = ndimage.distance_transform_cdt(~stained, "chessboard") * result.mpp  # µm, along either axis
    assert (label[stained] != 255).all()
    assert (label[away > AROUND + 20] == 255).all()  # two pixels of the tissue's mask
    assert (label[(away > 0) & (away < AROUND - 20)] != 255).mean() > 0.95


@pytest.mark.parametrize(
    ("strip", "piece", "budget"), [(64, 96, 2**29), (512, 2048, 100_000), (16, 33, 90_000), (512, 2048, 1)]
)
def test_neither_pieces_nor_blocks_of_columns_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strip: int, piece: int, budget: int
) -> None:
    image = tissue(150, 310)
    slide = make_slide(tmp_path / "a.tif", image)
    whole = predict_slide(small_segmenter(), slide, tmp_path / "whole", SlideOptions(tissue="all", simplify=0))
    monkeypatch.setattr(strips, "STRIP", strip)
    monkeypatch.setattr(strips, "PIECE", piece)
    monkeypatch.setattr(bands_module.plan, "__defaults__", (budget,))
    layout, _ = bands_module.plan(small_segmenter(), (310, 150))
    assert (len(layout.blocks) > 1) == (budget < 2**29)
    cut = predict_slide(small_segmenter(), slide, tmp_path / "cut", SlideOptions(tissue="all", simplify=0))
    assert (cut.label.array() != whole.label.array()).mean() < 1e-3  # a block's batches are its own
    if budget == 2**29:
        assert (cut.folder / "mask.ome.tif").read_bytes() == (whole.folder / "mask.ome.tif").read_bytes()
    assert cut.pixels[1] == pytest.approx(whole.pixels[1], rel=1e-3)
    assert problems(cut.folder / "regions.geojson.gz") == []


def test_everything_that_is_written(done: SlideResult, slide: Path) -> None:
    assert names(done.folder) == RESULTS
    assert problems(done.folder / "regions.geojson.gz") == problems(done.folder / "tissue.geojson") == []
    with Image.open(done.folder / "thumbnail.jpg") as thumbnail:
        assert thumbnail.size == (400, 300)
    assert SlideResult.read(done.folder).record() == done.record()
    with open_slide(slide) as opened:
        assert (done.mpp, done.width, done.height) == (opened.mpp, *opened.size)
    assert (done.label.mpp, done.label.origin, done.label.info.classes) == (done.mpp, (0, 0), CLASSES)
    assert done.label.shape == (300, 400)


def test_a_model_of_other_pixels_gives_a_mask_of_its_own_size(tmp_path: Path, slide: Path) -> None:
    result = predict_slide(small_segmenter(microns=4.0), slide, tmp_path / "one", ALL)
    assert (result.width, result.height, result.mpp) == (200, 150, pytest.approx(4.0))
    halved = predict_slide(small_segmenter(microns=2.0, scale=0.5), slide, tmp_path / "two", ALL)
    assert halved.label.shape == (150, 200)
    given = predict_slide(small_segmenter(microns=None), slide, tmp_path / "three", SlideOptions(model_mpp=4.0))
    assert given.mpp == pytest.approx(4.0)
    with pytest.raises(InputError, match="--model-mpp"):
        predict_slide(small_segmenter(microns=None), slide, tmp_path / "four", ALL)
    assert not (tmp_path / "four").exists()


@pytest.mark.parametrize("size", [(20, 25), (20, 100), (100, 20), (32, 32)])
def test_a_slide_smaller_than_a_window(tmp_path: Path, size: tuple[int, int]) -> None:
    image = tissue(*size)
    result = predict_slide(small_segmenter(), make_slide(tmp_path / "a.tif", image), tmp_path / "out", ALL)
    assert result.label.shape == size
    assert (result.label.array() != small_segmenter().predict(image)).mean() < 1e-2
    assert problems(result.folder / "regions.geojson.gz") == []


def test_a_slide_without_tissue_has_empty_results_and_says_so(tmp_path: Path) -> None:
    slide = make_slide(tmp_path / "a.tif", np.full((200, 300, 3), 243, dtype=np.uint8))
    result = predict_slide(small_segmenter(), slide, tmp_path / "out", SlideOptions())
    assert names(result.folder) == RESULTS
    assert (result.label.array() == 255).all()
    assert sum(result.pixels) == 0
    assert any("no tissue" in remark for remark in result.remarks)


def test_tissue_taken_back_from_its_file_is_looked_at_alone(tmp_path: Path, slide: Path, done: SlideResult) -> None:
    options = SlideOptions(tissue=str(done.folder / "tissue.geojson"))
    again = predict_slide(small_segmenter(), slide, tmp_path / "out", options)
    assert again.pixels == again.tissue_pixels
    assert sum(again.pixels) == pytest.approx(sum(done.tissue_pixels), rel=0.05)
    inside = again.label.array() != 255
    assert (again.label.array()[inside] == done.label.array()[inside]).mean() > 0.9999


def test_a_corrupt_tile_is_counted_and_white(tmp_path: Path) -> None:
    slide = make_slide(tmp_path / "a.tif", tissue(300, 400))
    corrupt_tile(slide, 1)
    result = predict_slide(small_segmenter(), slide, tmp_path / "out", ALL)
    assert result.bad_tiles == 1


def table(out: Path) -> list[dict[str, str]]:
    with (out / "areas.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_bad_slide_among_others_costs_itself_alone(tmp_path: Path) -> None:
    slides = [make_slide(tmp_path / f"{name}.tif") for name in "abc"]
    whole = slides[1].read_bytes()
    slides[1].write_bytes(whole[: len(whole) // 3])
    skipped: list[InputError] = []
    done = predict_slides(small_segmenter(), slides, tmp_path / "out", SlideOptions(), skip=skipped.append)
    assert [one.name for one in done] == ["a", "c"]
    assert [str(slides[1]) in str(error) for error in skipped] == [True]
    assert names(tmp_path / "out") == ["a", "areas.csv", "c", "slides.json"]
    rows = table(tmp_path / "out")
    assert [row["name"] for row in rows] == ["a", "c"]
    assert sum(float(rows[0][f"{name} share"]) for name in CLASSES) == pytest.approx(1, abs=1e-5)
    area = sum(int(rows[0][f"{name} pixels"]) for name in CLASSES) * 4e-6
    assert sum(float(rows[0][f"{name} mm2"]) for name in CLASSES) == pytest.approx(area, rel=1e-4)
    with pytest.raises(InputError, match=r"b\.tif"):
        predict_slides(small_segmenter(), slides, tmp_path / "stopped", SlideOptions())
    assert [row["name"] for row in table(tmp_path / "stopped")] == ["a"]


def test_a_folder_goes_on_with_the_same_options_and_refuses_others(tmp_path: Path, slide: Path) -> None:
    out, other = tmp_path / "out", make_slide(tmp_path / "b.tif")
    predict_slides(small_segmenter(), [slide], out, SlideOptions())
    first = (out / "a" / "mask.ome.tif").stat().st_mtime_ns
    predict_slides(small_segmenter(), [slide, other], out, SlideOptions())
    assert (out / "a" / "mask.ome.tif").stat().st_mtime_ns == first
    assert [row["name"] for row in table(out)] == ["a", "b"]
    for options, what in (
        (SlideOptions(overlap=0.5), "overlap"),
        (SlideOptions(tissue="all"), "tissue"),
        (SlideOptions(origin="slide"), "origin"),
        (SlideOptions(simplify=0), "simplify"),
    ):
        with pytest.raises(InputError, match=f"other {what}"):
            predict_slides(small_segmenter(), [slide], out, options)
        with pytest.raises(InputError, match=f"other {what}"):
            predict_slide(small_segmenter(), slide, out / "a", options)
    changed = small_segmenter()
    changed.model.layers[0].weight[0, 0, 0, 0] += 1
    with pytest.raises(InputError, match="other weights"):
        predict_slides(changed, [slide], out, SlideOptions())
    with pytest.raises(InputError, match="other slide"):
        predict_slide(small_segmenter(), other, out / "a", SlideOptions())
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").write_text("mine")
    for call in (
        lambda: predict_slide(small_segmenter(), slide, tmp_path / "used", SlideOptions()),
        lambda: predict_slides(small_segmenter(), [slide], tmp_path / "used", SlideOptions()),
    ):
        with pytest.raises(InputError, match="not empty"):
            call()
    assert names(tmp_path / "used") == ["x"]


def test_shards_share_a_folder(tmp_path: Path) -> None:
    slides = [make_slide(tmp_path / f"{number}.tif", island(120, 160)) for number in range(5)]
    found = []
    for index in range(3):
        found += predict_slides(small_segmenter(), slides, tmp_path / "out", SlideOptions(), shard=Shard(index, 3))
    assert sorted(one.file for one in found) == slides
    assert [row["name"] for row in table(tmp_path / "out")] == [str(number) for number in range(5)]


def test_tissue_of_several_slides_is_a_folder(tmp_path: Path, done: SlideResult) -> None:
    slides = [make_slide(tmp_path / f"{name}.tif") for name in "ab"]
    marked = tmp_path / "tissue"
    marked.mkdir()
    for name in "ab":
        shutil.copy(done.folder / "tissue.geojson", marked / f"{name}.geojson")
    with pytest.raises(InputError, match="is of one slide"):
        predict_slides(small_segmenter(), slides, tmp_path / "out", SlideOptions(tissue=str(marked / "a.geojson")))
    with pytest.raises(InputError, match=r"gone: must be auto, all"):
        predict_slides(small_segmenter(), slides, tmp_path / "out", SlideOptions(tissue=str(tmp_path / "gone")))
    assert not (tmp_path / "out").exists()
    found = predict_slides(small_segmenter(), slides, tmp_path / "out", SlideOptions(tissue=str(marked)))
    assert found[0].pixels == found[1].pixels == found[0].tissue_pixels
    (marked / "b.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    with pytest.raises(InputError, match="other tissue"):
        predict_slides(small_segmenter(), slides, tmp_path / "out", SlideOptions(tissue=str(marked)))
    with pytest.raises(InputError, match=r"marks nothing on b\.tif"):
        predict_slides(small_segmenter(), slides, tmp_path / "new", SlideOptions(tissue=str(marked)))


def contents(folder: Path) -> dict[str, bytes]:
    """All results, without the path that done.json has."""
    return {name: (folder / name).read_bytes() for name in RESULTS}


def test_what_a_kill_leaves_of_a_record_is_no_obstacle(tmp_path: Path, slide: Path, done: SlideResult) -> None:
    for place in (
        tmp_path / "out" / f".slides.json.x1{UNFINISHED}",
        tmp_path / "alone" / f".slide.json.x1{UNFINISHED}",
    ):
        place.parent.mkdir()
        place.write_text("{")
    predict_slides(small_segmenter(), [slide], tmp_path / "out", SlideOptions())
    predict_slide(small_segmenter(), slide, tmp_path / "alone", SlideOptions())
    assert names(tmp_path / "alone") == RESULTS
    assert contents(tmp_path / "alone") == contents(tmp_path / "out" / "a") == contents(done.folder)


def test_bands_that_are_done_are_not_run_again(tmp_path: Path, slide: Path, done: SlideResult) -> None:
    """All bands but the last are there: the windows of at most two rows more are run, and the result is the same."""
    runs: list[int] = []

    class Counting:
        def begin(self, name: str, windows: int) -> None:
            runs.append(windows)

        def advance(self, windows: int) -> None:
            runs.append(windows)

    def stopped(self: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpamatch.inference.slides._Job.write", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict_slide(small_segmenter(), slide, out, SlideOptions())
    assert names(out) == ["bands", "slide.json"]
    bands = sorted((out / "bands").iterdir())
    assert len(bands) > 5
    bands[-1].unlink()
    predict_slide(small_segmenter(), slide, out, SlideOptions(), Counting())
    assert 0 < runs[0] == sum(runs[1:]) < 20
    assert contents(out) == contents(done.folder)


def test_outlines_that_began_again_are_the_same_after_a_stop(
    tmp_path: Path, slide: Path, done: SlideResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text beyond the limit: outlining begins again from the bands, before the stop and after it."""
    text = gzip.decompress((done.folder / "regions.geojson.gz").read_bytes())
    limit = int(0.5 * len(text)) + regions_module.FRAME
    monkeypatch.setattr(regions_module.SlideRegions.__init__, "__kwdefaults__", {"limit": limit})
    whole = predict_slide(small_segmenter(), slide, tmp_path / "whole", SlideOptions())
    assert any("QuPath can load it" in remark for remark in whole.remarks)
    assert len(gzip.decompress((whole.folder / "regions.geojson.gz").read_bytes())) <= limit
    assert problems(whole.folder / "regions.geojson.gz") == []
    out = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr("mpamatch.inference.slides._Job.write", lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            predict_slide(small_segmenter(), slide, out, SlideOptions())
    bands = sorted((out / "bands").iterdir())
    for band in bands[len(bands) // 2 :]:
        band.unlink()
    predict_slide(small_segmenter(), slide, out, SlideOptions())
    assert contents(out) == contents(whole.folder)


@pytest.mark.parametrize("at", ["write_mask", "write_regions", "write_tissue", "overlay", "write_json"])
def test_an_end_in_the_middle_of_writing_results_costs_nothing(
    tmp_path: Path, slide: Path, done: SlideResult, at: str
) -> None:
    """Results are written one after another; the command is ended in the middle of each."""
    from mpamatch.inference import slides as module

    whole, calls = getattr(module, at), []

    def ended(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if at == "write_json" and len(calls) == 1:  # slide.json; the second is done.json
            return whole(*arguments, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, at, ended)
        with pytest.raises(KeyboardInterrupt):
            predict_slide(small_segmenter(), slide, tmp_path / "a", SlideOptions())
    assert not (tmp_path / "a" / "done.json").exists()
    predict_slide(small_segmenter(), slide, tmp_path / "a", SlideOptions())
    assert names(tmp_path / "a") == RESULTS
    assert contents(tmp_path / "a") == contents(done.folder)


def test_a_label_is_read_lazily_in_python(tmp_path: Path, slide: Path, done: SlideResult) -> None:
    result = small_segmenter().predict_slide(slide, tmp_path / "out")
    assert isinstance(result.label, MaskFile)
    assert (result.label[100:200, 50:300:2] == done.label.array()[100:200, 50:300:2]).all()
    assert (np.asarray(result.label) == done.label.array()).all()
