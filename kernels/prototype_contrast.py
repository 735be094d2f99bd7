"""InfoNCE and alignment of pixels with their prototype: Triton kernels, float32 and half precision."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .common import (
    add_to_prototypes,
    along_prototypes,
    cosines_of_tile,
    extent,
    gradient_in_prototypes,
    load_rows,
    no_gradients,
    pack,
    parts,
    plan_backward,
    store_partial,
    store_rows,
    sum_slots,
    upright,
)

LOWEST = tl.constexpr(-3.0e38)
SMALLEST = tl.constexpr(1e-30)  # a gradient below it is not scaled up: 1/x must stay finite


def forward(
    embedding: Tensor,  # (N, D) f32, f16 or bf16, unit column stride
    prototypes: Tensor,  # (C, K, D) f32, contiguous
    assignment: Tensor,  # (N,) i32 or i64; outside [0, C·K): ignored
    weight: Tensor | None,  # (N,) f32
    temperature: float,
    same_class_negatives: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """contrast () and alignment () as `mpamatch.ops.prototype_contrast` defines them, log-sum-exp (N,), all f32."""
    pixels, width = embedding.shape
    classes, per_class, _ = prototypes.shape
    count = classes * per_class
    lse = torch.empty((pixels,), dtype=torch.float32, device=embedding.device)
    if pixels == 0:
        return lse.new_zeros(()), lse.new_zeros(()), lse
    tile = tiles.lookup("prototype_contrast.forward", embedding.device, bits=embedding.itemsize * 8, D=width, M=count)
    block_m, block_d = extent(count, 16, tile["BLOCK_M"]), extent(width, 16, tile["BLOCK_D"])
    m_parts, d_parts = parts(count, block_m), parts(width, block_d)
    slots = min(tile["programs"], parts(pixels, tile["BLOCK_N"]))
    packed = pack(prototypes, embedding, per_class, m_parts * block_m, d_parts * block_d)
    partial = torch.empty((slots, 2), dtype=torch.float32, device=embedding.device)
    forward_kernel[(slots,)](
        embedding,
        packed,
        assignment,
        assignment if weight is None else weight,
        lse,
        partial,
        pixels,
        width,
        count,
        per_class,
        m_parts * block_m,
        embedding.stride(0),
        1 / temperature,
        HAS_WEIGHT=weight is not None,
        SAME_CLASS_NEGATIVES=same_class_negatives,
        PLANES=packed.shape[0],
        M_PARTS=m_parts,
        D_PARTS=d_parts,
        BLOCK_N=tile["BLOCK_N"],
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        num_warps=tile["num_warps"],
        num_stages=tile["num_stages"],
    )
    contrast = torch.empty((), dtype=torch.float32, device=embedding.device)
    alignment = torch.empty((), dtype=torch.float32, device=embedding.device)
    sum_slots(partial, contrast, alignment)
    return contrast, alignment, lse


def backward(
    grad_contrast: Tensor,  # () f32
    grad_alignment: Tensor,  # () f32
    embedding: Tensor,  # (N, D)
    prototypes: Tensor,  # (C, K, D)
    assignment: Tensor,  # (N,)
    weight: Tensor | None,  # (N,)
    lse: Tensor,  # (N,), from forward
    temperature: float,
    same_class_negatives: bool,
    need_embedding: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients in embedding (N, D), in its dtype, and in prototypes (C, K, D) f32; (0,) where not needed."""
    pixels, width = embedding.shape
    classes, per_class, _ = prototypes.shape
    if pixels == 0:
        return no_gradients(embedding, prototypes, need_embedding, need_prototypes)
    plan = plan_backward("prototype_contrast.backward", embedding, prototypes, need_embedding, need_prototypes)
    for grid, constants in plan.launches:
        backward_kernel[grid](
            grad_contrast,
            grad_alignment,
            embedding,
            plan.packed,
            assignment,
            assignment if weight is None else weight,
            lse,
            plan.grad_embedding,
            plan.partial,
            pixels,
            width,
            classes * per_class,
            per_class,
            plan.m_pad,
            embedding.stride(0),
            1 / temperature,
            HAS_WEIGHT=weight is not None,
            SAME_CLASS_NEGATIVES=same_class_negatives,
            **constants,
        )
    if not need_prototypes:
        return plan.grad_embedding, prototypes.new_empty(0)
    return plan.grad_embedding, gradient_in_prototypes(plan.partial, prototypes)


