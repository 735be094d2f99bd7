"""What the kernels share: tiles of rows, products of tiles, prototypes as packed unit vectors, sums over slots."""

from typing import NamedTuple

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
    """total + a·b, accumulated in float32. float32 tiles are multiplied in full precision, not in TF32."""
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def load_rows(x_pointer, start_n, first_d, N, D, stride_x, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """The tile (BLOCK_N, BLOCK_D) of x (N, D); 0 outside, whatever lies there."""
    offset_n = tl.arange(0, BLOCK_N)
    offset_d = first_d + tl.arange(0, BLOCK_D)
    mask = (offset_n < N - start_n)[:, None] & (offset_d < D)[None, :]
    tile = offset_n[:, None] * stride_x + offset_d[None, :]  # 32 bits: half the registers
    return tl.load(x_pointer + start_n * stride_x + tile, mask, other=0.0)


@triton.jit
def load_packed(packed_pointer, offset_m, first_d, D_PAD, BLOCK_D: tl.constexpr):
    """The rows offset_m of one plane of packed prototypes, as a tile (BLOCK_M, BLOCK_D) that needs no mask."""
    offset_d = first_d + tl.arange(0, BLOCK_D)
    return tl.load(packed_pointer + offset_m[:, None] * D_PAD + offset_d[None, :])


@triton.jit
def with_prototypes(
    x, packed_pointer, offset_m, first_d, M_PAD, D_PAD, total, PLANES: tl.constexpr, BLOCK_D: tl.constexpr
):
    """total + x·p̂ᵀ of pixels x (BLOCK_N, BLOCK_D), to (BLOCK_N, BLOCK_M)."""
    for plane in tl.static_range(PLANES):
        p = load_packed(packed_pointer + plane * M_PAD * D_PAD, offset_m, first_d, D_PAD, BLOCK_D)
        total = multiply(x, tl.trans(p), total)
    return total


@triton.jit
def along_prototypes(
    grad, packed_pointer, offset_m, first_d, M_PAD, D_PAD, total, PLANES: tl.constexpr, BLOCK_D: tl.constexpr
):
    """total + grad·p̂ of a gradient in the cosines (BLOCK_N, BLOCK_M), to (BLOCK_N, BLOCK_D)."""
    for plane in tl.static_range(PLANES):
        p = load_packed(packed_pointer + plane * M_PAD * D_PAD, offset_m, first_d, D_PAD, BLOCK_D)
        total = multiply(grad.to(p.dtype), p, total)
    return total


@triton.jit
def squared_length(x):
    x = x.to(tl.float32)
    return tl.sum(x * x, 1)


@triton.jit
def squared_lengths(
    embedding_pointer,
    start_n,
    N,
    D,
    stride_embedding,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    squared = tl.zeros((BLOCK_N,), tl.float32)
    for part in range(D_PARTS):
        squared += squared_length(
            load_rows(embedding_pointer, start_n, part * BLOCK_D, N, D, stride_embedding, BLOCK_N, BLOCK_D)
        )
    return squared


@triton.jit
def inverse_length(squared):
    """1/‖x‖, and 0 for a zero vector: then its cosines, and every gradient that carries this factor, are 0."""
    alive = squared >= SQUARED_ZERO
    return tl.where(alive, 1.0 / tl.sqrt(tl.where(alive, squared, 1.0)), 0.0)


@triton.jit
def cosines_of_tile(
    x,
    embedding_pointer,
    packed_pointer,
    start_n,
    offset_m,
    N,
    D,
    M_PAD,
    stride_embedding,
    PLANES: tl.constexpr,
    D_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The cosines of a tile of pixels with the prototypes offset_m (BLOCK_N, BLOCK_M), and 1/‖x‖ (BLOCK_N,).

    x is the tile (BLOCK_N, BLOCK_D) if D_PARTS is 1, which no caller loads again; else its parts are loaded here.
    """
    product = tl.zeros((BLOCK_N, offset_m.shape[0]), tl.float32)
    if D_PARTS == 1:
        product = with_prototypes(x, packed_pointer, offset_m, 0, M_PAD, BLOCK_D, product, PLANES, BLOCK_D)
        squared = squared_length(x)
    else:
        squared = tl.zeros((BLOCK_N,), tl.float32)
        for d_part in range(D_PARTS):
            part = load_rows(embedding_pointer, start_n, d_part * BLOCK_D, N, D, stride_embedding, BLOCK_N, BLOCK_D)
            product = with_prototypes(
                part, packed_pointer, offset_m, d_part * BLOCK_D, M_PAD, D_PARTS * BLOCK_D, product, PLANES, BLOCK_D
            )
            squared += squared_length(part)
    inverse = inverse_length(squared)
    return product * inverse[:, None], inverse


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
def add_to_prototypes(total, grad, factor, x):
    """total (BLOCK_M, BLOCK_D) + Σ_n factor_n·grad_nm·x_n: the gradient in unit prototypes, dL/dp̂_m = Σ g_nm x̂_n.

    In float16 the factor, which holds the caller's weight and 1/‖x‖, could push grad below the smallest number, 6e-8.
    There it is divided by its largest value in the tile, and the product multiplied by that in float32.
    """
    if x.dtype == tl.float16:
        largest = tl.max(tl.abs(factor), 0)
        factor = factor / tl.where(largest > 0, largest, 1.0)
        rows = (grad * factor[:, None]).to(tl.float16)
        return total + largest * multiply(tl.trans(rows), x, tl.zeros_like(total))
    rows = (grad * factor[:, None]).to(x.dtype)
    return multiply(tl.trans(rows), x, total)


@triton.jit
def store_partial(partial_pointer, total, slot, offset_m, first_d, M_PAD, D_PAD):
    """Writes the tile (BLOCK_M, BLOCK_D) into partial (slots, M_PAD, D_PAD)."""
    offset_d = first_d + tl.arange(0, total.shape[1])
    partial_pointer += slot.to(tl.int64) * M_PAD * D_PAD
    tl.store(partial_pointer + offset_m[:, None] * D_PAD + offset_d[None, :], total)


@triton.jit
def load_classes(logits_pointer, image, start_p, C, P, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """The logits (C, P) of an image as a float32 tile (BLOCK_C, BLOCK_P): −inf beyond class C, 0 beyond pixel P."""
    offset_c = tl.arange(0, BLOCK_C)[:, None]
    offset_p = tl.arange(0, BLOCK_P)[None, :]
    logits_pointer += image * C * P + start_p
    mask_c, mask_p = offset_c < C, offset_p < P - start_p
    x = tl.load(logits_pointer + offset_c.to(tl.int64) * P + offset_p, mask_c & mask_p, other=0.0).to(tl.float32)
    return tl.where(mask_c, x, float("-inf"))


@triton.jit
def softmax(x):
    """The softmax over axis 0, and the log-sum-exp."""
    highest = tl.max(x, 0)
    exponential = tl.exp(x - highest[None, :])
    total = tl.sum(exponential, 0)
    return exponential / total[None, :], highest + tl.log(total)


@triton.jit
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


@triton.jit
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


@triton.jit
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


def extent(size: int, smallest: int, largest: int) -> int:
    """A power of two for a tile along an axis of `size`: the whole axis where `largest` allows it."""
    return min(max(smallest, tiles.power_of_two(size)), largest)


def parts(size: int, block: int) -> int:
    return (size + block - 1) // block


def slots_of(tile: dict[str, int], pixels: int, shares: int) -> int:
    """The slots of a backward kernel, each of which `shares` programs divide among them: tiles of D, of prototypes.

    Those stand next to each other in the grid, so that they find each other's pixels in the cache.
    """
    return min(max(1, tile["programs"] // shares), parts(pixels, tile["BLOCK_N"]))


def pack(
    prototypes: Tensor,  # (C, K, D) f32, contiguous
    like: Tensor,  # gives the dtype
    k_pad: int,
    m_pad: int,
    d_pad: int,
) -> Tensor:  # (planes, m_pad, d_pad), the sum over the planes counts
    """Unit prototypes, class c at rows c·k_pad onwards, zeros in every other row and column."""
    classes, per_class, width = prototypes.shape
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


class Plan(NamedTuple):
    """What a backward kernel over pixels and prototypes writes to, and how it is launched."""

    packed: Tensor  # (planes, m_pad, d_pad)
    m_pad: int
    grad_embedding: Tensor  # (N, D) in embedding's dtype; (0,) if not needed, and so below
    partial: Tensor  # (slots, m_pad, d_pad) f32
    launches: list[tuple[tuple[int, int, int], dict[str, int | bool]]]  # each launch's grid and constants


def plan_backward(
    kernel: str, embedding: Tensor, prototypes: Tensor, need_embedding: bool, need_prototypes: bool
) -> Plan:
    """One launch makes both gradients if all prototypes fit in one tile.

    A gradient in embedding sums over all prototypes, one in prototypes keeps its sum in registers over all pixels:
    beyond one tile, those are two loops, and two launches.
    """
    pixels, width = embedding.shape
    classes, per_class, _ = prototypes.shape
    count, device = classes * per_class, embedding.device
    tile = tiles.lookup(kernel, device, bits=embedding.itemsize * 8, D=width, M=count)
    block_m, block_d = extent(count, 16, tile["BLOCK_M"]), extent(width, 16, tile["BLOCK_D"])
    m_parts, d_parts = parts(count, block_m), parts(width, block_d)
    m_pad, d_pad = m_parts * block_m, d_parts * block_d
    slots = slots_of(tile, pixels, d_parts * m_parts)
    grad_embedding = torch.empty((pixels, width) if need_embedding else (0,), dtype=embedding.dtype, device=device)
    partial = torch.empty((slots, m_pad, d_pad) if need_prototypes else (0,), dtype=torch.float32, device=device)
    packed = pack(prototypes, embedding, per_class, m_pad, d_pad)
    if m_parts == 1:
        wanted = [(need_embedding, need_prototypes)]
    else:
        wanted = [(need_embedding, False), (False, need_prototypes)]
    launches = []
    for in_embedding, in_prototypes in wanted:
        if in_embedding or in_prototypes:
            grid = (d_parts, m_parts, slots) if in_prototypes else (d_parts, 1, slots_of(tile, pixels, d_parts))
            constants = {
                "IN_EMBEDDING": in_embedding,
                "IN_PROTOTYPES": in_prototypes,
                "PLANES": packed.shape[0],
                "M_PARTS": 1 if in_prototypes else m_parts,
                "D_PARTS": d_parts,
                "BLOCK_N": tile["BLOCK_N"],
                "BLOCK_M": block_m,
                "BLOCK_D": block_d,
                "num_warps": tile["num_warps"],
                "num_stages": tile["num_stages"],
            }
            launches.append((grid, constants))
    return Plan(packed, m_pad, grad_embedding, partial, launches)


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
        BLOCK_S=max(1, min(16, 4096 // block_d)),
        BLOCK_D=block_d,
        num_warps=4,
    )
    return grad


def sum_slots(
    partial: Tensor,  # (slots, width) f32
    first: Tensor,  # ()
    rest: Tensor,  # (width - 1,) in any shape
) -> None:
    """Writes the sum over the slots: column 0 into `first`, the others into `rest`."""
    slots, width = partial.shape
    block_w = min(16, tiles.power_of_two(width))
    sum_slots_kernel[(parts(width, block_w),)](
        partial, first, rest, slots, width, BLOCK_S=1024 // block_w, BLOCK_W=block_w, num_warps=4
    )
