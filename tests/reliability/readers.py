"""What mutated files are made of: a small world of every kind of file that is read, and the commands that read them."""

import csv
import gzip
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from tests.reliability import mutations
from tests.reliability.mutations import Mutate

SIDE = 32
Words = list[str | Path]


@dataclass(frozen=True)
class Reader:
    """A file of the world and the command that reads it.

    Attributes:
        file: that is mutated, by its path in the world.
        words: the command, given the folder of a case, which is a copy of the world.
        during: holds while the command runs.
        share: how often it is chosen.
        mutate: damages it; None: as all files of its kind.
    """

    file: str
    words: Callable[[Path], Words]
    during: Callable[[], AbstractContextManager[object]] = nullcontext
    share: int = 4
    mutate: Mutate | None = None

    @property
    def name(self) -> str:
        words = [str(word) for word in self.words(Path())]
        return f"{self.file} into {' '.join(words[: 2 if words[0] == 'prepare' else 1])}"


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it is mutated, and who reads it."""

    mutate: Mutate
    readers: tuple[Reader, ...]

    def reader(self, random: Random) -> Reader:
        return random.choices(self.readers, [reader.share for reader in self.readers])[0]


# Commands


def prepare_folder(folder: Path) -> Words:
    return ["prepare", "folder", folder / "raw", folder / "out"]


def prepare_glas(folder: Path) -> Words:
    return ["prepare", "glas", folder / "glas", folder / "out"]


def prepare_grades(folder: Path) -> Words:
    return [*prepare_glas(folder), "--task", "grade"]


def prepare_slides(marks: str, tissue: str | None = None) -> Callable[[Path], Words]:
    """Cuts the slide into patches by the annotations in the folder `marks`."""

    def words(folder: Path) -> Words:
        given: Words = ["prepare", "slides", folder / "slides", folder / "out", "--annotations", folder / marks]
        given += ["--patch", "64", "--unlabelled", "2"]
        return given if tissue is None else [*given, "--tissue", folder / tissue]

    return words


def check(folder: Path) -> Words:
    return ["check", folder / "set"]


def split(folder: Path) -> Words:
    return ["split", folder / "set", "--labelled", "1", "--seed", "3"]


def split_list(folder: Path) -> Words:
    return ["split", folder / "set", "--list", folder / "list.txt"]


def split_columns(folder: Path) -> Words:
    return ["split", folder / "set", "--list", folder / "list.csv"]


def evaluate(folder: Path) -> Words:
    return ["evaluate", folder / "run", "--data", folder / "set", "--device", "cpu"]


def evaluate_validation(folder: Path) -> Words:
    """Reads the masks of the part that tissue-00003 is in."""
    return [*evaluate(folder), "--part", "validation"]


def resume(folder: Path) -> Words:
    return ["train", "--resume", folder / "run"]


def predict(*inputs: str, out: str = "out") -> Callable[[Path], Words]:
    def words(folder: Path) -> Words:
        given = [folder / name for name in inputs]
        return ["predict", folder / "run", *given, "--out", folder / out, "--device", "cpu"]

    return words


def predict_tissue(folder: Path) -> Words:
    return [*predict("slides/a.tif")(folder), "--tissue", folder / "tissue.geojson"]


def study(folder: Path) -> Words:
    words: Words = ["study", "seeds", "--recipe", "demo", "--methods", "supervised", "--seeds", "1", "--jobs", "0"]
    return [*words, "--labelled", "1", "--out", folder / "study", f"--data.root={folder / 'set'}", *_fields()]


def _fields() -> list[str]:
    from tests.tiny import FIELDS

    fields = {name: value for name, value in FIELDS.items() if name != "data.unlabelled_batch"}
    return [f"--{name}={value}" for name, value in fields.items()]


def train(config: str | None = None, weights: str | None = None) -> Callable[[Path], Words]:
    """Trains on the set with settings of seconds, or those of `config`."""

    def words(folder: Path) -> Words:
        start = ["--recipe", "demo", "--method.name=supervised", *_fields()]
        start = start if config is None else ["--config", str(folder / config)]
        given = [] if weights is None else [f"--model.encoder_weights={folder / weights}"]
        return ["train", *start, *given, "--run", folder / "new", f"--data.root={folder / 'set'}"]

    return words


def reading_alone() -> AbstractContextManager[object]:
    """Ends training where it would begin: what is to be read has been read then."""
    from mpamatch.engine.loop import Trainer

    def fit(self: Trainer, run: Path) -> None:
        print("all that training needs is built")
        raise SystemExit(0)

    return mock.patch.object(Trainer, "fit", fit)


def without_figures() -> AbstractContextManager[object]:
    """Draws no figure, which takes longer than all the rest."""
    from mpamatch.report import figures

    return mock.patch.object(figures, "draw_training", return_value=[])


# The world


def build_world(root: Path) -> None:
    """Makes every file that readers take. In a process of its own, as it runs operations of torch.

    Files name each other by `root`, so cases must be run in a folder of this name.
    """
    _write_set(root / "set")
    _write_raw(root)
    _write_slides(root)
    _must([*train()(root), "--run", str(root / "run")])
    for weights in ("batch.safetensors", "new.pt", "old.pt", "state.pt"):
        _write_weights(root / weights)
    (root / "own.yaml").write_text(_own_settings(root))
    _must(predict("raw/images/a0.png", "raw/images/b.jpg", out="seen")(root))
    _must(predict("slides/a.tif", out="toured")(root))
    _must(study(root))


def _must(words: Words) -> None:
    from mpamatch.cli import main

    code = main([str(word) for word in words])
    if code:
        raise RuntimeError(f"{' '.join(map(str, words))}: ended with {code}")


def _write_set(root: Path) -> None:
    """12 images of three made-up patients, one labelled patient, two splits, image-level labels."""
    from dataclasses import replace

    from mpamatch.data.prepared import write_prepared
    from mpamatch.data.sources.synthetic import raw_set
    from mpamatch.data.splits import write_split

    raw = raw_set(images=12, size=SIDE)
    items = (replace(item, present=(1,) if number % 3 else ()) for number, item in enumerate(raw.items))
    write_split(write_prepared(root, replace(raw, items=items, microns_per_pixel=0.5)), "1", 0)


def _write_raw(root: Path) -> None:
    """Images and masks of every format, GlaS with its table, and lists of names."""
    from PIL import Image

    names = sorted(path.name for path in (root / "set" / "images").iterdir())
    images = [Image.open(root / "set" / "images" / name) for name in names]
    masks = [Image.open(root / "set" / "masks" / name) for name in names]
    for folder in ("raw/images", "raw/masks", "glas"):
        (root / folder).mkdir(parents=True)
    for at, name in enumerate(("a0.png", "b.jpg", "c.tif", "d.bmp")):
        images[at].save(root / "raw" / "images" / name)
        masks[at].save(root / "raw" / "masks" / f"{Path(name).stem}.{('png', 'png', 'tif', 'bmp')[at]}")
    images[0].save(root / "lzw.tif", compression="tiff_lzw")
    images[0].convert("P", palette=Image.Palette.ADAPTIVE).save(root / "palette.png")
    images[0].convert("RGBA").save(root / "alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    images[0].save(root / "turned.jpg", exif=turned, progressive=True)
    rows = [["name", "patient ID", "grade (GlaS)", "grade (Sirinukunwattana et al. 2015)"]]
    for at, stem in enumerate(("train_1", "train_2", "train_3", "testA_1")):
        images[at].save(root / "glas" / f"{stem}.bmp")
        masks[at].save(root / "glas" / f"{stem}_anno.bmp")
        rows.append([stem, str(at), ("benign", "malignant")[at % 2], "healthy"])
    with (root / "glas" / "Grade.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    labelled = json.loads((root / "set" / "splits" / "labelled-1-seed0.json").read_text())["labelled"]
    (root / "list.txt").write_text("".join(f"images/{name} masks/{name}\n" for name in labelled))
    (root / "list.csv").write_text("image,patient\n" + "".join(f"{name},p{at}\n" for at, name in enumerate(labelled)))


def _write_slides(root: Path) -> None:
    """A slide, its regions as GeoJSON in every packing and as XML, and its tissue."""
    import numpy as np
    from PIL import Image

    from tests.slides.files import write_slide

    picture = Image.open(root / "raw" / "images" / "a0.png").resize((192, 128))
    write_slide(root / "slides" / "a.tif", np.asarray(picture), levels=2, mpp=0.5, compression="deflate")
    text = json.dumps(_marks(), indent=1).encode()
    for folder in ("marks", "packed", "archived", "asap", "imagescope"):
        (root / folder).mkdir()
    (root / "marks" / "a.geojson").write_bytes(text)
    (root / "packed" / "a.geojson.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(root / "archived" / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.geojson", text)
    (root / "asap" / "a.xml").write_text(ASAP)
    (root / "imagescope" / "a.xml").write_text(IMAGESCOPE)
    (root / "tissue.geojson").write_text(json.dumps(_feature("tissue", ((0, 0), (190, 0), (190, 127), (0, 127)))))


def _marks() -> dict[str, Any]:
    glands = [_feature(f"gland {at}", ((x, 8), (x + 40, 8), (x + 40, 100), (x, 90))) for at, x in enumerate((5, 90))]
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4]}, "properties": {}}
    hole = _feature("stroma", ((140, 5), (185, 5), (185, 120), (140, 120)))
    hole["geometry"]["coordinates"].append([[150, 20], [160, 20], [160, 40], [150, 20]])
    many = {"type": "MultiPolygon", "coordinates": [hole["geometry"]["coordinates"]]}
    return {"type": "FeatureCollection", "features": [*glands, point, hole, hole | {"geometry": many}]}


def _feature(name: str, outline: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": "2f6c9b1e-0000-4000-8000-000000000001",
        "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in (*outline, outline[0])]]},
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": name.split()[0], "color": [200, 0, 0]},
        },
    }


ASAP = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations>
<Annotation Name="one" Type="Polygon" PartOfGroup="tumour" Color="#F4FA58"><Coordinates>
<Coordinate Order="0" X="5.5" Y="6"/><Coordinate Order="1" X="120" Y="6"/><Coordinate Order="2" X="120,5" Y="110"/>
</Coordinates></Annotation>
<Annotation Name="two" Type="Dot" PartOfGroup="None" Color="#000000"><Coordinates>
<Coordinate Order="0" X="5" Y="6"/></Coordinates></Annotation>
</Annotations><AnnotationGroups><Group Name="tumour" PartOfGroup="None" Color="#00ff00"/></AnnotationGroups>
</ASAP_Annotations>
"""
IMAGESCOPE = """<Annotations MicronsPerPixel="0.5"><Annotation Id="1" Name="tumour" LineColor="65280"><Regions>
<Region Id="1" Type="0" NegativeROA="0" Text=""><Vertices><Vertex X="5" Y="6" Z="0"/><Vertex X="150" Y="6" Z="0"/>
<Vertex X="150" Y="120" Z="0"/></Vertices></Region>
<Region Id="2" Type="2" NegativeROA="1"><Vertices><Vertex X="50" Y="16"/><Vertex X="80" Y="40"/></Vertices></Region>
</Regions></Annotation></Annotations>
"""


