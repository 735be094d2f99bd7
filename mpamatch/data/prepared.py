"""The prepared form: one folder layout that every raw set is brought into and everything later reads.

dataset.json     name, classes with colours, microns per pixel, source, licence, whether 255 marks what nobody annotated
images/*         8-bit RGB, PNG or JPEG
masks/*.png      uint8 class index, 255 = ignore; an image without one is unlabelled
instances/*.png  uint16 number of the object that each pixel of a mask is of, 0 in the background; if they are known
parts.json       train, validation and test by image name, the group (patient) of each image
present.json     image-level labels, if there are any: image name → names of the classes that it shows
splits/*.json    which training images count as labelled
"""

import dataclasses
import difflib
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mpamatch.console import with_progress
from mpamatch.data.image_facts import Seen, remarks_on, size_cause
from mpamatch.data.image_labels import names_shown, read_image_labels
from mpamatch.data.instances import instances_problem
from mpamatch.data.parts import parts_by_group
from mpamatch.data.raw import Class, Item, RawSet
from mpamatch.errors import InputError, shown, unknown
from mpamatch.files import check_free, json_bytes, making, read_json
from mpamatch.images import IGNORE, Facts, can_copy, read_image_and_facts
from mpamatch.names import fitting, is_file_name, listed, same, visible

MOST_MICRONS = 1e6  # a metre: what is larger is no size of a pixel
PARTS = ("train", "validation", "test")
IF_TURNED = "a mask drawn on the unturned picture does not fit, so look at check.png"
COPIED = (".png", ".jpg", ".jpeg")  # how the files in images/ end


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: what its JSON files say. Images and masks stay on the disk.

    Attributes:
        root: its folder.
        name: such as "glas-gland".
        classes: the background first; a mask's values are indices into them.
        microns_per_pixel: None if it is not known.
        source: where the data come from.
        licence: the terms of their use.
        parts: train, validation, test → image names.
        groups: image name → group (patient).
        note: why groups are shared between parts; empty if they are not.
        present: image-level labels: image name → indices of the classes that it shows, in rising order, without the
            background; an image that has none is not in it.
        partly_labelled: whether masks hold 255 for what nobody annotated, so that one of 0 and 255 alone is no mistake.
    """

    root: Path
    name: str
    classes: tuple[Class, ...]
    microns_per_pixel: float | None
    source: str
    licence: str
    parts: dict[str, tuple[str, ...]]
    groups: dict[str, str]
    note: str
    present: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    partly_labelled: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.classes)

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(one.colour for one in self.classes)

    def image_path(self, name: str) -> Path:
        return self.root / "images" / name

    def mask_path(self, name: str) -> Path | None:
        """Finds the mask of an image; None if the image is unlabelled."""
        path = self.root / "masks" / f"{Path(name).stem}.png"
        return path if path.is_file() else None

    def instances_path(self, name: str) -> Path | None:
        """Finds the numbers of the objects in an image; None if it has none."""
        path = self.root / "instances" / f"{Path(name).stem}.png"
        return path if path.is_file() else None

    def labelled(self, part: str) -> tuple[str, ...]:
        """Lists the images of a part that have a mask."""
        return tuple(name for name in self.parts[part] if self.mask_path(name) is not None)

    def with_present(self, part: str) -> tuple[str, ...]:
        """Lists the images of a part that have an image-level label."""
        return tuple(name for name in self.parts[part] if name in self.present)

    def present_row(self, name: str) -> NDArray[np.float32]:  # (C,)
        """Builds the image-level label of an image: 1 for each class that it shows, else 0."""
        row = np.zeros(len(self.classes), dtype=np.float32)
        row[list(self.present[name])] = 1
        return row

    def splits(self) -> tuple[str, ...]:
        """Lists the names of the splits written so far."""
        return tuple(sorted(path.stem for path in visible(self.root / "splits") if path.suffix == ".json"))


def load_prepared(root: Path) -> Prepared:
    """Reads a folder that `write_prepared` or `mpamatch prepare` wrote.

    Raises:
        InputError: the folder or one of its files is missing, a field has the wrong form, an image is listed twice or
            is missing, or no training image is listed.
    """
    prepared = read_prepared(root)
    there = {path.name for path in visible(root / "images")}
    for part, names in prepared.parts.items():
        for name in names:
            if name not in there:
                raise InputError(f"{prepared.image_path(name)}: is listed in {part} of parts.json but is not there.")
    if not prepared.parts["train"]:
        raise InputError(f"{root / 'parts.json'}: lists no training image.")
    return prepared


def read_prepared(root: Path) -> Prepared:
    """Reads the JSON files of a prepared folder without looking for the images, for `check`; raises InputError."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder.")
    if not (root / "dataset.json").is_file():
        raise InputError(f"{root}: has no dataset.json: prepare it first (mpamatch prepare KIND SOURCE {root}).")
    about = _fields(root / "dataset.json", {"name": str, "classes": list, "source": str, "licence": str})
    listing = _fields(root / "parts.json", {"parts": dict, "groups": dict})
    parts = _parts(root / "parts.json", listing["parts"])
    groups = {name: str(group) for name, group in listing["groups"].items()}
    for name in (name for names in parts.values() for name in names):
        if name not in groups:
            raise InputError(f'{root / "parts.json"}: gives no group for {name}: add it to "groups".')
    classes = _classes(root / "dataset.json", about["classes"])
    return Prepared(
        root=root,
        name=about["name"],
        classes=classes,
        microns_per_pixel=_positive(root / "dataset.json", about.get("microns_per_pixel")),
        source=about["source"],
        licence=about["licence"],
        parts=parts,
        groups=groups,
        note=str(listing.get("note", "")),
        present=read_image_labels(root / "present.json", tuple(one.name for one in classes), groups),
        partly_labelled=about.get("partly_labelled") is True,
    )


