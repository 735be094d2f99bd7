"""Each kind of raw set by its own recipe, from its folder to a score: prepare, check, split, train, evaluate."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mpamatch.cli import main
from tests.data.raw import busi_folder, kpi_folder
from tests.tiny import tiny_flags


def acdc_folder(root: Path) -> Path:
    pytest.importorskip("nibabel", reason="extra acdc is not installed")
    pytest.importorskip("h5py", reason="extra acdc is not installed")
    from tests.data import acdc_files

    return acdc_files.acdc_folder(root)


KINDS: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "busi": (busi_folder, {"background", "lesion"}),
    "kpi": (kpi_folder, {"background", "glomerulus"}),
    "acdc": (acdc_folder, {"background", "right ventricle", "myocardium", "left ventricle"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_raw_folder_to_a_score(kind, tmp_path):
    make, classes = KINDS[kind]
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    assert main(["prepare", kind, str(make(tmp_path)), data]) == 0
    assert main(["check", data]) == 0
    assert main(["split", data, "--labelled", "2"]) == 0
    fields = {"engine.steps": 3, "data.scale": 1.0}  # the images are small already
    assert main(["train", "--recipe", kind, "--run", run, *tiny_flags(Path(data), "mpamatch", fields)]) == 0
    assert main(["evaluate", run, "--device", "cpu"]) == 0
    scores = json.loads((tmp_path / "run" / "evaluation-test.json").read_text())
    assert set(scores["dice"]) == classes
    assert 0 <= scores["mdice"] < 1
