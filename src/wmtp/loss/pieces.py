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
