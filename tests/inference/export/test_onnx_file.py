"""What is compared before a file is left, networks of every kind, and what is refused in one sentence."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mpamatch.cli import main
from mpamatch.errors import InputError
from mpamatch.inference.checkpoint import load_segmenter, save_segmenter
from mpamatch.inference.export import onnx_file
from mpamatch.inference.export.graph import Frame
from mpamatch.inference.export.onnx_file import Checked, batches, check_close, export_onnx
from mpamatch.inference.export.runtime import OnnxNetwork, load_onnx, open_session
from mpamatch.inference.segmenter import Segmenter
from mpamatch.inference.settings import SegmenterSettings
from mpamatch.models.adapters import MARK
from mpamatch.models.build import build_model
from mpamatch.models.prototype_maps import PrototypeMapsConfig
from mpamatch.models.transunet import TransUNetConfig
from tests.inference.export.test_graph import segmenter

CLASSES, COLOURS = ("background", "gland"), ((0, 0, 0), (0, 200, 83))
VIT = "vit_tiny_patch16_224"


def windows(side: int, count: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def test_a_close_result_passes_and_no_other():
    expected = np.full((1, 2, 4, 4), 0.5, np.float32)
    check_close(expected + 5e-5, expected, "onnxruntime")
    for found, says in (
        (expected + 2e-4, "differs from torch by 0.0002"),
        (expected * np.nan, "differs from torch by nan"),
    ):
        with pytest.raises(InputError, match=says):
            check_close(found, expected, "onnxruntime")
    with pytest.raises(InputError, match="gives"):
        check_close(expected[:, :1], expected, "onnxruntime")


def test_windows_are_compared_in_batches_of_several_sizes_and_one_wide_image():
    found = [one.shape for one in batches(windows(32, 7), Frame(32, 32, 16))]
    assert found == [(2, 3, 32, 32), (1, 3, 32, 32), (3, 3, 32, 32), (1, 3, 32, 32), (1, 3, 32, 48)]
    assert [one.shape[0] for one in batches(windows(32, 2), Frame(32, 32))] == [2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """An ONNX file of one convolution."""
    path = tmp_path_factory.mktemp("toy") / "toy.onnx"
    found = export_onnx(segmenter(), path, windows(16), {"run": "toy"})
    assert isinstance(found, Checked)
    assert found.difference < 1e-5
    return path


def test_the_file_knows_itself_by_its_digest(toy, tmp_path):
    (tmp_path / "other.onnx").write_bytes(toy.read_bytes() + b"\x72\x00")  # one more field, empty: still the same graph
    one, other = OnnxNetwork(toy), OnnxNetwork(tmp_path / "other.onnx")
    assert not torch.equal(one.state_dict()["sha256"], other.state_dict()["sha256"])


def test_a_segmenter_of_the_file_predicts_what_torch_predicts(toy):
    image = np.random.default_rng(1).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    found, expected = load_onnx(toy).probabilities(image), segmenter().probabilities(image)
    assert (found - expected).abs().max() < 1e-5


def test_a_difference_leaves_no_file(tmp_path, monkeypatch):
    """The program is another network's: as an exporter with a fault would give it."""
    program = onnx_file.made(segmenter(gain=3.0))[1]
    monkeypatch.setattr(onnx_file, "program_of", lambda deployed: program)
    with pytest.raises(InputError, match=r"differs from torch by .* not exported"):
        export_onnx(segmenter(), tmp_path / "a.onnx", windows(16), {})
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_the_exporter_takes_at_one_size_says_so(monkeypatch):
    whole = onnx_file.program_of

    def fixed_alone(deployed):
        if deployed.frame.step is not None:
            raise torch.onnx.OnnxExporterError("no")
        return whole(deployed)

    monkeypatch.setattr(onnx_file, "program_of", fixed_alone)
    deployed, _, note = onnx_file.made(segmenter())
    assert (deployed.frame.step, note) == (None, "the exporter takes this encoder at one size only")


def test_a_network_of_more_than_two_gib_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 100)
    with pytest.raises(InputError, match="an ONNX file holds 2"):
        onnx_file.made(segmenter())


def settings(window: int) -> SegmenterSettings:
    return SegmenterSettings(CLASSES, COLOURS, (0.5,) * 3, (0.25,) * 3, window, 1.0, None)


