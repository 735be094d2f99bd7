"""Tables of tile sizes: complete, honest, and found for devices they do not name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpamatch.kernels import tiles
from mpamatch.ops.operation import operations

KERNELS = [kernel for operation in operations().values() for kernel in operation.tiled]
H100 = "NVIDIA H100 80GB HBM3"
SIZES = {"D": 256, "M": 50, "C": 5}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder of tables with a copy of the H100's."""
    for path in tiles.FOLDER.glob("*h100.json"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(tiles, "FOLDER", tmp_path)
    tiles.tables.cache_clear()
    tiles._lookup.cache_clear()
    yield tmp_path
    tiles.tables.cache_clear()
    tiles._lookup.cache_clear()


@pytest.mark.parametrize("name", tiles.tables())
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_size_has_a_setting(name: str, kernel: str) -> None:
    with tiles.as_device(tiles.tables()[name].device):
        for bits in (16, 32):
            for size in (1, 64, 255, 4096):
                setting = tiles.lookup(kernel, torch.device("cpu"), bits=bits, D=size, M=size, C=size)
                assert all(value & (value - 1) == 0 for key, value in setting.items() if key.startswith("BLOCK"))
                assert setting["num_warps"] in (1, 2, 4, 8, 16)


def test_the_first_entry_that_holds_is_taken() -> None:
    with tiles.as_device(tiles.tables()[H100].device):
        cpu = torch.device("cpu")
        small = tiles.lookup("prototype_contrast.forward", cpu, bits=16, D=64, M=64)
        wider = tiles.lookup("prototype_contrast.forward", cpu, bits=16, D=65, M=64)
        single = tiles.lookup("prototype_contrast.forward", cpu, bits=32, D=64, M=64)
    assert len({tuple(setting.values()) for setting in (small, wider, single)}) == 3


@pytest.mark.parametrize(
    ("device", "served_by"),
    [
        (tiles.Device("NVIDIA A100-PCIE-40GB", (8, 0), 108), "NVIDIA A100-SXM4-80GB"),
        (tiles.Device("NVIDIA GeForce RTX 4090", (8, 9), 128), "NVIDIA A100-SXM4-80GB"),
        (tiles.Device("NVIDIA H200", (9, 0), 132), "NVIDIA H200"),
        (tiles.Device("NVIDIA H100 PCIe", (9, 0), 114), H100),
        (tiles.Device("NVIDIA B200", (10, 0), 148), H100),
    ],
)
def test_an_unknown_device_takes_the_nearest_table(device: tiles.Device, served_by: str) -> None:
    assert tiles.nearest(device).device.name == served_by
    sentence = tiles.source(device)
    assert served_by in sentence
    assert ("nearest to" in sentence) == (device.name != served_by)
    assert "not tuned" in sentence


def test_a_table_that_was_not_timed_says_so() -> None:
    for table in tiles.tables().values():
        assert table.tuned != table.origin.startswith("not tuned")


def test_using_holds_for_one_kernel_and_ends() -> None:
    cpu, setting = torch.device("cpu"), {"BLOCK_P": 16, "num_warps": 1, "num_stages": 1}
    before = tiles.lookup("pseudo_label.forward", cpu, bits=16, C=5)
    with tiles.using("pseudo_label.forward", setting):
        assert tiles.lookup("pseudo_label.forward", cpu, bits=16, C=5) == setting
        assert tiles.lookup("segmentation_loss.backward", cpu, bits=16, C=5) != setting
    assert tiles.lookup("pseudo_label.forward", cpu, bits=16, C=5) == before


@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_are_settings_of_their_kernel(kernel: str) -> None:
    with tiles.as_device(tiles.tables()[H100].device):
        committed = tiles.lookup(kernel, torch.device("cpu"), bits=16, **SIZES)
    found = list(tiles.candidates(committed, bits=16, multiprocessors=132, **SIZES))
    assert len({tuple(setting.items()) for setting in found}) == len(found) >= 12
    assert {frozenset(setting) for setting in found} == {frozenset(committed)}


def test_a_written_table_is_read_back(folder: Path) -> None:
    device = tiles.Device("NVIDIA Test-GPU 8GB", (9, 0), 12)
    entries = [{"kernel": kernel, "setting": {"BLOCK_P": 64}} for kernel in KERNELS]
    entries.insert(0, {"kernel": "pseudo_label.forward", "bits": 16, "C": 4, "setting": {"BLOCK_P": 128}})
    path = tiles.write(device, entries, KERNELS, shared_memory=1000, origin="timed by a test", folder=folder)
    assert path.name == "nvidia-test-gpu-8gb.json"
    assert json.loads(path.read_text(encoding="utf-8"))["tuned"] is True
    assert tiles.nearest(device) == tiles.Table(device, 1000, True, "timed by a test", tuple(entries))
    assert tiles.source(device) == "tile sizes from the table of NVIDIA Test-GPU 8GB (timed by a test)"
    with tiles.as_device(device):
        for classes, pixels in ((4, 128), (5, 64)):
            setting = tiles.lookup("pseudo_label.forward", torch.device("cpu"), bits=16, C=classes)
            assert setting["BLOCK_P"] == pixels


def test_a_table_with_a_gap_is_refused(folder: Path) -> None:
    entries = [{"kernel": kernel, "C": 4, "setting": {"BLOCK_P": 64}} for kernel in KERNELS]
    with pytest.raises(ValueError, match=r"prototype_distance\.forward"):
        tiles.write(tiles.Device("x", (9, 0), 1), entries, KERNELS, shared_memory=1, origin="timed", folder=folder)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.slow
def test_the_package_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import mpamatch.kernels, mpamatch.kernels.tiles as t; t.tables()"
    subprocess.run([sys.executable, "-c", code], check=True)
