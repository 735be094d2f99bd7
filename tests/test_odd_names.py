"""Names that are no UTF-8, hold markup, formulas, accents or 245 bytes, and terminals that cannot show them."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpamatch.cli import COMMANDS, main
from mpamatch.data.prepared import load_prepared
from mpamatch.engine.config import load_saved
from mpamatch.names import readable
from tests.tiny import make_set, tiny_flags

pytestmark = pytest.mark.slow

BYTES = os.fsdecode(b"caf\xe9")
LONG = "n" * 245
COMPOSED, APART = (unicodedata.normalize(form, "né") for form in ("NFC", "NFD"))  # as Linux and as macOS store it
STEMS = [BYTES, "[red]", "[bold", ":smile:", "a$b$", "a,b;'c", "tab\tle", "-x", " y", LONG, COMPOSED, "#1%s{0}"]
CLASSES = ["[/b]back", "[red]gland:x:$\\frac$"]
SIDE = 48


def ended(*words: object) -> int:
    """The exit code, whether returned or raised by the parser."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)


def save(path: Path, seed: int, label: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    with path.open("wb") as file:
        Image.fromarray(pixels[..., 0] % 2 if label else pixels).save(file, format="PNG")


def make_raw(source: Path) -> Path:
    """Images of all names with masks; the mask of the accented one is stored in the other way."""
    for seed, stem in enumerate(STEMS):
        save(source / "images" / f"{stem}.png", seed)
        save(source / "masks" / f"{APART if stem == COMPOSED else stem}.png", seed, label=True)
    return source


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """prepare → check → split → train → evaluate → predict in a folder of such a name; what each command printed."""
    folder = tmp_path_factory.mktemp("story") / f"[b]{BYTES}"
    try:
        make_raw(folder / "raw")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    data, run = folder / "data", folder / "run"
    meaning = ",".join(f"{value}:{name}" for value, name in enumerate(CLASSES))
    words = {
        "prepare": ["folder", folder / "raw", data, "--mask-values", meaning],
        "check": [data],
        "split": [data, "--labelled", "50%"],
        "train": ["--recipe", "folder", "--run", run, *tiny_flags(data, "mpamatch")],
        "evaluate": [run, "--device", "cpu"],
        "predict": [run, folder / "raw" / "images", "--out", folder / "out", "--device", "cpu"],
        "prototypes": [run, folder / "raw" / "images", "--out", folder / "seen", "--device", "cpu"],
        "suggest": [run, folder / "raw" / "images", "--out", folder / "next", "--device", "cpu"],
    }
    said = {}
    for command, rest in words.items():
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert ended(command, *rest) == 0, command
        stream.flush()
        said[command] = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    return folder, said


def test_the_prepared_set_has_the_names_and_json_reads_back_to_the_files(story):
    folder, said = story
    prepared = load_prepared(folder / "data")
    stems = {Path(name).stem for names in prepared.parts.values() for name in names}
    assert stems == set(STEMS)
    assert sum(len(prepared.labelled(part)) for part in prepared.parts) == len(STEMS)
    assert b"caf\\udce9.png" in (folder / "data" / "parts.json").read_bytes()
    assert f"next: mpamatch check {readable(str(folder / 'data'))}" in said["prepare"]
    assert "check.png: " in said["check"]


def test_the_configuration_reads_back_to_the_folder(story):
    folder = story[0]
    assert load_saved(folder / "run" / "config.yaml").data.root == str(folder / "data")


def test_areas_and_record_name_every_file(story):
    folder = story[0]
    files = sorted((folder / "raw" / "images").iterdir())
    with (folder / "out" / "areas.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [str(file).encode(errors="backslashreplace").decode() for file in files]
    names = json.loads((folder / "out" / "images.json").read_text(encoding="utf-8"))["names"]
    assert {Path(path) for path in names.values()} == set(files)
    for kind in ("masks", "overlays"):
        assert {path.stem for path in (folder / "out" / kind).iterdir()} == set(names)


def test_suggestions_have_the_names_and_become_a_set(story):
    folder, said = story
    assert {path.stem for path in (folder / "next" / "masks").iterdir()} == set(STEMS)
    assert f"are in {readable(str(folder / 'next'))}" in said["suggest"]
    meaning = ",".join(f"{value}:{name}" for value, name in enumerate(CLASSES))
    assert ended("prepare", "folder", folder / "next", folder / "corrected", "--mask-values", meaning) == 0
    assert ended("suggest", folder / "run", folder / "data", "--out", folder / "more", "--device", "cpu") == 0
    assert ended("split", folder / "data", "--list", folder / "more" / "labelled.txt", "--name", "more") == 0


def test_markup_and_emoji_are_printed_as_they_are(story):
    said = story[1]
    for command in ("check", "evaluate", "predict"):
        for name in CLASSES:
            assert name in said[command].replace("\n", ""), command
    assert "in " + readable(str(story[0])) in said["train"]
    assert said["prepare"].splitlines()[0].startswith("raw →")


def test_figures_take_names_for_no_formulas(story):
    folder = story[0]
    for kind in ("assignments", "maps"):
        assert {path.stem for path in (folder / "seen" / kind).iterdir()} == set(STEMS)


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_the_run_goes_on_in_such_a_folder(story, command):
    run = story[0] / "run"
    assert list(run.glob("events.out.tfevents.*"))
    words = ["evaluate", run, "--device", "cpu"] if command == "evaluate" else ["train", "--resume", run]
    assert ended(*words) == 0


# Terminals


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ready")
    make_set(folder / "set")
    assert ended("train", "--recipe", "demo", "--run", folder / "run", *tiny_flags(folder / "set", "supervised")) == 0
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prepare", "synthetic", "OUT", "--images", "12", "--size", "48"], rb"\u2192"),
        (["check", "set"], b"samples to look at"),
        (["split", "set", "--labelled", "1"], b"labelled-1-seed0.json"),
        (["evaluate", "run", "--device", "cpu"], b"evaluation-test.json"),
        (["predict", "run", "set/images", "--out", "OUT", "--device", "cpu"], b"areas.csv are in"),
        (["predict", "run", "nö→.png", "--out", "OUT"], b"\\u2192.png: no such file"),
        (["train", "--resume", "run"], b"next: mpamatch report"),
        (["train", "--fields"], b"--engine.steps"),
        (["info"], b"prototype_contrast"),
        *(([command, "--help"], b"usage: ") for command in COMMANDS),
    ],
)
def test_commands_end_well_on_terminals_without_arrows(ready, tmp_path, monkeypatch, encoding, words, says):
    """Standard output and errors are strict, as a file on Windows is."""
    monkeypatch.chdir(ready)
    out = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(out, encoding=encoding, write_through=True))
    code = ended(*(tmp_path / "out" if word == "OUT" else word for word in words))
    assert code == (2 if "nö→.png" in words else 0), out.getvalue()
    said = out.getvalue()
    assert says in said
    assert b"Traceback" not in said


