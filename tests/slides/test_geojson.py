"""The tissue's file keeps QuPath's rules."""

import json
from pathlib import Path

import pytest

from mpamatch.slides.geojson import Place, write_tissue
from mpamatch.slides.tissue import Tissue
from tests.slides.qupath import problems
from tests.slides.test_outlines import blobs


def test_tissue_is_one_plain_annotation_of_its_own_class(tmp_path: Path) -> None:
    mask = blobs(60, 80, sigma=4) == 1
    path = tmp_path / "tissue.geojson"
    write_tissue(path, Tissue(mask, 8.0, 16.0), Place(2.0, 1.0, offset=(32, 0)))
    assert problems(path) == []
    found = json.loads(path.read_text())["features"]
    assert {feature["properties"]["classification"]["name"] for feature in found} == {"Tissue"}
    total = sum(feature["properties"]["measurements"]["Area mm^2"] for feature in found)
    assert total == pytest.approx(mask.sum() * 64e-6, rel=1e-4)
