"""Checks of a prepared set: every problem is found before training and named by file."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mpamatch.console import with_progress
from mpamatch.data.instances import instances_problem
from mpamatch.data.parts import hash_order
from mpamatch.data.prepared import (
    PARTS,
    Prepared,
    read_prepared,
    split_path,
    split_problems,
)
from mpamatch.errors import InputError
from mpamatch.images import (
    IGNORE,
    IMAGE_SUFFIXES,
    StoredMask,
    colour_label,
    overlay,
    read_image,
    read_image_and_facts,
    read_mask,
    read_numbered_mask,
    write_png,
)
from mpamatch.names import readable, visible
from mpamatch.stored import MOST_PREPARED

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A problem of one file.

    Attributes:
        file: relative to the prepared folder.
        problem: what is wrong, as the rest of a sentence that begins with the file.
        blocking: whether training would fail or learn something wrong.
    """

    file: str
    problem: str
    blocking: bool


@dataclass(frozen=True)
class PartCount:
    """How much a part holds."""

    images: int
    labelled: int
    groups: int
    pixels: tuple[int, ...]  # per class


@dataclass(frozen=True)
class Report:
    """What `examine` found.

    Attributes:
        prepared: the set.
        problems: blocking ones first.
        counts: by part.
        classes_of: image → class indices in its mask.
    """

    prepared: Prepared
    problems: tuple[Problem, ...]
    counts: dict[str, PartCount]
    classes_of: dict[str, tuple[int, ...]] = field(repr=False)

    @property
    def blocking(self) -> bool:
        """Whether a problem is blocking."""
        return any(problem.blocking for problem in self.problems)


def check(root: Path) -> list[Problem]:
    """Lists the problems of a prepared folder, blocking ones first. Raises InputError as `examine` does."""
    return list(examine(root).problems)


def examine(root: Path) -> Report:
    """Decodes every image and mask once, finds the problems and counts what is there.

    Args:
        root: a prepared folder.

    Raises:
        InputError: the folder is missing, or one of its JSON files cannot be read.
    """
    prepared = read_prepared(root)
    files = _Files(prepared)
    names = [name for part in PARTS for name in prepared.parts[part]]
    for name in with_progress(names, "checking", len(names)):
        files.look_at(name)
    counts = {part: files.count(part) for part in PARTS}
    problems = [
        *files.problems,
        *_unlike_classes(files),
        *_duplicates(prepared, files.digests),
        *_leaks(prepared),
        *_empty(prepared, counts),
        *_unlike_present(prepared, files.classes_of),
        *_strays(prepared),
        *_splits(prepared),
    ]
    problems.sort(key=lambda one: (not one.blocking, one.file))
    return Report(prepared, tuple(problems), counts, files.classes_of)


