"""Image files as they are stored: opened up to a size, turned as EXIF says, and what a decoder changes in silence."""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mpamatch.errors import InputError, reason
from mpamatch.whole import check_segments, ends_in_grey, load_whole

# A region of 20,000 × 15,000 pixels, for which `prepare` takes 4.5 GB of memory: it took 2.7 GB for 182 megapixels.
MOST_MEGAPIXELS = 300.0
MOST_PREPARED = 2000.0  # megapixels, of what `prepare` let in before

_ORIENTATION, _PHOTOMETRIC, _BITS, _SAMPLES, _EXTRA_SAMPLES = 0x0112, 262, 258, 277, 338
_PAGED = ("TIFF", "GIF", "WEBP")  # a photograph with a small copy of itself (MPO) is one picture

_lifting = threading.Lock()
_most = MOST_MEGAPIXELS


@dataclass(frozen=True)
class Stored:
    """The first picture of a file, decoded and turned.

    Attributes:
        image: as Pillow decodes it; None if only tifffile can.
        array: what tifffile decodes, (H, W) or (H, W, S) of any type; None if Pillow can.
        format: PNG, JPEG, TIFF, …, whatever the file's name says.
        bits: per channel, as stored.
        turn: EXIF orientation, 1 to 8; 1 is none.
        white_is_zero: whether the file says that 0 is white; Pillow then inverts what has up to 8 bits.
        without_alpha: whether the fourth of four channels is not said to be transparency.
        grey_end: whether a JPEG ends in even grey, which decoders put where data are missing.
    """

    image: Image.Image | None
    array: NDArray[Any] | None
    format: str
    bits: int
    turn: int = 1
    white_is_zero: bool = False
    without_alpha: bool = False
    grey_end: bool = False


def allow_megapixels(most: float) -> None:
    """Sets how large a picture may be that this process reads, in megapixels; raises InputError unless it is above 0.

    It is one number of the process: pictures are decoded in threads far below the command that is told it.
    """
    global _most
    if not most > 0:
        raise InputError(f"--most-megapixels {most:g}: must be above 0.")
    _most = most


@contextlib.contextmanager
def any_size() -> Iterator[None]:
    """Lifts Pillow's limit on the size of pictures, 89 million pixels, meant for those of strangers on the web."""
    with _lifting:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def decoded(path: Path, most_megapixels: float | None = None) -> Stored:
    """Decodes a file, within the process's limit of megapixels unless `most_megapixels` says another.

    Raises InputError, naming the file, if it is missing, broken, larger than the limit, or a stack of pages.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    most = _most if most_megapixels is None else most_megapixels
    try:
        return _by_pillow(path, most)
    except InputError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds for broken files: OSError, SyntaxError, struct.error, …
        if _is_tiff(path):
            return _by_tifffile(path, most, error)
        raise _undecodable(path, error) from error


def stored_bits(image: Image.Image, path: Path) -> int:
    """Reads the bits per channel from the file itself: Pillow cuts 16-bit RGB down to 8 without a word."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # IHDR: width 16..19, height 20..23, bit depth 24
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS, (8,)))  # type: ignore[attr-defined]
    return 8


def check_size(path: Path, width: int, height: int, most: float) -> None:
    """Raises InputError if a picture has more than `most` megapixels."""
    if width * height > most * 1e6:
        needed = -(-width * height // 1_000_000)
        raise InputError(
            f"{path}: is {width}×{height} pixels, {needed} megapixels, and the limit is {most:g}: cut it into patches, "
            f"or raise the limit with --most-megapixels {needed} (in Python mpamatch.stored.allow_megapixels) if the "
            "machine has the memory."
        )


def _by_pillow(path: Path, most: float) -> Stored:
    with any_size():
        opened = Image.open(path)
    with opened as image:
        check_size(path, image.width, image.height, most)
        kind, bits, turn = image.format or "", stored_bits(image, path), _turn(image)
        tags: Any = image.tag_v2 if kind == "TIFF" else {}  # type: ignore[attr-defined]
        pages = getattr(image, "n_frames", 1) if kind in _PAGED else 1
        if pages > 1:
            raise InputError(f"{path}: holds {pages} pages: save the one that is meant as a file of its own.")
        white_is_zero = tags.get(_PHOTOMETRIC) == 0
        without_alpha = tags.get(_SAMPLES) == 4 and image.mode in {"RGB", "RGBA"} and not _says_alpha(tags)
        huge = Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS
        with any_size() if huge else contextlib.nullcontext():  # TIFF asks once more, while it decodes
            load_whole(path, image)
        grey = ends_in_grey(image)
        turned = image if turn == 1 else ImageOps.exif_transpose(image)
    return Stored(turned, None, kind, bits, turn, white_is_zero, without_alpha, grey)


def _turn(image: Image.Image) -> int:
    turn = image.getexif().get(_ORIENTATION, 1)
    return turn if turn in range(1, 9) else 1


def _says_alpha(tags: Any) -> bool:
    """Whether ExtraSamples says of the fourth channel that it is transparency; 999 is Corel Draw's word for it."""
    return tuple(tags.get(_EXTRA_SAMPLES, ()))[:1] in {(1,), (2,), (999,)}


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


def _by_tifffile(path: Path, most: float, error: Exception) -> Stored:
    """Decodes a TIFF that Pillow cannot: 64-bit numbers, signed ones, compressions that it lacks."""
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        raise InputError(
            f"{path}: is a TIFF that Pillow cannot decode ({reason(error)}): save it as 8- or 16-bit PNG, or install "
            "tifffile, which may (pip install 'mpamatch[slides]')."
        ) from error
    try:
        with tifffile.TiffFile(path) as file:
            page, pages = file.pages[0], len(file.pages)
            check_size(path, page.imagewidth, page.imagelength, most)
            if pages > 1:
                raise InputError(f"{path}: holds {pages} pages: save the one that is meant as a file of its own.")
            check_segments(page)
            array = np.asarray(page.asarray())
            white_is_zero, bits = int(page.photometric) == 0, 8 * array.dtype.itemsize
            planes_first = array.ndim == 3 and array.shape[0] == page.samplesperpixel != array.shape[2]
    except InputError:
        raise
    except Exception as again:  # tifffile raises kinds of its own, and those of its decoders
        raise _undecodable(path, again) from again
    array = np.moveaxis(array, 0, -1) if planes_first else array
    return Stored(None, np.squeeze(array) if array.ndim > 3 else array, "TIFF", bits, 1, white_is_zero)


def _undecodable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be decoded ({reason(error)}): replace it or take it out of the data.")
