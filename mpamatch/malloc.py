"""What glibc's malloc does with freed memory; with any other malloc nothing here has an effect."""

import ctypes

MIB = 2**20
# parameters of mallopt (malloc.h)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def can_be_set() -> bool:
    """Tells whether the settings have an effect: glibc alone has mallopt."""
    return hasattr(ctypes.CDLL(None), "mallopt")


def set_malloc(mapped: int, threshold: int, trim: int) -> None:
    """Sets when malloc returns memory to the system, and returns what is free now.

    Args:
        mapped: the most blocks that may be mapped on their own, to be unmapped when they are freed.
        threshold: the size, in bytes, from which a block is mapped on its own.
        trim: the free memory at the end of the heap, in bytes, from which the heap shrinks.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_MAX, mapped)
    libc.mallopt(_MMAP_THRESHOLD, threshold)
    libc.mallopt(_TRIM_THRESHOLD, trim)
    libc.malloc_trim(0)


KEPT = (0, 32 * MIB, 2**31 - 1)  # one heap that never shrinks


def keep_freed_memory() -> None:
    """Makes this process reuse freed memory instead of returning it to the system and asking for new pages.

    By default glibc maps every block above 32 MiB anew, and a step of training on the CPU touches hundreds of MB of
    such pages: with the memory kept, the step of the EBHI-Seg recipe takes three quarters of the time
    (docs/PERFORMANCE.md).
    """
    if can_be_set():
        set_malloc(*KEPT)
