"""Files damaged at random: any bytes, and what the format's own rules let through, so that the damage goes deep.

Every function takes a random.Random and gives the same bytes for the same state of it.
"""

import gzip
import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import yaml

Mutate = Callable[[Random, bytes], bytes]

INTEGERS = (0, 1, 2, 3, 7, 8, 9, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
LONG = 100_000
# What a field may hold that nobody expects.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 256, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), -float("inf"), "", " ", "0", "nan", "null", "a\0b", "\ud800", "é", "e\u0301", "../x",
    "/etc/passwd", "..", ".", "/", "~", "con", "x" * 300, "x" * LONG, "[/]", "[red]", "%s", "{}", "\n", "\x1b[31m",
    [], {}, [[]], [None], {"": None}, [1, 2, 3], ["a", "a"], {"a": {"b": {}}}, [0] * 1000, [[[[[[[[[[]]]]]]]]]],
)  # fmt: skip

# What YAML takes for more than words and numbers.
TAGS = (
    b"!!python/object/apply:os.getcwd []", b"!!python/name:os.system", b"*nothing", b"&a [*a]", b"!!binary abc",
    b"!!timestamp 9", b"2001-99-99", b"1_000:60:60", b"0o9", b"? [1]\n: 2", b"!!set {a, b}", b"<<: 3", b"!!float x",
    b"%YAML 9", b"---\n---", b"!x y", b"|\n  x", b"=", b"{[1]: 2}", b"!!int 0x", b"2001-01-01", b"!!omap [a]",
)  # fmt: skip


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """Damages up to four places: bits, bytes, numbers, chunks that are gone, doubled, swapped or blank, the end."""
    for _ in range(random.choice((1, 1, 2, 4))):
        data = random.choice(_OF_BYTES)(random, data)
    return data


def _place(random: Random, data: bytes) -> int:
    """Half of the time in the first bytes, where formats say what follows."""
    return random.randrange(max(1, min(len(data), random.choice((16, 64, 256, 1 << 30, 1 << 30)))))


def _chunk(random: Random, data: bytes) -> tuple[int, int]:
    first = _place(random, data)
    return first, min(len(data), first + random.choice((1, 2, 4, 16, 64, 512, len(data))))


def _bits(random: Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64)) if found else 0):
        found[_place(random, data)] ^= 1 << random.randrange(8)
    return bytes(found)


def _bytes(random: Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 4, 32)) if found else 0):
        found[_place(random, data)] = random.choice((0, 255, 127, 128, 10, 34, random.randrange(256)))
    return bytes(found)


def _number(random: Random, data: bytes) -> bytes:
    """Writes a number over what may be a length."""
    at, form = _place(random, data), random.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    value = random.choice((*INTEGERS, 2**63, 2**64 - 1, len(data), len(data) + 1)) % (1 << 8 * size)
    return data[:at] + struct.pack(form, value) + data[at + size :]


def _cut(random: Random, data: bytes) -> bytes:
    return data[: random.choice((0, 1, 3, 8, _place(random, data), _place(random, data), len(data) - 1))]


def _longer(random: Random, data: bytes) -> bytes:
    return data + random.choice((b"\0", b"\xff" * 9, random.randbytes(100), data))


def _gone(random: Random, data: bytes) -> bytes:
    first, last = _chunk(random, data)
    return data[:first] + data[last:]


def _doubled(random: Random, data: bytes) -> bytes:
    first, last = _chunk(random, data)
    return data[:last] + data[first:last] * random.choice((1, 1, 3)) + data[last:]


def _blank(random: Random, data: bytes) -> bytes:
    first, last = _chunk(random, data)
    return data[:first] + random.choice((b"\0", b"\xff", b" ")) * (last - first) + data[last:]


def _noise(random: Random, data: bytes) -> bytes:
    first, last = _chunk(random, data)
    return data[:first] + random.randbytes(last - first) + data[last:]


def _spliced(random: Random, data: bytes) -> bytes:
    """Goes on with another place of the same file."""
    return data[: _place(random, data)] + data[_place(random, data) :]


_OF_BYTES: tuple[Mutate, ...] = (_bits, _bytes, _number, _cut, _longer, _gone, _doubled, _blank, _noise, _spliced)


# Images


