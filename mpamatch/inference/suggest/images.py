"""Suggestions among images: which to label next, and for each the mask that the model would paint, to be corrected."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpamatch.ahead import ahead
from mpamatch.console import with_progress
from mpamatch.errors import InputError, WriteError
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
        skip: is called for each image that cannot be read, and the rest goes on; None: the first one ends the ranking.
    """

    images: Sequence[Listed]
    labelled: Sequence[Path] = ()
    most_megapixels: float | None = None
    skip: Callable[[InputError], None] | None = None

    def read(self, path: Path) -> Pixels:
        """Reads an image. Raises InputError if it cannot be read."""
        check_link(path)
        return read_image(path, self.most_megapixels)

    def each(self, paths: Sequence[Path]) -> Iterator[tuple[int, Pixels]]:
        """Reads images ahead and yields each with its place among `paths`. Raises InputError unless `skip` takes it."""

        def read(path: Path) -> Pixels | InputError:
            try:
                return self.read(path)
            except InputError as error:
                return error

        for at, found in enumerate(ahead(read, paths, threads=READERS)):
            if not isinstance(found, InputError):
                yield at, found
            elif self.skip is None:
                raise InputError(f"{str(found).rstrip('.')}; --on-error skip goes on without it.")
            else:
                self.skip(found)


def rank_images(segmenter: Segmenter, given: ImageSet, wish: Wish) -> Ranked:
    """Looks at all images and chooses; the keys of the choices begin with names. Raises InputError as `rank` does."""

    def candidates() -> Iterator[tuple[Key, str, Pixels]]:
        found = given.each([one.path for one in given.images])
        for at, image in with_progress(found, "looking", len(given.images)):
            yield (given.images[at].name, 0, 0), given.images[at].patient, image

    return rank(segmenter, candidates(), (image for _, image in given.each(given.labelled)), wish)


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
