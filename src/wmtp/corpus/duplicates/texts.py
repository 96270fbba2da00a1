"""The comparable texts of a unit on disk, so that any two documents can be held side by side."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from wmtp.corpus.duplicates.signatures import shingles

TextOf: TypeAlias = Callable[[int], str]
"""The comparable text of a document by its number in the corpus."""


def write_texts(folder: Path, texts: Sequence[str]) -> None:
    """Write comparable texts and where each ends into a folder that exists."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum(np.fromiter(map(len, parts), np.uint64, len(parts)), dtype=np.uint64)
    np.save(folder / "ends.npy", ends)
    (folder / "texts.bin").write_bytes(b"".join(parts))


class StoredTexts:
    """The texts of all units, numbered through."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Map what ``write_texts`` wrote.

        Raises:
            OSError: a file is missing.
        """
        self._folders = folders
        self._ends = [np.asarray(np.load(folder / "ends.npy", mmap_mode="r")) for folder in folders]
        self._first = np.cumsum([0, *map(len, self._ends)])

    def __call__(self, number: int) -> str:
        """The comparable text of a document."""
        unit = int(np.searchsorted(self._first, number, side="right")) - 1
        ends, index = self._ends[unit], number - int(self._first[unit])
        start = int(ends[index - 1]) if index else 0
        with (self._folders[unit] / "texts.bin").open("rb") as file:
            file.seek(start)
            return file.read(int(ends[index]) - start).decode("utf-8", "surrogatepass")


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
