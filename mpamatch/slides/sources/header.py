"""The first directory of a TIFF, without any library: what kind of file it is, told before one is asked for."""

import struct
from dataclasses import dataclass
from pathlib import Path

_WIDTH, _HEIGHT, _BITS, _TILE_WIDTH, _DESCRIPTION = 256, 257, 258, 322, 270
_FORMS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}  # type of a field → struct letter, for whole numbers
_MOST_FIELDS = 4096


@dataclass(frozen=True)
class TiffHeader:
    """What the first directory of a TIFF says: size in pixels, bits of the first channel, tiled or not, OME or not."""

    width: int
    height: int
    bits: int
    tiled: bool
    ome: bool


def is_tiff(path: Path) -> bool:
    """Tells whether a file begins as a TIFF or BigTIFF."""
    with path.open("rb") as file:
        return file.read(4) in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


def tiff_header(path: Path) -> TiffHeader | None:
    """Reads the first directory of a TIFF; None if the file is no TIFF or broken before the end of it."""
    try:
        return _parsed(path)
    except (OSError, struct.error, KeyError, ValueError):
        return None


def _parsed(path: Path) -> TiffHeader | None:
    if not is_tiff(path):
        return None
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head[:1] == b"I" else ">"
        big = struct.unpack(order + "H", head[2:4])[0] == 43
        start = struct.unpack(order + "Q", head[8:16])[0] if big else struct.unpack(order + "I", head[4:8])[0]
        entry, count = (20, "Q") if big else (12, "H")
        file.seek(start)
        fields = struct.unpack(order + count, file.read(struct.calcsize(order + count)))[0]
        table = file.read(entry * min(fields, _MOST_FIELDS))
        values: dict[int, int] = {}
        description = b""
        for at in range(0, len(table) - entry + 1, entry):
            tag, form = struct.unpack_from(order + "HH", table, at)
            number = struct.unpack_from(order + ("Q" if big else "I"), table, at + 4)[0]
            room = entry - (12 if big else 8)
            inline = at + entry - room
            if tag == _DESCRIPTION and number > room:
                file.seek(struct.unpack_from(order + ("Q" if big else "I"), table, inline)[0])
                description = file.read(min(number, 1 << 20))
            elif form in _FORMS and number * struct.calcsize(_FORMS[form]) <= room:
                values[tag] = struct.unpack_from(order + _FORMS[form], table, inline)[0]
            elif form in _FORMS and tag == _BITS:
                file.seek(struct.unpack_from(order + ("Q" if big else "I"), table, inline)[0])
                values[tag] = struct.unpack(order + _FORMS[form], file.read(struct.calcsize(_FORMS[form])))[0]
    ome = b"<OME" in description[:4096] or description.rstrip(b"\0 \r\n").endswith(b"OME>")
    return TiffHeader(values[_WIDTH], values[_HEIGHT], values.get(_BITS, 1), _TILE_WIDTH in values, ome)
