"""Tables of tile sizes: complete, honest, and found for devices they do not name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpamatch.benchmarks import gpu_check
from mpamatch.kernels import tiles
from mpamatch.ops.operation import operations

KERNELS = [kernel for operation in operations().values() for kernel in operation.tiled]
H100 = "sm_90"
SIZES = {"D": 256, "M": 50, "C": 5}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder of tables with a copy of sm_90's."""
    for path in tiles.FOLDER.glob("sm_90.json"):
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


# What torch calls them, their compute capability, multiprocessors and bytes of shared memory a program may have.
DEVICES = {
    "NVIDIA A100-SXM4-40GB": ("sm_80", (8, 0), 108, 166912),
    "NVIDIA A100-SXM4-80GB": ("sm_80", (8, 0), 108, 166912),
    "NVIDIA A100 80GB PCIe": ("sm_80", (8, 0), 108, 166912),
    "NVIDIA A10G": ("sm_89", (8, 6), 80, 101376),
    "NVIDIA GeForce RTX 3090": ("sm_89", (8, 6), 82, 101376),
    "NVIDIA L4": ("sm_89", (8, 9), 58, 101376),
    "NVIDIA L40S": ("sm_89", (8, 9), 142, 101376),
    "NVIDIA GeForce RTX 4090": ("sm_89", (8, 9), 128, 101376),
    "NVIDIA RTX 6000 Ada Generation": ("sm_89", (8, 9), 142, 101376),
    "NVIDIA H100 80GB HBM3": ("sm_90", (9, 0), 132, 232448),
    "NVIDIA H100 PCIe": ("sm_90", (9, 0), 114, 232448),
    "NVIDIA H200": ("sm_90", (9, 0), 132, 232448),
    "NVIDIA GH200 480GB": ("sm_90", (9, 0), 132, 232448),
    "NVIDIA B200": ("sm_100", (10, 0), 148, 232448),
    "NVIDIA GeForce RTX 5090": ("sm_89", (12, 0), 170, 101376),
}


def device(name: str) -> tiles.Device:
    return tiles.Device(name, *DEVICES[name][1:])


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_takes_the_nearest_table_that_fits(name: str) -> None:
    table = tiles.nearest(device(name))
    assert table.device.name == DEVICES[name][0]
    assert table.device.shared_memory <= device(name).shared_memory
    sentence = tiles.source(device(name))
    assert f"{table.device.name}, the nearest to {name}" in sentence
    assert "not tuned" in sentence


@pytest.mark.parametrize("name", DEVICES)
def test_a_table_timed_on_the_device_is_taken(folder: Path, name: str) -> None:
    """Whatever its name, and not the one of its kind; others of the kind take it before one that was not timed."""
    entries = [{"kernel": kernel, "setting": {"BLOCK_P": 64, "programs": 10}} for kernel in KERNELS]
    path = tiles.write(device(name), entries, KERNELS, origin="timed by a test", folder=folder)
    assert path.stem == tiles.slug(name) == gpu_check.slug(name)
    assert tiles.nearest(device(name)).device.name == name
    sibling = device(name)._replace(name="NVIDIA another", multiprocessors=2 * device(name).multiprocessors)
    assert tiles.nearest(sibling).device.name == name
    with tiles.as_device(sibling):
        assert tiles.lookup("pseudo_label.forward", torch.device("cpu"), bits=16)["programs"] == 20


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
    device = tiles.Device("NVIDIA Test-GPU 8GB", (9, 0), 12, 232448)
    entries = [{"kernel": kernel, "setting": {"BLOCK_P": 64}} for kernel in KERNELS]
    entries.insert(0, {"kernel": "pseudo_label.forward", "bits": 16, "C": 4, "setting": {"BLOCK_P": 128}})
    path = tiles.write(device, entries, KERNELS, origin="timed by a test", folder=folder)
    assert path.name == "nvidia-test-gpu-8gb.json"
    assert json.loads(path.read_text(encoding="utf-8"))["tuned"] is True
    assert tiles.nearest(device) == tiles.Table(device, True, "timed by a test", tuple(entries))
    assert tiles.source(device) == "tile sizes from the table of NVIDIA Test-GPU 8GB (timed by a test)"
    with tiles.as_device(device):
        for classes, pixels in ((4, 128), (5, 64)):
            setting = tiles.lookup("pseudo_label.forward", torch.device("cpu"), bits=16, C=classes)
            assert setting["BLOCK_P"] == pixels


def test_a_table_with_a_gap_is_refused(folder: Path) -> None:
    entries = [{"kernel": kernel, "C": 4, "setting": {"BLOCK_P": 64}} for kernel in KERNELS]
    with pytest.raises(ValueError, match=r"prototype_distance\.forward"):
        tiles.write(tiles.Device("x", (9, 0), 1, 1), entries, KERNELS, origin="timed", folder=folder)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.slow
def test_the_package_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import mpamatch.kernels, mpamatch.kernels.tiles as t; t.tables()"
    subprocess.run([sys.executable, "-c", code], check=True)
