"""Large work in pieces of a bounded size."""

from collections.abc import Iterator

MEBIBYTE = 1 << 20
MOVED_BYTES = 32 * MEBIBYTE
"""Logits copied at a time on an accelerator, where many small copies would cost more."""

ROWS_MOVED_IN_CACHE = 8
"""Rows of logits copied at a time on a CPU."""


def slices(count: int, most: int) -> Iterator[slice]:
    """Cut ``range(count)`` into pieces of nearly one length, none longer than ``most``."""
    pieces = -(-count // most)
    for i in range(pieces):
        yield slice(count * i // pieces, count * (i + 1) // pieces)


def rounded_up(count: int, whole: int, parts: int | None) -> int:
    """A count as one of few: a multiple of the whole's ``parts``-th part; None leaves it.

    Example:
        >>> [rounded_up(count, whole=100, parts=4) for count in (1, 26, 100)]
        [25, 50, 100]
    """
    if parts is None:
        return count
    part = -(-whole // parts)
    return min(whole, -(-count // part) * part)
