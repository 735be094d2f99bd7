"""Masks, overlays and areas on disk; bad inputs by name."""

import argparse
import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mpamatch.commands import predict
from mpamatch.data.image_facts import Seen, remarks_on
from mpamatch.errors import InputError
from mpamatch.images import Facts
from mpamatch.inference import files as module
from mpamatch.inference.files import list_images, predict_files
from mpamatch.inference.record import named_apart
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.settings import SegmenterSettings


class Bright(nn.Module):
    def forward(self, windows: Tensor) -> SimpleNamespace:
        red = windows[:, :1] - 0.5
        return SimpleNamespace(logits=torch.cat([-red, red], dim=1))


def make(microns_per_pixel: float | None = None) -> Segmenter:
    settings = SegmenterSettings(
        class_names=("background", "gland"),
        colours=((0, 0, 0), (0, 200, 83)),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        window=32,
        scale=1.0,
        microns_per_pixel=microns_per_pixel,
    )
    return Segmenter(Bright(), settings)


def save(path: Path, height: int = 20, width: int = 40, bright: int = 10) -> Path:
    """An image whose left `bright` columns are white."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[:, :bright] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def table(out: Path) -> list[dict[str, str]]:
    with (out / "areas.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_outputs(tmp_path: Path) -> None:
    first = save(tmp_path / "in" / "a.png")
    second = save(tmp_path / "in" / "b.tif", height=35, width=50, bright=50)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    save(tmp_path / "in" / "deeper" / "c.png")
    out = tmp_path / "out"
    rows = predict_files(make(microns_per_pixel=0.5), [tmp_path / "in"], out)

    assert names(out) == ["areas.csv", "images.json", "masks", "overlays"]
    assert names(out / "masks") == names(out / "overlays") == ["a.png", "b.png"]
    mask = np.array(Image.open(out / "masks" / "a.png"))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, np.tile(np.arange(40) < 10, (20, 1)))
    painted = np.array(Image.open(out / "overlays" / "a.png"))
    assert painted.shape == (20, 40, 3)
    assert (painted[:, 10:] == 0).all()
    assert (painted[:, :10] != 255).any()

    assert [row.file for row in rows] == [first, second]
    a, b = table(out)
    assert list(a) == [
        *("file", "name", "width", "height"),
        *(
            "background pixels",
            "background share",
            "background mm2",
            "gland pixels",
            "gland share",
            "gland mm2",
        ),
    ]
    assert (a["file"], a["name"], a["width"], a["height"]) == (str(first), "a", "40", "20")
    assert (a["gland pixels"], float(a["gland share"]), float(a["gland mm2"])) == ("200", 0.25, 50e-6)
    assert (a["background pixels"], float(a["background share"])) == ("600", 0.75)
    assert (b["background pixels"], b["gland pixels"], float(b["gland share"])) == ("0", "1750", 1.0)


def test_no_square_millimetres_without_pixel_size(tmp_path: Path) -> None:
    predict_files(make(), [save(tmp_path / "a.png")], tmp_path / "out")
    assert "gland pixels" in table(tmp_path / "out")[0]
    assert "gland mm2" not in table(tmp_path / "out")[0]


def test_same_stems_are_kept_apart(tmp_path: Path) -> None:
    save(tmp_path / "x" / "a.png", bright=1)
    save(tmp_path / "y" / "a.png", bright=2)
    save(tmp_path / "y" / "a.bmp", bright=3)
    out = tmp_path / "out"
    predict_files(make(), [tmp_path / "x", tmp_path / "y", tmp_path / "x" / "a.png"], out)
    found = {row["file"]: row["name"] for row in table(out)}
    assert found == {
        str(tmp_path / "x" / "a.png"): "a",
        str(tmp_path / "y" / "a.bmp"): "y-a",
        str(tmp_path / "y" / "a.png"): "y-a-2",
    }
    for name, bright in (("a", 1), ("y-a", 3), ("y-a-2", 2)):
        assert np.array(Image.open(out / "masks" / f"{name}.png")).sum() == 20 * bright


def test_names_differ_in_more_than_capitals_and_survive_look_alikes() -> None:
    files = [Path(name) for name in ("/p/q/a.png", "/p/q/A.png", "/p/q/q-a.png", "/p/q/a.bmp")]
    given = [name for _, name in named_apart(files)]
    assert given[0] == "a"
    assert len({name.casefold() for name in given}) == 4


def test_unreadable_file_stops_by_name_and_keeps_what_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "a.png")
    whole = save(folder / "b.png", height=200, width=200).read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    save(folder / "c.png")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"b\.png"):
        predict_files(make(), [folder], out)
    assert names(out / "masks") == names(out / "overlays") == ["a.png"]
    assert [row["name"] for row in table(out)] == ["a"]


def test_many_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    """More than are read ahead, fit a batch or are written at a time; sizes differ."""
    for number in range(30):
        save(tmp_path / "in" / f"{number:02}.png", height=20 + number, width=40 + 3 * (number % 5), bright=number)
    out = tmp_path / "out"
    rows = predict_files(make(), [tmp_path / "in"], out)
    assert [row.name for row in rows] == [f"{number:02}" for number in range(30)]
    assert [row["name"] for row in table(out)] == [row.name for row in rows]
    for number, row in enumerate(rows):
        assert row.pixels[1] == number * (20 + number)
        mask = np.array(Image.open(out / "masks" / f"{row.name}.png"))
        assert mask.shape == (20 + number, 40 + 3 * (number % 5))
        assert mask.sum() == row.pixels[1]


def test_an_unreadable_file_among_many_costs_only_itself_and_those_after_it(tmp_path: Path) -> None:
    for number in range(25):
        save(tmp_path / "in" / f"{number:02}.png", bright=number)
    (tmp_path / "in" / "13.png").write_bytes(b"no image")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"13\.png"):
        predict_files(make(), [tmp_path / "in"], out)
    done = [f"{number:02}" for number in range(13)]
    assert names(out / "masks") == names(out / "overlays") == [f"{name}.png" for name in done]
    assert [row["name"] for row in table(out)] == done


def test_a_disk_that_is_full_is_told_and_what_was_written_is_listed(tmp_path: Path, monkeypatch) -> None:
    for number in range(12):
        save(tmp_path / "in" / f"{number:02}.png", bright=number)
    whole = module.write_png

    def write_png(path: Path, array: np.ndarray) -> None:
        if path.name == "05.png":
            raise InputError(f"{path}: could not be written (No space left on device).")
        whole(path, array)

    monkeypatch.setattr(module, "write_png", write_png)
    with pytest.raises(InputError, match="No space left"):
        predict_files(make(), [tmp_path / "in"], tmp_path / "out")
    assert [row["name"] for row in table(tmp_path / "out")] == [f"{number:02}" for number in range(5)]


def test_first_file_unreadable_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png"):
        predict_files(make(), [tmp_path / "a.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "outer" / "inner" / "a.png")
    with pytest.raises(InputError, match="nothing to predict"):
        list_images([])
    with pytest.raises(InputError, match=r"gone\.png: no such file or folder"):
        list_images([tmp_path / "gone.png"])
    with pytest.raises(InputError, match="empty: no image at its top level"):
        list_images([tmp_path / "empty"])
    with pytest.raises(InputError, match="outer: no image at its top level"):
        list_images([tmp_path / "outer"])


def test_out_refused(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png")
    save(tmp_path / "used" / "old.png")
    with pytest.raises(InputError, match="used: is not empty"):
        predict_files(make(), [image], tmp_path / "used")
    assert names(tmp_path / "used") == ["old.png"]
    with pytest.raises(InputError, match=r"a\.png: is a file"):
        predict_files(make(), [image], image)
    (tmp_path / "new").mkdir()
    assert len(predict_files(make(), [image], tmp_path / "new")) == 1


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command, with a segmenter put in the place of a trained run."""
    asked: list[tuple[Path, str]] = []
    segmenter = make(microns_per_pixel=100.0)

    def load_segmenter(run: Path, device: str) -> Segmenter:
        asked.append((run, device))
        return segmenter

    used: list[float] = []

    def predict_files(segmenter: Segmenter, *arguments: Any, **options: Any) -> list[module.Areas]:
        used.append(segmenter.settings.overlap)
        return module.predict_files(segmenter, *arguments, **options)

    monkeypatch.setattr(predict, "load_segmenter", load_segmenter)
    monkeypatch.setattr(predict, "predict_files", predict_files)
    run = predict.run

    out = tmp_path / "out"
    given = {
        "run": "runs/x",
        "inputs": [str(save(tmp_path / "a.png"))],
        "out": str(out),
        "device": "cpu",
        "overlap": 0.5,
        "on_error": None,
        **dict.fromkeys(("mpp", "model_mpp", "tissue", "origin", "simplify", "shard")),
    }
    assert run(argparse.Namespace(**given)) == 0
    assert asked == [(Path("runs/x"), "cpu")]
    assert used == [0.5]
    assert names(out) == ["areas.csv", "images.json", "masks", "overlays"]
    printed = capsys.readouterr().out
    assert "25.0%" in printed
    assert "gland" in printed
    assert str(out) in printed.replace("\n", "")
    assert "note:" not in printed

    missing = argparse.Namespace(**{**given, "inputs": [str(tmp_path / "gone.png")]})
    with pytest.raises(InputError, match=r"gone\.png"):
        run(missing)
    assert len(asked) == 1  # told before a model is loaded
    assert run(argparse.Namespace(**{**given, "out": str(tmp_path / "again"), "overlap": None})) == 0
    assert used[1] == segmenter.settings.overlap != 0.5  # that of the run


