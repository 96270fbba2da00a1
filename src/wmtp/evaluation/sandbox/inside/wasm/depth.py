"""How many calls of C may be nested in an instance: as many as Python elsewhere, not 500.

CPython 3.12 counts calls of Python and calls of C apart. The first limit is the one that
``setrecursionlimit`` sets, the second was fixed when the interpreter was built for WASI, with a
small stack in mind. Both are kept beside each other in the state of the thread, where they are
found by a limit that nobody else has. A Python that keeps them otherwise keeps its own limit.

Source:
    ``struct _ts`` in CPython 3.12's Include/cpython/pystate.h
"""

import struct
from typing import Final

MARK: Final = 987_654
"""What the instance sets as its limit of recursion while it waits to be copied."""

_OF_WASI: Final = 500
_MORE: Final = 2_500
_MOST_IN_USE: Final = 100
_COUNTS: Final = struct.Struct("<iiii")  # Python's left, Python's limit, C's left, headroom
_LIMIT_AT: Final = 4
_C_AT: Final = 8


def larger_count_of_c(memory: bytes) -> tuple[int, bytes] | None:
    r"""The place of the count and what is to be written there; None if it is not to be found.

    Example:
        >>> larger_count_of_c(bytes(8) + _COUNTS.pack(MARK - 2, MARK, 497, 0))
        (16, b'\xb5\x0b\x00\x00')
        >>> larger_count_of_c(bytes(8) + _COUNTS.pack(MARK - 2, MARK, 70_000, 0)) is None
        True
    """
    found = []
    mark = struct.pack("<i", MARK)
    place = memory.find(mark)
    while place >= 0:
        start = place - _LIMIT_AT
        if place % 4 == 0 and 0 <= start <= len(memory) - _COUNTS.size:
            left, _, of_c, headroom = _COUNTS.unpack_from(memory, start)
            counting = 0 <= MARK - left < _MOST_IN_USE and 0 <= _OF_WASI - of_c < _MOST_IN_USE
            if counting and headroom == 0:
                found.append((start + _C_AT, struct.pack("<i", of_c + _MORE)))
        place = memory.find(mark, place + 1)
    return found[0] if len(found) == 1 else None
