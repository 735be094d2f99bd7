"""The plain loop: it starts from the published weights, learns, and its results stand beside those of the sweeps."""

import pytest
import torch

from experiments import plain_unet
from mpamatch.models.encoders import build_encoder
from mpamatch.studies.sweep import read_results
from tests.tiny import make_set

pytestmark = pytest.mark.slow


def test_its_encoder_has_the_weights_of_ours():
    ours = build_encoder(plain_unet.ENCODER, "offline", "batch").backbone.state_dict()
    theirs = plain_unet.Plain(2).unet.encoder.model.state_dict()
    assert len(ours) > 150
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_it_learns_what_is_bright():
    torch.manual_seed(0)
    label = (torch.rand(8, 1, 8, 8) < 0.5).float()
    label = torch.nn.functional.interpolate(label, scale_factor=8, mode="nearest")
    images = 2 * label.expand(-1, 3, -1, -1) - 1
    model = plain_unet.train_plain(images, label[:, 0].to(torch.uint8), 2, 30, 4, 64, seed=0).eval()
    with torch.no_grad():
        logits = model(images).logits
    assert logits.shape == (8, 2, 64, 64)
    assert (logits.argmax(1) == label[:, 0]).float().mean() > 0.9


def test_its_results_stand_beside_those_of_a_sweep(tmp_path):
    prepared = make_set(tmp_path / "tissue")
    words = [
        str(prepared.root),
        str(tmp_path / "out"),
        "--recipe",
        "demo",
        "--labelled",
        "1",
        "--seeds",
        "0-1",
        "--test",
    ]
    for _ in range(2):  # the second time nothing is left to do
        assert plain_unet.main([*words, "--data.crop", "32", "--engine.steps", "2"]) == 0
    results = read_results(tmp_path / "out")
    assert [(one["method"], one["seed"]) for one in results] == [(plain_unet.NAME, 0), (plain_unet.NAME, 1)]
    assert all(0 <= one["test"]["mdice"] <= 1 and "objects" in one["test"] for one in results)