def _write_weights(path: Path) -> None:
    """Weights of an encoder as others publish them: safetensors, torch's archives and its older pickles."""
    import torch
    from safetensors.torch import save_file

    from mpamatch.models.encoders import build_encoder

    state = build_encoder("small_conv", None, "batch").state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.stem == "new":
        torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    elif path.stem == "old":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"state_dict": state, "args": {"lr": 0.1}}, path)


def _own_settings(root: Path) -> str:
    """Settings as a user writes them, of all sections."""
    lines = ["data:", "  split: labelled-1-seed0", "  crop: 32", "  batch: 2", "  workers: 0"]
    lines += ["model:", "  encoder: small_conv", "  norm: batch", "  decoder_width: 16"]
    lines += ["  decoder_channels: [16, 8, 8, 8]", "method:", "  name: supervised"]
    lines += ["engine:", "  steps: 2", "  learning_rate: 1e-3", "  precision: 32", "  device: cpu", "  log_every: 1"]
    return "\n".join(lines) + "\n"


def copy_world(world: Path, folder: Path) -> None:
    """Copies the world for a case, anew; of large files, which no command writes into, only the names."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world, folder, copy_function=_copy)


def _copy(source: str, target: str) -> None:
    if Path(source).stat().st_size > 1 << 16:
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


KINDS: Mapping[str, Kind] = {
    "png": Kind(
        mutations.mutate_png,
        (
            Reader("raw/images/a0.png", prepare_folder),
            Reader("raw/masks/a0.png", prepare_folder),
            Reader("raw/images/a0.png", predict("raw/images/a0.png")),
            Reader("palette.png", predict("palette.png"), share=2),
            Reader("alpha.png", predict("alpha.png"), share=2),
            Reader("set/images/tissue-00003.png", check),
            Reader("set/masks/tissue-00003.png", check),
            Reader("set/masks/tissue-00003.png", evaluate_validation, share=1),
            Reader("set/images/tissue-00003.png", train(), without_figures, share=1),
            Reader("seen/masks/a0.png", predict("raw/images/a0.png", "raw/images/b.jpg", out="seen"), share=1),
        ),
    ),
    "jpeg": Kind(
        mutations.mutate_jpeg,
        (
            Reader("raw/images/b.jpg", prepare_folder, share=2),
            Reader("raw/images/b.jpg", predict("raw/images/b.jpg"), share=2),
            Reader("turned.jpg", predict("turned.jpg"), share=2),
        ),
    ),
    "tiff": Kind(
        mutations.mutate_tiff,
        (
            Reader("raw/images/c.tif", prepare_folder),
            Reader("raw/masks/c.tif", prepare_folder),
            Reader("raw/images/c.tif", predict("raw/images/c.tif")),
            Reader("lzw.tif", predict("lzw.tif")),
            Reader("slides/a.tif", prepare_slides("marks")),
            Reader("slides/a.tif", predict("slides/a.tif"), share=2),
            Reader("slides/a.tif", prepare_slides("marks", "tissue.geojson"), share=1),
        ),
    ),
    "bmp": Kind(
        mutations.mutate_bmp,
        (
            Reader("raw/images/d.bmp", prepare_folder),
            Reader("raw/masks/d.bmp", prepare_folder),
            Reader("raw/images/d.bmp", predict("raw/images/d.bmp")),
            Reader("glas/train_2.bmp", prepare_glas),
            Reader("glas/train_2_anno.bmp", prepare_glas),
        ),
    ),
    "safetensors": Kind(
        mutations.mutate_safetensors,
        (
            Reader("run/checkpoints/best.safetensors", predict("raw/images/a0.png")),
            Reader("run/checkpoints/best.safetensors", evaluate),
            Reader("run/checkpoints/last.safetensors", resume, without_figures),
            Reader("batch.safetensors", train(weights="batch.safetensors"), reading_alone),
        ),
    ),
    "pt": Kind(
        mutations.mutate_zip,
        (
            Reader("new.pt", train(weights="new.pt"), reading_alone),
            Reader("old.pt", train(weights="old.pt"), reading_alone),
            Reader("state.pt", train(weights="state.pt"), reading_alone),
        ),
    ),
    "yaml": Kind(
        mutations.mutate_yaml,
        (
            Reader("own.yaml", train(config="own.yaml"), reading_alone, share=8),
            Reader("run/config.yaml", evaluate, share=4),
            Reader("run/config.yaml", resume, reading_alone, share=4),
        ),
    ),
    "json": Kind(
        mutations.mutate_json,
        (
            Reader("set/dataset.json", check),
            Reader("set/parts.json", check),
            Reader("set/present.json", check),
            Reader("set/splits/labelled-1-seed0.json", check),
            Reader("set/dataset.json", split, share=2),
            Reader("set/parts.json", split, share=2),
            Reader("set/dataset.json", evaluate, share=1),
            Reader("set/parts.json", train(), reading_alone, share=2),
            Reader("set/splits/labelled-1-seed0.json", train(), reading_alone, share=2),
            Reader("seen/images.json", predict("raw/images/a0.png", "raw/images/b.jpg", out="seen")),
            Reader("toured/slides.json", predict("slides/a.tif", out="toured")),
            Reader("toured/a/done.json", predict("slides/a.tif", out="toured")),
            Reader("toured/a/slide.json", predict("slides/a.tif", out="toured"), share=1),
            Reader("study/study.json", study, share=1),
            Reader("study/results.jsonl", study, share=1, mutate=mutations.mutate_lines),
            Reader("run/metrics.jsonl", resume, share=1, mutate=mutations.mutate_lines),
        ),
    ),
    "geojson": Kind(
        mutations.mutate_json,
        (
            Reader("marks/a.geojson", prepare_slides("marks"), share=8),
            Reader("tissue.geojson", prepare_slides("marks", "tissue.geojson"), share=2),
            Reader("tissue.geojson", predict_tissue, share=1),
        ),
    ),
    "packed": Kind(
        mutations.mutate_packed,
        (
            Reader("packed/a.geojson.gz", prepare_slides("packed")),
            Reader("archived/a.zip", prepare_slides("archived")),
            Reader("asap/a.xml", prepare_slides("asap")),
            Reader("imagescope/a.xml", prepare_slides("imagescope")),
        ),
    ),
    "csv": Kind(
        mutations.mutate_csv,
        (
            Reader("glas/Grade.csv", prepare_glas),
            Reader("glas/Grade.csv", prepare_grades),
            Reader("list.txt", split_list),
            Reader("list.csv", split_columns),
        ),
    ),
}