def broken(folder: Path) -> Path:
    """a.png, b.png cut in half, c.png."""
    save(folder / "a.png")
    whole = save(folder / "b.png", height=200, width=200).read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    save(folder / "c.png", bright=20)
    return folder


def test_unreadable_file_is_skipped_by_name_and_the_rest_done(tmp_path: Path) -> None:
    skipped: list[InputError] = []
    found = predict_files(make(), [broken(tmp_path / "in")], tmp_path / "out", skip=skipped.append)
    assert [one.name for one in found] == ["a", "c"]
    assert names(tmp_path / "out" / "masks") == ["a.png", "c.png"]
    assert [row["gland pixels"] for row in table(tmp_path / "out")] == ["200", "400"]
    assert len(skipped) == 1
    assert "b.png" in str(skipped[0])


def test_a_stopped_folder_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder, out = broken(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(InputError, match=r"b\.png"):
        predict_files(make(), [folder], out)
    first = (out / "masks" / "a.png").stat().st_mtime_ns
    save(folder / "b.png", bright=30)
    save(folder / "0.png", bright=5)
    (out / "overlays" / "half.png").write_bytes(b"")
    rows = predict_files(make(), [folder], out)
    assert [(row.name, row.pixels[1]) for row in rows] == [("0", 100), ("a", 200), ("b", 600), ("c", 400)]
    assert [row["name"] for row in table(out)] == ["0", "a", "b", "c"]
    assert (out / "masks" / "a.png").stat().st_mtime_ns == first
    (out / "overlays" / "c.png").unlink()
    predict_files(make(), [folder], out)
    assert names(out / "overlays") == ["0.png", "a.png", "b.png", "c.png", "half.png"]


def test_names_stay_when_a_list_grows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(make(), [save(tmp_path / "y" / "a.png", bright=7)], out)
    rows = predict_files(make(), [save(tmp_path / "x" / "a.png", bright=3), tmp_path / "y"], out)
    assert [(row.name, row.pixels[1]) for row in rows] == [("x-a", 60), ("a", 140)]


def test_another_model_or_overlap_is_refused(tmp_path: Path) -> None:
    image, out = save(tmp_path / "a.png"), tmp_path / "out"
    predict_files(make(), [image], out)
    with pytest.raises(InputError, match=r"other overlap \(0\.3\d+, not 0\.5\)"):
        predict_files(make().with_overlap(0.5), [image], out)
    with pytest.raises(InputError, match=r"other microns_per_pixel \(None, not 0\.5\)"):
        predict_files(make(0.5), [image], out)
    (out / "images.json").write_text("{}")
    with pytest.raises(InputError, match="is no record"):
        predict_files(make(), [image], out)


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", "a/b", "", "x" * 300])
def test_a_record_writes_into_no_other_folder(tmp_path: Path, name: str) -> None:
    """images.json may come from anywhere: its names become names of files."""
    segmenter, image, out = make(), save(tmp_path / "a.png"), tmp_path / "deep" / "er" / "out"
    predict_files(segmenter, [image], out)
    record = json.loads((out / "images.json").read_text())
    before = set(tmp_path.rglob("*"))
    (out / "images.json").write_text(json.dumps(record | {"names": {name: str(image)}}))
    with pytest.raises(InputError, match=r"images\.json: gives a file the name .*, which is no name of a file"):
        predict_files(segmenter, [image], out)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [[], {}, {"made_with": 7}, {"names": {}}, {"names": ["a"]}, {"names": {"a": 7}}])
