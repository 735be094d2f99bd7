"""`mpamatch suggest RUN DATA|INPUT…`: which images or regions of slides to label next."""

import argparse
import shlex
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mpamatch import ranks
from mpamatch.console import new_console, say
from mpamatch.data.augment import strong_views
from mpamatch.data.parts import group_finder
from mpamatch.data.prepared import chosen_split, load_prepared, parts_of_groups, training_lists
from mpamatch.engine.config import load_saved
from mpamatch.errors import InputError, WriteError
from mpamatch.files import check_free, making
from mpamatch.inference.checkpoint import load_segmenter
from mpamatch.inference.files import list_inputs
from mpamatch.inference.record import named_apart
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.suggest.images import SHEET, TABLE, ImageSet, Listed, rank_images, write_images
from mpamatch.inference.suggest.rank import Ranked, Wish
from mpamatch.inference.suggest.sheet import MOST
from mpamatch.inference.suggest.table import Row
from mpamatch.names import same
from mpamatch.slides.sources.base import library
from mpamatch.stored import MOST_PREPARED

OF_SLIDES = ("annotations", "mpp", "model_mpp", "tissue", "origin", "simplify")
LIST = "labelled.txt"


def run(arguments: argparse.Namespace) -> int:
    """Suggests what of `arguments.inputs` to label next into the new folder `arguments.out`.

    Returns 0, or 1 if some of them could not be read (on_error skip).

    Raises InputError if the run, the inputs or an option cannot be used, or there is nothing to label.
    """
    if ranks.started() > 1:
        raise InputError("suggest: works in one process; leave out torchrun.")
    for name, value in (("--count", arguments.count), ("--per-patient", arguments.per_patient)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: must be at least 1.")
    out, run_folder = Path(arguments.out), Path(arguments.run)
    check_free(out)
    if run_folder.is_file():
        raise InputError(f"{run_folder}: is a file; suggest looks into the network of a run folder: name that.")
    source = _source(arguments)  # before the seconds that a model takes
    segmenter = load_segmenter(run_folder, arguments.device)
    augment = load_saved(run_folder / "config.yaml").data.augment if arguments.by == "disagreement" else ""
    views = partial(strong_views, augment=augment) if augment else None
    wish = Wish(arguments.count, arguments.by, arguments.spread, arguments.per_patient, views)
    console, problems = new_console(), list[InputError]()
    if (arguments.on_error or source.on_error) == "skip":
        source.skip = problems.append
    source.prepare(segmenter)
    ranked = source.rank(segmenter, wish)
    if not ranked.choices:
        raise problems[0] if problems else InputError(source.nothing())
    with making(out) as folder:
        try:
            rows = source.write(folder, segmenter, ranked, wish)
        except WriteError as error:  # the folder has another name until all is there
            raise WriteError(str(error).replace(str(folder), str(out))) from error
    for remark in [*source.remarks(), *_remarks(wish, ranked, rows)]:
        say(console, f"note: {remark}")
    for problem in problems:
        say(console, f"not looked at: {problem}")
    patients = len({row.patient for row in rows})
    chosen = f"{len(rows)} of {ranked.looked_at} {source.what}"
    say(console, f"suggested: {chosen}, of {patients} {source.groups(patients)}")
    *names, last = TABLE, SHEET, *source.left_there()
    say(console, f"{', '.join(names)} and {last} are in {out}")
    say(console, f"next: {source.following(out, rows)}")
    return 1 if problems else 0


class _Source(ABC):
    """What is chosen from."""

    what: str  # is looked at, in the plural
    group: str = "patient"
    on_error: str = "stop"  # what is done at one that cannot be read, unless the user says
    skip: Callable[[InputError], None] | None = None

    def prepare(self, segmenter: Segmenter) -> None:  # noqa: B027  # most have nothing to check
        """Checks that the model fits. Raises InputError if it does not."""

    @abstractmethod
    def rank(self, segmenter: Segmenter, wish: Wish) -> Ranked:
        """Looks at everything and chooses."""

    @abstractmethod
    def write(self, folder: Path, segmenter: Segmenter, ranked: Ranked, wish: Wish) -> list[Row]:
        """Writes all results into a folder that is there."""

    @abstractmethod
    def nothing(self) -> str:
        """Says that there is nothing to label."""

    @abstractmethod
    def left_there(self) -> tuple[str, ...]:
        """Names what was written beside table and sheet."""

    @abstractmethod
    def following(self, out: Path, rows: Sequence[Row]) -> str:
        """Says what to do next."""

    def remarks(self) -> Sequence[str]:
        """Says what the user should know, in sentences."""
        return ()

    def groups(self, count: int) -> str:
        return f"{self.group}{'s' if count != 1 else ''}"


def _source(arguments: argparse.Namespace) -> _Source:
    """Finds out what the inputs are. Raises InputError if they are none, or an option does nothing for them."""
    given = [Path(one) for one in arguments.inputs]
    if len(given) == 1 and (given[0] / "dataset.json").is_file():
        _refuse(arguments, ("group_regex", *OF_SLIDES), f"{given[0]} is a prepared set, for which it does nothing")
        return _PreparedSet(given[0], arguments.split)
    prepared = next((one for one in given if (one / "dataset.json").is_file()), None)
    if prepared is not None:
        raise InputError(f"{prepared}: is a prepared set; name it alone.")
    _refuse(arguments, ("split",), "is for a prepared set")
    inputs = list_inputs(given)
    if inputs.slides and inputs.images:
        raise InputError(
            f"{inputs.images[0]}: is an image and {inputs.slides[0]} a slide: suggest for one kind at a time."
        )
    if inputs.slides:
        return _Slides(inputs.slides, inputs.remarks, arguments)
    _refuse(arguments, OF_SLIDES, "is for whole slides, and none of the inputs is one")
    if arguments.group_regex is None:
        _refuse(arguments, ("per_patient",), "images in a folder are of patients that --group-regex finds in names")
    return _PlainImages(inputs.images, inputs.remarks, arguments.group_regex)


def _refuse(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises InputError if one of the options is given."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise InputError(f"--{name.replace('_', '-')}: {why}: leave it out.")


class _PreparedSet(_Source):
    """The unlabelled training images of a prepared set."""

    what = "unlabelled images"

    def __init__(self, root: Path, split: str | None) -> None:
        self._prepared = load_prepared(root)
        self._split = chosen_split(self._prepared, split)
        self._labelled, self._others = training_lists(self._prepared, self._split)
        if not self._others:
            raise InputError(self.nothing())

    def prepare(self, segmenter: Segmenter) -> None:
        if self._prepared.class_names != segmenter.class_names:
            raise InputError(
                f"{self._prepared.root}: its classes ({', '.join(self._prepared.class_names)}) are not those of the "
                f"run ({', '.join(segmenter.class_names)})."
            )

    @property
    def _given(self) -> ImageSet:
        prepared = self._prepared
        images = [
            Listed(Path(one).stem, prepared.image_path(one), prepared.groups[one], prepared.mask_path(one) is None)
            for one in self._others
        ]
        labelled = [prepared.image_path(one) for one in self._labelled]
        return ImageSet(images, labelled, MOST_PREPARED, self.skip)

    def rank(self, segmenter: Segmenter, wish: Wish) -> Ranked:
        return rank_images(segmenter, self._given, wish)

    def write(self, folder: Path, segmenter: Segmenter, ranked: Ranked, wish: Wish) -> list[Row]:
        rows = write_images(folder, segmenter, self._given, ranked, wish)
        chosen = {row.name for row in rows}
        names = [*self._labelled, *(one for one in self._others if Path(one).stem in chosen)]
        (folder / LIST).write_bytes("".join(f"{name}\n" for name in names).encode(errors="surrogateescape"))
        self._masks = (folder / "masks").is_dir()
        return rows

    def nothing(self) -> str:
        split = f" in split {self._split}" if self._split else ""
        return f"{self._prepared.root}: every training image is labelled{split}: there is nothing to suggest."

    def left_there(self) -> tuple[str, ...]:
        return (LIST, "images/", "masks/") if self._masks else (LIST,)

    def following(self, out: Path, rows: Sequence[Row]) -> str:
        name = f"{self._split or 'labelled'}-plus-{len(rows)}"
        command = ["mpamatch", "split", self._prepared.root, "--list", out / LIST, "--name", name]
        if self._masks:
            command += ["--masks", out / "masks"]
        first = f"correct the masks in {out / 'masks'}, then " if self._masks else "these have masks already: "
        return f"{first}{_shell(command)}"


class _PlainImages(_Source):
    """Images in folders."""

    what = "images"

    def __init__(self, files: Sequence[Path], remarks: Sequence[str], group_regex: str | None) -> None:
        find = None if group_regex is None else group_finder(group_regex)
        named = named_apart(files)
        images = [Listed(name, path, name if find is None else find(path.stem, path)) for path, name in named]
        self._images, self._remarks, self._regex = images, remarks, group_regex
        self.group = "image" if find is None else "patient"

    @property
    def _given(self) -> ImageSet:
        return ImageSet(self._images, skip=self.skip)

    def rank(self, segmenter: Segmenter, wish: Wish) -> Ranked:
        return rank_images(segmenter, self._given, wish)

    def write(self, folder: Path, segmenter: Segmenter, ranked: Ranked, wish: Wish) -> list[Row]:
        self._names = segmenter.class_names
        return write_images(folder, segmenter, self._given, ranked, wish)

    def nothing(self) -> str:
        return "suggest: there is no image to label."

    def remarks(self) -> Sequence[str]:
        return self._remarks

    def left_there(self) -> tuple[str, ...]:
        return ("images/", "masks/")

    def following(self, out: Path, rows: Sequence[Row]) -> str:
        values = ",".join(f"{index}:{name}" for index, name in enumerate(self._names))
        command = ["mpamatch", "prepare", "folder", out, "DEST", "--mask-values", values]
        if self._regex is not None:
            command += ["--group-regex", self._regex]
        return (
            f"correct the masks in {out / 'masks'}, then {_shell(command)}, or put images/ and masks/ to those that "
            "you have and prepare them together"
        )


class _Slides(_Source):
    """Windows of tissue on slides."""

    what = "windows of tissue"
    on_error = "skip"

    def __init__(self, files: Sequence[Path], remarks: Sequence[str], arguments: argparse.Namespace) -> None:
        for name in ("shapely", "tifffile"):
            library(name, files[0])
        from mpamatch.slides.annotations.read import find_annotations, slide_name  # images need no extra `slides`

        tissue, several = arguments.tissue, len(files)
        if tissue is not None and Path(tissue).is_file() and several > 1:
            raise InputError(
                f"--tissue {tissue}: is of one slide, but {several} are given: name a folder of such files."
            )
        if arguments.simplify is not None and not arguments.simplify >= 0:
            raise InputError(f"--simplify {arguments.simplify}: must be 0 or above.")
        self._files: dict[str, Path] = {}
        for file in files:
            name = same(slide_name(file))
            if name in self._files:
                raise InputError(f"{file}: has the same name as {self._files[name]}: rename or leave out one of them.")
            self._files[name] = file
        find = group_finder(arguments.group_regex) if arguments.group_regex is not None else None
        self._patients = {name: name if find is None else find(name, file) for name, file in self._files.items()}
        place = None if arguments.annotations is None else Path(arguments.annotations)
        self._annotated = {} if place is None else find_annotations(place, self._files).of_slide
        self._remarks, self._asked = remarks, arguments
        self.group = "slide" if find is None else "patient"

    def prepare(self, segmenter: Segmenter) -> None:
        from mpamatch.inference.slides import model_microns
        from mpamatch.inference.suggest.slides import ListedSlide, SlideSet

        slides = [
            ListedSlide(name, file, self._patients[name], self._annotated.get(name, ()))
            for name, file in self._files.items()
        ]
        asked = {name: getattr(self._asked, name) for name in ("tissue", "origin", "simplify")}
        given = {name: value for name, value in asked.items() if value is not None}
        microns = model_microns(segmenter, self._asked.model_mpp)
        self._given = SlideSet(slides, microns, self._asked.mpp, **given, skip=self.skip)

    def rank(self, segmenter: Segmenter, wish: Wish) -> Ranked:
        from mpamatch.inference.suggest.slides import rank_regions

        return rank_regions(segmenter, self._given, wish)

    def write(self, folder: Path, segmenter: Segmenter, ranked: Ranked, wish: Wish) -> list[Row]:
        from mpamatch.inference.suggest.slides import write_regions

        self._settings = segmenter.settings
        return write_regions(folder, segmenter, self._given, ranked, wish)

    def nothing(self) -> str:
        return self._given.remarks[0] if self._given.remarks else "suggest: the slides show no tissue."

    def remarks(self) -> Sequence[str]:
        return [*self._remarks, *self._given.remarks]

    def left_there(self) -> tuple[str, ...]:
        return ("a .geojson for each slide",)

    def following(self, out: Path, rows: Sequence[Row]) -> str:
        counts = Counter(row.name for row in rows)
        name, count = counts.most_common(1)[0]
        others = ", the others onto theirs" if len(counts) > 1 else ""
        settings, asked = self._settings, self._asked
        options: list[tuple[str, object]] = [
            ("--annotations", asked.annotations or out),
            ("--mpp", f"{self._given.microns * settings.scale:.6g}"),
            ("--patch", round(settings.window / settings.scale)),
            ("--classes", ",".join(settings.class_names)),
            ("--slide-mpp", asked.mpp),
            ("--group-regex", asked.group_regex),
            ("--tissue", asked.tissue),
            ("--origin", asked.origin),
            ("--parts-of", self._trained_on()),
        ]
        words = [word for option in options if option[1] is not None for word in option]
        command = _shell(["mpamatch", "prepare", "slides", self._common(), "DEST", *words])
        return (
            f"drop {name}.geojson ({count} of the regions) onto its slide in QuPath{others}, correct "
            f"what lies in each Region*, export all objects of each slide to {options[0][1]}, then {command}"
        )

    def _trained_on(self) -> Path | None:
        """Returns the set of the run if its slides can keep their parts: those suggested are for training."""
        root = Path(load_saved(Path(self._asked.run) / "config.yaml").data.root)
        try:
            known = parts_of_groups(load_prepared(root))
        except InputError:  # it is elsewhere now, or has one annotated slide, which is in all parts
            return None
        return root if known.keys() & set(self._patients.values()) else None

    def _common(self) -> Path:
        """Returns the folder that all slides lie in, or the one slide."""
        files = list(self._files.values())
        if len(files) == 1:
            return files[0]
        both = (one for one in files[0].parents if all(one in file.parents for file in files))
        return next(both, files[0].parent)


def _shell(words: Sequence[object]) -> str:
    return " ".join(shlex.quote(str(word)) for word in words)


def _remarks(wish: Wish, ranked: Ranked, rows: Sequence[Row]) -> list[str]:
    """Says why there are fewer than were asked for, and what the sheet leaves out."""
    said = []
    if len(rows) < wish.count:
        every = ranked.looked_at == len(rows)
        why = "there are no more" if every else f"--per-patient {wish.per_patient} allows no more"
        said.append(f"{len(rows)} instead of {wish.count}, as {why}.")
    if len(rows) > MOST:
        said.append(f"{SHEET} shows the first {MOST}.")
    return said
