"""Lists of image names as published splits come, and which images of a prepared set they mean."""

import codecs
import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpamatch.data.prepared import Prepared
from mpamatch.errors import InputError, reason

# Folders that tell nothing of an image; others must agree with what `prepare` put in front of the image's name.
_PLAIN_FOLDERS = {"image", "images", "img", "imgs", "jpegimages", "data", "train", "training"}
_HEADERS = {"image", "images", "imagename", "imageid", "imagepath", "img", "imgname", "imgpath"}
_HEADERS |= {"id", "name", "names", "file", "files", "filename", "filepath", "path"}
_ENDING = r"\.nii\.gz|\.[A-Za-z]\w{1,4}"
_SHOWN = 3  # names that a message shows


@dataclass(frozen=True)
class NameList:
    """The images that a list names.

    Attributes:
        images: their names in the prepared set, in the list's order.
        renamed: a name as listed → that of its image, if they differ in more than folders and ending.
    """

    images: tuple[str, ...]
    renamed: dict[str, str]


def read_name_list(prepared: Prepared, path: Path, also: Iterable[str] = ()) -> NameList:
    """Reads a list of training images that have a mask, or are in `also`, one in each line.

    A line holds a name as the prepared set or the raw one has it, with or without folders and ending. What follows is
    passed over: a second path, as in UniMatch's lists, or columns after a comma or tab. So are a first line of column
    names, empty lines and lines that begin with #. The text is UTF-8 or, if its first bytes say so, UTF-16; a byte that
    is no UTF-8 stands for that byte in a file's name.

    A name means the image that has it. If there is none, it means the one whose name has the same words and numbers
    (`benign (1).png` is benign-1.png), else the one to whose name `prepare` added something in front
    (`Polyp/image/GT2012149-1.png` is polyp-GT2012149-1.png), with which the folders of the line must agree.

    Raises:
        InputError: the list cannot be read or names no image; or a line names no image, several, one that is not in the
            training part or has no mask, or one that another line names. The sentence has the first names and lines.
    """
    names, masked = _Names(prepared), {*prepared.labelled("train"), *also}
    part_of = {image: part for part, images in prepared.parts.items() for image in images}
    line_of: dict[str, int] = {}
    renamed: dict[str, str] = {}
    wrong: dict[str, list[tuple[str, _Meant]]] = defaultdict(list)  # what is wrong → names and their lines
    first = True
    for number, line in _lines(path):
        if line.startswith("#") and not names.exactly(line):
            continue
        meant, header, first = names.find(line), first and _is_header(line), False
        image = meant.images[0] if meant.images else ""
        problem = _problem(meant, line_of, part_of, masked)
        if problem is None:
            line_of[image] = number
            renamed |= {meant.listed: image} if meant.renamed else {}
        elif problem != "unknown" or not header:
            lines = f"lines {line_of[image]} and {number}" if problem == "twice" else f"line {number}"
            where = f"{lines}, {part_of[image]}" if problem == "part" else lines
            wrong[problem].append((f"{meant.listed[:200]!r} ({where})", meant))
    if wrong:
        raise _refusal(path, *next(iter(wrong.items())), part_of)
    if not line_of:
        raise InputError(f"{path}: names no image: a name on each line is expected.")
    return NameList(tuple(line_of), renamed)


@dataclass(frozen=True)
class _Meant:
    """What a line may mean.

    Attributes:
        listed: the name in it.
        images: that the name may mean.
        renamed: whether they have other words than the name.
        elsewhere: images that have the name, but other folders than the line.
        others: images that the rest of the line names.
    """

    listed: str
    images: tuple[str, ...] = ()
    renamed: bool = False
    elsewhere: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


class _Names:
    """The images of a set by name, by stem, by words, and by the words after each of the stem's hyphens."""

    def __init__(self, prepared: Prepared) -> None:
        self.names = {image for images in prepared.parts.values() for image in images}
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        self.by_words: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self.by_end: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = defaultdict(dict)  # → image → words before
        for image in sorted(self.names):
            stem = Path(image).stem
            self.by_stem[stem].append(image)
            self.by_words[_words(stem)].append(image)
            for hyphen in re.finditer("-", stem):  # every kind puts a hyphen after what it adds
                self.by_end[_words(stem[hyphen.end() :])][image] = _words(stem[: hyphen.start()])

    def exactly(self, name: str) -> tuple[str, ...]:
        """Finds the image of this name, or those of this stem."""
        return (name,) if name in self.names else tuple(self.by_stem.get(name, ()))

    def find(self, line: str) -> _Meant:
        """Finds what a line means: the whole of it, the first column, or its beginning up to an ending of a file."""
        if images := self.exactly(line):
            return _Meant(line, images)
        tried: list[_Meant] = []
        for text in _beginnings(line):
            meant = self._meant(text)
            if meant.images:
                return replace(meant, others=self._others(line[len(text) :], meant.images))
            tried.append(meant)
        return next((one for one in tried if one.elsewhere), tried[0])

    def _meant(self, text: str) -> _Meant:
        *folders, name = re.split(r"[\\/]", text)
        if images := self._named(name):
            return _Meant(text, images)
        for words in filter(None, map(_words, (name, _without_ending(name)))):
            if words in self.by_words:
                return _Meant(text, tuple(self.by_words[words]), renamed=True)
            if words in self.by_end:
                return _agreeing(text, self.by_end[words], {word for one in folders for word in _words(one)})
        return _Meant(text)

    def _named(self, name: str) -> tuple[str, ...]:
        return self.exactly(name) or self.exactly(_without_ending(name))

    def _others(self, rest: str, images: tuple[str, ...]) -> tuple[str, ...]:
        """Finds images that the rest of a line names with their ending: the masks of `images` have names like them."""
        names = [re.split(r"[\\/]", word)[-1] for word in re.split(r"[\s,;\"]+", rest)]
        found = {image for name in names if name != _without_ending(name) for image in self._named(name)}
        return tuple(sorted(found - set(images)))


