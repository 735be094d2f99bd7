"""Distance of every pixel to the nearest prototype of every class: Triton kernels, float32 and half precision."""

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
    inverse_length,
    load_rows,
    no_gradients,
    pack,
    parts,
    plan_backward,
    squared_length,
    squared_lengths,
    store_partial,
    store_rows,
    upright,
)

LOWEST = tl.constexpr(-3.0e38)
SMALLEST = tl.constexpr(1e-30)  # a gradient below it counts as 0: 1/x must stay finite


def forward(
    embedding: Tensor,  # (N, D) f32, f16 or bf16, unit column stride
    prototypes: Tensor,  # (C, K, D) f32, contiguous
) -> tuple[Tensor, Tensor]:
    """distance (N, C) f32 and nearest (N, C) i32, as `mpamatch.ops.prototype_distance` defines them."""
    pixels, width = embedding.shape
    classes, per_class, _ = prototypes.shape
    distance = torch.empty((pixels, classes), dtype=torch.float32, device=embedding.device)
    nearest = torch.empty((pixels, classes), dtype=torch.int32, device=embedding.device)
    if pixels == 0:
        return distance, nearest
    tile = tiles.lookup(
        "prototype_distance.forward", embedding.device, bits=embedding.itemsize * 8, D=width, M=classes * per_class
    )
    block_k = extent(per_class, 1, tile["BLOCK_M"])
    block_c = extent(classes, max(1, 16 // block_k), tile["BLOCK_M"] // block_k)
    block_d = extent(width, 16, tile["BLOCK_D"])
    c_parts, k_parts, d_parts = parts(classes, block_c), parts(per_class, block_k), parts(width, block_d)
    packed = pack(prototypes, embedding, k_parts * block_k, c_parts * block_c * k_parts * block_k, d_parts * block_d)
    forward_kernel[(min(tile["programs"], parts(pixels, tile["BLOCK_N"])),)](
        embedding,
        packed,
        distance,
        nearest,
        pixels,
        width,
        classes,
        per_class,
        embedding.stride(0),
        PLANES=packed.shape[0],
        C_PARTS=c_parts,
        K_PARTS=k_parts,
        D_PARTS=d_parts,
        BLOCK_N=tile["BLOCK_N"],
        BLOCK_C=block_c,
        BLOCK_K=block_k,
        BLOCK_D=block_d,
        num_warps=tile["num_warps"],
        num_stages=tile["num_stages"],
    )
    return distance, nearest


def backward(
    grad_distance: Tensor,  # (N, C) f32, contiguous
    embedding: Tensor,  # (N, D)
    prototypes: Tensor,  # (C, K, D)
    distance: Tensor,  # (N, C), from forward
    nearest: Tensor,  # (N, C) i32, from forward
    need_embedding: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients in embedding (N, D), in its dtype, and in prototypes (C, K, D) f32; (0,) where not needed."""
    pixels, width = embedding.shape
    classes, per_class, _ = prototypes.shape
    if pixels == 0:
        return no_gradients(embedding, prototypes, need_embedding, need_prototypes)
    plan = plan_backward("prototype_distance.backward", embedding, prototypes, need_embedding, need_prototypes)
    for grid, constants in plan.launches:
        backward_kernel[grid](
            grad_distance,
            embedding,
            plan.packed,
            distance,
            nearest,
            plan.grad_embedding,
            plan.partial,
            pixels,
            width,
            classes,
            per_class,
            plan.m_pad,
            embedding.stride(0),
            BLOCK_C=tiles.power_of_two(classes),
            **constants,
        )
    if not need_prototypes:
        return plan.grad_embedding, prototypes.new_empty(0)
    return plan.grad_embedding, gradient_in_prototypes(plan.partial, prototypes)


@triton.jit
def forward_kernel(
    embedding_pointer,
    packed_pointer,
    distance_pointer,
    nearest_pointer,
    N,
    D,
    C,
    K,
    stride_embedding,
    PLANES: tl.constexpr,
    C_PARTS: tl.constexpr,
    K_PARTS: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A class is padded to K_PARTS·BLOCK_K prototypes, a power of two or several of them, so that the maximum over a
    # class is one over an axis of the reshaped tile.
    K_PAD: tl.constexpr = K_PARTS * BLOCK_K
    BLOCK_M: tl.constexpr = BLOCK_C * BLOCK_K
    M_PAD: tl.constexpr = C_PARTS * BLOCK_C * K_PAD
    tile_m = tl.arange(0, BLOCK_M)
    tile_m = (tile_m // BLOCK_K) * K_PAD + tile_m % BLOCK_K
    offset_n = tl.arange(0, BLOCK_N)
    for block in range(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        start_n = block * tl.full((), BLOCK_N, tl.int64)
        mask_n = offset_n < N - start_n
        x = None
        if D_PARTS == 1:
            x = load_rows(embedding_pointer, start_n, 0, N, D, stride_embedding, BLOCK_N, BLOCK_D)
        for c_part in range(C_PARTS):
            highest = tl.full((BLOCK_N, BLOCK_C), LOWEST, tl.float32)
            nearest = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)
            for k_part in range(K_PARTS):
                offset_m = tile_m + c_part * (BLOCK_C * K_PAD) + k_part * BLOCK_K
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
                exists = (tile_m % K_PAD + k_part * BLOCK_K < K)[None, :]
                of_class = tl.reshape(tl.where(exists, cosine, LOWEST), (BLOCK_N, BLOCK_C, BLOCK_K))
                best, index = tl.max(of_class, 2, return_indices=True, return_indices_tie_break_left=True)
                nearest = tl.where(best > highest, index + k_part * BLOCK_K, nearest)
                highest = tl.maximum(best, highest)
            offset_c = c_part * BLOCK_C + tl.arange(0, BLOCK_C)
            mask = mask_n[:, None] & (offset_c < C)[None, :]
            target = offset_n[:, None] * C + offset_c[None, :]
            tl.store(distance_pointer + start_n * C + target, 1.0 - highest, mask)
            tl.store(nearest_pointer + start_n * C + target, nearest, mask)


@triton.jit
def backward_kernel(
    grad_distance_pointer,
    embedding_pointer,
    packed_pointer,
    distance_pointer,
    nearest_pointer,
    grad_embedding_pointer,
    partial_pointer,
    N,
    D,
    C,
    K,
    M_PAD,
    stride_embedding,
    IN_EMBEDDING: tl.constexpr,
    IN_PROTOTYPES: tl.constexpr,
    PLANES: tl.constexpr,
    M_PARTS: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # distance_c = 1 − s_m for m = the nearest of class c, so the gradient in the cosine s_m is −grad_c there and 0
    # elsewhere: G, one entry a class in each row. Both gradients are products with it (see `upright` and
    # `add_to_prototypes`). G is divided by the largest |grad_c| of its row, which joins the row's factor.
    slot = tl.program_id(2)
    first_m = tl.program_id(1) * BLOCK_M
    first_d = tl.program_id(0) * BLOCK_D
    offset_n = tl.arange(0, BLOCK_N)
    offset_c = tl.arange(0, BLOCK_C)
    tile_m = first_m + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for block in range(slot, tl.cdiv(N, BLOCK_N), tl.num_programs(2)):
        start_n = block * tl.full((), BLOCK_N, tl.int64)
        mask_n = offset_n < N - start_n
        x = load_rows(embedding_pointer, start_n, first_d, N, D, stride_embedding, BLOCK_N, BLOCK_D)
        if D_PARTS == 1:
            squared = squared_length(x)
        else:
            squared = squared_lengths(embedding_pointer, start_n, N, D, stride_embedding, D_PARTS, BLOCK_N, BLOCK_D)
        inverse = inverse_length(squared)

        of_class = offset_n[:, None] * C + offset_c[None, :]
        mask_c = mask_n[:, None] & (offset_c < C)[None, :]
        grad_distance = tl.load(grad_distance_pointer + start_n * C + of_class, mask_c, other=0.0)
        factor = tl.max(tl.abs(grad_distance), 1)
        shrink = 1.0 / tl.where(factor < SMALLEST, 1.0, factor)
        factor = tl.where(factor < SMALLEST, 0.0, factor)
        if IN_EMBEDDING:
            cosine = 1.0 - tl.load(distance_pointer + start_n * C + of_class, mask_c, other=1.0)
            rounded = (grad_distance * shrink[:, None]).to(x.dtype).to(tl.float32)  # as in `pulled`
            along = -tl.sum(rounded * cosine, 1)
            pulled = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)

        for m_part in range(M_PARTS):
            offset_m = tile_m + m_part * BLOCK_M
            owner = offset_n[:, None] * C + (offset_m // K)[None, :]
            mask_m = mask_n[:, None] & (offset_m < C * K)[None, :]
            nearest = tl.load(nearest_pointer + start_n * C + owner, mask_m, other=-1)
            grad = -tl.load(grad_distance_pointer + start_n * C + owner, mask_m, other=0.0) * shrink[:, None]
            grad = tl.where(nearest == (offset_m % K)[None, :], grad, 0.0)
            if IN_EMBEDDING:
                pulled = along_prototypes(
                    grad, packed_pointer, offset_m, first_d, M_PAD, D_PARTS * BLOCK_D, pulled, PLANES, BLOCK_D
                )
            if IN_PROTOTYPES:
                total = add_to_prototypes(total, grad, factor * inverse, x)

        if IN_EMBEDDING:
            in_embedding = upright(x, pulled, along, factor, inverse)
            store_rows(grad_embedding_pointer, in_embedding, start_n, first_d, N, D, BLOCK_N, BLOCK_D)
    if IN_PROTOTYPES:
        store_partial(partial_pointer, total, slot, tile_m, first_d, M_PAD, D_PARTS * BLOCK_D)
