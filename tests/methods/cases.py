"""Small networks, batches and methods to test with: three classes, 32×32 images, 2 images a part."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpamatch.batch import Batch, Labelled, Unlabelled
from mpamatch.methods import METHODS as BY_NAME
from mpamatch.methods import Method
from mpamatch.models.build import build_model
from mpamatch.models.network import Network
from mpamatch.models.prototype_maps import PrototypeMapsConfig
from mpamatch.models.transunet import TransUNet, TransUNetConfig

CLASSES = 3
SIDE = 32
CHANNELS = 16 + 32 + 64 + 128  # of the encoder's maps, which channel noise covers
TEXT_WIDTH = 6
METHODS = ("supervised", "mean_teacher", "fixmatch", "unimatch", "unimatch_v2", "mpamatch", "pccs", "lpd")
MAPS: dict[str, Any] = {"prototypes": 3, "prototype_width": 6}
# About half of the pixels of an untrained `network` are this sure, so a threshold here splits them.
THRESHOLD = 0.65


class Words(nn.Module):
    """Stands for TextPrototypes: fixed words, and one trained context vector that moves them all."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.width, self.identity = TEXT_WIDTH, {"name": "words"}
        self.words: Tensor
        self.register_buffer("words", torch.randn(CLASSES, TEXT_WIDTH, generator=generator), persistent=False)
        self.context = nn.Parameter(0.1 * torch.randn(1, TEXT_WIDTH, generator=generator))

    def forward(self) -> Tensor:  # (C, width) unit vectors
        return nn.functional.normalize(self.words + self.context, dim=-1)


def network(*, norm: str = "group", seed: int = 0, **fields: Any) -> TransUNet:
    """About 100,000 parameters; the head is sharpened so that confidences spread over (1/3, 1)."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {"encoder": "small_conv", "decoder_width": 16, "decoder_channels": [16, 8, 8, 8]}
    model = build_model(TransUNetConfig(**{"norm": norm, **size, **fields}), CLASSES)
    assert isinstance(model, TransUNet)
    with torch.no_grad():
        model.decoder.head.weight.mul_(4)
    return model


def method(
    name: str,
    *,
    norm: str = "group",
    dtype: torch.dtype = torch.float64,
    text: bool = False,
    seed: int = 0,
    model: Mapping[str, Any] | None = None,  # fields of the network
    **settings: Any,
) -> Method:
    """The method called `name` on `network(norm=norm)`, in training mode; mpamatch with K = 3 and D = 8, pccs with
    D = 8 and all its stages begun, lpd with K = 3 and D = 6 from step 0 on."""
    if name in ("fixmatch", "unimatch", "unimatch_v2", "mpamatch"):
        settings = {"threshold": THRESHOLD} | settings
    if name == "mpamatch":
        settings = {"prototypes": 3, "embedding_width": 8} | settings
    if name == "pccs":
        settings = {"embedding_width": 8, "start": 0, "contrast_start": 0, "ramp": 4} | settings
    if name == "lpd":
        settings = {"start": 0} | settings
    net = (lpd_network if name == "lpd" else network)(norm=norm, seed=seed, **(model or {}))
    towers = {"text": Words()} if text else {}
    if text:
        settings = {"text_encoder": "words"} | settings
    return BY_NAME[name](net, BY_NAME[name].configuration(**settings), **towers).to(dtype).train()


def lpd_network(*, norm: str = "group", seed: int = 0, **fields: Any) -> Network:
    """A network that lpd trains."""
    torch.manual_seed(seed)
    return build_model(PrototypeMapsConfig(**{"encoder": "small_conv", "norm": norm, **MAPS, **fields}), CLASSES)


def batch(
    n: int = 2,  # labelled images, and as many unlabelled ones
    *,
    side: int = SIDE,
    dtype: torch.dtype = torch.float64,
    views: int = 2,  # strong views, 0: no unlabelled images; channel noise comes with the second
    seed: int = 0,
) -> Batch:
    """Random images and labels, class 1 as border; the share of ignored and of valid pixels differs by image."""
    g = torch.Generator().manual_seed(seed)

    def image() -> Tensor:
        return torch.randn(n, 3, side, side, generator=g, dtype=torch.float64).to(dtype)

    label = torch.randint(0, CLASSES, (n, side, side), generator=g, dtype=torch.uint8)
    valid = torch.ones(n, side, side, dtype=torch.bool)
    for i in range(n):
        label[i, : 3 + 5 * i] = 255
        valid[i, :, side - 2 - 3 * i :] = False
    present = torch.zeros(n, CLASSES)
    for i in range(n):
        present[i, 1 + i % (CLASSES - 1)] = 1
    border = torch.where(label == 255, label, (label == 1).to(torch.uint8))
    labelled = Labelled(image(), label, present, border)
    if views == 0:
        return Batch(labelled, None)
    weak, strong1, strong2 = image(), image(), image()
    noise = torch.rand(n, CHANNELS, generator=g)
    second = (strong2, _boxes(n, side, g), noise) if views == 2 else (None, None, None)
    return Batch(labelled, Unlabelled(weak, strong1, second[0], valid, _boxes(n, side, g), second[1], second[2]))


def weak_batch(present: list[list[int]] | None = None, dtype: torch.dtype = torch.float64) -> Batch:
    """Two images for lpd, with these foreground classes."""
    data = batch(views=0, dtype=dtype)
    if present is None:
        return data
    rows = torch.tensor([[0, *row] for row in present], dtype=torch.float32)
    return Batch(data.labelled._replace(present=rows), None)


def _boxes(n: int, side: int, g: torch.Generator) -> Tensor:  # (n, 4) i32
    corner = torch.randint(0, side // 2, (n, 2), generator=g, dtype=torch.int32)
    size = torch.randint(side // 4, side // 2, (n, 2), generator=g, dtype=torch.int32)
    return torch.cat([corner, corner + size], dim=1)


def at(step: int) -> Tensor:
    """The step as the loop hands it over."""
    return torch.full((), step, dtype=torch.int64)


def drift(ours: Method, size: float = 0.3) -> None:
    """The student moves away from its teacher, buffers too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in [*ours.model.parameters(), *ours.model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(size * torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype))
            else:
                tensor.add_(3)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradient of every trained parameter by name, zeros where none came."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def with_gradients(module: nn.Module, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its gradients, those from before forgotten."""
    module.zero_grad()
    loss.backward()
    return loss.detach(), gradients(module)


def assert_same_numbers(ours: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """The same names, and every tensor within `tolerance` of its largest element (of 1 where that is smaller)."""
    assert ours.keys() == truth.keys()
    for name, wanted in truth.items():
        scale = max(1.0, float(wanted.abs().max()))
        difference = float((ours[name] - wanted).abs().max())
        assert difference <= tolerance * scale, f"{name} differs by {difference:.3g}"
