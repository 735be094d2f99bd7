"""InfoNCE and alignment of pixels with their prototype: Triton kernels, float32 and half precision."""

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
    pull,
    repeated,
    store_gradient,
    store_partial,
    sum_slots,
)

LOWEST = tl.constexpr(-3.0e38)
SMALLEST = tl.constexpr(1e-30)  # a gradient below it is not scaled up: 1/x must stay finite
# What changes from call to call, so that no call compiles again because it is 1 or a multiple of 16.
VARYING = ["N", "M", "K", "inverse_temperature"]


def forward(
    embedding: Tensor,  # (N, D) f32, f16 or bf16, unit column stride
    prototypes: Tensor,  # (C, K, D) f32, contiguous
    assignment: Tensor,  # (N,) i32 or i64; outside [0, C·K): ignored
    weight: Tensor | None,  # (N,) f32
    temperature: float,
    same_class_negatives: bool,
) -> tuple[Tensor, ...]:
    """contrast () and alignment () as `mpamatch.ops.prototype_contrast` defines them, and what backward takes of them:
    log-sum-exp and 1/‖x‖, (N,) f32, and the packed prototypes."""
    pixels = len(embedding)
    packed = pack(prototypes, embedding)
    lse = torch.empty((pixels,), dtype=torch.float32, device=embedding.device)
    inverse = torch.empty_like(lse)
    if pixels == 0:
        return lse.new_zeros(()), lse.new_zeros(()), lse, inverse, packed
    plan = tiles.plan("prototype_contrast.forward", embedding, prototypes)
    slots = min(plan.programs, parts(pixels, plan.block_n))
    partial = torch.empty((slots, 2), dtype=torch.float32, device=embedding.device)
    forward_kernel[(slots,)](
        embedding,
        packed,
        assignment,
        assignment if weight is None else weight,
        lse,
        inverse,
        partial,
        pixels,
        embedding.shape[1],
        plan.rows,
        prototypes.shape[1],
        packed.shape[1],
        packed.shape[2],
        embedding.stride(0),
        1 / temperature,
        HAS_WEIGHT=weight is not None,
        SAME_CLASS_NEGATIVES=same_class_negatives,
        PLANES=packed.shape[0],
        RESIDENT=plan.resident,
        KEEP=plan.keep,
        M_PARTS=plan.m_parts,
        **plan.constants,
    )
    contrast = torch.empty((), dtype=torch.float32, device=embedding.device)
    alignment = torch.empty((), dtype=torch.float32, device=embedding.device)
    sum_slots(partial, contrast, alignment)
    return contrast, alignment, lse, inverse, packed


