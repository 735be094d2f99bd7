"""Files made to do harm: code in a pickle, gigabytes in kilobytes, names that lead out of their folder. Each is refused
by a sentence that names it, at once, and nothing is run, written elsewhere or kept in memory."""

import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reliability import children
from tests.reliability.mutated_files import world
from tests.reliability.mutations import png_of
from tests.reliability.readers import (
    check,
    copy_world,
    evaluate,
    predict,
    prepare_folder,
    prepare_slides,
    reading_alone,
    resume,
    split,
    train,
)

pytestmark = pytest.mark.slow

SMALL = 300 << 20  # bytes beyond what this process has: of a command on tiny files
AT_ONCE = 25.0  # seconds, on a machine that has other work


@pytest.fixture(scope="module")
def made():
    with world() as folders:
        yield folders


@pytest.fixture
def folder(made):
    """The world, to be spoilt."""
    copy_world(*made)
    return made[1]


@pytest.fixture
def refused(folder):
    """Runs a command that must be refused by one short sentence with these words, at once and in little memory."""

    def refused(words, *says):
        before = times(folder.parent)
        ended = run(words, folder)
        assert ended.code == 2, ended.said[-2000:]
        assert ended.fault is None
        assert ended.seconds < AT_ONCE
        assert ended.peak < resident() + SMALL
        for word in says:
            assert str(word) in ended.errors, ended.errors
        assert times(folder.parent) == before

    return refused


def times(root):
    """When each file was written, but for what the child says."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.parent != root}


def run(words, folder):
    def command():
        from mpamatch.cli import main

        with reading_alone():
            return main([str(word) for word in words])

    return children.run(command, folder.parent, seconds=3 * AT_ONCE)


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


# Code


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.ckpt", "a.safetensors", "a.npz"])
@pytest.mark.parametrize("form", ["archive", "old", "bare", "numpy"])
def test_a_pickle_that_would_run_code(folder, refused, name, form):
    marker, path = folder / "it-ran", folder / name
    content = {"state_dict": {"weight": torch.zeros(2), "hook": Runs(marker)}}
    if form == "bare":
        path.write_bytes(pickle.dumps(content))
    elif form == "numpy":
        with path.open("wb") as file:
            np.savez(file, np.array([Runs(marker)], dtype=object))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "archive")
    refused(train(weights=name)(folder), path)
    assert not marker.exists()


def test_the_code_would_have_run(tmp_path):
    """The bomb is one: whoever reads it as a pickle runs it."""
    torch.save(Runs(tmp_path / "it-ran"), tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "it-ran").exists()


TAGS = ["!!python/object/apply:pathlib.Path.touch [{}]", "!!python/object/apply:os.system ['touch {}']",
        "!!python/name:os.system", "!!python/module:os"]  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", ["own.yaml", "run/config.yaml", "prompts.yaml"])
def test_yaml_that_would_run_code(folder, refused, tag, place):
    marker, path = folder / "it-ran", folder / place
    path.write_text(f"engine:\n  steps: {tag.format(marker)}\n")
    prompts = [*train()(folder), "--method.name=mpamatch", "--method.text_encoder=none", f"--method.prompts={path}"]
    words = {"own.yaml": train(config="own.yaml")(folder), "run/config.yaml": evaluate(folder), "prompts.yaml": prompts}
    if place == "prompts.yaml":
        from mpamatch.errors import InputError
        from mpamatch.models.prompt import load_descriptions

        with pytest.raises(InputError, match=r"prompts\.yaml: cannot be read as YAML"):
            load_descriptions(str(path), None, ["background", "gland"])
    else:
        refused(words[place], path)
    assert not marker.exists()


# Much in little


BOMB = "a0: &a0 [x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.mark.parametrize("end", ["engine: {steps: *a29}", "engine: *a29", "method: &m {name: *m}", "model: *a29"])
def test_yaml_of_aliases(folder, refused, end):
    (folder / "own.yaml").write_text(f"{BOMB}{end}\n")
    refused(train(config="own.yaml")(folder), folder / "own.yaml", "aliases")
    (folder / "run" / "config.yaml").write_text(f"{BOMB}{end}\n")
    refused(evaluate(folder), folder / "run" / "config.yaml", "aliases")


def deflated(megabytes, letter=b" "):
    """A raw deflate stream of so many megabytes of a letter: a thousandth of them."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = packer.compress(letter * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * megabytes + zlib.compressobj(1, zlib.DEFLATED, -15).flush()


