"""What the snippets find: made-up tissue, slides, weights and runs under the names that the pages use.

A name that a command mentions and no command before it has made is made when it is met, by the first entry of GIVEN
that fits. What takes seconds is made once a process and copied.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from PIL import Image

from mpamatch.benchmarks import make_slide
from mpamatch.cli import main
from mpamatch.data.kinds import kinds
from mpamatch.data.sources.ebhi_seg import LESIONS
from mpamatch.data.synthetic import synthesize
from mpamatch.engine import config
from mpamatch.methods import METHODS
from mpamatch.models.encoders import Preset, presets
from mpamatch.models.text_encoders import conch
from mpamatch.ops.operation import operations
from tests.docs.pages import ROOT
from tests.models.narrow import narrow
from tests.models.published import conch_text_shapes, filled, timm_vit, write_conch_tokenizer

SIDE = 96  # pixels of a made-up patch
SLIDE = 1024  # pixels of a made-up slide
# What a recipe says else; the command line still has the last word.
SMALL = {
    "data": {"crop": 64, "scale": 1.0, "workers": 0, "batch": 2},
    "engine": {"steps": 2, "device": "cpu", "validate_every": 2, "save_every": 2},
}


@functools.cache
def workshop() -> Path:
    """A folder for what is made once; it goes when the process ends."""
    folder = tempfile.TemporaryDirectory()
    _kept.append(folder)
    return Path(folder.name)


_kept: list[object] = []


def silently(*words: str) -> None:
    """Runs a command of mpamatch that must go well."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(list(words))
    assert code == 0, f"mpamatch {' '.join(words)}: {out.getvalue()}"


@functools.cache
def tissue(index: int) -> tuple[Image.Image, Image.Image]:
    """A patch of made-up tissue and its mask of 0 and 255; four in a row are of one patient."""
    image, label = synthesize(index, 0, SIDE)
    return Image.fromarray(image), Image.fromarray(255 * label)


def save(index: int, image: Path, mask: Path | None = None) -> None:
    """Writes a patch, and its mask where one is wanted."""
    for path, pixels in zip((image, mask), tissue(index), strict=True):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels.save(path)


