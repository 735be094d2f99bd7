"""The regions of a slide, outlined while its bands come, on their way into the GeoJSON that QuPath loads."""

import gzip
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpamatch.errors import WriteError
from mpamatch.files import replacing
from mpamatch.images import Colour
from mpamatch.slides.bands import Band, Rows, Store
from mpamatch.slides.geojson import ANNOTATION, DETECTION, MOST_ANNOTATIONS, Place, features
from mpamatch.slides.outlines import Outliner, Regions

LIMIT = 100_000_000  # characters: QuPath makes a tree of the whole file in memory
FRAME = 1000  # of them: what stands before and after the features
MOST_SIMPLIFIED = 4.0  # pixels of the label; beyond that small regions go instead
SIZES = np.unique(np.ceil(2.0 ** (np.arange(160) / 4))).astype(np.int64)  # pixels: the steps in which they go


class RegionsText:
    """The text of regions that come one after another, in a temporary file until it is known which are written.

    Memory holds one text at a time. Which regions are left out depends on all of them alone, not on their order.

    Args:
        path: of the file that they will be written to; the temporary one lies beside it and has no name.
        names: of all classes, by index.
        colours: of all classes.
        place: of the label on the slide.
        limit: of the text, in characters.
        dropping: beyond the limit the smallest regions are left out; otherwise none is, and `over` tells.

    Raises:
        WriteError: the temporary file cannot be written.
    """

    def __init__(
        self, path: Path, names: Sequence[str], colours: Sequence[Colour], place: Place, limit: int, *, dropping: bool
    ) -> None:
        self.path, self.place = path, place
        self._names, self._colours, self._limit, self._dropping = names, colours, limit - FRAME, dropping
        self._characters, self._counts = np.zeros((2, len(SIZES)), dtype=np.int64)  # of the regions of each size
        self._first = 0  # size that is not left out
        with self._telling():
            self._file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - is open as long as regions come

    @property
    def over(self) -> bool:
        """Whether the text is beyond the limit."""
        return bool(self._characters[self._first :].sum() > self._limit)

    @property
    def smallest(self) -> int:
        """The fewest pixels that a region has to have; 0 if none is left out."""
        return int(SIZES[self._first]) if self._first else 0

    @property
    def dropped(self) -> int:
        """How many regions are left out."""
        return int(self._counts[: self._first].sum())

    def add(self, regions: Regions) -> None:
        """Adds regions. Raises WriteError if the temporary file cannot be written."""
        size = np.searchsorted(SIZES, regions.pixels, side="right") - 1
        self._counts += np.bincount(size, minlength=len(SIZES))
        kept = size >= self._first  # once left out, always: more text only comes on top
        size = size[kept]
        with self._telling():
            for at, text in features(regions.picked(kept), self._names, self._colours, self.place, ANNOTATION):
                line = text.encode()
                self._file.write(b"%d %s\n" % (size[at], line))
                self._characters[size[at]] += len(line) + 2
        while self._dropping and self.over:
            self._first += 1

    def features(self) -> Iterator[bytes]:
        """Yields the features that are written: annotations if they are few, else detections."""
        many = self._counts[self._first :].sum() > MOST_ANNOTATIONS
        self._file.seek(0)
        for line in self._file:
            size, _, text = line[:-1].partition(b" ")
            if int(size) >= self._first:
                # The first place is the right one: what comes before holds numbers alone.
                yield text.replace(ANNOTATION.encode(), DETECTION.encode(), 1) if many else text

    def close(self) -> None:
        """Removes the temporary file."""
        self._file.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(f"{self.path}: could not be written ({error.strerror or error}).") from error


class SlideRegions:
    """Outlines the label of a slide while its bands come, and holds what later bands can change.

    If the text grows beyond the limit, all begins again from the finished bands at twice the tolerance, up to 4 pixels;
    from then on the smallest regions are left out. The same bands give the same regions, in the same order.

    Args:
        path: of the file that the regions will be written to, ends in .geojson.gz; its folder must be there.
        shape: of the label, (H, W).
        store: has each band before it is added.
        names: of all classes, by index.
        colours: of all classes.
        place: of the label on the slide.
        tolerance: of the simplification, in pixels of the label; 0 keeps every corner.
        limit: of the text, in characters.

    Attributes:
        asked: the tolerance that was asked for.
        tolerance: that of the outlines.
        text: of the outlines that are finished.

    Raises:
        WriteError: the temporary file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        store: Store,
        names: Sequence[str],
        colours: Sequence[Colour],
        place: Place,
        tolerance: float,
        *,
        limit: int = LIMIT,
    ) -> None:
        self.asked = tolerance
        self._path, self._shape, self._store = path, shape, store
        self._names, self._colours, self._place, self._limit = names, colours, place, limit
        self._bands: list[Band] = []
        self._begin(tolerance)

    def _begin(self, tolerance: float) -> None:
        self.tolerance = tolerance
        dropping = tolerance >= MOST_SIMPLIFIED
        self.text = RegionsText(self._path, self._names, self._colours, self._place, self._limit, dropping=dropping)
        self._outliner = Outliner(self._shape, self.text.add, tolerance=tolerance)
        self._rows: Rows | None = None

    def add(self, band: Band, label: NDArray[np.uint8], confidence: NDArray[np.uint8]) -> None:
        """Adds the next band of a block of columns. Raises WriteError as the constructor does."""
        self._bands.append(band)
        self._outline(band, label, confidence)
        while self.text.over:
            self.text.close()
            self._begin(max(1.0, 2 * self.tolerance))
            for one in self._bands:
                self._outline(one, *self._store.read(one))
                if self.text.over:
                    break

    def _outline(self, band: Band, label: NDArray[np.uint8], confidence: NDArray[np.uint8]) -> None:
        if self._rows is None or self._rows.block is not band.block:
            self._rows = Rows(band.block, self._shape[0], self._outliner.add)
        self._rows.add(label, confidence)


def write_regions(regions: SlideRegions) -> list[str]:
    """Writes the regions of all bands as a FeatureCollection, packed by gzip; the same regions give the same bytes.

    Args:
        regions: to which all bands of the slide were added.

    Returns:
        What was done to keep to the limit, in sentences.

    Raises:
        WriteError: the file cannot be written.
    """
    text = regions.text
    with replacing(text.path) as temporary, temporary.open("wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=5) as packed:
            about = json.dumps(text.place.record())
            packed.write(f'{{"type": "FeatureCollection", "mpamatch": {about}, "features": [\n'.encode())
            before = b""
            for feature in text.features():
                packed.write(before + feature)
                before = b",\n"
            packed.write(b"\n]}\n")
    text.close()
    return _told(regions)


def _told(regions: SlideRegions) -> list[str]:
    """Says what was simplified or left out beyond what was asked for."""
    said = []
    text, name = regions.text, regions.text.path.name
    if regions.tolerance > regions.asked:
        said.append(
            f"{name}: borders are simplified to {regions.tolerance:g} pixels of the mask instead of "
            f"{regions.asked:g}, so that QuPath can load it."
        )
    if text.dropped:
        area = text.smallest * text.place.mpp**2
        said.append(
            f"{name}: {text.dropped:,} regions under {area:.4g} µm² are left out, so that QuPath can load it; "
            "the mask has them."
        )
    return said
