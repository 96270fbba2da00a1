"""What is asked of the search for duplicates, and what it gives."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wmtp.corpus.duplicates.signatures import SignatureShape


@dataclass(frozen=True, slots=True)
class DuplicateSettings:
    """What is alike, and how much memory the search may take.

    Attributes:
        threshold: similarity from which on a document repeats another: the Jaccard similarity of
            the sets of their shingles.
        group_threshold: similarity from which on two documents may not part in a split.
        margin: by which the estimate of a signature may fall short of the truth before a pair
            is not compared at all; 0.12 is more than three standard deviations at 0.8.
        neighbours: documents of the same band that each is compared with: so many first ones
            and so many before it.
        longest: shingles; documents with more are judged by the estimate of their signatures.
        memory_bytes: for sorting, of each process, and as much again for texts that are compared.
            To that come 5 bytes for each document: 0.5 GB for 100 million.
        shape: of the signatures.
    """

    threshold: float = 0.8
    group_threshold: float = 0.5
    margin: float = 0.12
    neighbours: int = 64
    longest: int = 1_000_000
    memory_bytes: int = 128 * 1024**2
    shape: SignatureShape = field(default_factory=SignatureShape)

    @property
    def surely(self) -> float:
        """Estimates below this belong to no repetition."""
        return self.threshold - self.margin

    def __post_init__(self) -> None:
        """Refuse thresholds without a meaning."""
        if not 0 < self.group_threshold <= self.threshold <= 1:
            raise ValueError(f"not 0 < group_threshold <= threshold <= 1: {self}")
        if self.neighbours < 1 or self.memory_bytes < 1:
            raise ValueError(f"neighbours and memory_bytes are at least 1: {self}")


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """What became of each of ``n`` documents, by its number.

    Attributes:
        link: of a kept document, the lowest number of its group, which are those that it may not
            part from in a split; of a dropped one, the kept document that it repeats. uint32
            ``[n]``.
        percent: 0 for a kept document; of a dropped one, how many in a hundred of all shingles
            of both are shared, or ``EQUAL`` if the comparable texts are equal. uint8 ``[n]``.
    """

    link: NDArray[np.uint32]
    percent: NDArray[np.uint8]

    EQUAL: ClassVar[int] = 101

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Whether each document is kept."""
        result: NDArray[np.bool_] = self.percent == 0
        return result

    @property
    def group(self) -> NDArray[np.uint32]:
        """The lowest number of each document's group; a dropped one is where its original is."""
        return np.where(self.kept, self.link, self.link[self.link])

    def repeats(self, number: int) -> int | None:
        """The kept document that a dropped one repeats, None for a kept one."""
        return int(self.link[number]) if self.percent[number] else None

    def reason(self, number: int) -> str | None:
        """Why a document is dropped, as in the report: None, ``exact_`` or ``near_duplicate``."""
        if not self.percent[number]:
            return None
        return "exact_duplicate" if self.percent[number] == self.EQUAL else "near_duplicate"
