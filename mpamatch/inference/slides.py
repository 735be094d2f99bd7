"""Prediction for whole slides: mask, regions for QuPath, tissue and a thumbnail, and going on where a run stopped."""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpamatch.ahead import ahead
from mpamatch.claims import LOCK, alone
from mpamatch.errors import InputError, WriteError, reason, shown, unknown
from mpamatch.files import clear_unfinished, read_json, replacing, write_json
from mpamatch.images import overlay
from mpamatch.inference.bands import BUDGET, Finished, plan, predict_bands
from mpamatch.inference.files import Areas, write_areas
from mpamatch.inference.progress import Progress, Silent
from mpamatch.inference.record import SLIDE, Record, check_empty, check_place, check_same, made_with
from mpamatch.inference.segmenter import Segmenter
from mpamatch.names import check_link, visible_below
from mpamatch.slides.annotations.read import slide_name
from mpamatch.slides.bands import Band, Seen, Store
from mpamatch.slides.geojson import ORIGINS, place_of, write_tissue
from mpamatch.slides.mask import MaskFile, MaskInfo, write_mask
from mpamatch.slides.patches import chosen_tissue
from mpamatch.slides.reader import Slide, View, open_slide
from mpamatch.slides.regions import SlideRegions, write_regions
from mpamatch.slides.shards import ALONE, Shard
from mpamatch.slides.tissue import Tissue, all_tissue, find_tissue

MASK, REGIONS, TISSUE, THUMBNAIL = "mask.ome.tif", "regions.geojson.gz", "tissue.geojson", "thumbnail.jpg"
DONE = "done.json"
BANDS = "bands"  # the folder of finished bands, until the slide is done
THUMBNAIL_SIDE = 2048
# µm around the tissue found that are labelled too, as its edge may be pale: not more, since a network that has seen no
# glass calls it anything.
AROUND = 50.0
THUMBNAIL_ROWS = 64  # are read at a time: a slide without small levels gives them from its finest


@dataclass(frozen=True)
class SlideOptions:
    """How slides are predicted.

    Attributes:
        mpp: µm per pixel of slides whose files name none; None if all do.
        model_mpp: µm per pixel of the images that the model was trained on; None: as the run says.
        tissue: auto (found in the slide, and 50 µm around it), all, or a GeoJSON file of the tissue, or a
            folder of such files by the names of the slides.
        overlap: share of a window that neighbours have in common; None: as the run says.
        origin: where coordinates of outlines begin: qupath or slide.
        simplify: tolerance of outlines in pixels of the mask; 0 keeps every corner.

    Raises:
        InputError: the origin is unknown, the overlap is not in 0 to 1, or the tolerance is negative.
    """

    mpp: float | None = None
    model_mpp: float | None = None
    tissue: str = "auto"
    overlap: float | None = None
    origin: str = "qupath"
    simplify: float = 1.0

    def record(self) -> dict[str, Any]:
        """Returns what results depend on beside the model and its windows; of tissue files the SHA-256."""
        known = self.tissue in ("auto", "all")
        tissue = self.tissue if known else _digest(Path(self.tissue))
        return {"mpp": self.mpp, "model_mpp": self.model_mpp, "tissue": tissue} | {
            "origin": self.origin, "simplify": self.simplify, "budget": BUDGET
        }  # fmt: skip

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise unknown("origin", self.origin, ORIGINS)
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise InputError(f"overlap {self.overlap}: must be at least 0 and below 1.")
        if not self.simplify >= 0:
            raise InputError(f"simplify {self.simplify}: must be 0 or above.")


