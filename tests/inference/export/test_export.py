"""One run, exported once as a package, whose ONNX file is that of --format onnx, too: all that others do with it."""

import ast
import contextlib
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mpamatch
from mpamatch.cli import main
from mpamatch.data.synthetic import synthesize
from mpamatch.engine import loop
from mpamatch.images import read_mask
from mpamatch.inference.export.graph import Deployed, Frame
from mpamatch.inference.export.runtime import open_session
from mpamatch.slides.mask import MaskFile
from tests.slides.files import write_slide
from tests.tiny import make_set, silent, tiny_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "EXPORT.md").read_text(encoding="utf-8")
WINDOW = 64  # of 32 scaled pixels at half the size
BIOIMAGE_TEST = """
import sys
from pydantic_core import core_schema

plain = core_schema.wrap_serializer_function_ser_schema


def with_one_argument(function, **how):
    def serialize(*given):
        *before, handler, info = given
        return function(*before, lambda value, _info=None: handler(value), info)

    return plain(serialize if how.get("info_arg") else function, **how)


# bioimageio.spec up to 0.5.12 hands on an argument that pydantic refuses since 2.14; spec 0.5.14 does not
core_schema.wrap_serializer_function_ser_schema = with_one_argument

from bioimageio.core import test_description

found = test_description(sys.argv[1])
print(found.format())
sys.exit(found.status != "passed")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at half the size, whose window is twice the least that a graph of free sizes takes."""
    folder = tmp_path_factory.mktemp("run")
    make_set(folder / "data")
    fields = {"data.crop": WINDOW // 2, "data.scale": 0.5, "engine.steps": 30}
    loop.train(tiny_config(folder / "data", "supervised", fields), folder / "tiny", console=silent())
    return folder / "tiny"


@pytest.fixture(scope="module")
def exported(run: Path) -> tuple[Path, str]:
    """The folder of the package's files, and what the command said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["export", str(run), "--out", str(run.parent / "tiny.zip")]) == 0
    with zipfile.ZipFile(run.parent / "tiny.zip") as archive:
        archive.extractall(run.parent / "package")
    return run.parent / "package", said.getvalue()


@pytest.fixture(scope="module")
def model(exported: tuple[Path, str]) -> Path:
    return exported[0] / "model.onnx"


def image(height: int, width: int, index: int = 0) -> np.ndarray:
    whole, _ = synthesize(index, 3, max(height, width))
    return whole[:height, :width]


def deployed(run: Path) -> Deployed:
    return Deployed(mpamatch.load(run, "cpu"), Frame(WINDOW, WINDOW // 2, 32))


def test_the_command_says_what_the_file_takes_and_how_it_compares(exported, run) -> None:
    _, said = exported
    assert "sides are multiples of 32, windows of 64" in said
    found = re.search(
        r"on 4 windows of the test images .*largest difference ([\d.e-]+) \(allowed 0.0001\), ([\d.]+)%", said
    )
    assert found is not None
    assert float(found[1]) < 1e-5
    assert float(found[2]) > 99
    assert f"wrote {run.parent / 'tiny.zip'}" in said


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 96, 160), (2, 128, 64)])
def test_any_batch_and_any_multiples_give_what_torch_gives(model, run, shape) -> None:
    count, height, width = shape
    batch = np.stack([image(height, width, index).transpose(2, 0, 1) for index in range(count)])
    found = open_session(model).run(None, {"image": batch})[0]
    with torch.inference_mode():
        expected = deployed(run)(torch.from_numpy(batch)).numpy()
    assert found.shape == (count, 2, height, width)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert found.std() > 0.01


@pytest.mark.parametrize("given", [np.zeros((1, 3, 72, 64), np.uint8), np.zeros((1, 3, 64, 64), np.float32)])
def test_other_sides_and_types_are_refused(model, given) -> None:
    with pytest.raises(Exception, match=r"dimensions|data type"):
        open_session(model).run(None, {"image": given})


def test_the_metadata_say_what_the_run_says(model, run) -> None:
    stored = open_session(model).get_modelmeta().custom_metadata_map
    about = {name: json.loads(value) for name, value in stored.items()}
    settings = mpamatch.load(run, "cpu").settings
    assert about["class_names"] == list(settings.class_names)
    assert about["colours"] == [list(colour) for colour in settings.colours]
    assert (about["window"], about["multiple"], about["overlap"]) == (WINDOW, 32, settings.overlap)
    assert (about["microns_per_pixel"], about["method"], about["run"]) == (0.5, "supervised", "tiny")
    assert about["terms_of_weights"] is None
    assert about["encoder"] == "small_conv, from scratch"


def test_the_file_names_no_place_of_this_machine(exported) -> None:
    folder, _ = exported
    for file in folder.iterdir():
        content = file.read_bytes()
        for word in (b"site-packages", str(ROOT).encode(), str(folder.parent).encode()):
            assert word not in content, (file.name, word)


def test_predict_takes_the_file_like_a_run(model, run, tmp_path, capsys) -> None:
    (tmp_path / "images").mkdir()
    for index, size in enumerate([(64, 64), (64, 64), (150, 203), (30, 41)]):
        Image.fromarray(image(*size, index)).save(tmp_path / "images" / f"{index}.png")
    for name, of in (("run", run), ("onnx", model)):
        assert (
            main(["predict", str(of), str(tmp_path / "images"), "--out", str(tmp_path / name), "--device", "cpu"]) == 0
        )
    for index, least in enumerate([0.995, 0.995, 0.97, 0.95]):
        one, other = (read_mask(tmp_path / name / "masks" / f"{index}.png") for name in ("run", "onnx"))
        assert one.shape == other.shape
        assert (one == other).mean() >= least, index
    assert (tmp_path / "onnx" / "areas.csv").is_file()
    assert main(["predict", str(model), str(tmp_path / "images"), "--out", str(tmp_path / "run")]) == 2
    assert "was begun with other weights" in capsys.readouterr().err


def test_predict_takes_slides_too(model, tmp_path) -> None:
    pixels = np.tile(image(128, 128), (2, 2, 1))
    write_slide(tmp_path / "a.tif", pixels, mpp=0.5)
    words = ["predict", str(model), str(tmp_path / "a.tif"), "--out", str(tmp_path / "out"), "--tissue", "all"]
    assert main(words) == 0
    with MaskFile(tmp_path / "out" / "a" / "mask.ome.tif") as label:
        whole = label.array()
    assert (whole == mpamatch.load(model).predict(pixels)).mean() > 0.97  # the slide's tiles are JPEG


def example() -> str:
    (block,) = re.findall("```python\n(.*?)```", PAGE, re.DOTALL)
    return block


@pytest.mark.parametrize("size", [(64, 64), (150, 203), (40, 90)])
def test_the_example_of_the_page_runs_without_torch(model, tmp_path, size) -> None:
    parsed = [node for node in ast.walk(ast.parse(example())) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {getattr(node, "module", None) or node.names[0].name for node in parsed}
    assert imported == {"json", "math", "sys", "numpy", "onnxruntime", "PIL"}
    (tmp_path / "tile.py").write_text(example())
    pixels = image(*size)
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    (command,) = re.findall(r"^python (tile\.py .*)", PAGE, re.MULTILINE)
    words = [str(model) if word == "gland.onnx" else word for word in command.split()]
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)
    label = np.asarray(Image.open(tmp_path / "mask.png"))
    assert label.shape == size
    assert (label == mpamatch.load(model).predict(pixels)).mean() > 0.999


def test_every_command_of_the_page_is_there() -> None:
    commands = re.findall(r"^mpamatch (\w+) (\S+) (.*?)(?: +#.*)?$", PAGE, re.MULTILINE)
    assert [(word, of) for word, of, _ in commands] == [
        ("export", "runs/glas-001"),
        ("export", "runs/glas-001"),
        ("predict", "gland.onnx"),
    ]


def test_bioimageio_core_passes_the_package(exported, run, tmp_path) -> None:
    pytest.importorskip("bioimageio.core")
    (tmp_path / "check.py").write_text(BIOIMAGE_TEST)
    words = [sys.executable, str(tmp_path / "check.py"), str(run.parent / "tiny.zip")]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BIOIMAGEIO_CACHE_PATH": str(tmp_path / "cache")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("(onnx)", "(torchscript)"):
        assert f"Reproduce test outputs from test inputs {what}" in done.stdout


def test_torchscript_takes_floats_as_qupath_gives_them(exported, run) -> None:
    folder, _ = exported
    given = np.load(folder / "test_input.npy")
    loaded = torch.jit.load(str(folder / "model.pt"))
    with torch.inference_mode():
        found = loaded(torch.from_numpy(given).float()).numpy()
    np.testing.assert_allclose(found, np.load(folder / "test_output.npy"), atol=1e-5)


def test_the_package_describes_itself(exported) -> None:
    folder, _ = exported
    about: dict[str, Any] = yaml.safe_load((folder / "rdf.yaml").read_text(encoding="utf-8"))
    assert about["outputs"][0]["axes"][1]["channel_names"] == ["background", "gland"]
    assert about["inputs"][0]["axes"][2]["size"] == {"min": 64, "step": 32}
    assert about["inputs"][0]["axes"][2]["scale"] == 0.5
    assert "license" not in about  # of an encoder from scratch the owner alone can name one
    with Image.open(folder / "cover.png") as cover:
        assert cover.width == 2 * cover.height
    assert "Terms of its weights: none" in (folder / "LICENCE.txt").read_text(encoding="utf-8")