def mutate_png(random: Random, data: bytes) -> bytes:
    """Damages a chunk of a PNG and mends its checksum, or any bytes."""
    chunks = png_chunks(data)
    if random.random() < 0.4 or not chunks:
        return mutate_bytes(random, data)
    at = random.randrange(len(chunks))
    name, body = chunks[at]
    other = random.choice((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"iCCP", b"eXIf", b"acTL", b"zzzz"))
    what = random.randrange(6)
    if what == 0:
        chunks[at] = name, mutate_bytes(random, body)
    elif what == 1:
        chunks[at] = other, body
    elif what == 2:
        del chunks[at]
    elif what == 3:
        chunks.insert(random.randrange(len(chunks) + 1), (other, random.choice((b"", body, random.randbytes(24)))))
    elif what == 4:
        random.shuffle(chunks)
    else:
        chunks[0] = b"IHDR", _header(random, chunks[0][1])
    return png_of(chunks)


def _header(random: Random, body: bytes) -> bytes:
    """Changes width, height, depth, colour or interlacing of an IHDR."""
    fields = list(struct.unpack(">IIBBBBB", body.ljust(13, b"\0")[:13]))
    at = random.randrange(7)
    fields[at] = random.choice((*INTEGERS, 10**5, 10**6)) % (1 << (32 if at < 2 else 8))
    return struct.pack(">IIBBBBB", *fields)


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Splits a whole PNG into name and content of its chunks."""
    found, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    return found


def png_of(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Writes chunks as a PNG, each with its checksum."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in chunks:
        parts.append(len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big"))
    return b"".join(parts)


def mutate_jpeg(random: Random, data: bytes) -> bytes:
    """Damages a segment of a JPEG, its marker or its length, or any bytes."""
    markers = [at.start() for at in re.finditer(rb"\xff[\xc0-\xfe]", data)]
    if random.random() < 0.4 or not markers:
        return mutate_bytes(random, data)
    at, found = random.choice(markers), bytearray(data)
    what = random.randrange(4)
    if what == 0:
        found[at + 1] = random.choice((*range(0xC0, 0xD0), 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE, 0xFE))
    elif what == 1:
        found[at + 2 : at + 4] = random.choice((0, 1, 2, 3, 8, 255, 65535)).to_bytes(2, "big")
    elif what == 2:
        place = min(len(found) - 1, at + 4 + random.randrange(20))
        found[place] = random.choice((0, 1, 2, 4, 8, 12, 16, 255, random.randrange(256)))
    else:
        found[at:at] = bytes(random.choice((b"\xff\xe1\x00\x10Exif\0\0II*\0", b"\xff\xdd\0\4\0\1", b"\xff\xff\xff")))
    return bytes(found)


def mutate_tiff(random: Random, data: bytes) -> bytes:
    """Damages an entry of a directory of a TIFF: tag, type, count or value; or any bytes."""
    if random.random() < 0.4 or len(data) < 16 or data[:2] not in (b"II", b"MM"):
        return mutate_bytes(random, data)
    little, order = data[:2] == b"II", "<" if data[:2] == b"II" else ">"
    start = int.from_bytes(data[4:8], "little" if little else "big")
    if start + 2 > len(data):
        return mutate_bytes(random, data)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entry = start + 2 + 12 * random.randrange(max(1, count))
    if entry + 12 > len(data):
        return mutate_bytes(random, data)
    fields = list(struct.unpack_from(f"{order}HHII", data, entry))
    at = random.randrange(4)
    if at == 0:
        fields[0] = random.choice((254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 324, 330,
                                   338, 339, 347, 34665, 34675, random.randrange(65536)))  # fmt: skip
    elif at == 1:
        fields[1] = random.choice((0, 1, 2, 3, 4, 5, 7, 9, 11, 12, 13, 16, 99))
    else:
        fields[at] = random.choice((*INTEGERS, len(data), start, 10**5, 10**6, 4, 5, 6, 34712, 50000))
    found = bytearray(data)
    struct.pack_into(f"{order}HHII", found, entry, *(value % (1 << 16 if n < 2 else 1 << 32)
                                                     for n, value in enumerate(fields)))  # fmt: skip
    return bytes(found)


def mutate_bmp(random: Random, data: bytes) -> bytes:
    """Damages a field of the header of a BMP, or any bytes."""
    if random.random() < 0.4 or len(data) < 54:
        return mutate_bytes(random, data)
    at, size = random.choice(((2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4)))
    value = random.choice((*INTEGERS, 2**32 - 48, 40, 108, 124, 4, 24, 32, 10**5, 10**6))
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]


# Text


def mutate_json(random: Random, data: bytes) -> bytes:
    """Damages the values of a JSON text, or the text."""
    if random.random() < 0.3:
        return _text(random, data)
    changed = change(random, json.loads(data))
    text = json.dumps(changed, indent=random.choice((None, 1)), ensure_ascii=random.choice((True, False)))
    if random.random() < 0.1:
        text = _twice(random, text)
    if random.random() < 0.1:
        text = text.replace("0", random.choice(("1" + "0" * 400, "1e999", "-", "0x0", "00", "NaN", "9" * 5000)), 1)
    return text.encode("utf-8", "surrogatepass" if random.random() < 0.5 else "replace")


def mutate_lines(random: Random, data: bytes) -> bytes:
    """Damages one of the JSON objects of a file that has one in each line, or their order."""
    lines = data.splitlines()
    at = random.randrange(len(lines))
    what = random.randrange(6)
    if what == 0:
        random.shuffle(lines)
    elif what == 1:
        lines.insert(at, random.choice((b"", b"{", b"null", b"7", lines[at])))
    else:
        lines[at] = mutate_json(random, lines[at])
    return b"\n".join(lines) + b"\n"


def change(random: Random, content: Any) -> Any:
    """Changes up to three values of what JSON or YAML holds: gone, another, renamed, doubled, nested."""
    for _ in range(random.choice((1, 1, 2, 3))):
        content = _changed(random, content)
    return content


def _changed(random: Random, content: Any) -> Any:
    if not isinstance(content, dict | list) or not content or random.random() < 0.15:
        return _instead(random, content)
    if isinstance(content, list):
        at, others = random.randrange(len(content)), list(content)
        what = random.randrange(8)
        if what == 0:
            del others[at]
        elif what == 1:
            others.insert(at, random.choice((random.choice(ODD), content[at], content)))
        elif what == 2:
            random.shuffle(others)
        else:
            others[at] = _changed(random, content[at])
        return others
    key = random.choice(list(content))
    what = random.randrange(8)
    if what == 0:
        return {name: value for name, value in content.items() if name != key}
    if what == 1:
        new = random.choice((key[:-1], key + "s", key.upper(), "", "x" * 300, "a\0b", "../x", "\ud800", "[/]"))
        return {new if name == key else name: value for name, value in content.items()}
    if what == 2:
        return content | {random.choice(("more", "", "name", "type", "__class__")): random.choice(ODD)}
    return content | {key: _changed(random, content[key])}


def _instead(random: Random, value: Any) -> Any:
    """Another value: of the same type, or any."""
    what = random.randrange(8)
    if what == 0 and isinstance(value, int | float) and not isinstance(value, bool):
        near = float(value) if abs(value) < 10**300 else 0.5
        return random.choice((value + 1, -value, value * 1000, near, str(value), 10**400, 1e300))
    if what == 0 and isinstance(value, str):
        return random.choice((value[:-1], value + value, value.upper(), value * 1000, f"../{value}", f"/{value}"))
    if what == 1:
        return [value]
    if what == 2:
        return {"value": value}
    if what == 3:
        return nested(value, random.choice((10, 100, 300)))
    return random.choice(ODD)


def nested(value: Any, depth: int) -> Any:
    """A list in a list in a list."""
    for _ in range(depth):
        value = [value]
    return value


def _twice(random: Random, text: str) -> str:
    """Gives the first object a key twice."""
    found = re.search(r'"([^"\n]{1,40})":', text)
    return text.replace("{", f'{{"{found[1]}": {json.dumps(random.choice(ODD))}, ', 1) if found else text


def _text(random: Random, data: bytes) -> bytes:
    """Damages text as text: its encoding, its nesting, its end, its bytes."""
    what = random.randrange(10)
    at = _place(random, data)
    if what == 0:
        return data[:at] + random.choice((b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf")) + data[at:]
    if what == 1:
        return data.decode("utf-8", "replace").encode(random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le")))
    if what == 2:
        return data[:at] + random.choice((b"[", b"{", b'{"a":', b"(", b'"', b"- ")) * random.choice((1, 50, 20_000))
    if what == 3:
        return b"[" * 20_000 + data + b"]" * 20_000
    if what == 4:
        return data.replace(b"\n", random.choice((b"\r", b"\r\n", b"\0", b"\n\n", b"")))
    if what == 5:
        return data[:at] + b"x" * LONG + data[at:]
    return mutate_bytes(random, data)


def mutate_yaml(random: Random, data: bytes) -> bytes:
    """Damages the settings of a YAML text, or the text."""
    if random.random() < 0.3:
        return _text(random, data)
    if random.random() < 0.3:
        tag = random.choice(TAGS)
        lines = data.split(b"\n")
        at = random.randrange(len(lines))
        name, colon, _ = lines[at].partition(b":")
        lines[at] = name + colon + b" " + tag
        return b"\n".join(lines)
    changed = change(random, yaml.safe_load(data))
    try:
        text = yaml.safe_dump(changed, allow_unicode=random.choice((True, False)), sort_keys=False)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes, or lists in lists
        text = json.dumps(str(changed))
    return text.encode("utf-8", "surrogatepass")


def mutate_csv(random: Random, data: bytes) -> bytes:
    """Damages the cells of a table, or the text."""
    if random.random() < 0.4:
        return _text(random, data)
    lines = data.decode().split("\n")
    comma = "," if "," in lines[0] else "\t"
    at = random.randrange(len(lines))
    cells = lines[at].split(comma)
    place = random.randrange(len(cells))
    what = random.randrange(8)
    odd = str(random.choice([one for one in ODD if isinstance(one, str | None | float)]))
    if what == 0:
        del cells[place]
    elif what == 1:
        cells.insert(place, odd)
    elif what == 2:
        lines.insert(random.randrange(len(lines)), lines[at])
    elif what == 3:
        random.shuffle(lines)
        at = 0
        cells = lines[0].split(comma)
    elif what == 4:
        cells[place] = random.choice(('"', '"a\nb', 'a"b"', '""', "\0", "x" * 200_000, ";".join("abc"), "../../x"))
    else:
        cells[place] = odd
    lines[at] = comma.join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# Weights


def mutate_safetensors(random: Random, data: bytes) -> bytes:
    """Damages the header of a safetensors file, what its metadata holds, or any bytes."""
    if random.random() < 0.3:
        return mutate_bytes(random, data)
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    inner = (header.get("__metadata__") or {}).get("mpamatch")
    if inner is not None and random.random() < 0.6:
        said = mutate_json(random, inner.encode()).decode("utf-8", "replace")
        header["__metadata__"]["mpamatch"] = said
    else:
        name = random.choice(list(header))
        header = change(random, header) if random.random() < 0.4 else header | {name: change(random, header[name])}
    text = json.dumps(header).encode()
    if random.random() < 0.1:
        body = mutate_bytes(random, body)
    return len(text).to_bytes(8, "little") + text + body


def mutate_zip(random: Random, data: bytes) -> bytes:
    """Damages what is in an archive and packs it again, as for a checkpoint of torch; or any bytes."""
    if random.random() < 0.3 or not data.startswith(b"PK"):
        return mutate_bytes(random, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [(one.filename, archive.read(one)) for one in archive.infolist()]
    pickles = [at for at, (name, _) in enumerate(parts) if name.endswith((".pkl", "byteorder", "version"))]
    at = random.choice(pickles) if pickles and random.random() < 0.8 else random.randrange(len(parts))
    name, body = parts[at]
    what = random.randrange(8)
    if what == 0:
        del parts[at]
    elif what == 1:
        parts[at] = random.choice(("../x", "/x", name + "x", name.upper(), "x/constants.pkl", "", "a\\b")), body
    elif what == 2:
        parts.append((name, mutate_bytes(random, body)))
    else:
        parts[at] = name, mutate_bytes(random, body)
    return _zip_of(parts, random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _zip_of(parts: Sequence[tuple[str, bytes]], method: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members with one name
        for name, body in parts:
            archive.writestr(zipfile.ZipInfo(name or "empty"), body, method)  # of 1980: the same bytes each time
    return packed.getvalue()


def mutate_packed(random: Random, data: bytes) -> bytes:
    """Damages GeoJSON in an archive or gzip and packs it again, XML, or any bytes."""
    if data.startswith(b"<"):
        return _xml(random, data)
    if random.random() < 0.4:
        return mutate_bytes(random, data)
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = [(one.filename, archive.read(one)) for one in archive.infolist()]
        name, body = parts[0]
        other = random.choice((name, name, "../a.geojson", "/a.geojson", ".a.geojson", "b.json", "x", "a.geojson/"))
        parts = [(other, mutate_json(random, body)), *random.choice(([], [], parts))]
        return _zip_of(parts, random.choice((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    return gzip.compress(mutate_json(random, gzip.decompress(data)), mtime=0)


def _xml(random: Random, data: bytes) -> bytes:
    """Damages an attribute, a tag or an element of XML, or the text."""
    if random.random() < 0.3:
        return _text(random, data)
    text = data.decode()
    found = list(
        re.finditer(random.choice((r'"[^"]*"', r'\w+="', r"</?\w+", r"<[^>]*>", r"<(\w+)[^>]*>.*?</\1>")), text)
    )
    if not found:
        return mutate_bytes(random, data)
    at = random.choice(found)
    odd = str(random.choice([one for one in ODD if isinstance(one, str | float | None)]))
    new = random.choice(("", f'"{odd}"', "<a>", 2 * at[0], at[0] * 300, "&lt;", "&nbsp;", "<![CDATA[x]]>", odd))
    return (text[: at.start()] + new + text[at.end() :]).encode("utf-8", "surrogatepass")
