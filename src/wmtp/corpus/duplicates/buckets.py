"""Rows of numbers that do not fit into memory, sorted with files."""

import contextlib
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

# a file's rows, the order that sorts them, and the rows in that order are in memory at once
_COPIES = 4

# some systems let a process open 256; a file that is still too large is cut again
_MOST_FILES = 64


class Buckets:
    """Rows of ``width`` uint64, kept in files by ranges of their first number.

    All files together hold what was added; each is small enough to be sorted in memory, unless
    most rows begin with few numbers: then it is cut into smaller ranges before it is sorted.
    """

    def __init__(self, folder: Path, width: int, highest: int, expected_bytes: int, memory: int):
        """Make a new folder; a file is opened when it gets its first row.

        Args:
            folder: is created, and emptied again by leaving the context.
            width: numbers in a row.
            highest: that the first number of a row can be.
            expected_bytes: of all rows together, as far as known.
            memory: bytes that sorting may take.
        """
        self._folder, self._width, self._highest, self._memory = folder, width, highest, memory
        count = min(max(-(-expected_bytes * _COPIES // memory), 1), _MOST_FILES)
        self._count, self._step = count, highest // count + 1
        folder.mkdir(parents=True)
        self._files: dict[int, BufferedWriter] = {}

    def __enter__(self) -> "Buckets":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
            Path(file.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def add(self, rows: U64) -> None:
        """Take rows ``[n, width]`` in any order."""
        if self._count == 1:
            self._write(0, rows)
            return
        which = (rows[:, 0] // np.uint64(self._step)).astype(np.intp)
        order = np.argsort(which, kind="stable")
        borders = np.searchsorted(which[order], np.arange(self._count + 1))
        for i in np.flatnonzero(np.diff(borders)):
            self._write(int(i), rows[order[borders[i] : borders[i + 1]]])

    def _write(self, which: int, rows: U64) -> None:
        if which not in self._files:
            self._files[which] = (self._folder / f"{which:03d}").open("xb")
        rows.tofile(self._files[which])

    def sorted(self) -> Iterator[U64]:
        """All rows in ascending order, in pieces that are cut where the first number changes."""
        for i, file in sorted(self._files.items()):
            file.flush()
            lowest = i * self._step
            yield from self._pieces(
                Path(file.name), lowest, min(lowest + self._step - 1, self._highest)
            )

    def _pieces(self, path: Path, lowest: int, highest: int) -> Iterator[U64]:
        size = path.stat().st_size
        if size * _COPIES <= self._memory or lowest >= highest:
            if size:
                rows = np.fromfile(path, np.uint64).reshape(-1, self._width)
                yield _in_order(rows)
            return
        inner = Buckets(
            path.with_name(path.name + "-parts"),
            self._width,
            highest - lowest,
            size,
            self._memory,
        )
        with inner:
            for rows in stored_rows(path, self._width, self._memory):
                rows[:, 0] -= np.uint64(lowest)
                inner.add(rows)
            for rows in inner.sorted():
                rows[:, 0] += np.uint64(lowest)
                yield rows


def stored_rows(path: Path, width: int, memory: int) -> Iterator[U64]:
    """The rows ``[n, width]`` of a file, a part of the memory at a time."""
    at_once = max(memory // (_COPIES * 8 * width), 1) * width
    left = path.stat().st_size // 8
    with path.open("rb") as file:
        while left:
            numbers = np.fromfile(file, np.uint64, min(at_once, left))
            left -= len(numbers)
            yield numbers.reshape(-1, width)


def _in_order(rows: U64) -> U64:
    """The rows in ascending order: by the first number, which is fast, then those that share it."""
    ordered = rows[np.argsort(rows[:, 0])]
    same = ordered[1:, 0] == ordered[:-1, 0]
    ties = np.zeros(len(rows), bool)
    ties[1:] = same
    ties[:-1] |= same
    # rows of one first number stand together, so that sorted ties fill the same places
    tied = ordered[ties]
    ordered[ties] = tied[np.lexsort(tied.T[::-1])]
    return ordered