def training_lists(prepared: Prepared, split: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lists the labelled and the unlabelled training images, in the order of parts.json.

    Args:
        prepared: the set.
        split: the name of a split; None: the only one there is or, without any, every training image with a mask is
            labelled.

    Returns:
        The labelled images, and all other training images, whether or not they have a mask.

    Raises:
        InputError: the split is unknown or names an image that is missing, not in the training part or without a mask;
            none is named and there are several; or no image is labelled.
    """
    name = chosen_split(prepared, split)
    if name is None:
        labelled = set(prepared.labelled("train"))
    else:
        labelled = set(_split_images(prepared, name))
    if not labelled:
        where = prepared.root if name is None else split_path(prepared, name)
        raise InputError(f"{where}: no training image is labelled: at least one mask in the training part is needed.")
    train = prepared.parts["train"]
    return tuple(n for n in train if n in labelled), tuple(n for n in train if n not in labelled)


def split_path(prepared: Prepared, name: str) -> Path:
    return prepared.root / "splits" / f"{name}.json"


def split_problems(prepared: Prepared, name: str) -> list[str]:
    """Lists what is wrong with the images that a split names; empty if nothing is."""
    content = _fields(split_path(prepared, name), {"labelled": list})
    train = set(prepared.parts["train"])
    problems = []
    for image in content["labelled"]:
        if not is_file_name(image):
            problems.append(f"names {shown(image)}, which is no name of a file in images/")
        elif not prepared.image_path(image).is_file():
            problems.append(f"names {image}, which is not in images/")
        elif image not in train:
            problems.append(f"names {image}, which is no training image")
        elif prepared.mask_path(image) is None:
            problems.append(f"names {image}, which has no mask")
    if not content["labelled"]:
        problems.append("names no image")
    return problems


def weak_training_lists(prepared: Prepared, split: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lists the training images to learn from by image-level labels, and the others, in the order of parts.json.

    With `split` None these are all that have an image-level label, whatever splits there are, else the images of that
    split. Masks do not matter. Raises InputError if no training image has an image-level label or one of the split has
    none, and for a split as `training_lists` does.
    """
    known = prepared.with_present("train")
    if not known:
        raise InputError(
            f"{prepared.root}: no training image has an image-level label (present.json): prepare the set with a task "
            "that writes them, such as ebhi-seg --task weak, or take another method.name."
        )
    if split is not None:
        name = chosen_split(prepared, split)
        assert name is not None, "a split was asked for"
        chosen = set(_split_images(prepared, name))
        missing = sorted(chosen - set(known))
        if missing:
            raise InputError(f"{split_path(prepared, name)}: names {missing[0]}, which has no image-level label.")
        known = tuple(image for image in known if image in chosen)
    return known, tuple(image for image in prepared.parts["train"] if image not in set(known))


def chosen_split(prepared: Prepared, split: str | None) -> str | None:
    """Finds the split that is meant; None if there is none. Raises InputError if it is unknown or not clear."""
    there = prepared.splits()
    if split is None:
        if len(there) > 1:
            raise InputError(f"{prepared.root}: has several splits, name one with --data.split: {', '.join(there)}.")
        return there[0] if there else None
    name = split.removesuffix(".json")
    if name in there:
        return name
    if not there:
        raise InputError(
            f"{prepared.root}: has no split {name!r}: write one first (mpamatch split {prepared.root} --labelled 10%)."
        )
    raise unknown("split", name, there)


def _split_images(prepared: Prepared, name: str) -> list[str]:
    """Reads the labelled images of a split. Raises InputError for the first problem with them."""
    path = split_path(prepared, name)
    problems = split_problems(prepared, name)
    if problems:
        raise InputError(f"{path}: {problems[0]}: write the split again (mpamatch split {prepared.root} …).")
    return list(read_json(path)["labelled"])


def _fields(path: Path, wanted: Mapping[str, type]) -> dict[str, Any]:
    """Reads a JSON object. Raises InputError if a field in `wanted` is missing or of another type."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a JSON object with {', '.join(wanted)}.")
    for field, kind in wanted.items():
        if field not in content:
            near = difflib.get_close_matches(field, content, n=1)
            raise InputError(f"{path}: has no field {field!r}" + (f" (is it {near[0]!r}?)." if near else "."))
        if not isinstance(content[field], kind):
            raise InputError(f"{path}: field {field!r} must be a {kind.__name__}, not {shown(content[field])}.")
    return content


def _parts(path: Path, parts: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    for part in parts:
        if part not in PARTS:
            raise InputError(f"{path}: {unknown('part', part, PARTS)}")
    found: dict[str, str] = {}
    for part, names in parts.items():
        if not isinstance(names, list):
            raise InputError(f"{path}: part {part!r} must be a list of image names.")
        for name in names:
            if not is_file_name(name):
                raise InputError(
                    f"{path}: part {part!r} lists {shown(name)}, which is no name of a file in images/: write its name "
                    "alone, without folders."
                )
            if name in found:
                raise InputError(f"{path}: lists {name} twice, in {found[name]} and in {part}.")
            found[name] = part
    return {part: tuple(parts.get(part, ())) for part in PARTS}


def _classes(path: Path, classes: list[Any]) -> tuple[Class, ...]:
    found = []
    for one in classes:
        name, colour = (one.get("name"), one.get("colour")) if isinstance(one, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(colour, list) or not all(type(part) is int for part in colour):
            raise InputError(f"{path}: every class needs a name and a colour [red, green, blue], not {shown(one)}.")
        found.append(Class(name, (*colour,)))
    return checked_classes(tuple(found), str(path))


def checked_classes(classes: tuple[Class, ...], where: str) -> tuple[Class, ...]:
    """Returns `classes`. Raises InputError unless they are 2 to 255, each with its own name and a colour of 3 bytes."""
    names = [one.name for one in classes]
    if not 2 <= len(names) <= 255:
        raise InputError(f"{where}: has {len(names)} classes; between 2 and 255 are needed, background among them.")
    for one in classes:
        if names.count(one.name) > 1:
            raise InputError(f"{where}: has the class {shown(one.name)} twice.")
        if len(one.colour) != 3 or not all(0 <= value <= 255 for value in one.colour):
            raise InputError(f"{where}: the colour of {shown(one.name)} must be three numbers from 0 to 255.")
    return classes


def _positive(path: Path, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST_MICRONS:
        raise InputError(f"{path}: microns_per_pixel must be a positive number or null, not {shown(value)}.")
    return float(value)


def write_prepared(dest: Path, raw: RawSet) -> Prepared:
    """Writes a raw set in the prepared form, all of it or nothing; every image is decoded once.

    An 8-bit RGB PNG or JPEG is copied byte for byte, anything else is stored as PNG. Items without a part are put
    60/20/20 into train, validation and test by `parts_by_group`, over the groups that have a mask; those of groups
    without any mask go to train.

    Args:
        dest: a new or empty folder.
        raw: the set.

    Raises:
        InputError: `dest` is not empty or cannot be written; an image, label or image-level label is unfit; two items
            share a stem; there is no item or no label of either kind; or a group is in two parts and `raw` gives no
            reason (`keep_shared_groups`).
    """
    checked_classes(raw.classes, raw.name)
    check_free(dest)
    with making(dest) as temporary:
        items = with_progress(raw.items, "preparing", raw.count)
        written = [_write_item(temporary, item, raw.classes) for item in items]
        raw.findings.remarks += _shortened(written)
        raw.findings.remarks += remarks_on([one.seen for one in written], IF_TURNED)
        listing = _listing(dest, written, raw.keep_shared_groups)
        about = {
            "name": raw.name,
            "classes": [asdict(one) for one in raw.classes],
            "microns_per_pixel": raw.microns_per_pixel,
            "source": raw.source,
            "licence": raw.licence,
            **({"partly_labelled": True} if raw.partly_labelled else {}),
        }
        (temporary / "dataset.json").write_bytes(json_bytes(about))
        (temporary / "parts.json").write_bytes(json_bytes(listing))
        if any(one.present is not None for one in written):
            (temporary / "present.json").write_bytes(json_bytes({one.image: one.present for one in _known(written)}))
        (temporary / "splits").mkdir()
    return load_prepared(dest)


@dataclass(frozen=True)
class _Written:
    image: str
    group: str
    part: str | None
    labelled: bool
    present: list[str] | None  # names of the classes of the image-level label
    seen: Seen
    shortened: bool  # whether its name would have been too long for a file


def _shortened(written: list[_Written]) -> list[str]:
    """Says how many names are not those of the raw set."""
    names = [one.image for one in written if one.shortened]
    told = "too long for a file with what is put in front, so shortened to end in eight digits"
    shown = [f"{name[:20]}…{Path(name).stem[-8:]}" for name in names]
    return [f"{told}: {listed(shown)}."] if names else []


def _known(written: list[_Written]) -> list[_Written]:
    """Selects those with an image-level label, by name."""
    return sorted((one for one in written if one.present is not None), key=lambda one: one.image)


def _write_item(root: Path, item: Item, classes: tuple[Class, ...]) -> _Written:
    """Writes image and mask of an item under `root`. Raises InputError, about the file or stem, if one is unfit."""
    where = item.image if isinstance(item.image, Path) else item.stem
    image, facts = read_image_and_facts(item.image) if isinstance(item.image, Path) else (item.image, Facts())
    copied = isinstance(item.image, Path) and can_copy(item.image)
    ending = Path(where).suffix.lower() if copied else ".png"
    stem = fitting(same(item.stem), max(COPIED, key=len))
    target = root / "images" / f"{stem}{ending}"
    mask = root / "masks" / f"{stem}.png"
    for folder in (target.parent, mask.parent):
        folder.mkdir(exist_ok=True)
    if mask.exists() or any((root / "images" / f"{stem}{one}").exists() for one in COPIED):
        raise InputError(f"{where}: another image has the name {item.stem!r} too: rename one of them.")
    if copied:
        shutil.copyfile(where, target)
    else:
        Image.fromarray(image).save(target)
    if item.label is not None:
        check_label(where, image, item.label, len(classes), facts.turn)
        Image.fromarray(item.label).save(mask)
        if item.instances is not None:
            _write_instances(root / "instances" / mask.name, item.label, item.instances, where)
    present = None if item.present is None else names_shown(where, item.present, [one.name for one in classes])
    shortened, seen = stem != same(item.stem), Seen(where, facts)
    return _Written(target.name, item.group, item.part, item.label is not None, present, seen, shortened)


def _write_instances(path: Path, label: NDArray[np.uint8], numbers: NDArray[np.uint16], where: Path | str) -> None:
    """Writes the numbers of the objects in a label. Raises InputError, about `where`, if they do not fit it."""
    problem = instances_problem(numbers, label)
    if problem:
        raise InputError(f"{where}: its numbers of objects do not fit: the file that would be written {problem}.")
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(numbers).save(path)


def parts_of_groups(prepared: Prepared) -> dict[str, str]:
    """Tells the part of each group. Raises InputError if a group is in several."""
    found: dict[str, str] = {}
    for part, names in prepared.parts.items():
        for name in names:
            group = prepared.groups[name]
            if found.setdefault(group, part) != part:
                raise InputError(
                    f"{prepared.root}: the group {group!r} is in {found[group]} and {part}: its parts cannot be kept."
                )
    return found


def with_parts_of(prepared: Prepared, items: Iterable[Item]) -> Iterator[Item]:
    """Yields items in the parts that their groups have in a prepared set; others where they are, or else in train.

    So a set that grows keeps what it is scored on, and what is labelled next is learned from. Raises InputError, before
    an item is taken, if a group of `prepared` is in several parts.
    """
    known = parts_of_groups(prepared)
    return (replace(item, part=known.get(item.group) or item.part or "train") for item in items)


def check_label(
    where: Path | str,
    image: NDArray[np.uint8],  # (H, W, 3)
    label: NDArray[np.integer],  # (H, W)
    classes: int,
    turn: int = 1,
) -> None:
    """Raises InputError, about `where`, if a label differs from its image in size or holds an index of no class.

    `turn` is the EXIF orientation that the image was turned by, 1 for none.
    """
    if image.shape[:2] != label.shape:
        raise InputError(
            f"{where}: the image is {image.shape[1]}×{image.shape[0]} pixels and its mask "
            f"{label.shape[1]}×{label.shape[0]}: {size_cause(turn)}"
        )
    wrong = label[(label >= classes) & (label != IGNORE)]
    if wrong.size:
        raise InputError(
            f"{where}: its mask holds the class index {wrong.max()}, but there are only {classes} classes "
            f"(0..{classes - 1}, and {IGNORE} to ignore)."
        )


def _listing(dest: Path, written: list[_Written], keep_shared_groups: str | None) -> dict[str, Any]:
    """Builds the content of parts.json. Raises InputError if a group is in two parts without a reason."""
    if not written:
        raise InputError(f"{dest}: no image was found to prepare.")
    if not any(one.labelled or one.present is not None for one in written):
        raise InputError(
            f"{dest}: none of the {len(written)} images has a mask or an image-level label: at least one is needed."
        )
    drawn = parts_by_group(one.group for one in written if one.labelled and one.part is None)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    parts_of_group: dict[str, set[str]] = defaultdict(set)
    for one in written:
        part = one.part or drawn.get(one.group, "train")
        parts[part].append(one.image)
        parts_of_group[one.group].add(part)
    shared = sorted(group for group, where in parts_of_group.items() if len(where) > 1)
    if shared and keep_shared_groups is None:
        raise InputError(
            f"{dest}: the group {shared[0]!r} is in {' and '.join(sorted(parts_of_group[shared[0]]))}: "
            "give each group one part, or let --regroup draw the parts by group."
        )
    listing: dict[str, Any] = {
        "parts": {part: sorted(names) for part, names in parts.items()},
        "groups": {one.image: one.group for one in sorted(written, key=lambda one: one.image)},
    }
    if shared:
        listing["note"] = f"{len(shared)} groups are in more than one part: {keep_shared_groups}"
    return listing
