"""What the C library keeps of freed memory, and how to have it given back to the system.

glibc keeps freed pieces for later ones, of up to 32 MiB once such pieces have come and gone. In a
training step they are of many sizes and live for many lengths of time, and what is kept may be as
much as what is used. That is the faster way (what is given back costs fresh pages when it is needed
again), so it is left where there is memory to spare.
"""

import ctypes
import sys
from typing import Final

GIVEN_BACK_ABOVE: Final = 2**18
"""Bytes of a piece that is given back as soon as it is freed, once that was asked for."""

_MMAP_THRESHOLD: Final = -3  # of malloc.h


def give_freed_memory_back() -> bool:
    """Give what is free back to the system, and from now on large pieces as soon as they are freed.

    To be called before a run has taken its memory: pieces that fit between others go there first,
    and are then kept.

    Returns:
        False where the C library is not glibc; that of macOS gives large pieces back by itself.

    Source:
        mallopt(3), malloc_trim(3).
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    try:
        trim, set_option = library.malloc_trim, library.mallopt
    except AttributeError:  # such as musl
        return False
    trim(0)
    return bool(set_option(_MMAP_THRESHOLD, GIVEN_BACK_ABOVE))
