"""`mpamatch prototypes RUN INPUT…`: what the prototypes of a run see in images."""

import argparse
from pathlib import Path

from mpamatch import ranks
from mpamatch.claims import LOCK, alone
from mpamatch.console import new_console, say
from mpamatch.engine.prototype_pictures import PrototypeViewer
from mpamatch.errors import InputError
from mpamatch.images import read_image
from mpamatch.inference.files import list_images
from mpamatch.inference.record import Record, check_empty, described
from mpamatch.names import check_link, readable


def run(arguments: argparse.Namespace) -> int:
    """Draws assignments and maps of the run `arguments.run` for `arguments.inputs` into `arguments.out`; returns 0.

    Raises InputError if the run, an input or the output folder cannot be used, or the method has no prototypes.
    """
    if ranks.started() > 1:
        raise InputError("prototypes: draws in one process; leave out torchrun.")
    files = list_images([Path(given) for given in arguments.inputs])
    for file in files:
        check_link(file)
    out, console = Path(arguments.out), new_console()
    place = out / "prototypes.json"
    if not place.is_file():  # else the same command goes on
        check_empty(out)
    viewer = PrototypeViewer(Path(arguments.run), arguments.device)
    with alone(out / LOCK, f"{out}: another command writes there: name a new folder."):
        if not place.is_file():
            check_empty(out)  # not filled meanwhile
        _draw(viewer, Record(place, described(viewer.method, viewer.settings, {}), files), out)
    say(console, f"assignments and maps of {len(files)} image{'s' if len(files) > 1 else ''} are in {out}")
    return 0


def _draw(viewer: PrototypeViewer, record: Record, out: Path) -> None:
    """Draws assignments and maps of the images of `record` into `out`, but for those that are there."""
    from mpamatch.report.prototypes import Assigned, draw_assignments, draw_maps

    names, colours = viewer.settings.class_names, viewer.settings.colours
    for file, name in record.named:
        pictures = [out / kind / f"{name}.png" for kind in ("assignments", "maps")]
        if all(picture.is_file() for picture in pictures):
            continue
        look = viewer.look(read_image(file))
        record.write()
        per_class = look.cosine.shape[1]
        title = f"{readable(name)}: {per_class} prototype{'s' if per_class > 1 else ''} per class, {viewer.method.name}"
        row = Assigned("", look.image, {"prediction": look.label}, look.nearest, per_class)
        draw_assignments(pictures[0], [row], colours, names, title=title)
        draw_maps(pictures[1], look.image, look.cosine, names, title=title)