@dataclass(frozen=True)
class SlideResult:
    """What prediction of a slide gave, all of it in one folder.

    Attributes:
        folder: holds mask.ome.tif, regions.geojson.gz, tissue.geojson, thumbnail.jpg and done.json.
        slide: the slide's file.
        width: of the mask, in pixels.
        height: of the mask, in pixels.
        mpp: µm per pixel of the mask.
        origin: x and y, in pixels of the slide's level 0, that outlines count from (see `SlideOptions.origin`).
        pixels: (C,) how many pixels of the mask have each class.
        tissue_pixels: (C,) those of them that lie in tissue.
        bad_tiles: how many tiles of the slide could not be decoded, and were taken as white.
        remarks: what the user should know, in sentences.
    """

    folder: Path
    slide: Path
    width: int
    height: int
    mpp: float
    origin: tuple[int, int]
    pixels: tuple[int, ...]
    tissue_pixels: tuple[int, ...]
    bad_tiles: int = 0
    remarks: tuple[str, ...] = ()

    @cached_property
    def label(self) -> MaskFile:
        """The label, read from the mask where it is asked for: `result.label[1000:2000, :512]` is (1000, 512) uint8.

        Returns:
            The opened mask.

        Raises:
            InputError: the mask is gone, or is none.
        """
        return MaskFile(self.folder / MASK)

    def record(self) -> dict[str, Any]:
        """Describes it as done.json does.

        Returns:
            What `read` reads, without the folder.
        """
        values = {name: value for name, value in vars(self).items() if name not in ("folder", "slide", "label")}
        return {"slide": str(self.slide), **values}

    @classmethod
    def read(cls, folder: Path) -> "SlideResult":
        """Reads what was predicted before.

        Args:
            folder: of the slide's results.

        Returns:
            The result.

        Raises:
            InputError: done.json is missing or broken.
        """
        about = read_json(folder / DONE)
        try:
            about["slide"] = Path(about["slide"])
            for name in ("origin", "pixels", "tissue_pixels", "remarks"):
                about[name] = tuple(about[name])
            result = cls(folder=folder, **about)
            result._check()
            return result
        except (TypeError, ValueError, KeyError) as error:
            raise InputError(
                f"{folder / DONE}: is broken ({reason(error)}): delete {folder} and predict again."
            ) from error

    def _check(self) -> None:
        """Raises TypeError for values that `record` never wrote."""
        numbers = (self.width, self.height, self.bad_tiles, *self.origin, *self.pixels, *self.tissue_pixels)
        if not all(type(one) is int and one >= 0 for one in numbers) or len(self.origin) != 2:
            raise TypeError("sizes and pixels are counted in whole numbers")
        if type(self.mpp) not in (int, float) or not 0 < self.mpp < math.inf:
            raise TypeError(f"the size of a pixel is {shown(self.mpp)}")
        if len(self.pixels) != len(self.tissue_pixels) or not all(isinstance(one, str) for one in self.remarks):
            raise TypeError("each class has its pixels, and remarks are sentences")


def predict_slides(
    segmenter: Segmenter,
    files: Sequence[Path],
    out: Path,
    options: SlideOptions,
    *,
    shard: Shard = ALONE,
    images: Sequence[Areas] = (),
    skip: Callable[[InputError], None] | None = None,
    progress: Progress | None = None,
) -> list[Areas]:
    """Predicts slides, each into a folder of its own, `out/<name>`, as `predict_slide` does.

    areas.csv has one row for every slide of `out` that is finished, those of other shards too, and is written anew
    after each. slides.json says what they were made with; the same call goes on with what is not finished.

    Args:
        segmenter: predicts.
        files: all slides, those of other shards too, so that names are the same in all.
        out: a new or empty folder, or that of a prediction with the same model, settings and options.
        options: how.
        shard: which of the slides are predicted here.
        images: areas of plain images, which areas.csv lists first.
        skip: is called for each slide that cannot be predicted, and the rest goes on; None: the first one ends it.
        progress: is told of every window.

    Returns:
        The areas of the slides of this shard that are finished.

    Raises:
        InputError: `out` holds something else, one file of tissue is given for several slides, or a slide cannot be
            predicted and `skip` is None.
    """
    if Path(options.tissue).is_file() and len(files) > 1:
        raise InputError(
            f"--tissue {options.tissue}: is of one slide, but {len(files)} are given: name a folder of such files."
        )
    segmenter = segmenter.with_overlap(options.overlap)
    model_microns(segmenter, options.model_mpp)  # told before anything is written
    check_place(out)
    made = made_with(segmenter, options.record())
    record = Record(out / "slides.json", made, files, taken=("masks", "overlays", "objects"))
    record.write()
    found = []
    for file, name in record.named:
        if not shard.owns(file):
            continue
        try:
            predict_slide(segmenter, file, out / name, options, progress, made=made)
        except WriteError:
            raise
        except InputError as error:
            if skip is None:
                raise
            skip(error)
            continue
        _write_areas(out, record, images, segmenter.class_names)
        found.append(_areas(file, SlideResult.read(out / name), segmenter.class_names))
    return found


def _write_areas(out: Path, record: Record, images: Sequence[Areas], class_names: Sequence[str]) -> None:
    """Writes areas.csv; again if another shard finished a slide meanwhile, so that the last to write lists all."""
    listed = None
    while listed != (listed := [(file, name) for file, name in record.named if (out / name / DONE).is_file()]):
        rows = [_areas(file, SlideResult.read(out / name), class_names) for file, name in listed]
        write_areas(out / "areas.csv", [*images, *rows], class_names)


