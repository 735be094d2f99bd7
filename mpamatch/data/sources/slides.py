"""Whole slides with regions marked in QuPath, ASAP or ImageScope: labelled patches, and unlabelled ones of the rest."""

import heapq
import sys
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from mpamatch.ahead import ahead
from mpamatch.console import with_progress
from mpamatch.data.kinds import Kind, Option
from mpamatch.data.parts import group_finder
from mpamatch.data.raw import Class, Findings, Item, RawSet
from mpamatch.errors import InputError
from mpamatch.images import IGNORE
from mpamatch.names import same, visible_below
from mpamatch.slides.annotations.labels import (
    LEAST_OVERLAP_MM2,
    Meaning,
    Painted,
    SlideLabel,
    asked_classes,
    meaning_of,
    unlearned,
)
from mpamatch.slides.annotations.read import AnnotationFiles, find_annotations, read_annotations, shown, slide_name
from mpamatch.slides.annotations.regions import Region
from mpamatch.slides.patches import chosen_tissue, draw_of, labelled_windows, level_box, unlabelled_windows
from mpamatch.slides.reader import Box, View, is_slide, open_slide

KIND = Kind(
    name="slides",
    help="whole slides, and regions marked in QuPath, ASAP or ImageScope",
    module=__name__,
    options=(
        Option("--annotations", "folder of the regions, a file per slide, named as the slide is"),
        Option("--mpp", "µm per pixel of the patches (0.5)", float),
        Option("--patch", "their side in pixels (512)", int),
        Option("--stride", "pixels from one labelled patch to the next (a patch's side)", int),
        Option("--classes", "which to learn, as tumour,stroma; a later one lies over those before it (all, by name)"),
        Option("--unpainted", "what no region covers, of slides without a Region*: ignore or background (ignore)"),
        Option("--unlabelled", "how many patches of tissue without annotation, at most (2000)", int),
        Option("--tissue", "where they come from: auto, all, or GeoJSON, a file or a folder (auto)"),
        Option("--seed", "which of them (0)", int),
        Option("--group-regex", "the part of a slide's name that tells the patient"),
        Option("--origin", "where coordinates begin: qupath (at what it crops to) or slide (qupath)"),
        Option("--slide-mpp", "µm per pixel of level 0, for slides that do not say", float),
        Option("--on-error", "what a slide or tile that cannot be read does: stop or skip (stop)"),
    ),
    extra="slides",
    sizes_pixels=True,
)

LEAST_KNOWN = 0.02  # of a labelled patch; 72×72 of 512×512 pixels
READERS = 2  # threads ahead of the one that writes
STRIPS = (0.6, 0.8)  # where train and validation end, if one group alone is annotated
_RANGES: dict[str, tuple[float, float]] = {
    "mpp": (0.05, 20),
    "patch": (32, 4096),
    "stride": (1, 1 << 20),
    "unlabelled": (0, 1 << 30),
    "seed": (0, 1 << 62),
}