def test_a_process_in_the_c_locale_without_utf8(ready, tmp_path):
    image = tmp_path / f"{BYTES}→.png"
    shutil.copy(next((ready / "set" / "images").iterdir()), image)
    here = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["predict", ready / "run", image, "--out", tmp_path / "out", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-m", "mpamatch", *words], capture_output=True, env={**os.environ, **here})
    assert (done.returncode, b"areas.csv are in" in done.stdout) == (0, True), done.stderr
    assert (tmp_path / "out" / "masks" / f"{BYTES}→.png").is_file()


# Accents and length


def test_two_images_that_differ_in_the_storing_of_accents_are_told(ready, tmp_path, capsys):
    source = tmp_path / "raw"
    for seed, stem in enumerate([COMPOSED, APART, "a", "b", "c"]):
        save(source / "images" / f"{stem}.png", seed)
    if len(list((source / "images").iterdir())) < 5:
        pytest.skip("this file system takes both for one name")
    save(source / "masks" / "a.png", 1, label=True)
    assert ended("prepare", "folder", source, tmp_path / "data") == 2
    assert "has the same name as" in (said := capsys.readouterr().err)
    assert "but for the way its accents are stored: rename or remove one of them." in said
    assert not (tmp_path / "data").exists()
    assert ended("predict", ready / "run", source / "images", "--out", tmp_path / "out", "--device", "cpu") == 0
    masks = {unicodedata.normalize("NFC", path.stem) for path in (tmp_path / "out" / "masks").iterdir()}
    assert masks == {COMPOSED, f"images-{COMPOSED}", "a", "b", "c"}


@pytest.mark.parametrize("length", [238, 245, 251])
def test_names_as_long_as_a_file_system_takes(ready, tmp_path, capsys, length):
    source = tmp_path / "raw"
    for number, part in enumerate(("train", "validation", "test")):
        for seed in range(2):
            save(source / "images" / part / f"{seed}{'n' * (length - 1)}.png", 2 * number + seed)
            save(source / "masks" / part / f"{seed}{'n' * (length - 1)}.png", seed, label=True)
    data, out = tmp_path / "data", tmp_path / "out"
    assert ended("prepare", "folder", source, data) == 0
    assert ("shortened to end in eight digits: " in capsys.readouterr().out) == (length > 238)
    assert ended("check", data) == 0
    prepared = load_prepared(data)
    assert [len(prepared.labelled(part)) for part in prepared.parts] == [2, 2, 2]
    folders = [source / "images" / part for part in ("train", "test")]  # two names each, so with the folder's in front
    assert ended("predict", ready / "run", *folders, "--out", out, "--device", "cpu") == 0
    assert len(list((out / "masks").iterdir())) == len(list((out / "overlays").iterdir())) == 4
    assert ended("predict", ready / "run", *folders, "--out", out, "--device", "cpu") == 0
    assert len(list((out / "masks").iterdir())) == 4