def backward(
    grad_contrast: Tensor,  # () f32
    grad_alignment: Tensor,  # () f32
    embedding: Tensor,  # (N, D)
    prototypes: Tensor,  # (C, K, D)
    assignment: Tensor,  # (N,)
    weight: Tensor | None,  # (N,)
    lse: Tensor,  # (N,), from forward
    inverse: Tensor,  # (N,), from forward
    packed: Tensor,  # from forward
    temperature: float,
    same_class_negatives: bool,
    need_embedding: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients in embedding (N, D), in its dtype, and in prototypes (C, K, D) f32; (0,) where not needed."""
    if len(embedding) == 0:
        return no_gradients(embedding, prototypes, need_embedding, need_prototypes)
    given = (grad_contrast, grad_alignment, embedding, prototypes, assignment, weight, lse, inverse, packed)
    options = (temperature, same_class_negatives)
    return (
        in_embedding(*given, *options) if need_embedding else embedding.new_empty(0),
        in_prototypes(*given, *options) if need_prototypes else prototypes.new_empty(0),
    )


def in_embedding(
    grad_contrast: Tensor,
    grad_alignment: Tensor,
    embedding: Tensor,
    prototypes: Tensor,
    assignment: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    inverse: Tensor,
    packed: Tensor,
    temperature: float,
    same_class_negatives: bool,
) -> Tensor:
    """The gradient in embedding (N, D)."""
    plan = tiles.plan("prototype_contrast.in_embedding", embedding, prototypes)
    # The gradients in the cosines of a tile serve every part of D, where all parts of a sum over several tiles fit into
    # the registers. Else they are made anew for each part.
    shares = 1 if plan.m_parts == 1 or plan.keep else plan.d_parts
    grad_embedding = torch.empty(embedding.shape, dtype=embedding.dtype, device=embedding.device)
    programs = min(max(1, plan.programs // shares), parts(len(embedding), plan.block_n))
    in_embedding_kernel[(shares, programs)](
        grad_contrast,
        grad_alignment,
        embedding,
        packed,
        assignment,
        assignment if weight is None else weight,
        lse,
        inverse,
        grad_embedding,
        *_sizes(embedding, prototypes, packed, temperature),
        HAS_WEIGHT=weight is not None,
        SAME_CLASS_NEGATIVES=same_class_negatives,
        PLANES=packed.shape[0],
        RESIDENT=plan.resident,
        KEEP=plan.keep,
        M_PARTS=plan.m_parts,
        **plan.constants,
    )
    return grad_embedding


def in_prototypes(
    grad_contrast: Tensor,
    grad_alignment: Tensor,
    embedding: Tensor,
    prototypes: Tensor,
    assignment: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    inverse: Tensor,
    packed: Tensor,
    temperature: float,
    same_class_negatives: bool,
) -> Tensor:
    """The gradient in prototypes (C, K, D)."""
    plan = tiles.plan("prototype_contrast.in_prototypes", embedding, prototypes)
    shares = plan.d_parts * plan.m_parts  # a tile of the gradient each, side by side so that they share pixels in L2
    slots = min(max(1, plan.programs // shares), parts(len(embedding), plan.block_n))
    size = (slots, plan.m_parts * plan.block_m, plan.d_parts * plan.block_d)
    partial = torch.empty(size, dtype=torch.float32, device=embedding.device)
    in_prototypes_kernel[(plan.d_parts, plan.m_parts, slots)](
        grad_contrast,
        grad_alignment,
        embedding,
        packed,
        assignment,
        assignment if weight is None else weight,
        lse,
        inverse,
        partial,
        *_sizes(embedding, prototypes, packed, temperature),
        HAS_WEIGHT=weight is not None,
        SAME_CLASS_NEGATIVES=same_class_negatives,
        PLANES=packed.shape[0],
        RESIDENT=plan.resident,
        **plan.constants,
    )
    return gradient_in_prototypes(partial, prototypes)


def _sizes(embedding: Tensor, prototypes: Tensor, packed: Tensor, temperature: float) -> tuple[int | float, ...]:
    """N, D, M, K, rows and columns of a packed plane, and the stride, as the backward kernels take them."""
    classes, per_class, width = prototypes.shape
    return (
        *(len(embedding), width, classes * per_class, per_class),
        *(packed.shape[1], packed.shape[2], embedding.stride(0), 1 / temperature),
    )


@triton.jit
def load_pixels(assignment_pointer, weight_pointer, start_n, N, M, HAS_WEIGHT: tl.constexpr, BLOCK_N: tl.constexpr):
    """Per pixel of a block: its prototype as i32, −1 where it does not count; its weight, 0 there; whether it counts.

    A pixel that is ignored or has weight 0 does not count, and its row is not read: it may hold NaN.
    """
    offset_n = tl.arange(0, BLOCK_N)
    mask_n = offset_n < N - start_n
    own = tl.load(assignment_pointer + start_n + offset_n, mask_n, other=-1)
    used = (own >= 0) & (own < M)  # before narrowing: 2³² is no prototype 0
    if HAS_WEIGHT:
        weight = tl.load(weight_pointer + start_n + offset_n, mask_n & used, other=0.0)
        used = used & (weight != 0.0)
    else:
        weight = tl.where(used, 1.0, 0.0)
    return tl.where(used, own, -1).to(tl.int32), weight, used


@triton.jit
def competitors(own, offset_m, M, K, SAME_CLASS_NEGATIVES: tl.constexpr):
    """The prototypes in a pixel's denominator, of pixels and prototypes along different axes. One that does not count
    has all, to stay finite."""
    compete = offset_m < M
    if not SAME_CLASS_NEGATIVES:
        place = offset_m - own // K * K  # in [0, K): of the pixel's own class
        compete = compete & ((place < 0) | (place >= K) | (offset_m == own) | (own < 0))
    return compete


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    embedding_pointer,
    packed_pointer,
    assignment_pointer,
    weight_pointer,
    lse_pointer,
    inverse_pointer,
    partial_pointer,
    N,
    D,
    M,
    K,
    M_PAD,
    D_PAD,
    stride_embedding,
    inverse_temperature,
    HAS_WEIGHT: tl.constexpr,
    SAME_CLASS_NEGATIVES: tl.constexpr,
    RESIDENT: tl.constexpr,
    KEEP: tl.constexpr,
    PLANES: tl.constexpr,
    M_PARTS: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    slot = tl.program_id(0)
    offset_n = tl.arange(0, BLOCK_N)
    resident = load_resident(packed_pointer, 0, M_PAD, D_PAD, RESIDENT, PLANES, D_PARTS, BLOCK_M, BLOCK_D)
    contrast = tl.zeros((BLOCK_N,), tl.float32)
    alignment = tl.zeros((BLOCK_N,), tl.float32)
    for block in range(slot, tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        start_n = block * tl.full((), BLOCK_N, tl.int64)
        own, weight, used = load_pixels(assignment_pointer, weight_pointer, start_n, N, M, HAS_WEIGHT, BLOCK_N)
        kept, length = load_kept(embedding_pointer, start_n, used, D, stride_embedding, KEEP, D_PARTS, BLOCK_N, BLOCK_D)
        # Σ exp(logit) = total·exp(highest), kept while tiles of prototypes go by
        highest = tl.full((BLOCK_N,), LOWEST, tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
        own_cosine = tl.zeros((BLOCK_N,), tl.float32)
        inverse = tl.zeros((BLOCK_N,), tl.float32)
        for m_part in range(M_PARTS):
            offset_m = m_part * BLOCK_M + tl.arange(0, BLOCK_M)
            product, squared, _ = products_of_tile(
                embedding_pointer, packed_pointer, resident, kept, start_n, used, offset_m, D, M_PAD, D_PAD,
                stride_embedding, RESIDENT, KEEP, PLANES, not KEEP, D_PARTS, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            inverse = inverse_length(length if KEEP else squared)
            cosine = product * inverse[:, None]
            own_cosine += tl.sum(tl.where(offset_m[None, :] == own[:, None], cosine, 0.0), 1)
            compete = competitors(own[:, None], offset_m[None, :], M, K, SAME_CLASS_NEGATIVES)
            logit = tl.where(compete, cosine * inverse_temperature, float("-inf"))
            higher = tl.maximum(highest, tl.max(logit, 1))
            total = total * tl.exp(highest - higher) + tl.sum(tl.exp(logit - higher[:, None]), 1)
            highest = higher
        lse = highest + tl.log(total)
        tl.store(lse_pointer + start_n + offset_n, lse, offset_n < N - start_n)
        tl.store(inverse_pointer + start_n + offset_n, inverse, offset_n < N - start_n)
        away = 1.0 - own_cosine
        contrast += tl.where(used, weight * (lse - own_cosine * inverse_temperature), 0.0)
        alignment += tl.where(used, weight * away * away, 0.0)
    tl.store(partial_pointer + slot * 2, tl.sum(contrast, 0))
    tl.store(partial_pointer + slot * 2 + 1, tl.sum(alignment, 0))


# With s the cosines, o one at a pixel's own prototype, q = exp(s/T − lse) over the competitors and w the weight,
#
#     contrast  = Σ w (lse − s_own/T)    d/ds_m = w (q_m − o_m) / T
#     alignment = Σ w (1 − s_own)²       d/ds_m = −2 w (1 − s_own) o_m
#
# so the gradient in the cosines is G = w (grad_contrast (q − o)/T − 2 grad_alignment (1 − s) o), made anew from the
# products. Both gradients are products with it (see `upright` and `add_to_prototypes`), each in a kernel of its own:
# one sums over the prototypes, the other over the pixels. G is computed divided by `scale`, the size of the larger
# coefficient, so that its entries are of order 1 in half precision; w·scale is the row's factor.


@triton.jit
def coefficients(grad_contrast_pointer, grad_alignment_pointer, inverse_temperature):
    """grad_contrast/T and 2·grad_alignment over their scale, and the scale."""
    by_contrast = tl.load(grad_contrast_pointer) * inverse_temperature
    by_alignment = 2.0 * tl.load(grad_alignment_pointer)
    scale = tl.maximum(tl.abs(by_contrast), tl.abs(by_alignment))
    scale = tl.where(scale < SMALLEST, 1.0, scale)
    return by_contrast / scale, by_alignment / scale, scale


@triton.jit
def gradient_in_cosines(
    cosine,
    own,
    used,
    lse,
    offset_m,
    M,
    K,
    inverse_temperature,
    by_contrast,
    by_alignment,
    SAME_CLASS_NEGATIVES: tl.constexpr,
):
    """G without the row's factor, in the shape of the cosines; own, used and lse along one axis, offset_m the other."""
    compete = competitors(own, offset_m, M, K, SAME_CLASS_NEGATIVES)
    share = tl.where(compete, tl.exp(cosine * inverse_temperature - lse), 0.0)
    at_own = by_contrast + by_alignment * (1.0 - cosine)
    grad = by_contrast * share - tl.where(offset_m == own, at_own, 0.0)
    return tl.where(used, grad, 0.0)


@triton.jit(do_not_specialize=VARYING)
def in_embedding_kernel(
    grad_contrast_pointer,
    grad_alignment_pointer,
    embedding_pointer,
    packed_pointer,
    assignment_pointer,
    weight_pointer,
    lse_pointer,
    inverse_pointer,
    grad_embedding_pointer,
    N,
    D,
    M,
    K,
    M_PAD,
    D_PAD,
    stride_embedding,
    inverse_temperature,
    HAS_WEIGHT: tl.constexpr,
    SAME_CLASS_NEGATIVES: tl.constexpr,
    RESIDENT: tl.constexpr,
    KEEP: tl.constexpr,
    PLANES: tl.constexpr,
    M_PARTS: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    first_part = tl.program_id(0)  # of D, if the prototypes are several tiles
    offset_n = tl.arange(0, BLOCK_N)
    by_contrast, by_alignment, scale = coefficients(grad_contrast_pointer, grad_alignment_pointer, inverse_temperature)
    resident = load_resident(packed_pointer, 0, M_PAD, D_PAD, RESIDENT, PLANES, D_PARTS, BLOCK_M, BLOCK_D)
    for block in tl.range(tl.program_id(1), tl.cdiv(N, BLOCK_N), tl.num_programs(1), disable_licm=True):
        start_n = block * tl.full((), BLOCK_N, tl.int64)
        own, weight, used = load_pixels(assignment_pointer, weight_pointer, start_n, N, M, HAS_WEIGHT, BLOCK_N)
        lse = tl.load(lse_pointer + start_n + offset_n, offset_n < N - start_n, other=0.0)
        inverse = tl.load(inverse_pointer + start_n + offset_n, offset_n < N - start_n, other=0.0)
        kept, _squared = load_kept(
            embedding_pointer, start_n, used, D, stride_embedding, KEEP, D_PARTS, BLOCK_N, BLOCK_D
        )
        along = tl.zeros((BLOCK_N,), tl.float32)
        pulled = repeated(tl.zeros((BLOCK_N, BLOCK_D), tl.float32), D_PARTS if KEEP else 1)
        grad = tl.zeros((BLOCK_N, BLOCK_M), packed_pointer.dtype.element_ty)
        for m_part in tl.range(M_PARTS, disable_licm=True):
            offset_m = m_part * BLOCK_M + tl.arange(0, BLOCK_M)
            product, _squared, _ = products_of_tile(
                embedding_pointer, packed_pointer, resident, kept, start_n, used, offset_m, D, M_PAD, D_PAD,
                stride_embedding, RESIDENT, KEEP, PLANES, False, D_PARTS, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            cosine = product * inverse[:, None]
            grad = gradient_in_cosines(
                cosine, own[:, None], used[:, None], lse[:, None], offset_m[None, :], M, K,
                inverse_temperature, by_contrast, by_alignment, SAME_CLASS_NEGATIVES,
            )  # fmt: skip
            grad = grad.to(packed_pointer.dtype.element_ty)  # rounded alike in both sums
            along += tl.sum(grad.to(tl.float32) * cosine, 1)
            if M_PARTS > 1:
                last, pulled = pulled, ()
                for d_part in tl.static_range(D_PARTS if KEEP else 1):
                    high, low = prototypes_at(
                        resident, packed_pointer, offset_m, first_part + d_part, M_PAD, D_PAD, RESIDENT, PLANES, BLOCK_D
                    )
                    pulled = pulled + (along_prototypes(grad, high, low, last[d_part], PLANES),)
        factor = weight * scale
        if M_PARTS > 1:
            for d_part in tl.static_range(D_PARTS if KEEP else 1):
                tl.debug_barrier()  # else loads of the next part come early, and two do not fit into the registers
                store_gradient(
                    grad_embedding_pointer, embedding_pointer, pulled[d_part], along, factor, inverse, start_n,
                    (first_part + d_part) * BLOCK_D, used, N, D, stride_embedding, BLOCK_N, BLOCK_D,
                )  # fmt: skip
        elif RESIDENT:
            for d_part in tl.static_range(D_PARTS):
                tl.debug_barrier()
                of_part = pull(grad, resident, packed_pointer, d_part, M_PAD, D_PAD, RESIDENT, PLANES, BLOCK_M, BLOCK_D)
                store_gradient(
                    grad_embedding_pointer, embedding_pointer, of_part, along, factor, inverse, start_n,
                    d_part * BLOCK_D, used, N, D, stride_embedding, BLOCK_N, BLOCK_D,
                )  # fmt: skip
        else:  # a loop in the code too
            for d_part in range(D_PARTS):
                of_part = pull(grad, resident, packed_pointer, d_part, M_PAD, D_PAD, RESIDENT, PLANES, BLOCK_M, BLOCK_D)
                store_gradient(
                    grad_embedding_pointer, embedding_pointer, of_part, along, factor, inverse, start_n,
                    d_part * BLOCK_D, used, N, D, stride_embedding, BLOCK_N, BLOCK_D,
                )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def in_prototypes_kernel(
    grad_contrast_pointer,
    grad_alignment_pointer,
    embedding_pointer,
    packed_pointer,
    assignment_pointer,
    weight_pointer,
    lse_pointer,
    inverse_pointer,
    partial_pointer,
    N,
    D,
    M,
    K,
    M_PAD,
    D_PAD,
    stride_embedding,
    inverse_temperature,
    HAS_WEIGHT: tl.constexpr,
    SAME_CLASS_NEGATIVES: tl.constexpr,
    RESIDENT: tl.constexpr,
    PLANES: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    first_d = tl.program_id(0) * BLOCK_D
    first_m = tl.program_id(1) * BLOCK_M
    slot = tl.program_id(2)
    offset_n = tl.arange(0, BLOCK_N)
    offset_m = first_m + tl.arange(0, BLOCK_M)
    by_contrast, by_alignment, scale = coefficients(grad_contrast_pointer, grad_alignment_pointer, inverse_temperature)
    resident = load_resident(packed_pointer, first_m, M_PAD, D_PAD, RESIDENT, PLANES, D_PARTS, BLOCK_M, BLOCK_D)
    total = tl.zeros((BLOCK_D, BLOCK_M), tl.float32)
    # With what is invariant kept out of registers, as `total` needs half of them: else some would spill.
    for block in tl.range(slot, tl.cdiv(N, BLOCK_N), tl.num_programs(2), disable_licm=True):
        start_n = block * tl.full((), BLOCK_N, tl.int64)
        own, weight, used = load_pixels(assignment_pointer, weight_pointer, start_n, N, M, HAS_WEIGHT, BLOCK_N)
        product, _, x = products_of_tile(
            embedding_pointer, packed_pointer, resident, (), start_n, used, offset_m, D, M_PAD, D_PAD,
            stride_embedding, RESIDENT, False, PLANES, False, D_PARTS, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        lse = tl.load(lse_pointer + start_n + offset_n, offset_n < N - start_n, other=0.0)
        inverse = tl.load(inverse_pointer + start_n + offset_n, offset_n < N - start_n, other=0.0)
        grad = gradient_in_cosines(
            product * inverse[:, None], own[:, None], used[:, None], lse[:, None], offset_m[None, :], M, K,
            inverse_temperature, by_contrast, by_alignment, SAME_CLASS_NEGATIVES,
        )  # fmt: skip
        if D_PARTS > 1:
            x = load_rows(embedding_pointer, start_n, first_d, used, D, stride_embedding, BLOCK_N, BLOCK_D)
        total = add_to_prototypes(total, grad, weight * inverse, x)
    store_partial(
        partial_pointer, total * scale, slot, offset_m, first_d, tl.num_programs(1) * BLOCK_M, D_PARTS * BLOCK_D
    )
