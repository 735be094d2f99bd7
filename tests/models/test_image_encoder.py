"""Frozen image encoders: open_clip's tower with a file's weights, what it sees, what it refuses."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from mpamatch.errors import InputError
from mpamatch.models.image_encoder import ImageEncoder, build_image_encoder

TINY = {
    "embed_dim": 6,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP of open_clip with random weights, and its checkpoint."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "mpamatch-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "mpamatch-tiny.json")
    torch.manual_seed(5)
    whole = open_clip.create_model("mpamatch-tiny").eval()
    file = folder / "clip.safetensors"
    save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, file)
    return whole, file


@pytest.fixture
def encoder(clip) -> ImageEncoder:
    return build_image_encoder("open_clip:mpamatch-tiny", str(clip[1]))


def test_it_sees_what_the_whole_model_sees(clip, encoder):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(x)[:, None, None] for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        torch.testing.assert_close(encoder(image), clip[0].encode_image((image - mean) / std))
    assert (encoder.width, encoder.side) == (6, 32)
    assert encoder.identity["name"] == "open_clip:mpamatch-tiny"
    assert len(encoder.identity["sha256"]) == 64


def test_the_gradient_reaches_the_image_alone(encoder):
    image = torch.rand(1, 3, 50, 40, requires_grad=True)
    encoder.train()
    encoder(image).sum().backward()
    assert image.grad is not None
    assert float(image.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not any(part.training for part in encoder.modules())


def test_building_moves_no_generator(clip):
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    build_image_encoder("open_clip:mpamatch-tiny", str(clip[1]))
    assert torch.equal(torch.rand(3), wanted)


def test_what_cannot_be_is_refused(clip, tmp_path):
    with pytest.raises(InputError, match="unknown image encoder 'clip'"):
        build_image_encoder("clip", None)
    with pytest.raises(InputError, match="did you mean 'ViT-B-32'"):
        build_image_encoder("open_clip:VIT-B-32x", None)
    with pytest.raises(InputError, match=r"image encoder 'open_clip:ViT-B-32' needs weights: .* laion2b_s34b_b79k"):
        build_image_encoder("open_clip:ViT-B-32", None)
    with pytest.raises(InputError, match="unknown checkpoint file or tag of ViT-B-32 'opena'"):
        build_image_encoder("open_clip:ViT-B-32", "opena")
    save_file({"visual.conv1.weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match=r"odd\.safetensors: does not fit"):
        build_image_encoder("open_clip:mpamatch-tiny", str(tmp_path / "odd.safetensors"))
