"""Image-level labels of a prepared set, present.json: image name → names of the foreground classes that it shows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mpamatch.errors import InputError, shown, unknown
from mpamatch.files import read_json


def read_image_labels(path: Path, class_names: Sequence[str], images: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Reads present.json: image name → indices of the classes it shows, in rising order; empty if there is no file.

    Raises InputError if an image is none of `images`, a class is unknown, or the background is among the classes.
    """
    if not path.is_file():
        return {}
    content, known = read_json(path), set(images)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a JSON object of image names, each with a list of class names.")
    present: dict[str, tuple[int, ...]] = {}
    for name, classes in content.items():
        if name not in known:
            raise InputError(f"{path}: names {shown(name)}, which parts.json does not list: remove it.")
        if not isinstance(classes, list):
            raise InputError(f"{path}: {name} must have a list of class names, not {shown(classes)}.")
        for one in classes:
            if one == class_names[0]:
                raise InputError(f"{path}: {name}: {one!r} is the background, which no image-level label names.")
            if one not in class_names:
                word = one if isinstance(one, str) else shown(one)
                raise InputError(f"{path}: {name}: {unknown('class', word, class_names[1:])}")
        present[name] = tuple(sorted({class_names.index(one) for one in classes}))
    return present


def names_shown(where: Path | str, present: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """Names the classes of an image-level label. Raises InputError, about `where`, if one is no foreground class."""
    for index in present:
        if not 0 < index < len(class_names):
            raise InputError(
                f"{where}: its image-level label holds the class index {index}; the foreground classes are "
                f"1..{len(class_names) - 1}."
            )
    return [class_names[index] for index in sorted(set(present))]
