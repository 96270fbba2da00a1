"""The comparable texts of a unit on disk, so that any two documents can be held side by side."""

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from wmtp.corpus.duplicates.signatures import shingles

_END: Final = np.dtype("<u8")
_ENDS_FILE: Final = "ends.u64"
_TEXTS_FILE: Final = "texts.bin"

TextOf: TypeAlias = Callable[[int], str]
"""The comparable text of a document by its number in the corpus."""


def write_texts(folder: Path, texts: Sequence[str]) -> None:
    """Write comparable texts and where each ends into a folder that exists."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum(np.fromiter(map(len, parts), _END, len(parts)), dtype=_END)
    (folder / _ENDS_FILE).write_bytes(ends.tobytes())
    (folder / _TEXTS_FILE).write_bytes(b"".join(parts))


class StoredTexts:
    """The texts of all units, numbered through; no file stays open, as there may be many."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Look how many ``write_texts`` wrote.

        Raises:
            OSError: a file is missing.
        """
        self._folders = folders
        counts = [(folder / _ENDS_FILE).stat().st_size // _END.itemsize for folder in folders]
        self._first = [0, *itertools.accumulate(counts)]

    def __call__(self, number: int) -> str:
        """The comparable text of a document."""
        unit = bisect.bisect_right(self._first, number) - 1
        index = number - self._first[unit]
        with (self._folders[unit] / _ENDS_FILE).open("rb", buffering=0) as file:
            file.seek(max(index - 1, 0) * _END.itemsize)
            ends = np.frombuffer(file.read(2 * _END.itemsize), _END)
        start, end = (0, int(ends[0])) if index == 0 else (int(ends[0]), int(ends[1]))
        with (self._folders[unit] / _TEXTS_FILE).open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(end - start).decode("utf-8", "surrogatepass")


class RecentShingles:
    """The shingles of the documents that were asked for last, up to a number of characters."""

    def __init__(self, text_of: TextOf, characters: int, most: int) -> None:
        """Keep nothing yet.

        Args:
            text_of: the comparable text of a document by its number.
            characters: in a shingle.
            most: shingles that are kept, of all documents together; about 120 bytes each.
        """
        self._text_of, self._characters, self._most = text_of, characters, most
        self._kept: OrderedDict[int, frozenset[str]] = OrderedDict()
        self._size = 0

    def __call__(self, number: int) -> frozenset[str]:
        """The shingles of a document."""
        if (found := self._kept.get(number)) is not None:
            self._kept.move_to_end(number)
            return found
        found = shingles(self._text_of(number), self._characters)
        self._kept[number] = found
        self._size += len(found)
        while self._size > self._most and len(self._kept) > 1:
            self._size -= len(self._kept.popitem(last=False)[1])
        return found