def warwick(folder: Path) -> None:
    """GlaS as it is distributed: two training images of each of eight patients, and two test images."""
    rows = ["name, patient ID , Grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for number, name in enumerate([*(f"train_{i + 1}" for i in range(16)), "testA_1", "testB_1"]):
        save(number, folder / f"{name}.bmp", folder / f"{name}_anno.bmp")
        rows.append(f"{name},{number // 2 + 1}, {('benign', 'malignant')[number % 2]}, healthy")
    (folder / "Grade.csv").write_text("\n".join(rows) + "\n")


def ebhi_seg(folder: Path) -> None:
    """EBHI-SEG as it is distributed: two images of each of fourteen patients, with all six lesions."""
    for number in range(28):
        lesion = folder / LESIONS[number % len(LESIONS)]
        name = f"GT2012{500 + number // 2}-1-400-{number % 2 + 1:03d}.png"
        save(number, lesion / "image" / name, lesion / "label" / name)


def kpis(folder: Path) -> None:
    """KPIs 2024 as it is distributed: two patches of each of six mice, and a test mouse."""
    training = folder / "KPIs24 Training Data" / "Task1_patch_level" / "data" / "56Nx"
    test = folder / "KPIs24 Testing Data" / "Task1_patch_level" / "test" / "56Nx"
    for number in range(14):
        case = (test if number > 11 else training) / f"12_{110 + number // 2}"
        name = f"56Nx_12_{110 + number // 2}_{number}_0"
        save(number, case / "img" / f"{name}_img.jpg", case / "mask" / f"{name}_mask.jpg")


def mine(folder: Path) -> None:
    """A folder of one's own: four patches of each of eight slides, some without a mask."""
    for number in range(32):
        name = f"slide{number // 4}_{number % 4:04d}.png"
        save(number, folder / "images" / name, folder / "masks" / name if number % 4 else None)


def flat(folder: Path) -> None:
    """Pairs of image and mask in one folder, four of each of eight patients."""
    for number in range(32):
        name = f"p{number // 4}_{number % 4}"
        save(number, folder / f"{name}.png", folder / f"{name}_mask.png")


def images(folder: Path) -> None:
    """Two patches to predict."""
    for number in (40, 44):
        save(number, folder / f"patch-{number}.png")


def slides(folder: Path) -> None:
    """Three slides with annotations beside them."""
    for seed, name in enumerate(("case1", "case2", "case3")):
        slide(folder / f"{name}.svs", seed)


def slide(path: Path, seed: int = 0) -> None:
    """One slide, with annotations beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(".tif")  # a tiled TIFF under any name
    make_slide.make_slide(made, SLIDE, seed=seed)
    made.rename(path)


def annotations(folder: Path) -> None:
    """QuPath's exports for the slides in the folder beside."""
    folder.mkdir()
    if not (folder.parent / "slides").exists():
        copied(slides)(folder.parent / "slides")
    for path in (folder.parent / "slides").glob("*.geojson"):
        path.rename(folder / path.name)


def names_of_images(path: Path) -> None:
    """A list of two training images with masks, of the prepared set of the page."""
    (listing,) = path.parent.glob("data/*/parts.json")
    masks = {mask.stem for mask in (listing.parent / "masks").iterdir()}
    names = [name for name in json.loads(listing.read_text())["parts"]["train"] if Path(name).stem in masks]
    path.write_text("\n".join(names[:2]) + "\n")


def results(path: Path) -> None:
    """Measured times, those of the repository."""
    shutil.copy(ROOT / "benchmarks" / "results" / "amd-epyc-2-threads.jsonl", path)


def uni(path: Path) -> None:
    """A file with UNI's names, of the width that `narrowed` gives it."""
    torch.save(filled(timm_vit(48, 1, 16, 197)), path)


def conch_file(path: Path) -> None:
    """A file with CONCH's names, of the width that `narrowed` gives it, and its tokenizer beside it."""
    torch.save(filled(conch_text_shapes(1, 32, 16)), path)
    prompts = [file.read_text(encoding="utf-8") for file in (ROOT / "mpamatch" / "recipes" / "prompts").iterdir()]
    write_conch_tokenizer(path.with_name(conch.CONCH_TOKENIZER), prompts)


def prepared(kind: str, source: str, *options: str) -> Callable[[Path], None]:
    """A prepared set; of four patients the labels are kept where all images have masks. `source` is a name of GIVEN."""

    def make(folder: Path) -> None:
        raw = workshop() / source
        bring([source], workshop())
        silently("prepare", kind, str(raw), str(folder), *options)
        if kind != "folder" and "weak" not in options:
            silently("split", str(folder), "--labelled", "4")

    return copied(make, f"{kind}-{'-'.join(options)}")


def made(folder: Path) -> None:
    """Made-up tissue, prepared, of which two patients are labelled."""
    silently("prepare", "synthetic", str(folder), "--images", "32", "--size", str(SIDE))
    silently("split", str(folder), "--labelled", "2")


def of_slides(folder: Path) -> None:
    """A set prepared from slides and their annotations."""
    bring(["slides", "qupath"], workshop())
    names = [str(workshop() / name) for name in ("slides", "qupath")]
    silently("prepare", "slides", names[0], str(folder), "--annotations", names[1], "--patch", "128")


def trained(recipe: str, data: str, *flags: str) -> Callable[[Path], None]:
    """A finished run; `data` is a name of GIVEN."""

    def make(folder: Path) -> None:
        bring([data], workshop())
        silently("train", "--recipe", recipe, "--data.root", str(workshop() / data), "--run", str(folder), *flags)

    return copied(make, f"run-{recipe}-{Path(data).name}-{'-'.join(flags)}")


def copied(make: Callable[[Path], None], name: str | None = None) -> Callable[[Path], None]:
    """Makes it once a process, and copies it."""

    def copy(target: Path) -> None:
        original = workshop() / "originals" / (name or make.__name__)
        if not original.exists():
            original.parent.mkdir(exist_ok=True)
            make(original)
        shutil.copytree(original, target)

    return copy


EBHI = "EBHI-SEG"
GIVEN: dict[str, Callable[[Path], None]] = {
    "Warwick_QU": warwick,
    EBHI: ebhi_seg,
    "KPIs24": kpis,
    "mine": mine,
    "flat": flat,
    "images": images,
    "patch.png": lambda path: save(40, path),
    "slides": copied(slides),
    "slide.svs": slide,
    "qupath": annotations,
    "labelled.txt": names_of_images,
    "benchmarks/results/MACHINE.jsonl": results,
    "UNI.bin": uni,
    "CONCH.bin": conch_file,
    "data/made": copied(made),
    "data/slides": copied(of_slides, "slides-prepared"),
    "data/glas": prepared("glas", "Warwick_QU"),
    "data/mine": prepared("folder", "mine", "--mask-values", "0:background,255:gland", "--group-regex", r"^(slide\d+)"),
    "data/gland": prepared("ebhi-seg", EBHI, "--task", "gland"),
    "data/ebhi-gland": prepared("ebhi-seg", EBHI, "--task", "gland"),
    "data/ebhi-weak": prepared("ebhi-seg", EBHI, "--task", "weak"),
    "runs/glas-001": trained("glas", "data/glas"),
    "runs/folder-001": trained("folder", "data/mine"),
    "runs/slides-001": trained("folder", "data/slides"),
    "runs/mpamatch": trained("glas", "data/glas"),
    "runs/supervised": trained("glas", "data/glas", "--method.name", "supervised"),
}
# Names that Python blocks may use without making them.
NAMES: dict[str, object] = {
    "embedding": torch.randn(512, 32, generator=torch.Generator().manual_seed(0)),  # (N, D)
    "prototypes": torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)),  # (C, K, D)
    "label": torch.arange(512) % 2,  # (N,)
}
MADE = ("--out", "--run")  # options whose value the command makes, or may make


