"""Suggestions among images: which to label next, and for each the mask that the model would paint, to be corrected."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpamatch.ahead import ahead
from mpamatch.console import with_progress
from mpamatch.errors import WriteError
from mpamatch.images import read_image, write_painted_mask
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.suggest.rank import Key, Ranked, Wish, looks_with_images, rank
from mpamatch.inference.suggest.sheet import Sheet
from mpamatch.inference.suggest.table import Row, write_table
from mpamatch.inference.suggest.uncertainty import Pixels
from mpamatch.names import check_link

READERS = 2  # threads that decode ahead of the model
TABLE, SHEET = "suggestions.csv", "sheet.png"


@dataclass(frozen=True)
class Listed:
    """An image that could be labelled.

    Attributes:
        name: of its mask, without the ending.
        path: its file.
        patient: whose it is.
        needs_mask: whether there is no mask of it yet.
    """

    name: str
    path: Path
    patient: str
    needs_mask: bool = True


@dataclass(frozen=True)
class ImageSet:
    """Images to choose from.

    Attributes:
        images: that could be labelled.
        labelled: files of those that are labelled already.
        most_megapixels: the largest that is read; None: as `read_image` has it.
    """

    images: Sequence[Listed]
    labelled: Sequence[Path] = ()
    most_megapixels: float | None = None

    def read(self, path: Path) -> Pixels:
        """Reads an image. Raises InputError if it cannot be read."""
        check_link(path)
        return read_image(path, self.most_megapixels)


def rank_images(segmenter: Segmenter, given: ImageSet, wish: Wish) -> Ranked:
    """Looks at all images and chooses; the keys of the choices begin with names. Raises InputError as `rank` does."""

    def candidates() -> Iterator[tuple[Key, str, Pixels]]:
        found = ahead(given.read, [one.path for one in given.images], threads=READERS)
        for one, image in with_progress(zip(given.images, found, strict=True), "looking", len(given.images)):
            yield (one.name, 0, 0), one.patient, image

    return rank(segmenter, candidates(), ahead(given.read, given.labelled, threads=READERS), wish)


def write_images(folder: Path, segmenter: Segmenter, given: ImageSet, ranked: Ranked, wish: Wish) -> list[Row]:
    """Writes into a folder that is there:

    - `suggestions.csv`: rank, name, patient, score and distance of each;
    - `sheet.png`: of the first 60 the image, the prediction and where the model is unsure;
    - `images/` and `masks/`: of those without a mask the image and the predicted mask, (H, W) class indices with a
      palette of the classes' colours, to be corrected.

    Returns:
        The rows of the table.

    Raises:
        InputError: an image cannot be read any more, or a file cannot be written.
    """
    by_name, settings = {one.name: one for one in given.images}, segmenter.settings
    chosen = [by_name[choice.candidate.key[0]] for choice in ranked.choices]
    images = (given.read(one.path) for one in chosen)
    sheet, rows = Sheet(settings.class_names, settings.colours), list[Row]()
    looks = looks_with_images(segmenter, images, wish)
    for choice, one, (image, look) in zip(ranked.choices, chosen, looks, strict=True):
        sheet.add(choice.rank, one.name, image, look)
        if one.needs_mask:
            write_painted_mask(folder / "masks" / f"{one.name}.png", look.label, settings.colours)
            _copy(one.path, folder / "images" / f"{one.name}{one.path.suffix.lower()}")
        rows.append(Row(choice.rank, one.name, one.patient, choice.candidate.score, choice.distance))
    sheet.write(folder / SHEET)
    write_table(folder / TABLE, rows)
    return rows


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise WriteError(f"{target}: could not be written ({error.strerror or error}).") from error
