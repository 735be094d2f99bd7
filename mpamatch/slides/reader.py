"""Slides: opened, and read in pixels of a level or at a chosen size of pixel.

with open_slide(path) as slide:
    view = slide.at(0.5)                         # µm per pixel
    pixels = view.read(0, 0, 512, 512)           # (512, 512, 3) uint8
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mpamatch.errors import InputError
from mpamatch.slides.resample import Grid, grid_at, read_grid
from mpamatch.slides.sources.base import INSTALL, Box, Broken, Level, Pixels, Source, installed, library, white
from mpamatch.slides.sources.header import is_tiff, tiff_header
from mpamatch.slides.sources.openslide import OpenSlideSource, known_format
from mpamatch.slides.sources.plain import PlainSource, picture_size
from mpamatch.slides.sources.tiff import TiffSource

__all__ = ["SLIDE_SUFFIXES", "Box", "Level", "Slide", "View", "is_slide", "open_slide", "readers"]

# What reads slides, and the libraries that it needs.
READERS = {"openslide": ("openslide",), "tifffile": ("tifffile", "imagecodecs"), "pillow": ()}
BELIEVED = (0.05, 10.0)  # µm: a TIFF of 72 dots per inch says 352.8
LARGE = 100_000_000  # pixels: above that a picture is read as a slide
SLIDE_SUFFIXES = frozenset(
    {".svs", ".ndpi", ".ndpis", ".mrxs", ".scn", ".bif", ".czi", ".vms", ".vmu", ".svslide", ".dcm", ".tif", ".tiff"}
)
_PICTURES = frozenset({"PNG", "JPEG", "BMP", "WEBP", "JPEG2000"})  # Pillow's formats that no scanner writes


class Slide:
    """A slide. Close it, or use it in a `with`; it may be read from several threads.

    Attributes:
        path: its file.
        size: (width, height) in pixels of level 0.
        mpp: µm per pixel of level 0; None if it is not known.
        levels: finest first.
        bounds: the part of level 0 that QuPath crops to, so that its coordinates begin there; None if it shows all.
        reader: the library that reads it: openslide, tifffile or pillow.
        remarks: what the user should know of it, each a sentence without its name.
    """

    def __init__(self, path: Path, source: Source, mpp: float | None, remarks: tuple[str, ...]) -> None:
        self.path = path
        self.size = (source.levels[0].width, source.levels[0].height)
        self.mpp = mpp
        self.levels = source.levels
        self.bounds = source.bounds
        self.reader = source.name
        self.remarks = remarks
        self._source = source

    @property
    def bad_tiles(self) -> int:
        """How many tiles could not be decoded so far; they are white."""
        return len(self._source.bad)

    def is_damaged(self, box: Box) -> bool:
        """Tells whether a box, in pixels of level 0, touches a tile that could not be decoded when it was read."""
        for level, column, row in tuple(self._source.bad):
            width, height = (side * self.levels[level].downsample for side in self._source.tiles[level])
            beside = box.x >= (column + 1) * width or box.x + box.width <= column * width
            if not (beside or box.y >= (row + 1) * height or box.y + box.height <= row * height):
                return True
        return False

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> Pixels:
        """Reads a region, in pixels of its level.

        Args:
            x: first column, counted from the slide's left rim; it may lie outside of the slide.
            y: first row.
            width: in pixels.
            height: in pixels.
            level: 0 is the finest.

        Returns:
            (height, width, 3) uint8 RGB. White outside of the slide, and where a tile cannot be decoded.
        """
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, self.levels[level].width), min(y + height, self.levels[level].height)
        if (left, top, right, bottom) == (x, y, x + width, y + height) and width > 0 and height > 0:
            return self._source.read(Box(x, y, width, height), level)
        pixels = white(width, height)
        if left < right and top < bottom:
            inside = self._source.read(Box(left, top, right - left, bottom - top), level)
            pixels[top - y : bottom - y, left - x : right - x] = inside
        return pixels

    def at(self, mpp: float) -> "View":
        """Returns the slide at `mpp` µm per pixel.

        If a level is within 2 % of that it is taken as it is, and the view's µm are the level's; else the next finer
        level is resampled.

        Raises:
            InputError: `mpp` is not positive, or it is not known how large the slide's own pixels are.
        """
        if not mpp > 0:
            raise InputError(f"{mpp} µm per pixel: must be above 0.")
        if self.mpp is None:
            raise InputError(f"{self.path}: does not say how large its pixels are: give their size with --slide-mpp.")
        return View(self, grid_at(self.levels, mpp / self.mpp), self.mpp)

    def close(self) -> None:
        """Closes the file."""
        self._source.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class View:
    """A slide at one size of pixel, made by `Slide.at`; its pixel (0, 0) has its corner at the slide's origin.

    Attributes:
        slide: the slide.
        grid: which level is read, and how it is resampled.
        slide_mpp: µm per pixel of level 0.
    """

    slide: Slide
    grid: Grid
    slide_mpp: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the slide in pixels of the view."""
        return self.grid.width, self.grid.height

    @property
    def scale(self) -> float:
        """Pixels of level 0 per pixel of the view."""
        return self.grid.scale

    @property
    def mpp(self) -> float:
        """µm per pixel of the view."""
        return self.slide_mpp * self.grid.scale

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """Reads a region in pixels of the view: (height, width, 3) uint8, white outside of the slide.

        A region read in parts is bitwise the region read whole.
        """
        return read_grid(self.grid, Box(x, y, width, height), self._of_level)

    def _of_level(self, box: Box, level: int) -> Pixels:
        return self.slide.read(box.x, box.y, box.width, box.height, level)


