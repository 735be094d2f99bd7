"""Distance of every pixel to the nearest prototype of every class: Triton kernels, float32 and half precision."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .common import (
    add_to_prototypes,
    along_prototypes,
    gradient_in_prototypes,
    inverse_length,
    load_kept,
    load_resident,
    load_rows,
    no_gradients,
    pack,
    parts,
    products_of_tile,
    prototypes_at,
    store_partial,
    store_rows,
    upright,
)

LOWEST = tl.constexpr(-3.0e38)
SMALLEST = tl.constexpr(1e-30)  # a gradient below it counts as 0: 1/x must stay finite
# What changes from call to call, so that no call compiles again because it is 1 or a multiple of 16.
VARYING = ["N", "C", "K"]


def forward(
    embedding: Tensor,  # (N, D) f32, f16 or bf16, unit column stride
    prototypes: Tensor,  # (C, K, D) f32, contiguous
) -> tuple[Tensor, ...]:
    """distance (N, C) f32 and nearest (N, C) i32, as `mpamatch.ops.prototype_distance` defines them, and what backward
    takes beside them: 1/‖x‖ (N,) f32 and the packed prototypes."""
    pixels, (classes, per_class, _) = len(embedding), prototypes.shape
    k_pad = padded_class(per_class)
    packed = pack(prototypes, embedding, k_pad)
    distance = torch.empty((pixels, classes), dtype=torch.float32, device=embedding.device)
    nearest = torch.empty((pixels, classes), dtype=torch.int32, device=embedding.device)
    inverse = torch.empty((pixels,), dtype=torch.float32, device=embedding.device)
    if pixels == 0:
        return distance, nearest, inverse, packed
    plan = tiles.plan("prototype_distance.forward", embedding, prototypes, k_pad)
    # A tile holds whole classes, or part of one: 60 of its 64 rows if a class has 10.
    block_k = min(k_pad, plan.block_m)
    held = plan.block_m // block_k
    forward_kernel[(min(plan.programs, parts(pixels, plan.block_n)),)](
        embedding,
        packed,
        distance,
        nearest,
        inverse,
        pixels,
        embedding.shape[1],
        classes,
        per_class,
        packed.shape[1],
        packed.shape[2],
        embedding.stride(0),
        PLANES=packed.shape[0],
        K_PAD=k_pad,
        BLOCK_K=block_k,
        HELD=held,
        WIDE=tiles.power_of_two(held),
        C_PARTS=parts(classes, held),
        K_PARTS=parts(k_pad, block_k),
        RESIDENT=plan.resident and held >= classes,
        KEEP=plan.keep,
        **plan.constants,
    )
    return distance, nearest, inverse, packed


def padded_class(per_class: int) -> int:
    """The rows of a class among packed prototypes: a power of two, which makes its maximum one over an axis, unless
    that is more than a quarter of padding (10 → 16)."""
    power = tiles.power_of_two(per_class)
    return power if per_class <= 8 or 4 * (power - per_class) <= per_class else per_class


def backward(
    grad_distance: Tensor,  # (N, C) f32, contiguous
    embedding: Tensor,  # (N, D)
    prototypes: Tensor,  # (C, K, D)
    distance: Tensor,  # (N, C), from forward
    nearest: Tensor,  # (N, C) i32, from forward
    inverse: Tensor,  # (N,), from forward
    packed: Tensor,  # from forward
    need_embedding: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients in embedding (N, D), in its dtype, and in prototypes (C, K, D) f32; (0,) where not needed."""
    if len(embedding) == 0:
        return no_gradients(embedding, prototypes, need_embedding, need_prototypes)
    given = (grad_distance, embedding, prototypes, distance, nearest, inverse, packed)
    return (
        in_embedding(*given) if need_embedding else embedding.new_empty(0),
        in_prototypes(*given) if need_prototypes else prototypes.new_empty(0),
    )


