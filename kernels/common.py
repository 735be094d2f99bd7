"""What the kernels share: tiles of rows, products of tiles, prototypes as packed unit vectors, sums over slots."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles

# Squared length under which a vector counts as zero: its unit vector and its gradient are 0.
SQUARED_ZERO = tl.constexpr(1e-12)
# Triton's interpreter multiplies bfloat16 tiles as if they were integers (3.6), so there they are widened first.
WIDEN = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def multiply(a, b, total):
    """total + a·b, accumulated in float32.

    float32 tiles as three products in TF32, which keeps their accuracy (2⁻²¹) on tensor cores.
    """
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit
def load_rows(
    x_pointer,
    start_n,
    first_d,
    used,
    D,
    stride_x,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LAST_USE: tl.constexpr = False,
):
    """The tile (BLOCK_N, BLOCK_D) of x (N, D); 0 in rows that are not used, and outside, whatever lies there.

    A tile that is read again, from the cache, is LAST_USE: for the compiler another load than the first, whose tile it
    else would keep in registers all along, and spill.
    """
    offset_n = tl.arange(0, BLOCK_N)
    offset_d = first_d + tl.arange(0, BLOCK_D)
    mask = used[:, None] & (offset_d < D)[None, :]
    tile = offset_n[:, None] * stride_x + offset_d[None, :]  # 32 bits: half the registers
    policy: tl.constexpr = "evict_first" if LAST_USE else ""
    return tl.load(x_pointer + start_n * stride_x + tile, mask, other=0.0, eviction_policy=policy)


@triton.jit
def load_packed(packed_pointer, offset_m, first_d, D_PAD, BLOCK_D: tl.constexpr):
    """The rows offset_m of one plane of packed prototypes, as a tile (BLOCK_M, BLOCK_D) that needs no mask."""
    offset_d = first_d + tl.arange(0, BLOCK_D)
    return tl.load(packed_pointer + offset_m[:, None] * D_PAD + offset_d[None, :])


@triton.jit
def load_resident(
    packed_pointer,
    first_m,
    M_PAD,
    D_PAD,
    RESIDENT: tl.constexpr,
    PLANES: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The tiles (BLOCK_M, BLOCK_D) of a tile of prototypes, plane after plane of each part of D: loaded before the loop
    over pixels, they stay in shared memory. Empty if not RESIDENT: then each is loaded where it is used."""
    tiles_of_d = ()
    if RESIDENT:
        offset_m = first_m + tl.arange(0, BLOCK_M)
        for d_part in tl.static_range(D_PARTS):
            for plane in tl.static_range(PLANES):
                start = packed_pointer + plane * M_PAD * D_PAD
                tiles_of_d = tiles_of_d + (load_packed(start, offset_m, d_part * BLOCK_D, D_PAD, BLOCK_D),)  # type: ignore[assignment]
    return tiles_of_d


@triton.jit
def repeated(one, count: tl.constexpr):
    """A tuple of `count` times the same tensor."""
    found = ()
    for _ in tl.static_range(count):
        found = found + (one,)  # type: ignore[assignment]
    return found