def open_slide(path: str | Path, *, mpp: float | None = None) -> Slide:
    """Opens a slide, or a plain PNG or JPEG as a slide of one level.

    OpenSlide reads what it knows; OME-TIFF, 16 bits and TIFFs that it refuses are read by tifffile.

    Args:
        path: the file.
        mpp: µm per pixel of level 0, for a slide whose file names none, or none between 0.05 and 10.

    Raises:
        InputError: there is no such file; it is empty, cut short, no slide, or a TIFF in strips; its values are no 8-
            or 16-bit RGB or grey; the extra `slides` is not installed; or `mpp` is outside of 0.05 to 10.
    """
    path = Path(path)
    if mpp is not None and not BELIEVED[0] <= mpp <= BELIEVED[1]:
        raise InputError(f"{mpp} µm per pixel of {path}: must be from {BELIEVED[0]:g} to {BELIEVED[1]:g}.")
    source = _source(path)
    found, remarks = _believed(source.microns, mpp)
    return Slide(path, source, found, source.remarks + remarks)


def readers() -> dict[str, str | None]:
    """Tells what each reader lacks here.

    Returns:
        By the reader's name, how to install it; None if it is installed.
    """
    return {name: None if all(map(installed, needed)) else INSTALL for name, needed in READERS.items()}


def is_slide(path: str | Path) -> bool:
    """Tells whether a file is to be read as a slide.

    That is a format of OpenSlide's (mrxs, ndpi, svs, …), a tiled TIFF, or a picture above 100 million pixels. Of what
    cannot be read at all a name ending in .svs and the like is believed, so that opening it says what is wrong: the
    file is broken, or the extra `slides` is not installed.
    """
    path = Path(path)
    with contextlib.suppress(OSError):
        if not path.is_file():  # a link that leads nowhere is to be missed
            return path.is_symlink() and not path.exists() and path.suffix.lower() in SLIDE_SUFFIXES - {".tif", ".tiff"}
        header = tiff_header(path)
        if header is not None and (header.tiled or header.width * header.height > LARGE):
            return True
        if known_format(path) is not None:
            return True
        size = picture_size(path)
        if size is not None:
            return size[0] * size[1] > LARGE or _misnamed(path, size[2])
        return path.suffix.lower() in SLIDE_SUFFIXES
    return False


def _believed(found: float | None, given: float | None) -> tuple[float | None, tuple[str, ...]]:
    """Chooses between the size of a pixel in the file and the one given by the user, and says which was taken."""
    if found is not None and BELIEVED[0] <= found <= BELIEVED[1]:
        if given is not None and abs(found / given - 1) > 0.02:
            return found, (f"says {found:.4g} µm per pixel itself, which is taken, not the {given:g} given.",)
        return found, ()
    if found is not None:
        taken = "are not known" if given is None else f"are taken as {given:g}"
        return given, (f"says {found:.4g} µm per pixel, which no slide has: they {taken}.",)
    return given, ()


def _source(path: Path) -> Source:
    """Chooses the library by what the file holds, not by its name."""
    if not path.is_file():
        raise InputError(f"{path}: is a folder, not a slide." if path.is_dir() else f"{path}: no such file.")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: is empty: copy it again from where it came from.")
        tiff = is_tiff(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    if tiff:
        return _tiff_source(path)
    if known_format(path) is not None:
        return OpenSlideSource(path)
    size = picture_size(path)
    if size is None:
        library("openslide", path)
        return OpenSlideSource(path)
    if _misnamed(path, size[2]):
        raise InputError(f"{path}: is a {size[2]} picture and no slide, whatever its name says: find the slide itself.")
    return PlainSource(path)


def _tiff_source(path: Path) -> Source:
    library("openslide", path)
    header, vendor = tiff_header(path), known_format(path)
    if vendor in {None, "generic-tiff"} and (header is None or header.ome or header.bits != 8):
        return TiffSource(path)  # of these OpenSlide reads one level and no size of pixel, or 8 of 16 bits
    try:
        source = OpenSlideSource(path)
    except InputError:
        if vendor in {None, "generic-tiff", "aperio"}:  # in a compression that OpenSlide lacks
            return TiffSource(path)
        raise
    if vendor in {"generic-tiff", "aperio"}:
        _check_length(path)
    return source


def _check_length(path: Path) -> None:
    """Raises InputError if the TIFF is cut short behind its directories, which OpenSlide finds out tile by tile."""
    try:
        TiffSource(path).close()
    except Broken:
        raise
    except InputError:  # a form that OpenSlide alone reads
        pass


def _misnamed(path: Path, form: str) -> bool:
    """Tells whether a picture has the name of a slide, such as a photo called .svs; .tif is a picture's name too."""
    return path.suffix.lower() in SLIDE_SUFFIXES - {".tif", ".tiff"} and form in _PICTURES