def zip_of(name, stream, size):
    """An archive of one member that is packed already."""
    head = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(stream), size, len(name), 0)
    local = b"PK\x03\x04" + head + name + stream
    central = b"PK\x01\x02" + struct.pack("<H", 20) + head + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


@pytest.mark.parametrize("megabytes", [200, 3000])
@pytest.mark.parametrize("said", [None, 100])
def test_geojson_in_an_archive_of_gigabytes(folder, refused, megabytes, said):
    """One that says how large it is, and one that says it has 100 bytes."""
    path = folder / "archived" / "a.zip"
    path.write_bytes(zip_of(b"a.geojson", deflated(megabytes), said or megabytes << 20))
    refused(prepare_slides("archived")(folder), path)


def test_geojson_in_gzip_of_gigabytes(folder, refused):
    path = folder / "packed" / "a.geojson.gz"
    path.write_bytes(gzip.compress(b" " * (1 << 24), 9) * 90)  # 1.5 GB in 1.5 MB
    refused(prepare_slides("packed")(folder), path, "as no regions do")


def test_many_members_are_counted_together(folder, refused):
    path, packed = folder / "archived" / "a.zip", io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(8):
            archive.writestr(f"{number}.geojson", b" " * (1 << 24))
    path.write_bytes(packed.getvalue())
    refused(prepare_slides("archived")(folder), path, "as no regions do")


def test_an_archive_in_an_archive_holds_no_regions(folder, refused):
    path, inner, outer = folder / "archived" / "a.zip", io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.geojson", "{}")
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("a.zip", inner.getvalue())
    path.write_bytes(outer.getvalue())
    refused(prepare_slides("archived")(folder), path, "holds no .geojson")


def picture(side, depth=1, colour=0):
    """An empty PNG: a thousandth of its pixels."""
    row = 1 + (side * depth * {0: 1, 2: 3}[colour] + 7) // 8
    megabytes = side * row // (1 << 20) + 1
    stream = b"\x78\x01" + deflated(megabytes, b"\0") + b"\0\0\0\0"
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    return png_of([(b"IHDR", header), (b"IDAT", stream), (b"IEND", b"")])


@pytest.mark.parametrize(("side", "depth", "colour"), [(30_000, 1, 0), (44_000, 8, 2), (200_000, 1, 0)])
def test_a_png_of_gigapixels(folder, refused, side, depth, colour):
    kept = (folder / "raw" / "images" / "a0.png").read_bytes()
    for name in ("raw/images/a0.png", "raw/masks/a0.png"):
        (folder / name).write_bytes(picture(side, depth, colour))
        refused(prepare_folder(folder), folder / name)
        (folder / name).write_bytes(kept)
    (folder / "empty.png").write_bytes(picture(side, depth, colour))
    ended = run(predict("empty.png", "raw/images/a0.png")(folder), folder)  # as a slide, so it goes on with the other
    assert ended.code == 1
    assert ended.fault is None
    assert f"not predicted: {folder / 'empty.png'}" in ended.said
    assert ended.peak < resident() + SMALL
    assert (folder / "out" / "masks" / "a0.png").is_file()


@pytest.mark.parametrize("tag", [256, 257, 322, 323, 278, 277])
@pytest.mark.parametrize("value", [2**31 - 1, 2**32 - 1, 10**6])
@pytest.mark.parametrize("place", ["slides/a.tif", "raw/images/c.tif"])
def test_a_tiff_of_absurd_sides(folder, tag, value, place):
    path = folder / place
    data = bytearray(path.read_bytes())
    start = int.from_bytes(data[4:8], "little")
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == tag:
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, value)
    path.unlink()
    path.write_bytes(data)
    ended = run((prepare_slides("marks") if place.startswith("slides") else prepare_folder)(folder), folder)
    assert ended.fault is None
    assert ended.seconds < AT_ONCE
    assert ended.peak < resident() + SMALL or value == 10**6  # a picture of 32 million pixels may be one
    assert ended.code == 0 or path.name in ended.errors


