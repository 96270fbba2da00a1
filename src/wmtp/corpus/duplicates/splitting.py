"""Which documents are for validation: whole groups, chosen by a hash of their first text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from wmtp.corpus.duplicates.outcome import Duplicates
from wmtp.corpus.duplicates.signatures import Signatures
from wmtp.runtime.pool import Run, here

_NUMBERS_AT_A_TIME = 1 << 18


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """How documents are split.

    Attributes:
        validation_share: of groups, about, that are for validation.
        seed: another one gives another choice.
        largest_group: documents; larger groups are always for training, or one form letter in a
            thousand versions could become the whole validation text.
    """

    validation_share: float = 0.01
    seed: int = 0
    largest_group: int = 50

    def __post_init__(self) -> None:
        """Refuse shares without a meaning."""
        if not 0 <= self.validation_share <= 1 or not 1 <= self.largest_group <= 255:
            raise ValueError(f"not 0 <= share <= 1 and 1 <= largest_group <= 255: {self}")


def in_validation(
    found: Duplicates, units: Sequence[Path], settings: SplitSettings, run: Run | None = None
) -> NDArray[np.bool_]:
    """Whether each document is for validation; documents of one group never part.

    A group is chosen by its first document's comparable text, so that a corpus that grows behind
    it, or changes elsewhere, leaves the choice as it was.

    Args:
        found: in the numbering of the units.
        units: folders with signatures, as given to ``find_duplicates``.
        settings: see there.
        run: takes one unit after the other; None for this process. The outcome is the same.

    Returns:
        ``[n]``; a dropped document is where the one that it repeats is.
    """
    chosen = np.zeros(len(found.link), bool)
    sizes = _sizes(found)

    def heads() -> Iterator[_Heads]:
        first = 0
        for folder in units:
            piece = slice(first, first + len(Signatures.open(folder)))
            numbers = np.arange(piece.start, piece.stop)
            is_head = (found.link[piece] == numbers) & (sizes[piece] <= settings.largest_group)
            yield _Heads(folder, first, np.flatnonzero(is_head), settings)
            first = piece.stop

    for numbers in (run or here(None))(_choose, heads()):
        chosen[numbers] = True
    for start in range(0, len(chosen), _NUMBERS_AT_A_TIME):
        piece = slice(start, start + _NUMBERS_AT_A_TIME)
        # links lead to lower numbers, so that those before this piece are settled
        kept = start + np.flatnonzero(found.percent[piece] == 0)
        chosen[kept] = chosen[found.link[kept]]
        dropped = start + np.flatnonzero(found.percent[piece])
        chosen[dropped] = chosen[found.link[dropped]]
    return chosen


@dataclass(frozen=True, slots=True, eq=False)
class _Heads:
    """First documents of groups that may be chosen, by their numbers in a unit."""

    folder: Path
    first: int
    numbers: NDArray[np.intp]
    settings: SplitSettings


def _choose(_: object, heads: _Heads) -> NDArray[np.intp]:
    """Numbers in the corpus of those that are for validation."""
    below = round(heads.settings.validation_share * 2**64)
    keys = np.asarray(Signatures.open(heads.folder).exact)[heads.numbers].astype(">u8")
    seed = heads.settings.seed
    is_chosen = [xxhash.xxh3_64_intdigest(key.tobytes(), seed=seed) < below for key in keys]
    numbers: NDArray[np.intp] = heads.first + heads.numbers[np.asarray(is_chosen, bool)]
    return numbers


def _sizes(found: Duplicates) -> NDArray[np.uint8]:
    """Kept documents of each group by its lowest number, 255 for 255 and more."""
    sizes = np.zeros(len(found.link), np.uint8)
    # a group has few members in each piece, and what is full does not overflow
    for start in range(0, len(sizes), _NUMBERS_AT_A_TIME):
        piece = slice(start, start + _NUMBERS_AT_A_TIME)
        groups, counts = np.unique(found.link[piece][found.percent[piece] == 0], return_counts=True)
        sizes[groups] = np.minimum(sizes[groups].astype(np.int64) + counts, 255)
    return sizes
