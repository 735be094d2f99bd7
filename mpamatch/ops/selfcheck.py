"""The self-check of kernels: before its first use a kernel must give what eager gives on a small fixed sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of the largest number of an output. Half precision takes other paths through a kernel, so it is checked too; what
# comes back in it is rounded to 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Size:
    """The size of a sample of N = B·H·W pixels; the first C channels are its logits, so C ≤ D."""

    shape: tuple[int, int, int] = (1, 7, 11)  # B, H, W
    width: int = 24  # D
    classes: int = 3  # C
    per_class: int = 4  # K
    seed: int = 3  # chosen so that no two cosines are near each other: an index must not hang on rounding


@dataclass(frozen=True)
class Sample:
    """The arguments of every operation."""

    embedding: Tensor  # (N, D) in the dtype that was asked for
    prototypes: Tensor  # (C, K, D) f32, f64 beside a float64 embedding
    label: Tensor  # (N,) u8, some 255
    assignment: Tensor  # (N,) i32, of the label's class, −1 if it is 255
    weight: Tensor  # (N,) f32
    logits: Tensor  # (B, C, H, W) in the dtype that was asked for

    def as_map(self, of_pixels: Tensor) -> Tensor:
        """Reshapes one number per pixel, (N,), to (B, H, W)."""
        return of_pixels.reshape(self.logits[:, 0].shape)


SMALL = Size()
# The commonest: on a GPU it takes other tiles and far more shared memory than the small one, on a CPU whole vectors.
COMMON = Size((1, 8, 8), width=256, classes=5, per_class=10, seed=714)
CASES = ((torch.float32, SMALL), (torch.bfloat16, SMALL), (torch.bfloat16, COMMON))


def draw(device: str | torch.device, dtype: torch.dtype, size: Size = SMALL) -> Sample:
    """Draws the sample of this size, the same numbers at every call."""
    generator = torch.Generator().manual_seed(size.seed)
    pixels, classes, per_class = size.shape[0] * size.shape[1] * size.shape[2], size.classes, size.per_class
    embedding = torch.randn((pixels, size.width), generator=generator).to(device, dtype)
    prototypes = torch.randn((classes, per_class, size.width), generator=generator).to(device)
    label = torch.randint(0, classes + 1, (pixels,), generator=generator)
    label = torch.where(label == classes, 255, label).to(device)
    weight = torch.rand((pixels,), generator=generator).to(device)
    place = torch.arange(pixels, device=device) % per_class
    return Sample(
        embedding,
        prototypes.double() if dtype == torch.float64 else prototypes,
        label.to(torch.uint8),
        torch.where(label == 255, -1, label * per_class + place).to(torch.int32),
        weight,
        2 * embedding[:, :classes].reshape(*size.shape, classes).movedim(-1, 1).contiguous(),
    )


def difference(ours: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> str | None:
    """Tells in half a sentence which result is not the expected one; None if all agree."""
    for place, (mine, theirs) in enumerate(zip(ours, expected, strict=True)):
        if not _agree(mine, theirs, tolerance):
            return f"output {place} of its self-check differs from eager"
    return None


def _agree(ours: Tensor, expected: Tensor, tolerance: float) -> bool:
    if ours.shape != expected.shape or ours.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return bool(torch.equal(ours, expected))
    return bool(((ours - expected).abs() <= tolerance * expected.abs().max()).all())
