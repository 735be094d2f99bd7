"""What becomes of freed memory, where malloc is glibc's."""

import ctypes

MIB = 2**20
# parameters of mallopt (malloc.h)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def can_be_set() -> bool:
    """Whether the settings have an effect: glibc alone has mallopt."""
    return hasattr(ctypes.CDLL(None), "mallopt")


def set_malloc(mapped: int, threshold: int, trim: int) -> None:
    """How many blocks may be mapped on their own, from which size (bytes) on, and from how much free memory (bytes) at
    its end the heap shrinks. What is free now goes back to the system."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_MAX, mapped)
    libc.mallopt(_MMAP_THRESHOLD, threshold)
    libc.mallopt(_TRIM_THRESHOLD, trim)
    libc.malloc_trim(0)


KEPT = (0, 32 * MIB, 2**31 - 1)  # one heap that never shrinks


def keep_freed_memory() -> None:
    """From now on this process uses freed memory again instead of giving it back and asking for new pages.

    By itself glibc maps every block above 32 MiB anew, and a step of training on the CPU touches hundreds of MB of such
    pages: kept, the step of the EBHI-Seg recipe takes three quarters of the time (docs/PERFORMANCE.md).
    """
    if can_be_set():
        set_malloc(*KEPT)
