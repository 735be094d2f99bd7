"""Cross entropy and the sums that Dice is made of, in one pass over the logits: Triton kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .common import parts, repeated, sum_slots
from .maps import APART, LOG2_E, exponentials, load_classes, load_classes_apart, place_of, softmax


def forward(
    logits: Tensor,  # (B, C, H, W) f32, f16 or bf16, contiguous
    label: Tensor,  # (B, H, W) u8, i32 or i64, contiguous; outside [0, C): ignored
    weight: Tensor | None,  # (B, H, W) f32, contiguous
) -> tuple[Tensor, Tensor]:
    """cross_entropy () f32 and overlap (3, C) f32, as `mpamatch.ops.segmentation_loss` defines them."""
    batch, classes, height, width = logits.shape
    pixels = height * width
    cross_entropy = torch.empty((), dtype=torch.float32, device=logits.device)
    overlap = torch.empty((3, classes), dtype=torch.float32, device=logits.device)
    if logits.numel() == 0:
        return cross_entropy.zero_(), overlap.zero_()
    tile = tiles.lookup("segmentation_loss.forward", logits.device, bits=logits.itemsize * 8, C=classes)
    blocks = parts(pixels, tile["BLOCK_P"])
    slots = min(tile["programs"], batch * blocks)
    partial = torch.empty((slots, 3 * classes + 1), dtype=torch.float32, device=logits.device)
    kernel = forward_kernel if classes <= APART else forward_many_kernel
    kernel[(slots,)](
        logits,
        label,
        label if weight is None else weight,
        partial,
        pixels,
        blocks,
        batch * blocks,
        HAS_WEIGHT=weight is not None,
        BLOCK_P=tile["BLOCK_P"],
        num_warps=tile["num_warps"],
        num_stages=tile["num_stages"],
        **of_classes(classes),
    )
    sum_slots(partial, cross_entropy, overlap)
    return cross_entropy, overlap


def backward(
    grad_cross_entropy: Tensor,  # () f32
    grad_overlap: Tensor,  # (3, C) f32, contiguous
    logits: Tensor,  # (B, C, H, W)
    label: Tensor,  # (B, H, W)
    weight: Tensor | None,  # (B, H, W)
) -> Tensor:
    """The gradient in logits (B, C, H, W), in their dtype."""
    batch, classes, height, width = logits.shape
    pixels = height * width
    grad_logits = torch.empty_like(logits)
    if logits.numel() == 0:
        return grad_logits
    tile = tiles.lookup("segmentation_loss.backward", logits.device, bits=logits.itemsize * 8, C=classes)
    blocks = parts(pixels, tile["BLOCK_P"])
    kernel = backward_kernel if classes <= APART else backward_many_kernel
    kernel[(batch * blocks,)](
        grad_cross_entropy,
        grad_overlap,
        logits,
        label,
        label if weight is None else weight,
        grad_logits,
        pixels,
        blocks,
        HAS_WEIGHT=weight is not None,
        BLOCK_P=tile["BLOCK_P"],
        num_warps=tile["num_warps"],
        num_stages=tile["num_stages"],
        **of_classes(classes),
    )
    return grad_logits


def of_classes(classes: int) -> dict[str, int]:
    """What the kernels take of the number of classes: a training has one, so those that hold each apart know it."""
    return {"C": classes} | ({} if classes <= APART else {"BLOCK_C": tiles.power_of_two(classes)})


@triton.jit
def load_pixels(label_pointer, weight_pointer, first, mask_p, C, HAS_WEIGHT: tl.constexpr, BLOCK_P: tl.constexpr):
    """Per pixel from `first` of the batch onwards: its class, −1 where it does not count, and its weight, 0 there."""
    offset_p = tl.arange(0, BLOCK_P)
    own = tl.load(label_pointer + first + offset_p, mask_p, other=0)
    used = mask_p & (own >= 0) & (own < C)  # before narrowing: 2³² is no class 0
    if HAS_WEIGHT:
        weight = tl.load(weight_pointer + first + offset_p, used, other=0.0)
        used = used & (weight != 0.0)
    else:
        weight = tl.where(used, 1.0, 0.0)
    return tl.where(used, tl.where(used, own, 0).to(tl.int32), -1), weight


@triton.jit(do_not_specialize=["blocks", "all_blocks"])
def forward_kernel(
    logits_pointer,
    label_pointer,
    weight_pointer,
    partial_pointer,
    P,
    blocks,
    all_blocks,
    C: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    slot = tl.program_id(0)
    cross_entropy = tl.zeros((BLOCK_P,), tl.float32)
    in_py = repeated(tl.zeros((BLOCK_P,), tl.float32), C)
    in_pp, in_y = in_py, in_py
    for block in range(slot, all_blocks, tl.num_programs(0)):
        image, start_p, mask_p = place_of(block, blocks, P, BLOCK_P)
        own, weight = load_pixels(label_pointer, weight_pointer, image * P + start_p, mask_p, C, HAS_WEIGHT, BLOCK_P)
        x = load_classes_apart(logits_pointer, image, start_p, own >= 0, P, C, BLOCK_P)
        raised, total, highest = exponentials(x, C)
        inverse = 1.0 / total
        own_x = tl.zeros((BLOCK_P,), tl.float32)
        last_py, last_pp, last_y, in_py, in_pp, in_y = in_py, in_pp, in_y, (), (), ()
        for c in tl.static_range(C):
            y = tl.where(own == c, weight, 0.0)  # weight is 0 where the pixel does not count
            p = raised[c] * inverse
            own_x += y * x[c]
            in_py = in_py + (last_py[c] + y * p,)
            in_pp = in_pp + (last_pp[c] + weight * p * p,)
            in_y = in_y + (last_y[c] + y,)
        cross_entropy += weight * (highest + tl.log2(total) / LOG2_E) - own_x
    partial_pointer += slot * (3 * C + 1)
    tl.store(partial_pointer, tl.sum(cross_entropy, 0))
    for c in tl.static_range(C):
        tl.store(partial_pointer + 1 + c, tl.sum(in_py[c], 0))
        tl.store(partial_pointer + 1 + C + c, tl.sum(in_pp[c], 0))
        tl.store(partial_pointer + 1 + 2 * C + c, tl.sum(in_y[c], 0))


@triton.jit(do_not_specialize=["C", "blocks", "all_blocks"])
def forward_many_kernel(
    logits_pointer,
    label_pointer,
    weight_pointer,
    partial_pointer,
    P,
    blocks,
    all_blocks,
    C,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    slot = tl.program_id(0)
    offset_c = tl.arange(0, BLOCK_C)
    cross_entropy = tl.zeros((BLOCK_P,), tl.float32)
    in_py = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    in_pp = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    in_y = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for block in range(slot, all_blocks, tl.num_programs(0)):
        image, start_p, mask_p = place_of(block, blocks, P, BLOCK_P)
        x = load_classes(logits_pointer, image, start_p, C, P, BLOCK_C, BLOCK_P)
        own, weight = load_pixels(label_pointer, weight_pointer, image * P + start_p, mask_p, C, HAS_WEIGHT, BLOCK_P)
        p, lse = softmax(x)
        mine = offset_c[:, None] == own[None, :]
        own_x = tl.sum(tl.where(mine, x, 0.0), 0)
        cross_entropy += tl.where(own >= 0, weight * (lse - own_x), 0.0)
        counted = tl.where(own >= 0, weight, 0.0)[None, :]
        in_py += tl.where(mine, counted * p, 0.0)
        in_pp += tl.where((own >= 0)[None, :], counted * p * p, 0.0)  # p may be NaN where it does not count
        in_y += tl.where(mine, counted, 0.0)
    width = 3 * C + 1
    partial_pointer += slot * width
    mask_c = offset_c < C
    tl.store(partial_pointer, tl.sum(cross_entropy, 0))
    tl.store(partial_pointer + 1 + offset_c, tl.sum(in_py, 1), mask_c)
    tl.store(partial_pointer + 1 + C + offset_c, tl.sum(in_pp, 1), mask_c)
    tl.store(partial_pointer + 1 + 2 * C + offset_c, tl.sum(in_y, 1), mask_c)


# With y one at the label, w the weight and g, a_c, b_c the gradients in cross entropy and in the first two sums of
# class c (the third, Σ w y, does not know the logits):
#
#     d(w CE)/dx_c = w (p_c − y_c)
#     d/dp_c of Σ a w p y + Σ b w p² = w h_c,  h_c = a_c y_c + 2 b_c p_c
#     through the softmax: Σ_k h_k dp_k/dx_c = p_c (h_c − Σ_k p_k h_k)
#
#     dL/dx_c = w (g (p_c − y_c) + p_c (h_c − Σ_k p_k h_k))


@triton.jit(do_not_specialize=["blocks"])
def backward_kernel(
    grad_cross_entropy_pointer,
    grad_overlap_pointer,
    logits_pointer,
    label_pointer,
    weight_pointer,
    grad_logits_pointer,
    P,
    blocks,
    C: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    offset_p = tl.arange(0, BLOCK_P)
    image, start_p, mask_p = place_of(tl.program_id(0), blocks, P, BLOCK_P)
    own, weight = load_pixels(label_pointer, weight_pointer, image * P + start_p, mask_p, C, HAS_WEIGHT, BLOCK_P)
    raised, total, _ = exponentials(load_classes_apart(logits_pointer, image, start_p, own >= 0, P, C, BLOCK_P), C)
    inverse = 1.0 / total
    by_entropy = tl.load(grad_cross_entropy_pointer)
    along = tl.zeros((BLOCK_P,), tl.float32)
    h = ()
    for c in tl.static_range(C):
        by_py = tl.load(grad_overlap_pointer + c)
        by_pp = tl.load(grad_overlap_pointer + C + c)
        p = raised[c] * inverse
        h_c = tl.where(own == c, by_py, 0.0) + 2.0 * by_pp * p
        along += p * h_c
        h = h + (h_c,)
    grad_logits_pointer += image * C * P + start_p
    for c in tl.static_range(C):
        p = raised[c] * inverse
        grad = p * (h[c] - along + by_entropy) - tl.where(own == c, by_entropy, 0.0)
        grad = (weight * grad).to(grad_logits_pointer.dtype.element_ty)
        tl.store(grad_logits_pointer + c * tl.cast(P, tl.int64) + offset_p, grad, mask_p)


@triton.jit(do_not_specialize=["C", "blocks"])
def backward_many_kernel(
    grad_cross_entropy_pointer,
    grad_overlap_pointer,
    logits_pointer,
    label_pointer,
    weight_pointer,
    grad_logits_pointer,
    P,
    blocks,
    C,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    offset_c = tl.arange(0, BLOCK_C)
    offset_p = tl.arange(0, BLOCK_P)
    mask_c = offset_c < C
    image, start_p, mask_p = place_of(tl.program_id(0), blocks, P, BLOCK_P)
    x = load_classes(logits_pointer, image, start_p, C, P, BLOCK_C, BLOCK_P)
    own, weight = load_pixels(label_pointer, weight_pointer, image * P + start_p, mask_p, C, HAS_WEIGHT, BLOCK_P)
    p, _ = softmax(x)
    by_entropy = tl.load(grad_cross_entropy_pointer)
    by_py = tl.load(grad_overlap_pointer + offset_c, mask_c, other=0.0)[:, None]
    by_pp = tl.load(grad_overlap_pointer + C + offset_c, mask_c, other=0.0)[:, None]
    y = tl.where(offset_c[:, None] == own[None, :], 1.0, 0.0)
    h = by_py * y + 2.0 * by_pp * p
    grad = weight[None, :] * (by_entropy * (p - y) + p * (h - tl.sum(p * h, 0)[None, :]))
    grad = tl.where((own >= 0)[None, :], grad, 0.0)
    target = (image * C + offset_c[:, None]) * P + start_p + offset_p[None, :]
    mask = mask_c[:, None] & mask_p[None, :]
    tl.store(grad_logits_pointer + target, grad.to(grad_logits_pointer.dtype.element_ty), mask)