LAUGHS = '<!DOCTYPE x [<!ENTITY a0 "ha">' + "".join(
    f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)
) + "]>"  # fmt: skip
OUTSIDE = '<!DOCTYPE x [<!ENTITY a11 SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("entities", [LAUGHS, OUTSIDE], ids=["laughs", "outside"])
@pytest.mark.parametrize("kind", ["asap", "imagescope"])
def test_xml_of_entities(folder, refused, entities, kind):
    path = folder / kind / "a.xml"
    text = path.read_text().removeprefix('<?xml version="1.0"?>\n')
    path.write_text('<?xml version="1.0"?>' + entities + text.replace('Name="', 'Name="&a11;', 1))
    refused(prepare_slides(kind)(folder), path, "is no XML that can be read")


def test_a_mask_whose_description_is_of_entities(folder):
    """mask.ome.tif of a prediction to go on with: tifffile and ours read its XML."""
    import tifffile

    path = folder / "toured" / "a" / "mask.ome.tif"
    path.unlink()
    tifffile.imwrite(path, np.zeros((64, 96), np.uint8), tile=(64, 64), metadata=None,
                     description=f'<?xml version="1.0"?>{LAUGHS}<OME xmlns="x">&a11;</OME>')  # fmt: skip
    ended = run(predict("slides/a.tif", out="toured")(folder), folder)
    assert ended.fault is None
    assert ended.peak < resident() + SMALL


# Names that lead elsewhere

NAMES = ["../../outside.png", "/etc/passwd", "..", "sub/a.png", "a\0b.png", "", "x" * 5000, 7, None, ["a.png"]]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_names_in_a_prepared_set(folder, refused, name):
    (folder.parent / "outside.png").write_bytes((folder / "raw" / "images" / "a0.png").read_bytes())
    for file, words in (("parts.json", check), ("parts.json", split), ("splits/labelled-1-seed0.json", train())):
        path = folder / "set" / file
        kept = path.read_text()
        content = json.loads(kept)
        (content["parts"]["train"] if file == "parts.json" else content["labelled"]).append(name)
        path.write_text(json.dumps(content))
        refused(words(folder), path, "which is no name of a file in images/")
        path.write_text(kept)
    (folder.parent / "outside.png").unlink()


@pytest.mark.parametrize("name", [one for one in NAMES if isinstance(one, str)], ids=lambda name: repr(name)[:20])
def test_names_in_image_level_labels(folder, refused, name):
    path = folder / "set" / "present.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: ["gland"]}))
    refused(check(folder), path, "which parts.json does not list")


@pytest.mark.parametrize("name", [one for one in NAMES if isinstance(one, str)], ids=lambda name: repr(name)[:20])
@pytest.mark.parametrize(("out", "record", "file"), [("seen", "images.json", "raw/images/a0.png"),
                                                     ("toured", "slides.json", "slides/a.tif")])  # fmt: skip
def test_names_in_the_record_of_a_prediction(folder, refused, name, out, record, file):
    path = folder / out / record
    content = json.loads(path.read_text())
    content["names"] = {name: str((folder / file).absolute())}
    path.write_text(json.dumps(content))
    refused(predict(file, out=out)(folder), path, "is no name of a file")


def test_a_member_of_an_archive_is_written_nowhere(folder):
    path = folder / "archived" / "a.zip"
    with zipfile.ZipFile(path) as archive:
        text = archive.read("a.geojson")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../outside.geojson", text)
    before = set(folder.parent.rglob("*"))
    ended = run(prepare_slides("archived")(folder), folder)
    assert ended.code == 0
    assert {one for one in set(folder.parent.rglob("*")) - before if not one.is_relative_to(folder / "out")} == set()


def test_a_run_that_is_resumed_reads_no_pickle(folder, refused):
    path, marker = folder / "run" / "checkpoints" / "last.safetensors", folder / "it-ran"
    path.unlink()
    torch.save({"progress": Runs(marker)}, path)
    refused(resume(folder), path)
    assert not marker.exists()
