"""GPU kernels in Triton, one file an operation; installed as `mpamatch.kernels`. Importing this needs no Triton.

Each file offers `forward` and, where there is a gradient, `backward`, on tensors of one device. They check nothing:
that is done at the door of `mpamatch.ops`. One naming grammar holds in all of them:

    N, D, M, C, K, P        sizes: pixels, width, prototypes, classes, prototypes per class, pixels of one image
    D_PAD, M_PAD, K_PAD     a size rounded up, so that what lies there needs no mask
    x_pointer               the first element of tensor x
    stride_x                elements from one row of x to the next
    BLOCK_N                 the extent of a tile along N, a power of two
    D_PARTS, M_PARTS        the number of tiles along D, along M
    start_n, first_m        the first index of a tile: 64 bits along N, so that N·D may pass 2³¹
    offset_n, offset_m      indices along a tile: counted from start_n along N, in the whole tensor elsewhere
    mask_n                  which of them exist
    block, slot             a tile along N; the partial sum that a program adds to

A sum over pixels is split over a fixed number of slots. A program goes through the blocks slot, slot + slots, … and
writes the partial sum of its slot; a second kernel adds the slots in their order. So a result is the same bit for bit
in every run, with no atomic addition. Sizes of tiles and the number of slots come from `tiles`.
"""