def in_embedding(
    grad_distance: Tensor,
    embedding: Tensor,
    prototypes: Tensor,
    distance: Tensor,
    nearest: Tensor,
    inverse: Tensor,
    packed: Tensor,
) -> Tensor:
    """The gradient in embedding (N, D)."""
    pixels, (classes, per_class, width) = len(embedding), prototypes.shape
    k_pad = padded_class(per_class)
    plan = tiles.plan("prototype_distance.in_embedding", embedding, prototypes, k_pad)
    grad_embedding = torch.empty(embedding.shape, dtype=embedding.dtype, device=embedding.device)
    programs = min(max(1, plan.programs // plan.d_parts), parts(pixels, plan.block_n))
    in_embedding_kernel[(plan.d_parts, programs)](
        grad_distance,
        embedding,
        packed,
        distance,
        nearest,
        inverse,
        grad_embedding,
        pixels,
        width,
        classes,
        packed.shape[1],
        packed.shape[2],
        embedding.stride(0),
        PLANES=packed.shape[0],
        K_PAD=k_pad,
        M_PARTS=plan.m_parts,
        BLOCK_C=class_tile(classes),
        **plan.constants,
    )
    return grad_embedding


def in_prototypes(
    grad_distance: Tensor,
    embedding: Tensor,
    prototypes: Tensor,
    distance: Tensor,
    nearest: Tensor,
    inverse: Tensor,
    packed: Tensor,
) -> Tensor:
    """The gradient in prototypes (C, K, D)."""
    pixels, (classes, per_class, width) = len(embedding), prototypes.shape
    plan = tiles.plan("prototype_distance.in_prototypes", embedding, prototypes)
    shares = plan.d_parts * plan.m_parts  # a tile of the gradient each, side by side so that they share pixels in L2
    slots = min(max(1, plan.programs // shares), parts(pixels, plan.block_n))
    size = (slots, plan.m_parts * plan.block_m, plan.d_parts * plan.block_d)
    partial = torch.empty(size, dtype=torch.float32, device=embedding.device)
    in_prototypes_kernel[(plan.d_parts, plan.m_parts, slots)](
        grad_distance,
        embedding,
        nearest,
        inverse,
        partial,
        pixels,
        width,
        classes,
        per_class,
        embedding.stride(0),
        BLOCK_C=class_tile(classes),
        **plan.constants,
    )
    return gradient_in_prototypes(partial, prototypes)


def class_tile(classes: int) -> int:
    """The classes of a pixel that a backward kernel looks at in one go: more would not fit into the registers."""
    return min(32, tiles.power_of_two(classes))


@triton.jit
def best_of_classes(
    cosine, first_k, K, BLOCK_N: tl.constexpr, HELD: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr
):
    """The highest cosine of each class and its k, (BLOCK_N, WIDE) each, of the columns class·BLOCK_K + k of HELD
    classes.

    Among equals the lowest k. `first_k` is that of column 0 in its class.
    """
    column = tl.arange(0, cosine.shape[1])
    if cosine.shape[1] == HELD * BLOCK_K:  # powers of two
        exists = (first_k + column % BLOCK_K < K)[None, :]
        of_class = tl.reshape(tl.where(exists, cosine, LOWEST), (BLOCK_N, HELD, BLOCK_K))
        highest, nearest = tl.max(of_class, 2, return_indices=True, return_indices_tie_break_left=True)
        return highest, nearest + first_k
    else:
        held = tl.arange(0, WIDE)[None, :]
        highest = tl.full((BLOCK_N, WIDE), LOWEST, tl.float32)
        nearest = tl.zeros((BLOCK_N, WIDE), tl.int32)
        for place in tl.static_range(HELD):
            mine = (column >= place * BLOCK_K) & (column < place * BLOCK_K + BLOCK_K) & (first_k + column % BLOCK_K < K)
            of_class = tl.where(mine[None, :], cosine, LOWEST)
            best = tl.max(of_class, 1)
            index = tl.min(tl.where((of_class == best[:, None]) & mine[None, :], column[None, :], 1 << 30), 1)
            highest = tl.where(held == place, best[:, None], highest)
            nearest = tl.where(held == place, (index - place * BLOCK_K + first_k)[:, None], nearest)
        return highest, nearest


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    embedding_pointer,
    packed_pointer,
    distance_pointer,
    nearest_pointer,
    inverse_pointer,
    N,
    D,
    C,
    K,
    M_PAD,
    D_PAD,
    stride_embedding,
    RESIDENT: tl.constexpr,
    KEEP: tl.constexpr,
    PLANES: tl.constexpr,
    K_PAD: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HELD: tl.constexpr,
    WIDE: tl.constexpr,
    C_PARTS: tl.constexpr,
    K_PARTS: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offset_n = tl.arange(0, BLOCK_N)
    resident = load_resident(packed_pointer, 0, M_PAD, D_PAD, RESIDENT, PLANES, D_PARTS, BLOCK_M, BLOCK_D)
    for block in range(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        start_n = block * tl.full((), BLOCK_N, tl.int64)
        mask_n = offset_n < N - start_n
        kept, length = load_kept(
            embedding_pointer, start_n, mask_n, D, stride_embedding, KEEP, D_PARTS, BLOCK_N, BLOCK_D
        )
        for c_part in range(C_PARTS):
            highest = tl.full((BLOCK_N, WIDE), LOWEST, tl.float32)
            nearest = tl.zeros((BLOCK_N, WIDE), tl.int32)
            for k_part in range(K_PARTS):
                offset_m = c_part * (HELD * K_PAD) + k_part * BLOCK_K + tl.arange(0, BLOCK_M)
                offset_m = tl.minimum(offset_m, M_PAD - 1)  # those beyond the tile's classes are looked at by nobody
                product, squared, _ = products_of_tile(
                    embedding_pointer, packed_pointer, resident, kept, start_n, mask_n, offset_m, D, M_PAD, D_PAD,
                    stride_embedding, RESIDENT, KEEP, PLANES, not KEEP, D_PARTS, BLOCK_N, BLOCK_D,
                )  # fmt: skip
                inverse = inverse_length(length if KEEP else squared)
                if (c_part == 0) & (k_part == 0):
                    tl.store(inverse_pointer + start_n + offset_n, inverse, mask_n)
                best, index = best_of_classes(
                    product * inverse[:, None], k_part * BLOCK_K, K, BLOCK_N, HELD, WIDE, BLOCK_K
                )
                nearest = tl.where(best > highest, index, nearest)
                highest = tl.maximum(best, highest)
            offset_c = c_part * HELD + tl.arange(0, WIDE)
            exists = (offset_c < C) & (tl.arange(0, WIDE) < HELD)
            target = offset_n[:, None] * C + offset_c[None, :]
            tl.store(distance_pointer + start_n * C + target, 1.0 - highest, mask_n[:, None] & exists[None, :])
            tl.store(nearest_pointer + start_n * C + target, nearest, mask_n[:, None] & exists[None, :])


# distance_c = 1 − s_m for m = the nearest of class c, so the gradient in the cosine s_m is −grad_c there and 0
# elsewhere: G, one entry a class in each row. Both gradients are products with it (see `upright` and
# `add_to_prototypes`). G is divided by the largest |grad_c| of its row, which joins the row's factor.


@triton.jit
def row_factor(grad_distance_pointer, start_n, mask_n, C, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """The largest |grad_c| of each row, 0 if it is tiny; and what G is multiplied by instead."""
    offset_n = tl.arange(0, BLOCK_N)
    factor = tl.zeros((BLOCK_N,), tl.float32)
    for first_c in range(0, C, BLOCK_C):
        offset_c = first_c + tl.arange(0, BLOCK_C)
        mask = mask_n[:, None] & (offset_c < C)[None, :]
        target = offset_n[:, None] * C + offset_c[None, :]
        grad = tl.load(grad_distance_pointer + start_n * C + target, mask, other=0.0)
        factor = tl.maximum(factor, tl.max(tl.abs(grad), 1))
    return tl.where(factor < SMALLEST, 0.0, factor), 1.0 / tl.where(factor < SMALLEST, 1.0, factor)


@triton.jit
def gradient_in_cosines(
    grad_distance_pointer, nearest_pointer, start_n, mask_n, shrink, offset_c, offset_k, C, BLOCK_N: tl.constexpr
):
    """G without the row's factor (BLOCK_N, BLOCK_M), of the prototypes offset_k of the classes offset_c."""
    offset_n = tl.arange(0, BLOCK_N)
    target = offset_n[:, None] * C + offset_c[None, :]
    mask = mask_n[:, None] & (offset_c < C)[None, :]
    nearest = tl.load(nearest_pointer + start_n * C + target, mask, other=-1)
    grad = -tl.load(grad_distance_pointer + start_n * C + target, mask, other=0.0) * shrink[:, None]
    return tl.where(nearest == offset_k[None, :], grad, 0.0)


@triton.jit(do_not_specialize=["N", "C"])
def in_embedding_kernel(
    grad_distance_pointer,
    embedding_pointer,
    packed_pointer,
    distance_pointer,
    nearest_pointer,
    inverse_pointer,
    grad_embedding_pointer,
    N,
    D,
    C,
    M_PAD,
    D_PAD,
    stride_embedding,
    PLANES: tl.constexpr,
    K_PAD: tl.constexpr,
    M_PARTS: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    d_part = tl.program_id(0)
    first_d = d_part * BLOCK_D
    offset_n = tl.arange(0, BLOCK_N)
    for block in tl.range(tl.program_id(1), tl.cdiv(N, BLOCK_N), tl.num_programs(1), disable_licm=True):
        start_n = block * tl.full((), BLOCK_N, tl.int64)
        mask_n = offset_n < N - start_n
        inverse = tl.load(inverse_pointer + start_n + offset_n, mask_n, other=0.0)
        factor, shrink = row_factor(grad_distance_pointer, start_n, mask_n, C, BLOCK_N, BLOCK_C)
        along = tl.zeros((BLOCK_N,), tl.float32)
        for first_c in range(0, C, BLOCK_C):
            offset_c = first_c + tl.arange(0, BLOCK_C)
            target = offset_n[:, None] * C + offset_c[None, :]
            mask = mask_n[:, None] & (offset_c < C)[None, :]
            grad = tl.load(grad_distance_pointer + start_n * C + target, mask, other=0.0)
            cosine = 1.0 - tl.load(distance_pointer + start_n * C + target, mask, other=1.0)
            rounded = (grad * shrink[:, None]).to(packed_pointer.dtype.element_ty).to(tl.float32)  # as in `pulled`
            along -= tl.sum(rounded * cosine, 1)
        pulled = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for m_part in range(M_PARTS):
            offset_m = m_part * BLOCK_M + tl.arange(0, BLOCK_M)
            grad = gradient_in_cosines(
                grad_distance_pointer, nearest_pointer, start_n, mask_n, shrink, offset_m // K_PAD, offset_m % K_PAD, C,
                BLOCK_N,
            )  # fmt: skip
            high, low = prototypes_at((), packed_pointer, offset_m, d_part, M_PAD, D_PAD, False, PLANES, BLOCK_D)
            pulled = along_prototypes(grad, high, low, pulled, PLANES)
        x = load_rows(embedding_pointer, start_n, first_d, mask_n, D, stride_embedding, BLOCK_N, BLOCK_D, True)
        gradient = upright(x, pulled, along, factor, inverse)
        store_rows(grad_embedding_pointer, gradient, start_n, first_d, N, D, BLOCK_N, BLOCK_D)


@triton.jit(do_not_specialize=VARYING)
def in_prototypes_kernel(
    grad_distance_pointer,
    embedding_pointer,
    nearest_pointer,
    inverse_pointer,
    partial_pointer,
    N,
    D,
    C,
    K,
    stride_embedding,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    first_d = tl.program_id(0) * BLOCK_D
    slot = tl.program_id(2)
    offset_n = tl.arange(0, BLOCK_N)
    offset_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_D, BLOCK_M), tl.float32)
    for block in tl.range(slot, tl.cdiv(N, BLOCK_N), tl.num_programs(2), disable_licm=True):
        start_n = block * tl.full((), BLOCK_N, tl.int64)
        mask_n = offset_n < N - start_n
        inverse = tl.load(inverse_pointer + start_n + offset_n, mask_n, other=0.0)
        factor, shrink = row_factor(grad_distance_pointer, start_n, mask_n, C, BLOCK_N, BLOCK_C)
        grad = gradient_in_cosines(
            grad_distance_pointer, nearest_pointer, start_n, mask_n, shrink, offset_m // K, offset_m % K, C, BLOCK_N
        )
        x = load_rows(embedding_pointer, start_n, first_d, mask_n, D, stride_embedding, BLOCK_N, BLOCK_D)
        total = add_to_prototypes(total, grad, factor * inverse, x)
    store_partial(partial_pointer, total, slot, offset_m, first_d, tl.num_programs(1) * BLOCK_M, D_PARTS * BLOCK_D)