class _Files:
    """Decodes images and masks one by one and collects what they show."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.problems: list[Problem] = []
        self.digests: dict[str, list[str]] = defaultdict(list)  # digest of the pixels -> images
        self.pixels: dict[str, NDArray[np.int64]] = {}  # image -> pixels per class
        self.only_0_255: list[str] = []  # masks that hold 0 and 255 and nothing else
        self.ignore_in_use = False  # some mask holds 255 beside a class other than 0

    @property
    def classes_of(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(np.flatnonzero(pixels).tolist()) for name, pixels in self.pixels.items()}

    def look_at(self, name: str) -> None:
        """Decodes an image and its mask."""
        file = self.prepared.image_path(name)
        found = self._decoded(file, read_image_and_facts)
        image, turn = (None, 1) if found is None else (found[0], found[1].turn)
        if image is not None:
            self.digests[hashlib.sha256(image.tobytes() + str(image.shape).encode()).hexdigest()].append(name)
        path = self.prepared.mask_path(name)
        mask = None if path is None else self._decoded(path, read_numbered_mask)
        if path is None or mask is None:
            return
        label = mask.values
        if image is not None and image.shape[:2] != label.shape:
            sizes = [f"{one.shape[1]}×{one.shape[0]}" for one in (label, image)]
            cause = "" if turn == 1 else ", as its EXIF orientation turns it"
            self._add(path, f"is {sizes[0]} pixels, its image {sizes[1]}{cause}: they must be of one size")
        elif turn != mask.turn:
            told = f"is turned as its EXIF orientation ({turn}) says, and its mask is not: look whether the mask fits"
            self.problems.append(Problem(file.relative_to(self.prepared.root).as_posix(), told, blocking=False))
        numbers = self.prepared.instances_path(name)
        objects = None if numbers is None else self._decoded(numbers, read_numbered_mask)
        if numbers is not None and objects is not None and (problem := instances_problem(objects.values, label)):
            self._add(numbers, problem)
        self._look_at_palette(path, mask)
        self._look_at_values(name, path, label)

    def count(self, part: str) -> PartCount:
        """Counts what a part holds, once all of it is decoded."""
        names = self.prepared.parts[part]
        pixels = sum((self.pixels[n] for n in names if n in self.pixels), self._no_pixels())
        return PartCount(
            images=len(names),
            labelled=sum(name in self.pixels for name in names),
            groups=len({self.prepared.groups[name] for name in names}),
            pixels=tuple(pixels.tolist()),
        )

    def _look_at_values(self, name: str, path: Path, label: NDArray) -> None:
        values, counts = np.unique(label, return_counts=True)
        classes = len(self.prepared.classes)
        unknown = [int(value) for value in values if value >= classes and value != IGNORE]
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (", …" if len(unknown) > 5 else "")
            self._add(path, f"holds {shown}, but the classes are 0..{classes - 1} (and {IGNORE} to ignore)")
        if values.tolist() == [0, IGNORE]:
            self.only_0_255.append(path.relative_to(self.prepared.root).as_posix())
        self.ignore_in_use |= IGNORE in values and any(0 < value < classes for value in values)
        pixels = self._no_pixels()
        for value, count in zip(values, counts, strict=True):
            if value < classes:
                pixels[value] = count
        self.pixels[name] = pixels

    def _look_at_palette(self, path: Path, mask: StoredMask) -> None:
        """Finds a mask whose palette shows the background as something else, as one that was made anew may."""
        palette = [] if mask.palette is None else mask.palette[: len(self.prepared.classes)].tolist()
        if palette and any(palette[0]) and [0, 0, 0] in palette:
            told = f"has a palette that shows 0, the background, as {tuple(palette[0])} and another number black"
            self._add(path, f"{told}: numbers count, so save it without a palette, as it is meant")

    def _no_pixels(self) -> NDArray[np.int64]:
        return np.zeros(len(self.prepared.classes), dtype=np.int64)

    def _decoded(self, path: Path, read: Callable[[Path, float], T]) -> T | None:
        try:
            return read(path, MOST_PREPARED)
        except InputError as error:
            self._add(path, str(error).removeprefix(f"{path}: "))
            return None

    def _add(self, path: Path, problem: str) -> None:
        self.problems.append(Problem(path.relative_to(self.prepared.root).as_posix(), problem, blocking=True))


def _unlike_classes(files: _Files) -> list[Problem]:
    """Finds masks of 0 and 255 alone: 0/1 masks stretched to be seen, unless other masks hold 255 beside a class.

    In a set that is known to be partly labelled they are what they should be.
    """
    if files.prepared.partly_labelled:
        return []
    told = "holds only 0 and 255, and 255 means ignore: prepare it with --mask-values 0:background,255:NAME"
    return [Problem(file, told, blocking=not files.ignore_in_use) for file in files.only_0_255]


def _duplicates(prepared: Prepared, digests: dict[str, list[str]]) -> list[Problem]:
    """Finds images of equal pixels; blocking if they are in two parts."""
    part_of = {name: part for part in PARTS for name in prepared.parts[part]}
    problems = []
    for first, *others in digests.values():
        for other in others:
            across = part_of[first] != part_of[other]
            where = f", and one is in {part_of[first]}, the other in {part_of[other]}" if across else ""
            problems.append(Problem(f"images/{other}", f"is the same picture as {first}{where}", across))
    return problems


def _leaks(prepared: Prepared) -> list[Problem]:
    """Finds groups in two parts; blocking unless the set gives a reason."""
    parts_of: dict[str, list[str]] = defaultdict(list)
    for part in PARTS:
        for group in {prepared.groups[name] for name in prepared.parts[part]}:
            parts_of[group].append(part)
    shared = {group: parts for group, parts in sorted(parts_of.items()) if len(parts) > 1}
    if shared and prepared.note:
        return [Problem("parts.json", prepared.note, blocking=False)]
    return [
        Problem("parts.json", f"the group {group} is in {' and '.join(parts)}: keep it in one", blocking=True)
        for group, parts in shared.items()
    ]


def _empty(prepared: Prepared, counts: dict[str, PartCount]) -> list[Problem]:
    """Finds parts without a label, and classes that no mask of a part shows."""
    problems = []
    for part in PARTS:
        if part == "train" and prepared.with_present("train"):
            problems += _never_present(prepared)
            continue
        if not counts[part].labelled:
            told = f"the {part} part has no labelled image"
            problems.append(Problem("parts.json", told, blocking=part != "test"))
            continue
        for name, pixels in zip(prepared.class_names, counts[part].pixels, strict=True):
            if not pixels:
                told = f"no {part} mask shows the class {name}"
                problems.append(Problem("dataset.json", told, blocking=part == "train"))
    return problems


def _never_present(prepared: Prepared) -> list[Problem]:
    """Finds foreground classes in no image-level label for training, which such training could not learn."""
    shown = {index for name in prepared.with_present("train") for index in prepared.present[name]}
    return [
        Problem("present.json", f"no training image has the class {name} in its image-level label", blocking=True)
        for index, name in enumerate(prepared.class_names)
        if index > 0 and index not in shown
    ]


def _unlike_present(prepared: Prepared, classes_of: dict[str, tuple[int, ...]]) -> list[Problem]:
    """Finds masks that show a class which the image-level label lacks."""
    problems = []
    for name, shown in classes_of.items():
        unnamed = [index for index in shown if index > 0 and index not in prepared.present.get(name, shown)]
        if unnamed:
            told = f"shows the class {prepared.class_names[unnamed[0]]}, which the image-level label does not name"
            problems.append(Problem(f"masks/{Path(name).stem}.png", told, blocking=False))
    return problems


def _strays(prepared: Prepared) -> list[Problem]:
    """Finds files in images/, masks/ and instances/ that belong to no listed image."""
    listed = {name for names in prepared.parts.values() for name in names}
    stems = {Path(name).stem for name in listed}
    problems = []
    for path in _files_in(prepared.root / "images"):
        if path.name not in listed:
            problems.append(Problem(f"images/{path.name}", "is in no part of parts.json", blocking=False))
    for path in _files_in(prepared.root / "instances"):
        if path.suffix.lower() != ".png":
            problems.append(Problem(f"instances/{path.name}", "is no PNG, so it is not read", blocking=False))
        elif not (prepared.root / "masks" / path.name).is_file():
            problems.append(Problem(f"instances/{path.name}", "numbers objects of no mask", blocking=False))
    for path in _files_in(prepared.root / "masks"):
        if path.suffix.lower() != ".png":
            told = "is no PNG, so its image counts as unlabelled"
            problems.append(Problem(f"masks/{path.name}", told, blocking=True))
        elif path.stem not in stems:
            problems.append(Problem(f"masks/{path.name}", "is a mask without image", blocking=False))
    return problems


def _files_in(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def _splits(prepared: Prepared) -> list[Problem]:
    """Finds splits that cannot be read or name unfit images."""
    problems = []
    for name in prepared.splits():
        path = split_path(prepared, name)
        try:
            told = split_problems(prepared, name)
        except InputError as error:
            told = [str(error).removeprefix(f"{path}: ")]
        problems += [Problem(f"splits/{path.name}", one, blocking=True) for one in told]
    return problems


SAMPLES = 12
PANEL = 192
CAPTION = 18
GAP = 6


def write_contact_sheet(report: Report, path: Path) -> int:
    """Draws image | mask | overlay of up to 12 samples over parts and classes as a PNG; returns how many it shows.

    Images named in a blocking problem are left out; if no sample is left, nothing is written.
    """
    samples = _samples(report)
    if not samples:
        return 0
    columns = min(2, len(samples))
    rows = -(-len(samples) // columns)
    width, height = 3 * PANEL + 4 * GAP, PANEL + CAPTION + GAP
    legend = _legend(report.prepared, columns * width)
    sheet = Image.new("RGB", (columns * width, rows * height + GAP + legend.height), "white")
    for i, (part, name) in enumerate(samples):
        sheet.paste(_sample(report.prepared, part, name), ((i % columns) * width, (i // columns) * height))
    sheet.paste(legend, (0, rows * height + GAP))
    write_png(path, np.array(sheet))
    return len(samples)


def _samples(report: Report) -> list[tuple[str, str]]:
    """Chooses (part, image) by classes and parts in turn, so that rare ones are shown; background alone comes last."""
    broken = {Path(problem.file).stem for problem in report.problems if problem.blocking}
    queues: dict[tuple[int, int], list[str]] = defaultdict(list)  # class, part -> images
    for p, part in enumerate(PARTS):
        for name in hash_order(report.prepared.parts[part]):
            if name in report.classes_of and Path(name).stem not in broken:
                queues[max(report.classes_of[name], default=0), p].append(name)
    foreground = sorted({c for c, _ in queues if c > 0})
    turns = [(c, (c + p) % len(PARTS)) for p in range(len(PARTS)) for c in foreground]
    last = [(0, p) for p in range(len(PARTS))]
    order = [(p, name) for cycle in (turns, last) for p, name in _in_turn([(k[1], queues[k]) for k in cycle])]
    return [(PARTS[p], name) for p, name in sorted(order[:SAMPLES], key=lambda sample: sample[0])]


def _in_turn(queues: list[tuple[int, list[str]]]) -> Iterator[tuple[int, str]]:
    """Yields one name of each queue, then the next of each, until all are empty; each with the number of its queue."""
    for names in zip_longest(*(names for _, names in queues)):
        for (number, _), name in zip(queues, names, strict=True):
            if name is not None:
                yield number, name


def _sample(prepared: Prepared, part: str, name: str) -> Image.Image:
    mask = prepared.mask_path(name)
    assert mask is not None, "samples are drawn from labelled images"
    image = read_image(prepared.image_path(name), MOST_PREPARED)
    label = read_mask(mask, MOST_PREPARED).astype(np.uint8)
    label = np.array(_fitted(label, Image.Resampling.NEAREST))
    image = np.array(_fitted(image, Image.Resampling.BOX))
    panels = (image, colour_label(label, prepared.colours), overlay(image, label, prepared.colours))
    picture = Image.new("RGB", (3 * PANEL + 4 * GAP, PANEL + CAPTION + GAP), "white")
    for i, panel in enumerate(panels):
        picture.paste(Image.fromarray(panel), (GAP + i * (PANEL + GAP), CAPTION))
    shown = name if len(name) <= 60 else f"{name[:57]}..."
    ImageDraw.Draw(picture).text((GAP, 3), f"{part}: {readable(shown)}", fill="black", font=_font())
    return picture


def _fitted(array: NDArray[np.uint8], resampling: Image.Resampling) -> Image.Image:
    image = Image.fromarray(array)
    scale = PANEL / max(image.size)
    return image.resize(tuple(max(1, round(side * scale)) for side in image.size), resampling)  # type: ignore[arg-type]


def _legend(prepared: Prepared, width: int) -> Image.Image:
    per_row = width // 150
    rows = -(-len(prepared.classes) // per_row)
    legend = Image.new("RGB", (width, rows * CAPTION), "white")
    draw = ImageDraw.Draw(legend)
    for i, one in enumerate(prepared.classes):
        left, top = GAP + i % per_row * 150, i // per_row * CAPTION
        draw.rectangle((left, top, left + 12, top + 12), fill=one.colour, outline="black")
        draw.text((left + CAPTION, top - 1), one.name[:20], fill="black", font=_font())
    return legend


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=12)