def test_a_record_of_another_form_is_refused(tmp_path: Path, content: Any) -> None:
    segmenter, image, out = make(), save(tmp_path / "a.png"), tmp_path / "out"
    predict_files(segmenter, [image], out)
    record = json.loads((out / "images.json").read_text())
    whole = record | content if isinstance(content, dict) and "names" in content else content
    (out / "images.json").write_text(json.dumps(whole))
    if content == {"names": {}}:
        predict_files(segmenter, [image], out)
        return
    with pytest.raises(InputError, match=r"images\.json: is no record of a prediction"):
        predict_files(segmenter, [image], out)


def test_what_was_done_to_images_is_told(tmp_path: Path) -> None:
    plain, turned = save(tmp_path / "a.png"), save(tmp_path / "b.png", height=40, width=20)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(turned) as picture:
        picture.save(turned, exif=exif)
    told: list[tuple[Path, Facts]] = []
    rows = predict_files(make(), [plain, turned], tmp_path / "out", tell=told.extend)
    assert [(row.height, row.width) for row in rows] == [(20, 40), (20, 40)]
    assert told == [(plain, Facts()), (turned, Facts(turn=6))]
    said = remarks_on([Seen(*one) for one in told], "mask and overlay are turned too")
    assert said == ["1 image, b.png, with an EXIF orientation and turned as it says: mask and overlay are turned too."]
