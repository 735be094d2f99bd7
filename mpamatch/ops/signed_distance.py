"""The signed distance of every pixel to every class."""

import torch
from torch import Tensor

from mpamatch.ops import checks, dispatch
from mpamatch.ops.operation import Operation
from mpamatch.ops.selfcheck import Sample

LARGEST_SIDE = 16_384  # 3·side² stays below 2^31: no squared distance overflows int32
AT_ONCE = {False: 1 << 19, True: 1 << 24}  # numbers the reference holds at a time: 2 MB stay in cache; on CUDA 64 MB


@torch.no_grad()
def signed_distance(
    label: Tensor,  # (B, H, W) any integer dtype; outside [0, C), 255 among it: of no class
    num_classes: int,  # C
) -> Tensor:
    """Computes the exact Euclidean signed distance of each pixel to each class, without gradient.

    Outside a class it is + the distance to the nearest pixel of the class. Inside it is − the distance to the nearest
    pixel that is not of the class, but 0 if that distance is 1: on the inner boundary, the pixels with one of their
    4 neighbours outside. So inside it is 0 or ≤ −√2, outside ≥ 1. An ignored pixel is of no class, and so is outside
    all of them; the image border is no boundary. If there is no such pixel the distance is finite and longer than any
    within the image: √(H²+W²) everywhere for a class that is absent, −√(H²+W²) for one that fills its image. Every
    backend gives the float32 nearest to the exact root, so the same bits. Source of the meaning: PCCS
    (arXiv 2502.06650).

    Args:
        label: class of each pixel, with sides of at most 16,384 pixels.
        num_classes: C, 1 to 255.

    Returns:
        The distance in pixels, (B, C, H, W) f32.

    Raises:
        TypeError: `label` has no integer dtype.
        ValueError: `label` has another shape or too long a side, or `num_classes` is out of range.
    """
    checks.is_integer("label", label)
    checks.has_shape("label", label, "B", "H", "W")
    if not 1 <= num_classes <= checks.IGNORE:
        raise ValueError(f"num_classes: expected 1 to 255, got {num_classes}.")
    if max(label.shape[1:]) > LARGEST_SIDE:
        raise ValueError(f"label: expected sides of at most {LARGEST_SIDE} pixels, got {tuple(label.shape[1:])}.")
    backend = dispatch.choose("signed_distance", label)
    if backend == "eager":
        return reference(label, num_classes)
    distance: Tensor = dispatch.kernel("signed_distance", backend)(checks.index(label), num_classes)
    return distance


def reference(label: Tensor, num_classes: int) -> Tensor:
    """Computes the operation in eager PyTorch: its specification."""
    classes = torch.arange(num_classes, device=label.device)[:, None, None]
    member = label.long()[:, None] == classes  # (B, C, H, W)
    outside = _squared_distance(member)
    inside = _squared_distance(~member)
    # roots in float64, as torch's float32 root on a CPU may miss the nearest float32 (MKL; by 1 unit in the last place)
    return torch.where(member, torch.where(inside == 1, 0.0, -inside.sqrt()), outside.sqrt()).float()


def _squared_distance(wanted: Tensor) -> Tensor:  # (…, H, W) bool -> (…, H, W)
    """Computes the squared distance to the nearest wanted pixel of the same image, f64; H² + W² if there is none.

    Along columns first; then min over the columns x' of a row of (x − x')² + that squared distance in column x'. These
    are whole numbers, computed in floats that hold them exactly, whose minimum is faster on the CPU than that of ints.
    """
    height, width = wanted.shape[-2:]
    none = height**2 + width**2
    if wanted.numel() == 0:
        return wanted.double()
    y = torch.arange(height, device=wanted.device)[:, None]
    x = torch.arange(width, device=wanted.device)
    above = torch.where(wanted, y, -none).cummax(-2).values  # the last wanted row so far
    below = torch.where(wanted, y, none).flip(-2).cummin(-2).values.flip(-2)
    along = torch.minimum(y - above, below - y)  # H and more if the column has none
    exact = torch.float32 if none + width**2 <= 1 << 24 else torch.float64
    squared = torch.where(along < height, along**2, none).to(exact).reshape(-1, width, 1)
    columns = max(1, min(width, AT_ONCE[wanted.is_cuda] // width))
    lines = squared.split(max(1, AT_ONCE[wanted.is_cuda] // (width * columns)))
    apart = (((x[:, None] - part) ** 2).to(exact) for part in x.split(columns))  # (x', x)
    nearest = [torch.cat([(between + line).amin(1) for line in lines]) for between in apart]
    return torch.cat(nearest, 1).double().reshape(wanted.shape)


def _fake(label: Tensor, num_classes: int) -> Tensor:
    return label.new_empty((label.shape[0], num_classes, *label.shape[1:]), dtype=torch.float32)


def _self_check(sample: Sample) -> list[Tensor]:
    return [signed_distance(sample.as_map(sample.label), len(sample.prototypes) + 1)]  # one class more, absent


OPERATION = Operation(
    name="signed_distance", backends=("cpp", "cuda"), kernels={"signed_distance": _fake}, self_check=_self_check
)
