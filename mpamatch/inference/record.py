"""What a folder of results was made with, so that the same command goes on there and another one is refused."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from mpamatch.claims import LOCK, alone
from mpamatch.errors import SHOWN, InputError, shown
from mpamatch.files import read_json, write_json
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.settings import SegmenterSettings
from mpamatch.models.weights import digest
from mpamatch.names import fitting, is_file_name, same, visible

FORM = 1  # of what is kept of unfinished work; another version may compute other last bits
RECORDS = ("slides.json", "images.json")
ENDING = ".png"  # the longest of a file that is called by such a name
MOST = 4  # entries that differ, in a sentence
SLIDE = "slide.json"  # in the folder of each slide


def made_with(segmenter: Segmenter, options: Mapping[str, Any]) -> dict[str, Any]:
    """Describes all that a result depends on beside the image: weights (SHA-256), settings and options."""
    return described(segmenter.model, segmenter.settings, options)


def described(model: nn.Module, settings: SegmenterSettings, options: Mapping[str, Any]) -> dict[str, Any]:
    """Describes what `made_with` does, from its parts."""
    return {
        "form": FORM,
        "weights": digest(model.state_dict()),
        "settings": asdict(settings),
        "options": dict(options),
    }


def check_same(path: Path, asked: Mapping[str, Any]) -> None:
    """Raises InputError, naming what differs, if `path` records that its folder was made with something else."""
    known, wanted = read_json(path), json.loads(json.dumps(asked))
    if not isinstance(known, dict) or not isinstance(known.get("made_with"), dict):
        raise _no_record(path)
    differing = _differing(known["made_with"], wanted)
    if differing:
        raise InputError(
            f"{path.parent}: was begun with other {', '.join(differing[:MOST])}: repeat that command to go on, or name "
            "a new folder."
        )


def _differing(known: Any, wanted: Any, name: str = "") -> list[str]:
    """Names the entries that differ, those of a dictionary one by one."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        keys = list(dict.fromkeys([*known, *wanted]))
        return [one for key in keys for one in _differing(known.get(key), wanted.get(key), key)]
    if known == wanted:
        return []
    texts = [one if isinstance(one, str) else shown(one) for one in (known, wanted)]
    if isinstance(known, dict | list) or max(map(len, texts)) > SHOWN:
        return [name[:SHOWN]]
    return [f"{name[:SHOWN]} ({texts[0]}, not {texts[1]})"]


class Record:
    """The record of a folder of results: what it was made with and which file has which name.

    Attributes:
        named: (file, name) of the files of this command; names that files have got before are kept.
    """

    def __init__(self, path: Path, made: Mapping[str, Any], files: Sequence[Path], taken: Iterable[str] = ()) -> None:
        """Reads the record at `path`, if there is one. Raises InputError if it was made with something else."""
        known: dict[str, str] = {}
        if path.is_file():
            check_same(path, made)
            known = _names(path)
        self._path, self._made, self._known = path, made, known
        self.named = named_apart(files, known, taken)
        self._names = {**known, **{name: _key(file) for file, name in self.named}}
        self._written = False

    def write(self) -> None:
        """Writes it, once. Several processes with the same list write the same.

        Raises InputError if another command began to write into the folder meanwhile.
        """
        if self._written:
            return
        busy = f"{self._path.parent}: another command begins to write there: wait for it, or name a new folder."
        with alone(self._path.parent / LOCK, busy, patience=60):  # other shards, or ranks
            if self._path.is_file():
                check_same(self._path, self._made)
                begun = _names(self._path)
                if begun not in (self._known, self._names):
                    raise InputError(f"{self._path.parent}: another command writes there: name a new folder.")
            write_json(self._path, {"made_with": self._made, "names": self._names})
        self._written = True


def _names(path: Path) -> dict[str, str]:
    """Reads which file has which name. Raises InputError for a name that would lead out of the folder of results."""
    names = read_json(path).get("names")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise _no_record(path)
    for name in names:
        if not is_file_name(name):
            raise InputError(
                f"{path}: gives a file the name {shown(name)}, which is no name of a file: name a new or empty folder "
                "for the results."
            )
    return names


def _no_record(path: Path) -> InputError:
    return InputError(f"{path}: is no record of a prediction: name a new or empty folder for the results.")


def check_place(out: Path) -> None:
    """Raises InputError if `out` is a file, or holds something but no record of a prediction to go on with."""
    if not any((out / name).is_file() for name in RECORDS):
        check_empty(out)


def check_empty(out: Path) -> None:
    """Raises InputError if `out` is a file or not empty: results of two commands are never mixed.

    Hidden files do not count: .DS_Store, or what was being written when a command was killed.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a new or empty folder for the results.")
    if visible(out):
        raise InputError(f"{out}: is not empty; name a new or empty folder for the results.")


def named_apart(
    files: Sequence[Path], known: Mapping[str, str] | None = None, taken: Iterable[str] = ()
) -> list[tuple[Path, str]]:
    """Gives each file a name of its own, short enough for a file with an ending.

    Names differ in more than case and in how accents are stored, which some file systems ignore.

    Args:
        files: each once.
        known: name → absolute path, of files that have one already.
        taken: names that none may have.
    """
    before = {path: name for name, path in (known or {}).items()}
    used = {_alike(name) for name in (*taken, *before.values())}
    named = []
    for file in files:
        if _key(file) in before:
            named.append((file, before[_key(file)]))
            continue
        base = f"{Path(os.path.abspath(file)).parent.name}-{file.stem}"  # noqa: PTH100  # a link keeps its own folder
        wishes = [file.stem, base, *(f"{base}-{number}" for number in range(2, len(files) + len(used) + 2))]
        name = next(wish for wish in (fitting(wish, ENDING) for wish in wishes) if _alike(wish) not in used)
        used.add(_alike(name))
        named.append((file, name))
    return named


def _alike(name: str) -> str:
    return same(name).casefold()


def _key(file: Path) -> str:
    return str(file.absolute())