@triton.jit
def load_pixels(assignment_pointer, weight_pointer, start_n, N, M, HAS_WEIGHT: tl.constexpr, BLOCK_N: tl.constexpr):
    """Per pixel of a block: its prototype as i32, −1 where ignored; its weight, 0 there; whether it is used."""
    offset_n = tl.arange(0, BLOCK_N)
    mask_n = offset_n < N - start_n
    own = tl.load(assignment_pointer + start_n + offset_n, mask_n, other=-1)
    used = (own >= 0) & (own < M)  # before narrowing: 2³² is no prototype 0
    own = tl.where(used, own, -1).to(tl.int32)
    if HAS_WEIGHT:
        weight = tl.load(weight_pointer + start_n + offset_n, mask_n & used, other=0.0)
    else:
        weight = tl.where(used, 1.0, 0.0)
    return own, weight, used


@triton.jit
def competitors(own, offset_m, M, K, SAME_CLASS_NEGATIVES: tl.constexpr):
    """(BLOCK_N, BLOCK_M): the prototypes in a pixel's denominator. An ignored pixel has them all, to stay finite."""
    compete = tl.broadcast_to((offset_m < M)[None, :], (own.shape[0], offset_m.shape[0]))
    if not SAME_CLASS_NEGATIVES:
        other_class = (offset_m // K)[None, :] != (own // K)[:, None]
        compete = compete & (other_class | (offset_m[None, :] == own[:, None]) | (own < 0)[:, None])
    return compete


@triton.jit
def forward_kernel(
    embedding_pointer,
    packed_pointer,
    assignment_pointer,
    weight_pointer,
    lse_pointer,
    partial_pointer,
    N,
    D,
    M,
    K,
    M_PAD,
    stride_embedding,
    inverse_temperature,
    HAS_WEIGHT: tl.constexpr,
    SAME_CLASS_NEGATIVES: tl.constexpr,
    PLANES: tl.constexpr,
    M_PARTS: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    slot = tl.program_id(0)
    offset_n = tl.arange(0, BLOCK_N)
    contrast = tl.zeros((BLOCK_N,), tl.float32)
    alignment = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(slot, tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        start_n = block * tl.full((), BLOCK_N, tl.int64)
        own, weight, used = load_pixels(assignment_pointer, weight_pointer, start_n, N, M, HAS_WEIGHT, BLOCK_N)
        x = None
        if D_PARTS == 1:
            x = load_rows(embedding_pointer, start_n, 0, N, D, stride_embedding, BLOCK_N, BLOCK_D)
        # Σ exp(logit) = total·exp(highest), kept while tiles of prototypes go by
        highest = tl.full((BLOCK_N,), LOWEST, tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
        own_cosine = tl.zeros((BLOCK_N,), tl.float32)
        for m_part in range(M_PARTS):
            offset_m = m_part * BLOCK_M + tl.arange(0, BLOCK_M)
            cosine, _ = cosines_of_tile(
                x,
                embedding_pointer,
                packed_pointer,
                start_n,
                offset_m,
                N,
                D,
                M_PAD,
                stride_embedding,
                PLANES,
                D_PARTS,
                BLOCK_N,
                BLOCK_D,
            )
            own_cosine += tl.sum(tl.where(offset_m[None, :] == own[:, None], cosine, 0.0), 1)
            compete = competitors(own, offset_m, M, K, SAME_CLASS_NEGATIVES)
            logit = tl.where(compete, cosine * inverse_temperature, float("-inf"))
            higher = tl.maximum(highest, tl.max(logit, 1))
            total = total * tl.exp(highest - higher) + tl.sum(tl.exp(logit - higher[:, None]), 1)
            highest = higher
        lse = highest + tl.log(total)
        tl.store(lse_pointer + start_n + offset_n, lse, offset_n < N - start_n)
        away = 1.0 - own_cosine
        contrast += tl.where(used, weight * (lse - own_cosine * inverse_temperature), 0.0)
        alignment += tl.where(used, weight * away * away, 0.0)
    tl.store(partial_pointer + slot * 2, tl.sum(contrast, 0))
    tl.store(partial_pointer + slot * 2 + 1, tl.sum(alignment, 0))


@triton.jit
def backward_kernel(
    grad_contrast_pointer,
    grad_alignment_pointer,
    embedding_pointer,
    packed_pointer,
    assignment_pointer,
    weight_pointer,
    lse_pointer,
    grad_embedding_pointer,
    partial_pointer,
    N,
    D,
    M,
    K,
    M_PAD,
    stride_embedding,
    inverse_temperature,
    HAS_WEIGHT: tl.constexpr,
    SAME_CLASS_NEGATIVES: tl.constexpr,
    IN_EMBEDDING: tl.constexpr,
    IN_PROTOTYPES: tl.constexpr,
    PLANES: tl.constexpr,
    M_PARTS: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # With s the cosines, o one at a pixel's own prototype, q = exp(s/T − lse) over the competitors and w the weight,
    #
    #     contrast  = Σ w (lse − s_own/T)    d/ds_m = w (q_m − o_m) / T
    #     alignment = Σ w (1 − s_own)²       d/ds_m = −2 w (1 − s_own) o_m
    #
    # so the gradient in the cosines is G = w (grad_contrast (q − o)/T − 2 grad_alignment (1 − s) o), made anew from the
    # products. Both gradients are products with it (see `upright` and `add_to_prototypes`). It is computed divided by
    # `scale`, the size of the larger coefficient, so that its entries are of order 1 in half precision; w·scale is the
    # row's factor.
    slot = tl.program_id(2)
    first_m = tl.program_id(1) * BLOCK_M
    first_d = tl.program_id(0) * BLOCK_D
    offset_n = tl.arange(0, BLOCK_N)
    tile_m = first_m + tl.arange(0, BLOCK_M)
    by_contrast = tl.load(grad_contrast_pointer) * inverse_temperature
    by_alignment = 2.0 * tl.load(grad_alignment_pointer)
    scale = tl.maximum(tl.abs(by_contrast), tl.abs(by_alignment))
    scale = tl.where(scale < SMALLEST, 1.0, scale)
    by_contrast /= scale
    by_alignment /= scale
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for block in range(slot, tl.cdiv(N, BLOCK_N), tl.num_programs(2)):
        start_n = block * tl.full((), BLOCK_N, tl.int64)
        own, weight, used = load_pixels(assignment_pointer, weight_pointer, start_n, N, M, HAS_WEIGHT, BLOCK_N)
        lse = tl.load(lse_pointer + start_n + offset_n, offset_n < N - start_n, other=0.0)
        factor = weight * scale
        x = None
        if D_PARTS == 1:
            x = load_rows(embedding_pointer, start_n, first_d, N, D, stride_embedding, BLOCK_N, BLOCK_D)
        inverse = tl.zeros((BLOCK_N,), tl.float32)
        along = tl.zeros((BLOCK_N,), tl.float32)
        pulled = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for m_part in range(M_PARTS):
            offset_m = tile_m + m_part * BLOCK_M
            cosine, inverse = cosines_of_tile(
                x,
                embedding_pointer,
                packed_pointer,
                start_n,
                offset_m,
                N,
                D,
                M_PAD,
                stride_embedding,
                PLANES,
                D_PARTS,
                BLOCK_N,
                BLOCK_D,
            )
            compete = competitors(own, offset_m, M, K, SAME_CLASS_NEGATIVES)
            share = tl.where(compete, tl.exp(cosine * inverse_temperature - lse[:, None]), 0.0)
            at_own = by_contrast + by_alignment * (1.0 - cosine)
            grad = by_contrast * share - tl.where(offset_m[None, :] == own[:, None], at_own, 0.0)
            grad = tl.where(used[:, None], grad, 0.0)
            grad = grad.to(packed_pointer.dtype.element_ty).to(tl.float32)  # rounded alike in all three sums
            if IN_EMBEDDING:
                along += tl.sum(grad * cosine, 1)
                pulled = along_prototypes(
                    grad, packed_pointer, offset_m, first_d, M_PAD, D_PARTS * BLOCK_D, pulled, PLANES, BLOCK_D
                )
            if IN_PROTOTYPES:
                if D_PARTS == 1:
                    total = add_to_prototypes(total, grad, factor * inverse, x)
                else:  # loaded only now, as `cosines_of_tile` needs the registers
                    part = load_rows(embedding_pointer, start_n, first_d, N, D, stride_embedding, BLOCK_N, BLOCK_D)
                    total = add_to_prototypes(total, grad, factor * inverse, part)
        if IN_EMBEDDING:
            if D_PARTS > 1:
                x = load_rows(embedding_pointer, start_n, first_d, N, D, stride_embedding, BLOCK_N, BLOCK_D)
            in_embedding = upright(x, pulled, along, factor, inverse)
            store_rows(grad_embedding_pointer, in_embedding, start_n, first_d, N, D, BLOCK_N, BLOCK_D)
    if IN_PROTOTYPES:
        store_partial(partial_pointer, total, slot, tile_m, first_d, M_PAD, D_PARTS * BLOCK_D)
