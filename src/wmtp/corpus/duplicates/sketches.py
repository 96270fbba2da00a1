"""The sketches of all documents in one file, of which little is in memory however large it is."""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wmtp.corpus.duplicates.signatures import Signatures, estimates

_PAIRS_AT_A_TIME: Final = 1 << 12
_ROWS_AT_A_TIME: Final = 1 << 15
_LARGE_BYTES: Final = 128 * 1024**2
"""A smaller file may stay mapped as a whole; of a larger one what was looked at is let go."""


def join_sketches(units: Sequence[Path], path: Path) -> None:
    """Write the sketches of all units, one after the other.

    Args:
        units: folders that ``Signatures.write`` wrote.
        path: a file that does not exist yet.
    """
    with path.open("xb") as file:
        for folder in units:
            sketch = Signatures.open(folder).sketch
            # a mapped array of its own writes itself in one piece only
            for start in range(0, len(sketch), _ROWS_AT_A_TIME):
                np.asarray(sketch[start : start + _ROWS_AT_A_TIME]).tofile(file)


class Sketches:
    """What ``join_sketches`` wrote, mapped."""

    def __init__(self, path: Path, width: int) -> None:
        """Map the file.

        Args:
            path: of the file; it has at least one sketch.
            width: bytes of a sketch.
        """
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(self._map, np.uint8).reshape(-1, width)

    def estimates(self, one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.float32]:
        """Estimated similarity of pairs of documents, see ``estimates``."""
        found = np.empty(len(one), np.float32)
        for start in range(0, len(one), _PAIRS_AT_A_TIME):
            piece = slice(start, start + _PAIRS_AT_A_TIME)
            found[piece] = estimates(self._rows, one[piece], other[piece])
            # pages of the file count as this process's memory until they are let go
            if len(self._map) > _LARGE_BYTES:
                self._map.madvise(mmap.MADV_DONTNEED)
        return found
