"""Class and confidence of every pixel: a Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .common import parts
from .maps import APART, exponentials, load_classes, load_classes_apart, place_of


def forward(
    logits: Tensor,  # (B, C, H, W) f32, f16 or bf16, contiguous
) -> tuple[Tensor, Tensor]:
    """label (B, H, W) u8 and confidence (B, H, W) f32, as `mpamatch.ops.pseudo_label` defines them."""
    batch, classes, height, width = logits.shape
    label = torch.empty((batch, height, width), dtype=torch.uint8, device=logits.device)
    confidence = torch.empty((batch, height, width), dtype=torch.float32, device=logits.device)
    if logits.numel() == 0:
        return label, confidence
    tile = tiles.lookup("pseudo_label.forward", logits.device, bits=logits.itemsize * 8, C=classes)
    blocks = parts(height * width, tile["BLOCK_P"])
    given = (logits, label, confidence, classes, height * width, blocks)
    launch = {"BLOCK_P": tile["BLOCK_P"], "num_warps": tile["num_warps"], "num_stages": tile["num_stages"]}
    if classes <= APART:
        forward_kernel[(batch * blocks,)](*given, **launch)
    else:
        forward_many_kernel[(batch * blocks,)](*given, BLOCK_C=tiles.power_of_two(classes), **launch)
    return label, confidence


@triton.jit
def forward_kernel(
    logits_pointer,
    label_pointer,
    confidence_pointer,
    C: tl.constexpr,
    P,
    blocks,
    BLOCK_P: tl.constexpr,
):
    offset_p = tl.arange(0, BLOCK_P)
    image, start_p, mask_p = place_of(tl.program_id(0), blocks, P, BLOCK_P)
    x = load_classes_apart(logits_pointer, image, start_p, mask_p, P, C, BLOCK_P)
    _, total, highest = exponentials(x, C)
    label = tl.zeros((BLOCK_P,), tl.int32)
    for c in tl.static_range(C - 1, -1, -1):  # among equals the lowest
        label = tl.where(x[c] == highest, c, label)
    target = image * P + start_p + offset_p
    tl.store(label_pointer + target, label.to(tl.uint8), mask_p)
    tl.store(confidence_pointer + target, 1.0 / total, mask_p)  # the softmax of the highest: exp(0) over the sum


@triton.jit
def forward_many_kernel(
    logits_pointer,
    label_pointer,
    confidence_pointer,
    C,
    P,
    blocks,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    offset_p = tl.arange(0, BLOCK_P)
    image, start_p, mask_p = place_of(tl.program_id(0), blocks, P, BLOCK_P)
    x = load_classes(logits_pointer, image, start_p, C, P, BLOCK_C, BLOCK_P)
    highest, label = tl.max(x, 0, return_indices=True, return_indices_tie_break_left=True)
    # the softmax of the highest: exp(0) over the sum
    confidence = 1.0 / tl.sum(tl.exp(x - highest[None, :]), 0)
    target = image * P + start_p + offset_p
    tl.store(label_pointer + target, label.to(tl.uint8), mask_p)
    tl.store(confidence_pointer + target, confidence, mask_p)