@triton.jit
def load_kept(
    x_pointer,
    start_n,
    used,
    D,
    stride_x,
    KEEP: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The tiles (BLOCK_N, BLOCK_D) of x, one for each part of D, and ‖x‖² (BLOCK_N,): loaded before the loop over tiles
    of prototypes, they stay in shared memory. Empty and 0 if not KEEP: then each is loaded where it is used."""
    tiles_of_d = ()
    squared = tl.zeros((BLOCK_N,), tl.float32)
    if KEEP:
        for d_part in tl.static_range(D_PARTS):
            x = load_rows(x_pointer, start_n, d_part * BLOCK_D, used, D, stride_x, BLOCK_N, BLOCK_D)
            squared += squared_length(x)
            tiles_of_d = tiles_of_d + (x,)  # type: ignore[assignment]
    return tiles_of_d, squared


@triton.jit
def prototypes_at(
    resident,
    packed_pointer,
    offset_m,
    d_part,
    M_PAD,
    D_PAD,
    RESIDENT: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The two planes (BLOCK_M, BLOCK_D) of prototypes at a part of D; the same one twice if there is one."""
    if RESIDENT:
        return resident[d_part * PLANES], resident[d_part * PLANES + PLANES - 1]
    else:
        high = load_packed(packed_pointer, offset_m, d_part * BLOCK_D, D_PAD, BLOCK_D)
        start = packed_pointer + (PLANES - 1) * M_PAD * D_PAD
        return high, load_packed(start, offset_m, d_part * BLOCK_D, D_PAD, BLOCK_D)


@triton.jit
def along_prototypes(grad, high, low, total, PLANES: tl.constexpr):
    """total + grad·p̂ of a gradient in the cosines (BLOCK_N, BLOCK_M), to (BLOCK_N, BLOCK_D)."""
    total = multiply(grad.to(high.dtype), high, total)
    if PLANES == 2:
        total = multiply(grad.to(high.dtype), low, total)
    return total


@triton.jit
def squared_length(x):
    x = x.to(tl.float32)
    return tl.sum(x * x, 1)


@triton.jit
def inverse_length(squared):
    """1/‖x‖, and 0 for a zero vector: then its cosines, and every gradient that carries this factor, are 0."""
    alive = squared >= SQUARED_ZERO
    return tl.where(alive, tl.rsqrt(tl.where(alive, squared, 1.0)), 0.0)


@triton.jit
def add_part(
    product,
    squared,
    embedding_pointer,
    packed_pointer,
    resident,
    kept,
    start_n,
    used,
    offset_m,
    d_part,
    D,
    M_PAD,
    D_PAD,
    stride_embedding,
    RESIDENT: tl.constexpr,
    KEEP: tl.constexpr,
    PLANES: tl.constexpr,
    SQUARE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One part of D of the products x·p̂, and of ‖x‖² if SQUARE; and the part of x (BLOCK_N, BLOCK_D)."""
    if KEEP:
        x = kept[d_part]
    else:
        x = load_rows(embedding_pointer, start_n, d_part * BLOCK_D, used, D, stride_embedding, BLOCK_N, BLOCK_D)
    high, low = prototypes_at(resident, packed_pointer, offset_m, d_part, M_PAD, D_PAD, RESIDENT, PLANES, BLOCK_D)
    product = multiply(x, tl.trans(high), product)
    if PLANES == 2:
        product = multiply(x, tl.trans(low), product)
    if SQUARE:
        squared += squared_length(x)
    return product, squared, x


@triton.jit
def products_of_tile(
    embedding_pointer,
    packed_pointer,
    resident,
    kept,
    start_n,
    used,
    offset_m,
    D,
    M_PAD,
    D_PAD,
    stride_embedding,
    RESIDENT: tl.constexpr,
    KEEP: tl.constexpr,
    PLANES: tl.constexpr,
    SQUARE: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """x·p̂ of a tile of pixels and the prototypes offset_m (BLOCK_N, BLOCK_M), ‖x‖² (BLOCK_N,) if SQUARE, and the last
    part of x (BLOCK_N, BLOCK_D): all of it if D_PARTS is 1."""
    product = tl.zeros((BLOCK_N, offset_m.shape[0]), tl.float32)
    squared = tl.zeros((BLOCK_N,), tl.float32)
    x = tl.zeros((BLOCK_N, BLOCK_D), embedding_pointer.dtype.element_ty)
    if RESIDENT or KEEP:
        for d_part in tl.static_range(D_PARTS):
            product, squared, x = add_part(
                product, squared, embedding_pointer, packed_pointer, resident, kept, start_n, used, offset_m, d_part,
                D, M_PAD, D_PAD, stride_embedding, RESIDENT, KEEP, PLANES, SQUARE, BLOCK_N, BLOCK_D,
            )  # fmt: skip
    else:
        for d_part in range(D_PARTS):
            product, squared, x = add_part(
                product, squared, embedding_pointer, packed_pointer, resident, kept, start_n, used, offset_m, d_part,
                D, M_PAD, D_PAD, stride_embedding, RESIDENT, KEEP, PLANES, SQUARE, BLOCK_N, BLOCK_D,
            )  # fmt: skip
    return product, squared, x


@triton.jit
def store_rows(x_pointer, x, start_n, first_d, N, D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes the tile into x (N, D), which is contiguous."""
    offset_n = tl.arange(0, BLOCK_N)
    offset_d = first_d + tl.arange(0, BLOCK_D)
    mask = (offset_n < N - start_n)[:, None] & (offset_d < D)[None, :]
    tile = offset_n[:, None] * D + offset_d[None, :]
    tl.store(x_pointer + start_n * D + tile, x.to(x_pointer.dtype.element_ty), mask)


@triton.jit
def upright(x, pulled, along, factor, inverse):
    """A tile of the gradient in x, from that in the cosines.

    With s_m = x̂·p̂_m and g_m = dL/ds_m:  dL/dx̂ = Σ g_m p̂_m,  and through x̂ = x/‖x‖

        dL/dx = (Σ g_m p̂_m − x̂ (x̂·Σ g_m p̂_m)) / ‖x‖ = (Σ g_m p̂_m − x̂ Σ g_m s_m) / ‖x‖

    Here g = factor·g' with one factor a pixel, pulled = Σ g'_m p̂_m (BLOCK_N, BLOCK_D), along = Σ g'_m s_m (BLOCK_N,).
    """
    return (pulled - x.to(tl.float32) * (inverse * along)[:, None]) * (factor * inverse)[:, None]


@triton.jit
def store_gradient(
    grad_embedding_pointer,
    embedding_pointer,
    pulled,
    along,
    factor,
    inverse,
    start_n,
    first_d,
    used,
    N,
    D,
    stride_embedding,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Writes a tile of the gradient in x (BLOCK_N, BLOCK_D), see `upright`; x itself is read again, from the cache."""
    x = load_rows(embedding_pointer, start_n, first_d, used, D, stride_embedding, BLOCK_N, BLOCK_D, True)
    store_rows(
        grad_embedding_pointer, upright(x, pulled, along, factor, inverse), start_n, first_d, N, D, BLOCK_N, BLOCK_D
    )


@triton.jit
def pull(
    grad,
    resident,
    packed_pointer,
    d_part,
    M_PAD,
    D_PAD,
    RESIDENT: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad·p̂ at a part of D, of prototypes that are one tile: (BLOCK_N, BLOCK_D)."""
    high, low = prototypes_at(
        resident, packed_pointer, tl.arange(0, BLOCK_M), d_part, M_PAD, D_PAD, RESIDENT, PLANES, BLOCK_D
    )
    return along_prototypes(grad, high, low, tl.zeros((grad.shape[0], BLOCK_D), tl.float32), PLANES)


@triton.jit
def add_to_prototypes(total, grad, factor, x):
    """total (BLOCK_D, BLOCK_M) + Σ_n factor_n·grad_nm·x_n: the gradient in unit prototypes, dL/dp̂_m = Σ g_nm x̂_n.

    In float16 the factor, which holds the caller's weight and 1/‖x‖, could push grad below the smallest number, 6e-8.
    There it is divided by its largest value in the tile, and the product multiplied by that in float32.
    """
    if x.dtype == tl.float16:
        largest = tl.max(tl.abs(factor), 0)
        factor = factor / tl.where(largest > 0, largest, 1.0)
        rows = (grad * factor[:, None]).to(tl.float16)
        return total + largest * multiply(tl.trans(x), rows, tl.zeros_like(total))
    rows = (grad * factor[:, None]).to(x.dtype)
    return multiply(tl.trans(x), rows, total)


@triton.jit
def store_partial(partial_pointer, total, slot, offset_m, first_d, M_PAD, D_PAD):
    """Writes the tile (BLOCK_D, BLOCK_M) into partial (slots, M_PAD, D_PAD)."""
    offset_d = first_d + tl.arange(0, total.shape[0])
    partial_pointer += slot.to(tl.int64) * M_PAD * D_PAD
    tl.store(partial_pointer + offset_m[None, :] * D_PAD + offset_d[:, None], total)


@triton.jit(do_not_specialize=["C", "K"])
def pack_kernel(
    prototypes_pointer,
    packed_pointer,
    D,
    C,
    K,
    K_PAD,
    M_PAD,
    D_PAD,
    PLANES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Half precision keeps a unit vector as the sum of two planes, the second what rounding took from the first: so a
    # cosine errs by 2e-5 in bfloat16 where one plane alone errs by 6e-3, and ten times that as a logit.
    offset_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offset_c, offset_k = offset_m // K_PAD, offset_m % K_PAD
    mask_m = (offset_c < C) & (offset_k < K)
    source = prototypes_pointer + (offset_c * K + offset_k)[:, None] * D
    squared = tl.zeros((BLOCK_M,), tl.float32)
    for first_d in range(0, D_PAD, BLOCK_D):
        offset_d = first_d + tl.arange(0, BLOCK_D)
        p = tl.load(source + offset_d[None, :], mask_m[:, None] & (offset_d < D)[None, :], other=0.0)
        squared += tl.sum(p * p, 1)
    inverse = inverse_length(squared)
    for first_d in range(0, D_PAD, BLOCK_D):
        offset_d = first_d + tl.arange(0, BLOCK_D)
        p = tl.load(source + offset_d[None, :], mask_m[:, None] & (offset_d < D)[None, :], other=0.0)
        rest = p * inverse[:, None]
        target = packed_pointer + offset_m[:, None] * D_PAD + offset_d[None, :]
        for plane in tl.static_range(PLANES):
            unit = rest.to(packed_pointer.dtype.element_ty)
            tl.store(target + plane * M_PAD * D_PAD, unit)
            rest -= unit.to(tl.float32)


@triton.jit(do_not_specialize=["slots"])
def prototypes_gradient_kernel(
    partial_pointer,
    prototypes_pointer,
    grad_prototypes_pointer,
    D,
    M_PAD,
    D_PAD,
    slots,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # One program a prototype. With G = Σ_n g_n x̂_n, the gradient in p̂:  dL/dp = (G − p̂ (p̂·G)) / ‖p‖
    row = tl.program_id(0)
    offset_s = tl.arange(0, BLOCK_S)
    offset_d = tl.arange(0, BLOCK_D)
    mask_d = offset_d < D
    partial_pointer += row * D_PAD + offset_d[None, :]
    total = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    for first in range(0, slots, BLOCK_S):
        slot = first + offset_s
        mask = (slot < slots)[:, None] & mask_d[None, :]
        total += tl.load(partial_pointer + slot.to(tl.int64)[:, None] * M_PAD * D_PAD, mask, other=0.0)
    grad = tl.sum(total, 0)
    p = tl.load(prototypes_pointer + row * D + offset_d, mask_d, other=0.0)
    inverse = inverse_length(tl.sum(p * p, 0))
    unit = p * inverse
    upright = (grad - unit * tl.sum(unit * grad, 0)) * inverse
    tl.store(grad_prototypes_pointer + row * D + offset_d, upright, mask_d)


@triton.jit(do_not_specialize=["slots", "width"])
def sum_slots_kernel(
    partial_pointer,
    first_pointer,
    rest_pointer,
    slots,
    width,
    BLOCK_S: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    # partial (slots, width) summed over the slots: column 0 into first (), the others into rest (width − 1,)
    offset_s = tl.arange(0, BLOCK_S)
    offset_w = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    mask_w = offset_w < width
    total = tl.zeros((BLOCK_S, BLOCK_W), tl.float32)
    for first in range(0, slots, BLOCK_S):
        slot = first + offset_s
        mask = (slot < slots)[:, None] & mask_w[None, :]
        total += tl.load(partial_pointer + slot[:, None] * width + offset_w[None, :], mask, other=0.0)
    result = tl.sum(total, 0)
    tl.store(first_pointer + offset_w, result, offset_w == 0)
    tl.store(rest_pointer + offset_w - 1, result, mask_w & (offset_w > 0))


def parts(size: int, block: int) -> int:
    return (size + block - 1) // block


def pack(
    prototypes: Tensor,  # (C, K, D) f32, contiguous
    like: Tensor,  # gives the dtype
    k_pad: int | None = None,
) -> Tensor:  # (planes, m_pad, d_pad), the sum over the planes counts
    """Unit prototypes, class c at rows c·k_pad onwards (None: c·K), zeros in every other row and column.

    Each axis is whole in tiles of any size that is allowed, so that forward packs once for every kernel.
    """
    classes, per_class, width = prototypes.shape
    k_pad = per_class if k_pad is None else k_pad
    m_pad, d_pad = tiles.padded(classes * k_pad), tiles.padded(width)
    planes = 1 if like.dtype == torch.float32 else 2
    packed = torch.empty((planes, m_pad, d_pad), dtype=like.dtype, device=like.device)
    rows = 8
    pack_kernel[(parts(m_pad, rows),)](
        prototypes,
        packed,
        width,
        classes,
        per_class,
        k_pad,
        m_pad,
        d_pad,
        PLANES=planes,
        BLOCK_M=rows,
        BLOCK_D=min(256, d_pad & -d_pad),
        num_warps=4,
    )
    return packed


def no_gradients(
    embedding: Tensor, prototypes: Tensor, need_embedding: bool, need_prototypes: bool
) -> tuple[Tensor, Tensor]:
    """Of no pixels."""
    return (
        torch.empty_like(embedding) if need_embedding else embedding.new_empty(0),
        torch.zeros_like(prototypes) if need_prototypes else prototypes.new_empty(0),
    )


def gradient_in_prototypes(
    partial: Tensor,  # (slots, m_pad, d_pad) f32: the parts of the gradient in the unit prototypes
    prototypes: Tensor,  # (C, K, D) f32
) -> Tensor:  # (C, K, D) f32
    slots, m_pad, d_pad = partial.shape
    classes, per_class, width = prototypes.shape
    grad = torch.empty_like(prototypes)
    block_d = tiles.power_of_two(width)
    prototypes_gradient_kernel[(classes * per_class,)](
        partial,
        prototypes,
        grad,
        width,
        m_pad,
        d_pad,
        slots,
        BLOCK_S=max(1, min(tiles.power_of_two(slots), 16384 // block_d)),  # few rounds, as each waits for the memory
        BLOCK_D=block_d,
        num_warps=16,
    )
    return grad


def sum_slots(
    partial: Tensor,  # (slots, width) f32
    first: Tensor,  # ()
    rest: Tensor,  # (width - 1,) in any shape
) -> None:
    """Writes the sum over the slots: column 0 into `first`, the others into `rest`."""
    slots, width = partial.shape
    block_s = min(2048, tiles.power_of_two(slots))  # all in one round, as each waits for the memory
    block_w = max(1, min(8192 // block_s, tiles.power_of_two(width)))
    sum_slots_kernel[(parts(width, block_w),)](
        partial, first, rest, slots, width, BLOCK_S=block_s, BLOCK_W=block_w, num_warps=8
    )