def _without_ending(name: str) -> str:
    return re.sub(rf"({_ENDING})$", "", name)


def _agreeing(text: str, before: dict[str, tuple[str, ...]], folders: set[str]) -> _Meant:
    """Chooses the images the words before whose name are among the line's folders; all if these tell nothing."""
    agreeing = tuple(image for image, words in before.items() if folders >= set(words))
    if not agreeing and folders - _PLAIN_FOLDERS:
        return _Meant(text, elsewhere=tuple(before))
    return _Meant(text, agreeing or tuple(before), renamed=True)


def _words(name: str) -> tuple[str, ...]:
    """Splits a name into words and numbers, without case, leading zeros and an _img or _image at the end."""
    plain = unicodedata.normalize("NFC", name).casefold()  # macOS writes é as e and an accent
    found = re.findall(r"\d+|[^\W\d_]+|[\udc80-\udcff]+", plain)  # the last: bytes that are no UTF-8
    words = [word.lstrip("0") or "0" if word.isdigit() else word for word in found]
    return tuple(words[:-1] if len(words) > 1 and words[-1] in ("img", "image") else words)


def _beginnings(line: str) -> Iterator[str]:
    """Yields what in a line may be a name, of the first column before the line, and of each the shortest part first.

    The shortest is first because the last component of "images/a.png masks/b.png" is a name too.
    """
    for text in dict.fromkeys((_first_column(line), line)):
        for ending in re.finditer(rf"({_ENDING})(?=\s)", text):
            yield text[: ending.end()]
        yield text


def _first_column(line: str) -> str:
    match = re.match(r'"([^"]*)"|([^,\t]*)', line)
    assert match is not None, "the second form is never refused"
    return (match[1] or match[2] or "").strip()


def _is_header(line: str) -> bool:
    return re.sub(r"\W|_", "", _first_column(line)).lower() in _HEADERS


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields number and text of each line that is not empty. Raises InputError if the file is no text."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what PowerShell's > writes
    try:
        text = raw.decode("utf-16") if wide else raw.decode("utf-8-sig", "surrogateescape")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text file ({reason(error)}).") from error
    if "\0" in text:
        raise InputError(f"{path}: is no text file: a name on each line is expected.")
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if line.strip():
            yield number, line.strip()


def _problem(
    meant: _Meant, line_of: Mapping[str, int], part_of: Mapping[str, str], masked: Container[str]
) -> str | None:
    """Says in a word why a line names no image to be labelled; None if it names one."""
    if not meant.images:
        return "folders" if meant.elsewhere else "unknown"
    if len(meant.images) > 1 or meant.others:
        return "several" if len(meant.images) > 1 else "crowded"
    image = meant.images[0]
    if image in line_of:
        return "twice"
    if part_of[image] != "train":
        return "part"
    return None if image in masked else "mask"


def _refusal(path: Path, problem: str, found: Sequence[tuple[str, _Meant]], part_of: Mapping[str, str]) -> InputError:
    """Builds the error for the lines that have one problem: the first of them, and what to do."""
    shown = ", ".join(where for where, _ in found[:_SHOWN])
    shown += f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    first = found[0][1]
    may_be = " or ".join(map(repr, (first.images or first.elsewhere)[:_SHOWN]))
    more = " and ".join(map(repr, first.others[:1]))
    if problem == "unknown":
        name = re.split(r"[\\/]", first.listed)[-1][:200]
        near = difflib.get_close_matches(name, sorted(part_of), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the set's names are such as {min(part_of)!r}."
        return InputError(f"{path}: unknown image {shown}: {hint}")
    told = {
        "several": f"can be more than one image: {shown}: write {may_be}.",
        "folders": f"lies in other folders than the image of that name: {shown}: write {may_be} if that is meant.",
        "crowded": f"one line names several images: {shown}, with {more}: write each on its own line.",
        "part": f"not in the training part: {shown}: leave it out, as a split labels training images alone.",
        "mask": f"has no mask: {shown}: leave it out, or add its mask to the set.",
        "twice": f"named twice: {shown}: leave one of the lines out.",
    }
    return InputError(f"{path}: {told[problem]}")