def _areas(file: Path, result: SlideResult, class_names: Sequence[str]) -> Areas:
    """Returns a row of areas.csv. Raises InputError if the result is of other classes."""
    if len(result.pixels) != len(class_names):
        raise InputError(
            f"{result.folder / DONE}: counts the pixels of {len(result.pixels)} classes, not of {len(class_names)}: "
            f"delete {result.folder} and predict again."
        )
    size = result.width, result.height
    return Areas(file, result.folder.name, *size, result.pixels, result.mpp, result.tissue_pixels)


def predict_slide(
    segmenter: Segmenter,
    path: Path,
    folder: Path,
    options: SlideOptions,
    progress: Progress | None = None,
    *,
    made: Mapping[str, Any] | None = None,
) -> SlideResult:
    """Predicts one slide into `folder`, or goes on where a run with the same options was stopped.

    The mask has the model's µm per pixel and covers the slide from its origin on; what is not looked at is 255. A
    finished slide is returned as it is. The result is bitwise the same however often it was stopped.

    Args:
        segmenter: predicts.
        path: the slide.
        folder: for its results; finished bands lie in `folder/bands` meanwhile.
        options: how.
        progress: is told of every window.
        made: what `made_with` describes, if it is known.

    Raises:
        InputError: the slide cannot be read, its µm per pixel or the model's are not known, `folder` holds something
            else or results of another slide, model or options, or a result cannot be written.
    """
    segmenter = segmenter.with_overlap(options.overlap)
    made = made or made_with(segmenter, options.record())
    _claim(folder, path, made)
    if (folder / DONE).is_file():
        return _finished(folder)
    microns = model_microns(segmenter, options.model_mpp)
    with open_slide(path, mpp=options.mpp) as slide:
        view = slide.at(microns)
        tissue, grow = _tissue(slide, options.tissue, options.origin)
        with alone(folder / LOCK, f"{path}: another process predicts it into {folder}; wait for it or end it."):
            if (folder / DONE).is_file():  # by then
                return _finished(folder)
            write_json(folder / SLIDE, {"made_with": _of_slide(path, made)})
            clear_unfinished(folder)
            job = _Job(segmenter, view, tissue, grow, folder, options)
            job.predict(progress or Silent())
            write_json(folder / DONE, job.write().record())
            return _finished(folder)


def _finished(folder: Path) -> SlideResult:
    """Reads the result of a slide that is done, whose bands are of no use any more."""
    shutil.rmtree(folder / BANDS, ignore_errors=True)
    return SlideResult.read(folder)


