"""Which rows of an optimizer step one rank reads, in which micro-batches.

A step's rows are fixed by the recipe: ``tokens_per_step`` in rows, or ``batch_size *
gradient_accumulation`` of them, from one position of the data on. How many ranks share them, and
how many rows fit into memory at once, changes who reads a row and when, but never which rows a
step learns from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import final

from wmtp.errors import ConfigError


@final
@dataclass(frozen=True)
class StepShare:
    """One rank's part of every step.

    Attributes:
        rows_per_step: rows that all ranks read together.
        first: where this rank's part begins in the rows of a step.
        sizes: rows of each of its micro-batches.
    """

    rows_per_step: int
    first: int
    sizes: tuple[int, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """Where in the step each micro-batch begins."""
        return tuple(accumulate(self.sizes[:-1], initial=self.first))

    def halved(self) -> "StepShare | None":
        """The same rows in micro-batches of half the size; None where they are single rows."""
        largest = max(self.sizes)
        if largest == 1:
            return None
        return self.cut(largest // 2)

    def cut(self, largest: int) -> "StepShare":
        """The same rows in micro-batches of at most so many."""
        return replace(self, sizes=_cut(sum(self.sizes), min(largest, max(self.sizes))))


def share_of_step(rows: int, largest: int, rank: int = 0, count: int = 1) -> StepShare:
    """The part of rank ``rank`` of ``count``: equal parts, in micro-batches of ``largest`` at most.

    Raises:
        ConfigError: the rows cannot be shared equally; says how many rows could be.

    Example:
        >>> share_of_step(rows=8, largest=4)
        StepShare(rows_per_step=8, first=0, sizes=(4, 4))
        >>> share_of_step(rows=8, largest=4, rank=1, count=2)
        StepShare(rows_per_step=8, first=4, sizes=(4,))
        >>> share_of_step(rows=4, largest=4, rank=3, count=4)
        StepShare(rows_per_step=4, first=3, sizes=(1,))
    """
    if rows % count:
        raise ConfigError(
            f"a step has {rows} rows (train.tokens_per_step, or data.train.batch_size times "
            f"train.gradient_accumulation), which {count} ranks cannot share "
            f"equally. Make it a multiple of {count}, such as {-(-rows // count) * count}."
        )
    own = rows // count
    return StepShare(rows, rank * own, _cut(own, largest))


def share_of_rows(count: int, rank: int, ranks: int) -> Sequence[int]:
    """Which of ``count`` rows are measured by one rank: every ``ranks``-th, from its own on."""
    return range(rank, count, ranks)


def _cut(rows: int, largest: int) -> tuple[int, ...]:
    """As few pieces of at most ``largest`` as will do, all of nearly the same size."""
    pieces = -(-rows // largest)
    small, larger = divmod(rows, pieces)
    return (small + 1,) * larger + (small,) * (pieces - larger)
