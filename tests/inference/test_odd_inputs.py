"""`mpamatch predict` on links, broken images and other files: every name gets its result or its line."""

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mpamatch.cli import main
from tests.tiny import make_set_and_run


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set and a run on it."""
    return make_set_and_run(tmp_path_factory.mktemp("ready"))


@pytest.fixture
def images(ready: Path, tmp_path: Path) -> Path:
    """A folder of a.png, b.png, c.png and d.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, path in zip("abcd", sorted((ready / "set" / "images").iterdir()), strict=False):
        shutil.copy(path, folder / f"{name}.png")
    return folder


def predict(ready: Path, *words: object) -> int:
    return main(["predict", str(ready / "run"), *map(str, words), "--device", "cpu"])


def masks(out: Path) -> list[str]:
    return sorted(path.stem for path in (out / "masks").iterdir())


def listed(out: Path) -> list[str]:
    with (out / "areas.csv").open(newline="", encoding="utf-8") as stream:
        return sorted(Path(row["file"]).name for row in csv.DictReader(stream))


def test_every_name_of_one_file_gets_its_result(ready: Path, images: Path, tmp_path: Path) -> None:
    (images / "link.png").symlink_to("a.png")
    (images / "hard.png").hardlink_to(images / "a.png")
    (tmp_path / "beside").symlink_to(images)
    out = tmp_path / "out"
    assert predict(ready, images, "--out", out) == 0
    assert masks(out) == ["a", "b", "c", "d", "hard", "link"]
    assert listed(out) == ["a.png", "b.png", "c.png", "d.png", "hard.png", "link.png"]
    once = [images / "a.png", images / ".." / "images" / "a.png", images / "link.png", tmp_path / "beside" / "a.png"]
    assert predict(ready, *once, "--out", tmp_path / "few") == 0
    assert masks(tmp_path / "few") == ["a", "beside-a", "link"]  # the second is written as the first


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_link_that_leads_nowhere_gets_its_line(
    ready: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    (images / "c2.png").symlink_to("gone.png")
    inputs = [images] if given == "folder" else sorted(images.iterdir())
    told = f"{images / 'c2.png'}: links to gone.png, which is not there: mend the link or remove it."
    assert predict(ready, *inputs, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"mpamatch: {told}"
    assert not (tmp_path / "out").exists()  # told before the work
    assert predict(ready, *inputs, "--out", tmp_path / "out", "--on-error", "skip") == 1
    assert f"not predicted: {told}" in capsys.readouterr().out
    assert masks(tmp_path / "out") == ["a", "b", "c", "d"]


def test_a_link_to_no_slide_gets_its_line(
    ready: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shapely")
    (images / "s.svs").symlink_to("gone.svs")
    assert predict(ready, images, "--out", tmp_path / "out") == 1  # slides: skip is the default
    assert f"not predicted: {images / 's.svs'}: links to gone.svs, which is not there" in capsys.readouterr().out
    assert masks(tmp_path / "out") == ["a", "b", "c", "d"]


def test_a_broken_image_stops_or_is_passed_and_the_same_command_goes_on(
    ready: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (images / "c.png").read_bytes()
    (images / "c.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    assert predict(ready, images, "--out", out) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"mpamatch: {images / 'c.png'}: ")
    assert said.endswith("; --on-error skip goes on without it.")
    assert masks(out) == ["a", "b"]
    first = (out / "masks" / "a.png").stat().st_mtime_ns
    assert predict(ready, images, "--out", out, "--on-error", "skip") == 1
    printed = capsys.readouterr().out
    assert "3 images" in printed
    assert f"not predicted: {images / 'c.png'}: " in printed
    assert listed(out) == ["a.png", "b.png", "d.png"]
    (images / "c.png").write_bytes(whole)
    assert predict(ready, images, "--out", out) == 0
    assert listed(out) == ["a.png", "b.png", "c.png", "d.png"]
    assert (out / "masks" / "a.png").stat().st_mtime_ns == first


def test_nothing_but_broken_images(
    ready: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in images.iterdir():
        path.write_bytes(b"no image")
    assert predict(ready, images, "--out", tmp_path / "out", "--on-error", "skip") == 1
    assert capsys.readouterr().out.count("not predicted: ") == 4


def test_formats_of_pillow_are_read_and_other_files_named(
    ready: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Image.open(images / "a.png") as image:
        for ending, kind in (("gif", "GIF"), ("webp", "WEBP"), ("jfif", "JPEG"), ("jp2", "JPEG2000"), ("tga", "TGA")):
            image.save(images / f"of_{ending}.{ending.upper()}", format=kind)
    for name in ("notes.txt", "e.heic", "f.xyz", "g.psd"):
        (images / name).write_bytes(b"?")
    assert predict(ready, images, "--out", tmp_path / "out") == 0
    told = f"note: {images}: 4 files were passed over, as no image ends so: e.heic, f.xyz, g.psd and 1 more."
    assert told in capsys.readouterr().out
    assert masks(tmp_path / "out") == [*"abcd", "of_gif", "of_jfif", "of_jp2", "of_tga", "of_webp"]


def test_prototypes_tell_a_link_before_they_draw(
    ready: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "z.png").symlink_to("gone.png")
    assert main(["prototypes", str(ready / "run"), str(images), "--out", str(tmp_path / "out")]) == 2
    assert "z.png: links to gone.png, which is not there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