@pytest.mark.slow
def test_adapters_are_merged_into_a_vit_of_one_size(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    vit = timm.create_model(VIT, num_classes=0, dynamic_img_size=True)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    config = TransUNetConfig(
        encoder=VIT, encoder_weights=str(tmp_path / "vit.safetensors"), tuning="lora", decoder_width=16,
        decoder_channels=[16, 8, 8, 8], norm="group",
    )  # fmt: skip
    network = build_model(config, 2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if MARK in name:
                parameter.normal_(std=0.05)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    save_segmenter(tmp_path / "run" / "checkpoints" / "best.safetensors", Segmenter(network, settings(64)))
    loaded = load_segmenter(tmp_path / "run", "cpu")
    found = export_onnx(loaded, tmp_path / "a.onnx", windows(64), {})
    assert (found.frame, found.note) == (Frame(64, 64), "")
    assert found.labels_alike > 0.999
    session = open_session(tmp_path / "a.onnx")
    assert len(session.run(None, {"image": np.zeros((5, 3, 64, 64), np.uint8)})[0]) == 5
    with pytest.raises(Exception, match="dimensions"):
        session.run(None, {"image": np.zeros((1, 3, 96, 64), np.uint8)})


@pytest.mark.slow
def test_maps_of_prototypes_are_exported_without_the_image_label(tmp_path):
    torch.manual_seed(0)
    config = PrototypeMapsConfig(encoder="small_conv", prototypes=2, prototype_width=8, norm="group", test_flips="none")
    found = export_onnx(Segmenter(build_model(config, 2), settings(32)), tmp_path / "a.onnx", windows(32), {})
    assert [one.name for one in open_session(tmp_path / "a.onnx").get_inputs()] == ["image"]
    assert found.labels_alike > 0.999


def refused(capsys, *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_without_the_extra_there_is_one_sentence(toy, tmp_path, monkeypatch, capsys):
    whole = importlib.import_module

    def without(name, *more):
        if name == "onnxruntime":
            raise ModuleNotFoundError(name)
        return whole(name, *more)

    monkeypatch.setattr("mpamatch.inference.export.runtime.importlib.import_module", without)
    monkeypatch.setattr("mpamatch.inference.export.runtime.missing_libraries", lambda: ["onnxruntime"])
    monkeypatch.setattr(onnx_file, "missing_libraries", lambda: ["onnxruntime"])
    (tmp_path / "a.png").write_bytes(b"")
    for words in (
        ("export", "run", "--out", tmp_path / "a.onnx"),
        ("predict", toy, tmp_path / "a.png", "--out", tmp_path / "o"),
    ):
        said = refused(capsys, *words)
        assert "needs onnxruntime, which is not installed: pip install 'mpamatch[export]'." in said


def test_a_place_that_does_not_fit_is_refused(tmp_path, capsys):
    there = tmp_path / "a.onnx"
    there.write_bytes(b"mine")
    assert "is there already" in refused(capsys, "export", "run", "--out", there)
    assert there.read_bytes() == b"mine"
    assert "must end in .onnx or .zip" in refused(capsys, "export", "run", "--out", tmp_path / "a.pt")
    assert "must end in .zip" in refused(
        capsys, "export", "run", "--out", tmp_path / "b.onnx", "--format", "bioimageio"
    )
    assert "did you mean 'onnx'" in refused(capsys, "export", "run", "--out", tmp_path / "b.onnx", "--format", "onx")
    assert "is no run folder" in refused(capsys, "export", tmp_path / "none", "--out", tmp_path / "b.onnx")


def test_a_file_that_is_none_of_ours_is_refused(toy, tmp_path, capsys):
    onnx = importlib.import_module("onnx")
    (tmp_path / "a.png").write_bytes(b"")
    words = (tmp_path / "a.png", "--out", tmp_path / "out")
    broken, bare, wrong = (tmp_path / f"{name}.onnx" for name in ("broken", "bare", "wrong"))
    broken.write_bytes(toy.read_bytes()[:200])
    assert "cannot be opened as ONNX" in refused(capsys, "predict", broken, *words)
    graph = onnx.load(toy)
    del graph.metadata_props[:]
    onnx.save(graph, bare)
    assert "does not say its classes and window" in refused(capsys, "predict", bare, *words)
    onnx.helper.set_model_props(graph, {**told(toy), "colours": "[[0, 0, 0]]"})
    onnx.save(graph, wrong)
    assert "2 class names but 1 colours" in refused(capsys, "predict", wrong, *words)
    assert "no such file" in refused(capsys, "predict", tmp_path / "gone.onnx", *words)
    assert "runs on the CPU" in refused(capsys, "predict", toy, *words, "--device", "cuda")
    assert not (tmp_path / "out").exists()


def told(path: Path) -> dict[str, str]:
    return dict(open_session(path).get_modelmeta().custom_metadata_map)


def test_the_file_says_what_it_was_given(toy):
    assert told(toy)["run"] == '"toy"'
    none = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # the graph normalises
    assert replace(load_onnx(toy).settings, **none) == replace(segmenter().settings, **none)