def bring(words: Iterable[str], folder: Path) -> None:
    """Makes what the words name and is not there, below the folder."""
    for word in words:
        path = Path(os.path.normpath(folder / word))
        for name, make in GIVEN.items():
            there = folder / name
            if (path == there or there in path.parents) and not there.exists():
                there.parent.mkdir(parents=True, exist_ok=True)
                make(there)


def mentioned(words: list[str]) -> Iterator[str]:
    """The words of a command that may name what must be there."""
    before = ""
    for word in words:
        if before not in MADE:
            yield from (part for piece in word.split(",") for part in (piece, piece.partition("=")[2]) if part)
        before = word


def joins(file: str, folder: Path) -> None:
    """Lets a file of a page take part if it stands for one of the package: a module, or entries of a table."""
    package, _, name = file.rpartition("/")
    if file == "mpamatch/models/encoders/presets.yaml":
        table = yaml.safe_load((folder / file).read_text())
        presets().update((name, Preset(name, **entry)) for name, entry in table.items())
    elif package.startswith("mpamatch/"):
        module = package.replace("/", ".")
        sys.modules[module].__path__.append(str(folder / package))
        kinds.cache_clear()
        if module == "mpamatch.ops":
            stem = name.removesuffix(".py")
            operations()[stem] = importlib.import_module(f"{module}.{stem}").OPERATION


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Undoes in the end what pages have added: modules, methods, presets, kinds, operations, the search path."""
    packages = {name: sys.modules[name] for name in ("mpamatch.ops", "mpamatch.data.sources")}
    paths = {name: [*package.__path__] for name, package in packages.items()}
    modules, methods, searched = {*sys.modules}, dict(METHODS._classes), [*sys.path]
    with mock.patch.dict(presets()), mock.patch.dict(operations()):
        yield
    for name in {*sys.modules} - modules:
        if any(part in name for part in ("pairs", "pixel_entropy", "sure_method")):
            del sys.modules[name]
    for name, package in packages.items():
        package.__path__[:] = paths[name]
    METHODS._classes = methods
    sys.path[:] = searched
    kinds.cache_clear()


@contextlib.contextmanager
def narrowed() -> Iterator[None]:
    """Recipes of two steps on small crops, UNI and CONCH of one narrow block."""
    recipe = config._recipe

    def small(name: str, *, on_gpu: bool) -> config.Content:
        return config._merged(recipe(name, on_gpu=False), SMALL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "_recipe", small)
        patch.delenv("MPAMATCH_EBHI_SEG", raising=False)
        narrow(patch, "uni", embed_dim=48, depth=1, num_heads=4)
        tower = conch.CONCH_TEXT | {"width": 32, "heads": 2, "layers": 1, "output_dim": 16}
        patch.setattr(conch, "CONCH_TEXT", tower)
        yield