def raw_set(
    source: Path,
    annotations: str | None = None,
    mpp: float = 0.5,
    patch: int = 512,
    stride: int | None = None,
    classes: str | None = None,
    unpainted: str = "ignore",
    unlabelled: int = 2000,
    tissue: str = "auto",
    seed: int = 0,
    group_regex: str | None = None,
    origin: str = "qupath",
    slide_mpp: float | None = None,
    on_error: str = "stop",
) -> RawSet:
    """Cuts slides into patches at `mpp` µm per pixel, on a grid from each slide's origin.

    A patch that touches an annotation is labelled, with 255 where nothing is known; one of which less than 2 % is known
    is left out. `unlabelled` patches are chosen from all windows that are tissue by half and touch no annotation, by a
    hash of seed, slide and place. All patches of a slide are one group. If one slide alone is annotated, its labelled
    patches are shared out by place, 60/20/20 along the longer side of what is annotated.

    Args:
        source: a slide, or a folder in which slides are looked for at any depth.
        annotations: the folder, or a file.
        mpp: 0.05 to 20.
        patch: 32 to 4096.
        stride: 1 or more.
        classes: names in the order of their indices.
        unpainted: "ignore" or "background".
        unlabelled: 0 or more.
        tissue: "auto", "all", or the path of GeoJSON.
        seed: 0 or more.
        group_regex: finds the group in a slide's name: its first capture group or the whole match.
        origin: "qupath" or "slide".
        slide_mpp: 0.05 to 10.
        on_error: "skip" names what cannot be read in the summary and goes on.

    Raises:
        InputError: an option is out of its range; there is no slide, or no annotation of any; no region has a class
            that is asked for; or, with "stop", a slide, an annotation file or a tile cannot be read.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder.")
    if annotations is None:
        raise InputError("prepare slides: name the folder of the regions with --annotations FOLDER.")
    asked = _Asked(mpp, patch, patch if stride is None else stride, classes, unpainted, unlabelled, tissue, seed)
    asked.check()
    if on_error not in {"stop", "skip"}:
        raise InputError(f"--on-error {on_error}: must be stop or skip.")
    findings = Findings()
    guard = _Guard(findings, skip=on_error == "skip")
    files = _slides(source)
    if len(files) > 1 and Path(tissue).is_file():
        raise InputError(f"--tissue {tissue}: is one file for {len(files)} slides: name a folder with one for each.")
    groups = _groups(files, group_regex)
    found = find_annotations(Path(annotations), files)
    plans = [_Plan(name, path, groups[name], slide_mpp, origin) for name, path in files.items()]
    plans = _read_regions(plans, found, asked_classes(classes), guard)
    meaning = meaning_of((region for plan in plans for region in plan.regions), classes, unpainted)
    plans = _planned(plans, meaning, asked, guard)
    available = sum(len(plan.unlabelled) for plan in plans)
    _draw(plans, unlabelled)
    reason = _share_out(plans, patch)
    findings.remarks += _remarks(plans, meaning, found.left, group_regex, available)
    return RawSet(
        name=slide_name(source.resolve()) if source.is_file() else source.resolve().name,
        classes=tuple(Class(*one) for one in zip(meaning.names, meaning.colours, strict=True)),
        items=_items(plans, meaning, asked, guard),
        count=sum(len(plan.labelled) + len(plan.unlabelled) for plan in plans),
        microns_per_pixel=mpp,
        source=f"slides {source.resolve().name}",
        licence="not stated",
        keep_shared_groups=reason,
        partly_labelled=True,
        findings=findings,
    )


@dataclass(frozen=True)
class _Asked:
    """The options that say which patches are wanted."""

    mpp: float
    patch: int
    stride: int
    classes: str | None
    unpainted: str
    unlabelled: int
    tissue: str
    seed: int

    def check(self) -> None:
        """Raises InputError for a number out of its range."""
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"--{name} {value:g}: must be from {least:g} to {most:g}.")


@dataclass
class _Plan:
    """What is to be read of a slide.

    Attributes:
        name: of the slide.
        path: its file.
        group: its patient.
        given_mpp: of level 0, by the user.
        origin: of the coordinates.
        annotated: whether there is an annotation file.
        regions: of it.
        label: None if there is none.
        mpp: of level 0.
        labelled: windows in pixels of the view, each with its part; None: drawn by group.
        unlabelled: likewise, with their place in the draw.
        areas: class → mm², as it is learned.
        overlaps: (lower class, upper class) → mm² that both cover.
        outside: mm² painted with a class outside of every "Region*".
        unknown: how many windows touch an annotation and have next to no label.
        remarks: on the slide and its annotations.
    """

    name: str
    path: Path
    group: str
    given_mpp: float | None
    origin: str
    annotated: bool = False
    regions: tuple[Region, ...] = ()
    label: SlideLabel | None = None
    mpp: float = 0.0
    labelled: list[tuple[Box, str | None]] = field(default_factory=list)
    unlabelled: list[tuple[bytes, Box]] = field(default_factory=list)
    areas: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    overlaps: defaultdict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    outside: float = 0.0
    unknown: int = 0
    remarks: list[str] = field(default_factory=list)

    def count(self, painted: Painted, own: tuple[int, int], mpp: float) -> None:
        """Adds the areas of a window, of its `own` rows and columns, at `mpp` µm per pixel."""
        square = (mpp / 1000) ** 2
        part = painted.label[: own[0], : own[1]]
        for value, pixels in enumerate(np.bincount(part.ravel(), minlength=IGNORE)[:IGNORE].tolist()):
            if pixels:
                self.areas[value] += pixels * square
        share = part.size / painted.label.size  # the rest is counted in other windows
        for pair, pixels in painted.overlaps.items():
            self.overlaps[pair] += pixels * square * share
        self.outside += painted.outside * square * share


class _Guard:
    """Lets an InputError end the preparation, or notes it and goes on."""

    def __init__(self, findings: Findings, *, skip: bool) -> None:
        self.findings = findings
        self.skip = skip

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            self.fail(error)

    def fail(self, error: InputError) -> None:
        """Notes the error. Raises it if nothing is to be skipped."""
        if not self.skip:
            raise InputError(f"{str(error).rstrip('.')}; --on-error skip goes on without it.") from error
        self.findings.failed.append(str(error))


def _slides(source: Path) -> dict[str, Path]:
    """Finds the slides by name. Raises InputError if there are none, or two of one name."""
    if source.is_file():
        return {same(slide_name(source)): source}
    found: dict[str, Path] = {}
    for path in (one for one in visible_below(source) if is_slide(one)):
        name = same(slide_name(path))
        if name in found:
            raise InputError(f"{path}: has the same name as {found[name]}: rename or remove one of them.")
        found[name] = path
    if not found:
        raise InputError(
            f"{source}: holds no slide (svs, ndpi, mrxs, tiled TIFF, …): for images and masks there is prepare folder."
        )
    return found


def _groups(files: dict[str, Path], group_regex: str | None) -> dict[str, str]:
    """Finds the group of each slide in its name."""
    if group_regex is None:
        return {name: name for name in files}
    find = group_finder(group_regex)
    return {name: find(name, path) for name, path in files.items()}


def _read_regions(plans: list[_Plan], found: AnnotationFiles, names: Sequence[str], guard: _Guard) -> list[_Plan]:
    """Opens each slide and reads its annotations; returns the plans of those where both went well."""
    good = []
    for plan in plans:
        with guard():
            with open_slide(plan.path, mpp=plan.given_mpp) as slide:
                slide.at(1.0)  # refuses a slide that does not know its µm per pixel
                plan.remarks += slide.remarks
                paths = found.of_slide.get(plan.name, [])
                if paths:
                    read = read_annotations(paths, bounds=slide.bounds, origin=plan.origin, names=names)
                    plan.annotated, plan.regions = True, read.regions
                    plan.remarks += read.remarks
            good.append(plan)
    return good


def _planned(plans: list[_Plan], meaning: Meaning, asked: _Asked, guard: _Guard) -> list[_Plan]:
    """Chooses the windows of each slide; returns the plans of those where that went well."""
    good = []
    for plan in with_progress(plans, "finding tissue", len(plans)):
        with guard():
            _plan(plan, meaning, asked)
            good.append(plan)
    return good


def _plan(plan: _Plan, meaning: Meaning, asked: _Asked) -> None:
    with open_slide(plan.path, mpp=plan.given_mpp) as slide:
        view = slide.at(asked.mpp)
        plan.mpp = view.slide_mpp
        if view.scale < 0.98:
            plan.remarks.append(f"has pixels of {plan.mpp:.4g} µm, which are enlarged to the {asked.mpp:g} asked for.")
        plan.label = SlideLabel(plan.regions, meaning) if plan.annotated else None
        everywhere = plan.label is not None and plan.label.everywhere
        tissue = None
        if asked.unlabelled or everywhere:
            tissue = chosen_tissue(slide, plan.name, asked.tissue, plan.origin)
            if slide.bad_tiles:
                plan.remarks.append(f"{slide.bad_tiles} tiles of a small level cannot be decoded and count as glass.")
            if not tissue.mask.any():
                plan.remarks.append("shows no tissue; --tissue all takes patches from everywhere.")
        if plan.label is not None:
            touching = labelled_windows(view, plan.label, tissue, asked.patch, asked.stride)
            for box, own in _owned(touching):
                painted = _painted(view, plan.label, box)
                plan.count(painted, own, view.mpp)
                if (painted.label != IGNORE).mean() >= LEAST_KNOWN:
                    plan.labelled.append((box, None))
            plan.unknown = len(touching) - len(plan.labelled)
        if asked.unlabelled and tissue is not None:
            windows = unlabelled_windows(view, plan.label, tissue, asked.patch)
            plan.unlabelled = [(draw_of(asked.seed, plan.name, box), box) for box in windows]


def _painted(view: View, label: SlideLabel, box: Box) -> Painted:
    """Paints a window; outside of the slide nothing is known."""
    found = label.paint(box, view.scale)
    found.label[max(0, view.size[1] - box.y) :] = IGNORE
    found.label[:, max(0, view.size[0] - box.x) :] = IGNORE
    return found


def _owned(boxes: Sequence[Box]) -> Iterator[tuple[Box, tuple[int, int]]]:
    """Yields each window with the (height, width) that it has before the next begin: these parts overlap nowhere."""
    ends = []
    for starts in (sorted({box.y for box in boxes}), sorted({box.x for box in boxes})):
        ends.append(dict(zip(starts, [*starts[1:], sys.maxsize], strict=True)))
    for box in boxes:
        yield box, (min(box.height, ends[0][box.y] - box.y), min(box.width, ends[1][box.x] - box.x))


def _draw(plans: list[_Plan], count: int) -> None:
    """Keeps the first `count` unlabelled windows of all slides, in the order of the draw."""
    drawn = set(heapq.nsmallest(count, (place for plan in plans for place, _ in plan.unlabelled)))
    for plan in plans:
        plan.unlabelled = [(place, box) for place, box in plan.unlabelled if place in drawn]


def _share_out(plans: list[_Plan], side: int) -> str | None:
    """Gives the labelled windows parts by place if one slide alone has any; returns the reason, or None.

    Strips along the longer side of what is annotated are train, validation and test; of windows that overlap over a
    border, those of the later strip are left out.
    """
    labelled = [plan for plan in plans if plan.labelled]
    if len(labelled) != 1:
        return None
    (plan,) = labelled
    boxes = [box for box, _ in plan.labelled]
    spans = [max(one) - min(one) for one in ([box.x for box in boxes], [box.y for box in boxes])]
    along = (lambda box: box.x) if spans[0] >= spans[1] else (lambda box: box.y)
    order = sorted(along(box) for box in boxes)
    ends = [order[min(len(order) - 1, int(share * len(order)))] for share in STRIPS]
    parted: list[tuple[Box, str | None]] = []
    last = {"train": -side, "validation": -side, "test": -side}
    for box in sorted(boxes, key=along):
        part = "train" if along(box) < ends[0] else "validation" if along(box) < ends[1] else "test"
        before = {"train": (), "validation": ("train",), "test": ("train", "validation")}[part]
        if all(along(box) >= last[one] + side for one in before):
            last[part] = along(box)
            parted.append((box, part))
    if len({part for _, part in parted}) < 3:
        return None
    plan.labelled = parted
    return "one slide alone is annotated, so its patches are shared out by place, and scores flatter: annotate others."


def _items(plans: list[_Plan], meaning: Meaning, asked: _Asked, guard: _Guard) -> Iterator[Item]:
    """Reads the windows of each slide in threads; then the findings are complete."""
    shows: Counter[int] = Counter()  # patches by class
    for plan in plans:
        with guard():
            with open_slide(plan.path, mpp=plan.given_mpp) as slide, closing(_read(plan, slide.at(asked.mpp))) as items:
                for item in items:
                    if slide.bad_tiles and not guard.skip:
                        break
                    if item.label is not None:
                        shows.update(value for value in np.unique(item.label).tolist() if value != IGNORE)
                    yield item
            damaged = slide.bad_tiles
            if damaged:
                raise InputError(
                    f"{plan.path}: {damaged} tiles cannot be decoded, and no patch is taken that shows one."
                )
    guard.findings.heading = ("class", "regions", "mm²", "patches")
    guard.findings.rows = _rows(plans, meaning, shows)


def _read(plan: _Plan, view: View) -> Generator[Item]:
    """Reads the windows of a slide in order, those on corrupt tiles left out."""

    def read(window: tuple[Box, str | None, bool]) -> Item | None:
        box, part, with_label = window
        image = view.read(box.x, box.y, box.width, box.height)
        place = level_box(view, box)
        if view.slide.is_damaged(place):
            return None
        label = _painted(view, plan.label, box).label if with_label and plan.label is not None else None
        return Item(f"{plan.name}-x{place.x:06d}-y{place.y:06d}", plan.group, part, image, label)

    labelled = ((box, part, True) for box, part in plan.labelled)
    part_of_rest = "train" if any(part for _, part in plan.labelled) else None
    unlabelled = ((box, part_of_rest, False) for _, box in plan.unlabelled)
    with closing(ahead(read, chain(labelled, unlabelled), threads=READERS)) as items:  # type: ignore[type-var]
        yield from (item for item in items if item is not None)


def _rows(plans: list[_Plan], meaning: Meaning, shows: Counter[int]) -> list[tuple[str, ...]]:
    """Builds the table of classes: regions, mm² that are learned, patches that show them."""
    regions = Counter(region.class_name for plan in plans for region in plan.regions)
    areas = {index: sum(plan.areas[index] for plan in plans) for index in range(len(meaning.names))}
    return [
        (name, str(regions[name]) if regions[name] else "", f"{areas[index]:.4g}", str(shows[index]))
        for index, name in enumerate(meaning.names)
    ]


def _remarks(
    plans: list[_Plan], meaning: Meaning, left: list[Path], group_regex: str | None, available: int
) -> list[str]:
    """Tells what was understood of slides and regions, and what was not taken."""
    remarks = _of_slides(plans)
    counts: Counter[str | None] = sum((unlearned(plan.regions, meaning) for plan in plans), Counter())
    nameless = counts.pop(None, 0)
    if counts:
        listed = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
        remarks.append(f"not among --classes, so not learned from where nothing else lies over them: {listed}.")
    if nameless:
        remarks.append(f"{nameless} regions without a class are left out.")
    remarks += _of_overlaps(plans, meaning)
    if left:
        remarks.append(f"{len(left)} annotation files have the name of no slide: {shown(left)}.")
    unknown = sum(plan.unknown for plan in plans)
    if unknown:
        remarks.append(
            f"{unknown} patches at the rim of what is annotated have a label on less than 2 % and are left out."
        )
    if group_regex is None:
        remarks.append("each slide is its own group: where several come from one patient, give --group-regex.")
    taken = sum(len(plan.unlabelled) for plan in plans)
    if available:
        remarks.append(f"{taken:,} of {available:,} patches of tissue without annotation are unlabelled ones.")
    return remarks


def _of_slides(plans: list[_Plan]) -> list[str]:
    """Tells each remark once, with the slides that it is on."""
    slides: dict[str, list[Path]] = defaultdict(list)
    for plan in plans:
        for remark in plan.remarks:
            slides[remark].append(plan.path)
    return [f"{shown(paths)}: {remark}" for remark, paths in slides.items()]


def _of_overlaps(plans: list[_Plan], meaning: Meaning) -> list[str]:
    """Tells which classes lie over each other, and what is painted where it is not learned."""
    shared: defaultdict[tuple[int, int], float] = defaultdict(float)
    for plan in plans:
        for pair, area in plan.overlaps.items():
            shared[pair] += area
    outside = sum(plan.outside for plan in plans)
    remarks = [
        f"{meaning.names[one]} and {meaning.names[other]} overlap on {area:.3g} mm², which count as "
        f"{meaning.names[other]}, the later of them (--classes sets the order)."
        for (one, other), area in sorted(shared.items())
        if area >= LEAST_OVERLAP_MM2
    ]
    if outside >= LEAST_OVERLAP_MM2:
        remarks.append(f"{outside:.3g} mm² are painted outside of every Region* and not learned from.")
    return remarks
