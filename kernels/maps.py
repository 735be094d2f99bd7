"""What kernels over maps share: the classes of a block of pixels, and their softmax."""

import triton
import triton.language as tl

# The maps (C, P) of an image are taken a block of pixels at a time. Up to APART classes each is a tensor of its own, in
# the threads that own its pixels: sums and maxima over the classes stay in a thread, and no class is padding. More
# would not fit into the registers: they are one tile (BLOCK_C, BLOCK_P), whose classes lie in several threads.
APART = 32
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def place_of(block, blocks, P, BLOCK_P: tl.constexpr):
    """Of a block of pixels, of which each image has `blocks`: its image (64 bits, for offsets), its first pixel, and
    which of its pixels there are (BLOCK_P,)."""
    start_p = (block % blocks) * BLOCK_P
    return (block // blocks) * tl.full((), 1, tl.int64), start_p, tl.arange(0, BLOCK_P) < P - start_p


@triton.jit
def load_classes_apart(logits_pointer, image, start_p, used, P, C: tl.constexpr, BLOCK_P: tl.constexpr):
    """The logits of each class, C tensors (BLOCK_P,) in float32; 0 in pixels that are not used, whatever lies there."""
    offset_p = tl.arange(0, BLOCK_P)
    logits_pointer += image * C * P + start_p
    inside = offset_p < P - start_p
    classes = ()
    for c in tl.static_range(C):
        x = tl.load(logits_pointer + c * tl.cast(P, tl.int64) + offset_p, inside, other=0.0).to(tl.float32)
        classes = classes + (tl.where(used, x, 0.0),)
    return classes


@triton.jit
def exponentials(x, C: tl.constexpr):
    """exp of each class's logits less the highest, C tensors; their sum; and the highest."""
    highest = x[0]
    for c in tl.static_range(1, C):
        highest = tl.maximum(highest, x[c])
    shift = highest * LOG2_E
    total = tl.zeros_like(highest)
    raised = ()
    for c in tl.static_range(C):
        e = tl.exp2(x[c] * LOG2_E - shift)  # half the instructions of exp, which looks after tiny results
        total += e
        raised = raised + (e,)
    return raised, total, highest


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