def _claim(folder: Path, path: Path, made: Mapping[str, Any]) -> None:
    """Raises InputError if a folder holds something else than what the same call began."""
    check_link(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    if (folder / SLIDE).is_file():
        check_same(folder / SLIDE, _of_slide(path, made))
    else:
        check_empty(folder)


def _of_slide(path: Path, made: Mapping[str, Any]) -> dict[str, Any]:
    return {**made, "slide": path.name, "bytes of the slide": path.stat().st_size}


def _digest(place: Path) -> str:
    """Computes the SHA-256 of a file, or of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    try:
        for file in [place] if place.is_file() else [one for one in visible_below(place) if one.is_file()]:
            digest.update(os.fsencode(file.name) + b"\0" + file.read_bytes())
    except OSError as error:
        raise InputError(f"--tissue {place}: cannot be read ({error.strerror}).") from error
    if not place.exists():
        raise InputError(f"--tissue {place}: must be auto, all, or a GeoJSON file or a folder of them.")
    return digest.hexdigest()


def model_microns(segmenter: Segmenter, given: float | None) -> float:
    """Finds the µm per pixel that the network sees. Raises InputError if neither the run nor the user tells them."""
    known = segmenter.settings.microns_per_pixel
    microns = known if given is None else given
    if microns is None:
        raise InputError(
            "the run does not say how large the pixels of its training images are: give their µm with --model-mpp."
        )
    if not 0 < microns < 100:
        raise InputError(f"--model-mpp {microns}: must be above 0 and below 100.")
    return microns / segmenter.settings.scale


def _tissue(slide: Slide, wish: str, origin: str) -> tuple[Tissue, float]:
    """Finds the tissue, and by how many µm more is looked at around it."""
    if wish == "all":
        return all_tissue(slide), 0.0
    if wish == "auto":
        return find_tissue(slide), AROUND
    tissue = chosen_tissue(slide, slide_name(slide.path), wish, origin)
    if not tissue.mask.any():
        raise InputError(f"{wish}: marks nothing on {slide.path.name}: give regions in its pixels, or --tissue auto.")
    return tissue, 0.0


class _Job:
    """One slide on its way."""

    def __init__(
        self, segmenter: Segmenter, view: View, tissue: Tissue, grow: float, folder: Path, options: SlideOptions
    ) -> None:
        self._segmenter, self._view, self._tissue, self._folder = segmenter, view, tissue, folder
        self._slide, self._options = view.slide, options
        self._seen = Seen(tissue.grown(grow), view.size, view.scale)
        self._within = Seen(tissue, view.size, view.scale)
        self._layout, self._blend = plan(segmenter, view.size)
        self._bands = [self._layout.bands(block, self._seen) for block in self._layout.blocks]
        self._store = Store(folder / BANDS)
        self._place = place_of(self._slide, view.scale, view.mpp, options.origin)
        names, colours = segmenter.class_names, segmenter.settings.colours
        self._regions = SlideRegions(
            folder / REGIONS, view.size[::-1], self._store, names, colours, self._place, options.simplify
        )
        classes = len(segmenter.class_names)
        self._counts = np.zeros((2, classes), dtype=np.int64)  # of all that is looked at, and of the tissue

    def predict(self, progress: Progress) -> None:
        """Runs all windows; a thread keeps, counts and outlines the bands meanwhile."""
        starts = [
            next((at for at, band in enumerate(bands) if not self._store.has(band)), None) for bands in self._bands
        ]
        missing = [len(band.lefts) for bands, start in zip(self._bands, starts, strict=True) if start is not None
                   for band in bands[start:]]  # fmt: skip
        progress.begin(self._slide.path.name, sum(missing))
        for bands, start in zip(self._bands, starts, strict=True):
            for windows in ahead(self._keep, self._finished(bands, start), threads=1):
                progress.advance(windows)

    def _finished(self, bands: Sequence[Band], start: int | None) -> Iterator[Finished]:
        """Yields the bands of a block in order: those kept by an earlier run, then new ones."""
        for band in bands[:start]:
            yield Finished(band, *self._store.read(band), 0)
        if start is not None:
            yield from predict_bands(self._segmenter, self._view, self._layout, self._blend, bands, start, self._seen)

    def _keep(self, done: Finished) -> int:
        """Stores, counts and outlines a band; returns how many windows were run for it."""
        if not self._store.has(done.band):
            self._store.write(done.band, done.label, done.confidence)
        band = done.band
        inside = self._within.pixels(band.top, band.bottom, band.block.left, band.block.right)
        for index in range(self._counts.shape[1]):  # bincount would make 8 bytes of each pixel first
            of_class = done.label == index
            self._counts[0, index] += np.count_nonzero(of_class)
            self._counts[1, index] += np.count_nonzero(of_class & inside)
        self._regions.add(band, done.label, done.confidence)
        return done.windows

    def write(self) -> SlideResult:
        """Writes mask, regions, tissue and thumbnail from the finished bands."""
        view, settings = self._view, self._segmenter.settings
        place = self._place
        info = MaskInfo(view.mpp, view.scale, place.offset, settings.class_names, self._slide.path.name)
        write_mask(self._folder / MASK, view.size, lambda: self._store.rows(self._bands), info)
        said = write_regions(self._regions)
        write_tissue(self._folder / TISSUE, self._tissue, place)
        self._write_thumbnail()
        every, inside = (tuple(int(count) for count in counts) for counts in self._counts)
        if not sum(every):
            said.append("has no tissue: --tissue all looks at everything.")
        return SlideResult(
            self._folder, self._slide.path, *view.size, view.mpp, place.offset, every, inside,
            self._slide.bad_tiles, (*self._slide.remarks, *said),
        )  # fmt: skip

    def _write_thumbnail(self) -> None:
        """Draws the label over the slide at no more than 2,048 pixels a side, what is not looked at hatched."""
        view = self._view
        small = self._slide.at(view.mpp * max(1.0, max(view.size) / THUMBNAIL_SIDE))
        width, height = small.size
        parts = [small.read(0, y, width, min(THUMBNAIL_ROWS, height - y)) for y in range(0, height, THUMBNAIL_ROWS)]
        ratio = small.scale / view.scale
        rows, columns = (
            np.minimum(((np.arange(side) + 0.5) * ratio).astype(np.int64), most - 1)
            for side, most in ((height, view.size[1]), (width, view.size[0]))
        )
        with MaskFile(self._folder / MASK) as label:
            thin, step = label.thinned(max(1, int(ratio)))
        label_here = thin[np.minimum(rows // step, len(thin) - 1)][:, np.minimum(columns // step, thin.shape[1] - 1)]
        painted = overlay(np.concatenate(parts), label_here, self._segmenter.settings.colours)
        with replacing(self._folder / THUMBNAIL) as temporary:
            Image.fromarray(painted).save(temporary, format="JPEG", quality=88)
